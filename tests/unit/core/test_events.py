"""syncd.core.events: what is said when something changed."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event

from syncd.core.changes import plan
from syncd.core.event_data import (
    DESTINATION_RECREATED,
    SECRET_ADOPTED,
    SECRET_CHANGED,
    SECRET_CONVERGED,
    SECRET_DIVERGED,
    SECRET_REJECTED,
    VAULT_CONFIG_CHANGED,
    AdoptionData,
    DestinationData,
    FleetData,
    ReplicaData,
    SecretData,
    VaultConfigData,
    known_of,
    scope_data,
    secret_state,
)
from syncd.core.events import STRUCTURED, WIRE_TYPES, Event, Origin, Stamp, events_of
from syncd.core.model import ChangeKind, Entry, Grant, Known, Observation, Scope, State

AT = "2026-11-23T20:40:28.333Z"
MINE, ALL = Scope("Client", "mine"), Scope("Client")
STAMP = Stamp("5f0c2a91", "/syncd/host")


def secret_event(
    version: str | None = "k1:22", previous: str | None = "k1:11", sequence: int = 42
) -> Event:
    """An event about the secret `a`."""
    data = SecretData("a", ChangeKind.MODIFIED, "/s/a", Scope("Client", "mine"), version, previous)
    return Event(sequence, AT, SECRET_CHANGED, "a", data)


VAULT_EVENT = Event(
    7,
    AT,
    VAULT_CONFIG_CHANGED,
    "/etc/vc.json",
    VaultConfigData(("a", "b"), (), ("b",), ()),
    {"a": (MINE,), "b": (Scope("IdentityProvider"),)},
)


def test_the_secret_that_an_event_is_about() -> None:
    """That of another installation has its source; a vault config's change is about several."""
    assert secret_event().secret == "a"
    theirs = msgspec.structs.replace(secret_event(), origin=Origin("5f0c2a91-1", "/syncd/other"))
    assert theirs.secret not in (None, "a")
    assert VAULT_EVENT.secret is None
    assert VAULT_EVENT.slot == "event:7"


class TestWire:
    def test_is_the_documented_cloud_event(self) -> None:
        """The JSON is what the contract shows, and the CloudEvents SDK accepts it."""
        body = STAMP.encode(secret_event())
        assert json.loads(body) == {
            "specversion": "1.0",
            "id": "5f0c2a91-42",
            "source": "/syncd/host",
            "type": "io.syncd.secret.changed",
            "subject": "a",
            "time": AT,
            "datacontenttype": "application/json",
            "data": {
                "secret": "a",
                "change": "modified",
                "path": "/s/a",
                "scope": {"resource_type": "Client", "id": "mine"},
                "version": "k1:22",
                "previous_version": "k1:11",
            },
        }
        event = from_structured_event(HTTPMessage({"content-type": STRUCTURED}, body))
        assert event.get_id() == "5f0c2a91-42"

    def test_fits_its_schema(self) -> None:
        """Both types of event validate against the published schema; another type does not."""
        schema = msgspec.json.schema(WIRE_TYPES)
        for event in (secret_event(), secret_event(None), VAULT_EVENT):
            jsonschema.validate(json.loads(STAMP.encode(event)), schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"type": "other"}, schema)

    def test_a_batch_is_a_list(self) -> None:
        """Batch content mode is a JSON array of events, in order."""
        batch = json.loads(STAMP.encode_batch([secret_event(sequence=1), VAULT_EVENT]))
        assert [event["id"] for event in batch] == ["5f0c2a91-1", "5f0c2a91-7"]

    def test_a_whole_type_has_no_id(self) -> None:
        """A scope without `id` is written without it; several scopes are a list."""
        assert msgspec.to_builtins(scope_data((ALL,))) == {"resource_type": "Client"}
        assert scope_data((ALL, MINE)) == [Scope("Client"), Scope("Client", "mine")]


def test_a_ping_is_a_cloud_event_without_a_position() -> None:
    """Its id is no sequence, and it fits `syncd schema event`."""
    event = json.loads(STAMP.encode_ping("hook", "12ab", AT))
    jsonschema.validate(event, msgspec.json.schema(WIRE_TYPES))
    assert (event["id"], event["type"]) == ("5f0c2a91-ping-12ab", "io.syncd.ping")
    assert (event["subject"], event["data"]) == ("hook", {"consumer": "hook"})
    assert STAMP.sequence(event["id"]) is None


