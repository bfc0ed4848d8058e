"""syncd.core.fleet: what each installation has, and when all have the same."""

from __future__ import annotations

import msgspec
import pytest

from syncd.core.fleet import Convergence, Fleet
from syncd.core.installation import (
    Installation,
    InstalledSecret,
    bucket_stream,
    bucket_subject,
    decode_installation,
)
from syncd.core.model import Scope, State
from syncd.core.timing import rfc3339

NOW, TTL = 1_000_000.0, 180.0


def has(version: str | None, arrived: float | None = None, **adopted: bool) -> InstalledSecret:
    state = State.MISSING if version is None else State.PRESENT
    moment = None if arrived is None else rfc3339(arrived)
    return InstalledSecret(version, state, moment, (Scope("Client"),), adopted)


def write(
    fleet: Fleet, name: str, secret: InstalledSecret, *, heard: float = NOW, key: str = "key"
) -> set[str]:
    document = Installation(name, "1", rfc3339(heard), key, TTL, {"s": secret})
    return fleet.update(name, document, heard)


def fleet_of(**secrets: InstalledSecret) -> Fleet:
    fleet = Fleet()
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
        fleet = Fleet()
        assert write(fleet, "a", has("k1:1")) == {"s"}
        assert write(fleet, "a", has("k1:1"), heard=NOW + 60) == set()
        assert write(fleet, "a", has("k1:2", NOW), heard=NOW + 61) == {"s"}
        assert write(fleet, "a", has("k1:2", NOW), heard=NOW + 62, key="new") == {"s"}
        assert fleet.scopes == {"s": (Scope("Client"),)}

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

    def test_json_and_back(self) -> None:
        """A document is what it was."""
        document = Installation("a", "1", rfc3339(NOW), "key", TTL, {"s": has("k1:1", NOW, r=True)})
        assert decode_installation(msgspec.json.encode(document)) == document

    def test_every_instance_has_a_key_of_its_own(self) -> None:
        """Of characters that a bucket allows."""
        names = ["node-1", "prod/aidbox-0", "prod=2Faidbox-0", "a.b", "~", "x" * 240]
        subjects = {bucket_subject("state", name) for name in names}
        assert len(subjects) == len(names)
        for subject in subjects:
            key = subject.removeprefix("$KV.state.")
            assert key.replace("-", "").replace("=", "").replace("/", "").isalnum()
        assert bucket_stream("state") == "KV_state"
