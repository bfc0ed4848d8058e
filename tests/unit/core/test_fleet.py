"""syncd.core.fleet: what each installation has, and when all have the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from syncd.core.fleet import Fleet
from syncd.core.installation import (
    UNUSABLE,
    Installation,
    InstalledSecret,
    bucket_stream,
    bucket_subject,
    instance_of,
    read_document,
)
from syncd.core.model import Scope, State
from syncd.core.timing import rfc3339

if TYPE_CHECKING:
    from syncd.core.convergence import Convergence

NOW, TTL = 1_000_000.0, 180.0


def has(version: str | None, arrived: float | None = None, **adopted: bool) -> InstalledSecret:
    state = State.MISSING if version is None else State.PRESENT
    moment = None if arrived is None else rfc3339(arrived)
    return InstalledSecret(version, state, moment, (Scope("Client"),), adopted)


def write(
    fleet: Fleet, name: str, secret: InstalledSecret, *, heard: float = NOW, key: str = "key"
) -> set[str]:
    document = Installation(name, "1", rfc3339(heard), key, TTL, {"s": secret})
    return fleet.update(name, read_document(msgspec.json.encode(document)), heard)


def fleet_of(**secrets: InstalledSecret) -> Fleet:
    fleet = Fleet(scoped=True)
    for name, secret in secrets.items():
        write(fleet, name, secret)
    return fleet


def judge(fleet: Fleet, now: float = NOW, version: str | None = None) -> Convergence:
    return fleet.convergence("s", now, version)


class TestConvergence:
    def test_all_have_the_newest(self) -> None:
        """It took as long as from the first arrival to the last."""
        found = judge(fleet_of(a=has("k1:2", NOW - 30), b=has("k1:2", NOW - 10)))
        assert found.converged
        assert (found.version, found.have, found.instances) == ("k1:2", 2, 2)
        assert (found.first, found.last, found.seconds) == (NOW - 30, NOW - 10, 20.0)
        assert found.lagging == ()

    def test_one_has_an_older_one(self) -> None:
        """The version that arrived last is the newest, however few have it."""
        found = judge(fleet_of(a=has("k1:2", NOW), b=has("k1:1", NOW - 99), c=has("k1:1")))
        assert not found.converged
        assert (found.version, found.older) == ("k1:2", ("b", "c"))
        assert found.versions == {"k1:2": 1, "k1:1": 2}

    @pytest.mark.parametrize(
        ("held", "deviation"),
        [
            ({"a": "3", "b": "2", "c": "2"}, "k1:2"),
            ({"a": "3", "b": "2"}, None),
            ({"a": "3", "b": "2", "c": "1"}, None),
            ({"a": "3", "b": "3", "c": "2", "d": "2"}, None),
            ({"a": "3", "b": "3"}, None),
            ({}, None),
        ],
    )
    def test_one_that_is_alone_with_the_newest(
        self, held: dict[str, str], deviation: str | None
    ) -> None:
        """In the end it is that one whose value is another; what the others have is the measure."""
        fleet = fleet_of(**{n: has(f"k1:{v}", NOW - 9 + int(v)) for n, v in held.items()})
        assert judge(fleet).deviates == deviation

    def test_a_version_that_comes_back_is_the_newest_again(self) -> None:
        """A rotation that is undone: who never got the newer version lacks nothing."""
        found = judge(fleet_of(a=has("k1:1", NOW), b=has("k1:2", NOW - 9), c=has("k1:1", NOW - 99)))
        assert (found.version, found.older) == ("k1:1", ("b",))

    def test_a_replica_that_starts_with_an_old_secret(self) -> None:
        """It has seen no change, so that what it has is not the newest."""
        found = judge(fleet_of(new=has("k1:1"), b=has("k1:2", NOW - 99)))
        assert (found.version, found.older) == ("k1:2", ("new",))

    def test_without_any_arrival_most_are_right(self) -> None:
        """Installations that all just started."""
        found = judge(fleet_of(a=has("k1:9"), b=has("k1:1"), c=has("k1:1")))
        assert (found.version, found.older, found.seconds) == ("k1:1", ("a",), None)

    def test_a_silent_one_has_proven_nothing(self) -> None:
        """Whatever it had; and it counts again as soon as it writes."""
        fleet = fleet_of(a=has("k1:2", NOW))
        write(fleet, "b", has("k1:2", NOW), heard=NOW - TTL - 1)
        found = judge(fleet)
        assert (found.converged, found.silent, found.older) == (False, ("b",), ())
        assert (found.have, found.lagging, fleet.silent(NOW)) == (1, ("b",), ["b"])
        assert write(fleet, "b", has("k1:2", NOW), heard=NOW + 1) == {"s"}
        assert judge(fleet).converged

    def test_one_that_has_lost_it(self) -> None:
        """A secret that is missing somewhere has not converged; one that is missing everywhere
        has no version."""
        assert judge(fleet_of(a=has("k1:2", NOW), b=has(None, NOW))).older == ("b",)
        nowhere = judge(fleet_of(a=has(None, NOW), b=has(None)))
        assert (nowhere.version, nowhere.converged, nowhere.older) == (None, False, ("a", "b"))

    def test_another_key_is_not_compared(self) -> None:
        """Its versions say nothing; it is named."""
        fleet = fleet_of(a=has("k1:2", NOW), b=has("k1:2", NOW))
        write(fleet, "c", has("k1:7", NOW + 1), key="other")
        found = judge(fleet)
        assert (found.version, found.incomparable, found.older) == ("k1:2", ("c",), ())
        assert (found.instances, found.have, found.converged) == (3, 2, False)

    def test_a_version_that_is_asked_for(self) -> None:
        """It counts instead of the newest one."""
        found = judge(fleet_of(a=has("k1:2", NOW), b=has("k1:2", NOW)), version="k1:3")
        assert (found.version, found.have, found.older) == ("k1:3", 0, ("a", "b"))

    def test_an_unknown_secret(self) -> None:
        """Nobody has it, and that is not everybody."""
        found = Fleet().convergence("x", NOW)
        assert (found.instances, found.version, found.converged) == (0, None, False)

    @pytest.mark.parametrize(
        ("second", "adopted", "proven"),
        [({"r": True}, 2, True), ({"r": True, "q": False}, 1, False), ({}, 1, False)],
    )
    def test_adoption(self, second: dict[str, bool], adopted: int, *, proven: bool) -> None:
        """Proven by an installation whose replicas all accept the version, and that has some."""
        fleet = fleet_of(a=has("k1:2", NOW, r=True), b=has("k1:2", NOW, **second))
        found = judge(fleet)
        assert (found.converged, found.adopted, found.is_adopted) == (True, adopted, proven)


class TestDocuments:
    def test_a_heartbeat_touches_nothing(self) -> None:
        """Only what differs is looked at again."""
        fleet = Fleet(scoped=True)
        assert write(fleet, "a", has("k1:1")) == {"s"}
        assert write(fleet, "a", has("k1:1"), heard=NOW + 60) == set()
        assert write(fleet, "a", has("k1:2", NOW), heard=NOW + 61) == {"s"}
        assert write(fleet, "a", has("k1:2", NOW), heard=NOW + 62, key="new") == {"s"}
        assert fleet.scopes("s") == (Scope("Client"),)
        assert fleet.scopes("x") == ()

    def test_an_installation_that_is_deleted(self) -> None:
        """By hand, or because its document got too old."""
        fleet = fleet_of(a=has("k1:1"), b=has("k1:2"))
        assert (fleet.forget("a"), fleet.forget("a")) == ({"s"}, set())
        assert fleet.expire(NOW) == set()
        assert fleet.expire(NOW + 1) == {"s"}
        assert (fleet.members, fleet.names) == ({}, [])

    def test_the_names(self) -> None:
        """Sorted, each once."""
        assert fleet_of(a=has("k1:1"), b=has("k1:2")).names == ["s"]

    def test_what_nobody_has_any_longer_is_forgotten(self) -> None:
        """Texts of documents are kept once, and not for ever: a fleet rotates for years."""
        fleet = Fleet(scoped=True)
        for number in range(5000):
            write(fleet, "a", has(f"k1:{number:x}", NOW))
        assert len(fleet._texts) + len(fleet._versions) < 2500
        assert judge(fleet).version == "k1:1387"

    def test_several_secrets_at_once(self) -> None:
        """The same as one by one, also where installations have different ones."""
        fleet = fleet_of(a=has("k1:1", NOW), b=has("k1:2", NOW - 1))
        document = Installation("c", "1", rfc3339(NOW), "key", TTL, {"t": has("k1:3")})
        fleet.update("c", read_document(msgspec.json.encode(document)), NOW)
        unscoped = Fleet()
        unscoped.update("c", read_document(msgspec.json.encode(document)), NOW)
        assert (unscoped.names, unscoped.scopes("t")) == (["t"], ())
        assert fleet.names == ["s", "t"]
        assert list(fleet.convergences("st", NOW)) == [judge(fleet), fleet.convergence("t", NOW)]

    def test_what_becomes_silent_is_told_once(self) -> None:
        """By and by, and again after it has written."""
        fleet = fleet_of(a=has("k1:1"))
        write(fleet, "b", has("k1:1"), heard=NOW + 10)
        assert fleet.silenced(NOW + TTL) == set()
        assert fleet.silenced(NOW + TTL + 1) == {"s"}
        assert fleet.silenced(NOW + TTL + 2) == set()
        assert fleet.silenced(NOW + TTL + 11) == {"s"}
        write(fleet, "b", has("k1:1"), heard=NOW + 500)
        assert fleet.silenced(NOW + 600) == set()
        assert fleet.silenced(NOW + 501 + TTL) == {"s"}


class TestNonsense:
    """What an installation writes is checked: it may be another program, or one with a bug."""

    @staticmethod
    def document(**changes: object) -> bytes:
        content = {"instance": "a", "time": rfc3339(NOW), "key": "key", "ttl": TTL, "secrets": {}}
        return msgspec.json.encode({**content, **changes})

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff",
            b"[]",
            b'{"instance": "a"}',
            b"[" * 10_000,
            document(ttl=0),
            document(ttl=-1),
            document(ttl=1e999),
            document(ttl="1"),
            document(time="9999-12-31T23:59:60Z"),
            document(time="2026-11-23T20:40:28"),
            document(time=7),
            document(key=None),
        ],
    )
    def test_a_document_that_is_none(self, content: bytes) -> None:
        """It is refused as a whole."""
        with pytest.raises(UNUSABLE):
            read_document(content)

    @pytest.mark.parametrize(
        "secret",
        [
            {"changed_at": "9999-12-31T23:59:59.999Z"},
            {"changed_at": "9999-12-31T23:59:59-23:59"},
            {"changed_at": "0001-01-01T00:00:00+23:59"},
            {"changed_at": "1969-12-31T23:59:59Z"},
            {"changed_at": rfc3339(NOW + 2 * 86400)},
            {"changed_at": "yesterday"},
            {"version": "\u202ek1:1"},
            {"version": ""},
            {"version": "s"},  # a text that is known, but of a name
            {"version": "key"},
            {"version": 1},
            {"scope": [{"resource_type": 1}]},
            {"scope": "all"},
            {"adopted": {"r": "yes"}},
        ],
    )
    def test_a_secret_that_is_none(self, secret: dict[str, object]) -> None:
        """It is refused, and what the installation had before stays."""
        fleet = fleet_of(a=has("k1:1"))
        before = judge(fleet)
        document = read_document(self.document(secrets={"s": {"version": "k1:2", **secret}}))
        with pytest.raises(UNUSABLE):
            fleet.update("a", document, NOW)
        assert judge(fleet) == before

    @pytest.mark.parametrize("skew", [-86400.0, 3600.0, 7e9])
    def test_a_clock_that_is_wrong(self, skew: float) -> None:
        """What arrived first does not become the newest by it."""
        fleet = fleet_of(b=has("k1:2", NOW - 10))
        late = Installation(
            *("a", "1", rfc3339(NOW + skew), "key", TTL),
            {"s": has("k1:1", NOW + skew - 30)},
        )
        fleet.update("a", read_document(msgspec.json.encode(late)), NOW)
        assert (judge(fleet).version, judge(fleet).older) == ("k1:2", ("a",))
        assert judge(fleet, version="k1:1").first == pytest.approx(NOW - 30)

    def test_a_change_is_not_later_than_its_document(self) -> None:
        """Where the clock was set back between them, it counts from the document."""
        assert judge(fleet_of(a=has("k1:1", NOW + 3600))).last == NOW

    def test_an_unreadable_document(self) -> None:
        """The rest has not converged: what the installation has is not known. What it had counts
        until it is silent, and it is a part of the fleet until its document is deleted."""
        fleet = fleet_of(a=has("k1:2", NOW), b=has("k1:2", NOW))
        assert fleet.distrust("b", "b") == {"s"}
        assert fleet.distrust("b", "b") == set()
        found = judge(fleet)
        assert (found.have, found.instances, found.converged) == (2, 2, False)
        assert (found.unreadable, found.lagging) == (("b",), ("b",))
        assert judge(fleet, NOW + TTL + 1).silent == ("a", "b")
        assert write(fleet, "b", has("k1:2", NOW)) == {"s"}
        assert judge(fleet).converged
        fleet.distrust("x", "x")
        assert not judge(fleet).converged
        assert fleet.forget("x") == {"s"}
        assert judge(fleet).converged


class TestNames:
    def test_every_instance_has_a_key_of_its_own(self) -> None:
        """Of characters that a bucket allows."""
        names = ["node-1", "prod/aidbox-0", "prod=2Faidbox-0", "a.b", "~", "x" * 240]
        subjects = {bucket_subject("state", name) for name in names}
        assert len(subjects) == len(names)
        for name in names:
            subject = bucket_subject("state", name)
            key = subject.removeprefix("$KV.state.")
            assert instance_of(subject) == name or len(key) >= 160
            assert key.replace("-", "").replace("=", "").replace("/", "").isalnum()
        assert bucket_stream("state") == "KV_state"