class TestReset:
    def test_is_a_cloud_event_of_its_own_type(self) -> None:
        """It stands for every event up to its id, and fits `syncd schema event`."""
        known = Known(Entry("a", "/s/a", (MINE,)), State.UNREADABLE, "k1:22", "is a pipe", AT)
        body = STAMP.encode_reset((secret_state(known),), 42, AT)
        event = json.loads(body)
        jsonschema.validate(event, msgspec.json.schema(WIRE_TYPES))
        assert (event["id"], event["type"]) == ("5f0c2a91-42", "io.syncd.reset")
        assert event["data"] == {
            "secrets": [
                {
                    "secret": "a",
                    "path": "/s/a",
                    "scope": {"resource_type": "Client", "id": "mine"},
                    "state": "unreadable",
                    "version": "k1:22",
                    "changed_at": AT,
                    "problem": "is a pipe",
                }
            ]
        }
        headers = {"content-type": STRUCTURED}
        assert from_structured_event(HTTPMessage(headers, body)).get_type() == "io.syncd.reset"

    def test_an_event_about_some_secrets(self) -> None:
        """What concerns none of them is no event; a vault config's change is cut to them."""
        assert secret_event().about(["b"]) is None
        assert secret_event().about(["a", "b"]) == secret_event()
        assert VAULT_EVENT.about(["c"]) is None
        seen = VAULT_EVENT.about(["a"])
        assert seen is not None
        assert seen.data == VaultConfigData(("a",), (), (), ())


class TestStamp:
    @pytest.mark.parametrize("sequence", [0, 1, 10**18 - 1])
    def test_reads_its_own_ids(self, sequence: int) -> None:
        """An id leads back to its position."""
        assert STAMP.sequence(STAMP.id(sequence)) == sequence

    @pytest.mark.parametrize(
        "event_id",
        [
            *("", "5", "other-1", "5f0c2a91-", "5f0c2a91--1", "5f0c2a91-x", "5f0c2a91-²", "-1"),
            "5f0c2a91-" + "9" * 19,
        ],
    )
    def test_knows_no_other_ids(self, event_id: str) -> None:
        """An id of another epoch, or none at all, names no position."""
        assert STAMP.sequence(event_id) is None


class TestOrigin:
    @pytest.mark.parametrize(
        ("later", "is_before"),
        [
            *(("a-10", True), ("a-9", False), ("a-8", False)),
            *(("b-10", False), ("a-x", False), ("10", False), ("", False)),
        ],
    )
    def test_is_before_what_its_ledger_numbered_later(self, later: str, *, is_before: bool) -> None:
        """By number; of another ledger, or of a foreign id, nothing is known."""
        assert Origin("a-9", "/syncd/n1").is_before(later) is is_before


class TestSlot:
    def test_is_shared_by_the_events_of_one_secret(self) -> None:
        """A newer state of a secret supersedes an older one."""
        assert secret_event(sequence=1).slot == secret_event(sequence=2).slot == "secret:a"

    def test_is_its_own_for_each_change_of_the_vault_config(self) -> None:
        """Changes of the vault config never supersede each other."""
        assert VAULT_EVENT.slot == "event:7"

    def test_the_secret_that_an_event_is_about(self) -> None:
        """With its source where another installation has it; none where it is about several."""
        event = secret_event(sequence=1)
        assert event.secret == "a"
        relayed = msgspec.structs.replace(event, origin=Origin("x-1", "/syncd/n1"))
        assert relayed.secret == "/syncd/n1 a"
        assert VAULT_EVENT.secret is None

    assert VAULT_EVENT.slot == "event:7"


class TestSeenBy:
    @pytest.mark.parametrize(
        ("grant", "seen"),
        [
            (Grant(), True),
            (Grant([ALL]), True),
            (Grant([MINE]), True),
            (Grant([Scope("Client", "other")]), False),
            (Grant([]), False),
        ],
    )
    def test_a_secret_is_seen_whole_or_not_at_all(self, grant: Grant, seen: bool) -> None:
        """A secret outside the grant does not exist for the receiver."""
        event = secret_event()
        assert event.seen_by(grant) == (event if seen else None)

    def test_a_file_outside_the_vault_config(self) -> None:
        """Not for a receiver that wants none of them, whatever its scopes."""
        event = secret_event()
        extra = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, extra=True))
        assert extra.seen_by(Grant([ALL])) is extra
        assert extra.seen_by(Grant([ALL], extra=False)) is None
        assert event.seen_by(Grant([ALL], extra=False)) is event

    def test_a_vault_config_change_names_only_what_may_be_seen(self) -> None:
        """Names outside the grant are left out; with none left there is no event."""
        assert VAULT_EVENT.seen_by(Grant()) is VAULT_EVENT
        assert VAULT_EVENT.seen_by(Grant(types=[SECRET_CHANGED])) is None
        seen = VAULT_EVENT.seen_by(Grant([ALL]))
        assert seen is not None
        assert seen.data == VaultConfigData(("a",), (), (), ())
        assert VAULT_EVENT.seen_by(Grant([Scope("Other")])) is None


class TestSince:
    def test_tells_the_change_against_what_the_receiver_knows(self) -> None:
        """The previous version is the one that this receiver acknowledged last."""
        told = secret_event().since("k1:00").data
        assert isinstance(told, SecretData)
        assert (told.change, told.previous_version) == (ChangeKind.MODIFIED, "k1:00")

    def test_is_added_for_a_receiver_that_never_knew_it(self) -> None:
        """Without an acknowledged version a present secret is new."""
        told = secret_event().since(None).data
        assert isinstance(told, SecretData)
        assert (told.change, told.previous_version) == (ChangeKind.ADDED, None)

    def test_is_removed_if_it_is_gone(self) -> None:
        """Whatever the receiver knew, a secret without a version is removed."""
        told = secret_event(None).since("k1:00").data
        assert isinstance(told, SecretData)
        assert (told.change, told.previous_version) == (ChangeKind.REMOVED, "k1:00")

    def test_is_itself_where_nothing_differs(self) -> None:
        """A receiver that is up to date, and a vault config event, need no other words."""
        event = secret_event()
        assert event.since("k1:11") is event
        assert VAULT_EVENT.since("k1:00") is VAULT_EVENT


class TestEventsOf:
    def test_are_the_vault_config_first_and_then_secrets_by_name(self) -> None:
        """One plan gives events of one time in consecutive positions."""
        entry = Entry("b", "/s/b", (MINE,))
        known = {"b": Known(entry, State.PRESENT, "k1:11", None, None)}
        entries = {"b": Entry("b", "/s/b", (ALL,)), "a": Entry("a", "/s/a", (ALL,))}
        seen = {name: Observation(State.PRESENT, "k1:22") for name in "ab"}
        config, first, second = events_of(plan(known, entries, seen, AT), known, "/vc", AT, 5)
        assert [e.sequence for e in (config, first, second)] == [5, 6, 7]
        assert {e.time for e in (config, first, second)} == {AT}
        assert config.data == VaultConfigData(("a",), (), ("b",), ())
        assert config.audience == {"a": (ALL,), "b": (MINE, ALL)}
        assert (config.subject, first.subject, second.subject) == ("/vc", "a", "b")
        assert second.audience == {"b": (ALL,)}

    def test_are_secrets_alone_where_the_vault_config_is_the_same(self) -> None:
        """Without a change of the vault config its event is left out."""
        entry = Entry("a", "/s/a", (ALL,))
        known = {"a": Known(entry, State.PRESENT, "k1:11", None, None)}
        gone = {"a": Observation(State.MISSING, None, "gone")}
        (event,) = events_of(plan(known, {"a": entry}, gone, AT), known, "/vc", AT, 1)
        assert isinstance(event.data, SecretData)
        assert event.data.change is ChangeKind.REMOVED
        assert event.data.version is None


class TestAdoption:
    @staticmethod
    def event(type_: str = SECRET_ADOPTED, consumer: str = "one") -> Event:
        replica = ReplicaData("http://127.0.0.1:8080", True, 0.2, None)
        scope = Scope("Client", "mine")
        data = AdoptionData("a", scope, "k1:00", consumer, 0.2, (replica,))
        return Event(7, AT, type_, "a", data)

    def test_supersedes_what_its_consumer_said_of_the_secret(self) -> None:
        """A receiver that was away gets the newest outcome; another consumer's is another one."""
        slots = [
            self.event(SECRET_ADOPTED).slot,
            self.event(SECRET_REJECTED).slot,
            self.event(consumer="two").slot,
        ]
        assert slots == ["adoption:one:a", "adoption:one:a", "adoption:two:a"]

    def test_destinations_have_slots_of_their_own(self) -> None:
        """The newest outcome of each destination of a secret."""
        scope = Scope("AidboxTopicDestination", "orders")
        data = DestinationData("a", scope, "k1:00", "one", 0.2, None, ())
        event = Event(7, AT, DESTINATION_RECREATED, "a", data)
        assert event.slot == "destination:one:orders:a"
        assert event.audience == {"a": (scope,)}

    def test_is_seen_by_whoever_may_see_the_secret(self) -> None:
        """Its audience is the secret's, and no acknowledged version changes it."""
        event = self.event()
        assert event.since("k1:ff") is event
        assert event.seen_by(Grant([ALL])) is event
        assert event.seen_by(Grant([Scope("TokenIntrospector")])) is None

    @pytest.mark.parametrize("type_", [SECRET_ADOPTED, SECRET_REJECTED])
    def test_is_of_the_schema(self, type_: str) -> None:
        """Both types are among those that `syncd schema event` describes."""
        content = json.loads(STAMP.encode(self.event(type_)))
        assert content["type"] == type_
        jsonschema.validate(content, msgspec.json.schema(WIRE_TYPES))


class TestFleet:
    """What a relay announces of all installations together."""

    @staticmethod
    def event(type_: str, previous: str | None = "k1:11") -> Event:
        nobody: Any = ((), (), (), (), None, None, None)
        data = FleetData("a", MINE, "k1:22", previous, 4, 4, 0, *nobody)
        return Event(9, AT, type_, "a", data)

    def test_supersedes_what_was_said_of_the_same_kind(self) -> None:
        """A version that converged is not lost where one diverges before it is delivered."""
        converged, diverged = self.event(SECRET_CONVERGED), self.event(SECRET_DIVERGED)
        assert converged.slot == self.event(SECRET_CONVERGED, None).slot
        assert len({converged.slot, diverged.slot, secret_event().slot}) == 3

    def test_a_version_that_converged_follows_what_the_receiver_knows(self) -> None:
        """So a receiver that was away can tell a rotation from the end of a divergence."""
        data = self.event(SECRET_CONVERGED, "k1:22").since("k1:07").data
        assert isinstance(data, FleetData)
        assert data.previous_version == "k1:07"
        diverged = self.event(SECRET_DIVERGED)
        assert diverged.since("k1:07") is diverged

    def test_is_seen_by_those_who_may_see_the_secret(self) -> None:
        """By its scope, and fits the schema."""
        event = self.event(SECRET_CONVERGED)
        assert event.seen_by(Grant([MINE])) is event
        assert event.seen_by(Grant([Scope("IdentityProvider")])) is None
        wire = json.loads(STAMP.encode(event))
        jsonschema.validate(wire, msgspec.json.schema(WIRE_TYPES))


class TestOfAnotherInstallation:
    def test_what_an_event_tells_of_its_secret(self) -> None:
        """Known as another installation's, in a slot of its own, present or missing."""
        scope = [Scope("Client", "one"), Scope("TokenIntrospector", None)]
        data = SecretData("a", ChangeKind.MODIFIED, "/run/a", scope, "k1:00", None)
        known = known_of(AT, "/syncd/other", data)
        entry = Entry(
            "a", "/run/a", (Scope("Client", "one"), Scope("TokenIntrospector")), "/syncd/other"
        )
        assert known == Known(entry, State.PRESENT, "k1:00", None, AT)
        assert known.entry.key != Entry("a", "/run/a", ()).key
        gone = msgspec.structs.replace(data, version=None)
        assert known_of(AT, "/syncd/other", gone).state is State.MISSING
