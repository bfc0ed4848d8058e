"""syncd.core.announcements: what a relay announces of the fleet, and what not."""

from __future__ import annotations

from typing import Any

import msgspec

from syncd.core.announcements import (
    FORGET_AFTER,
    KEY_TIME,
    MOST_NAMED,
    Judgement,
    Standing,
    fleet_data,
    judge,
)
from syncd.core.convergence import Convergence
from syncd.core.event_data import SECRET_CONVERGED, SECRET_DIVERGED
from syncd.core.model import Scope

LIMIT = 600.0


def spread(version: str | None, have: int, instances: int = 3, **more: Any) -> Convergence:
    """A version that some of the installations have; the others have an older one."""
    older = tuple(f"n{number}" for number in range(have, instances))
    nothing = {"adopted": 0, "silent": (), "incomparable": (), "unreadable": (), "versions": {}}
    fields = {"secret": "s", "version": version, "key": "key", "instances": instances}
    times = {"first": None, "last": None}
    return Convergence(**{**nothing, **fields, **times, "have": have, "older": older, **more})


class Relay:
    """A secret as a relay follows it: each step is a convergence at a time."""

    def __init__(self) -> None:
        self.standing: Standing | None = None

    def see(self, now: float, found: Convergence, *, current: bool = True) -> str | None:
        """The short name of what is announced."""
        return self.judge(now, found, current=current)[0]

    def judge(
        self, now: float, found: Convergence, *, current: bool = True
    ) -> tuple[str | None, str | None]:
        judged: Judgement = judge(found, self.standing, now, LIMIT, current=current)
        # as after a restart
        encoded = msgspec.json.encode(judged.standing)
        self.standing = msgspec.json.decode(encoded, type=Standing | None)
        name = {SECRET_CONVERGED: "converged", SECRET_DIVERGED: "diverged", None: None}
        return name[judged.announce], judged.previous


def settled(version: str = "k1:1", last: float | None = None) -> Relay:
    relay = Relay()
    assert relay.see(0, spread(version, 3, last=last)) is None
    return relay


class TestConverged:
    def test_what_is_so_from_the_start_is_no_news(self) -> None:
        """Also not the second time."""
        assert settled().see(1, spread("k1:1", 3)) is None

    def test_a_rotation(self) -> None:
        """It is announced once, when the last one has it, with the version before."""
        relay = settled()
        assert [relay.see(at, spread("k1:2", at)) for at in (1, 2)] == [None, None]
        assert relay.judge(3, spread("k1:2", 3)) == ("converged", "k1:1")
        assert relay.see(4, spread("k1:2", 3)) is None

    def test_a_rotation_that_the_relay_never_saw_spreading(self) -> None:
        """It was away: the newest state is announced."""
        assert settled().judge(9, spread("k1:2", 3)) == ("converged", "k1:1")

    def test_one_that_spreads_at_the_first_sight(self) -> None:
        """It is announced: it was not so from the start."""
        relay = Relay()
        assert relay.see(0, spread("k1:2", 2)) is None
        assert relay.judge(1, spread("k1:2", 3)) == ("converged", None)

    def test_one_that_goes_back(self) -> None:
        """To a version that had converged, before it was missed: nothing has happened."""
        relay = settled()
        assert relay.see(1, spread("k1:2", 1)) is None
        assert relay.see(2, spread("k1:1", 3)) is None

    def test_one_that_joins_and_one_that_is_silent_for_a_while(self) -> None:
        """Neither is a rotation."""
        relay = settled()
        assert relay.see(1, spread("k1:1", 3, 4)) is None
        assert relay.see(2, spread("k1:1", 4, 4)) is None
        assert relay.see(3, spread("k1:1", 3, 4, older=(), silent=("n3",))) is None
        assert relay.see(4, spread("k1:1", 4, 4)) is None

    def test_one_that_leaves(self) -> None:
        """What it did not have, all others have."""
        relay = settled()
        assert relay.see(1, spread("k1:2", 2, 3)) is None
        assert relay.see(2, spread("k1:2", 2, 2)) == "converged"

    def test_a_bucket_that_cannot_be_read(self) -> None:
        """Nothing converges, and nothing changes."""
        relay = settled()
        assert relay.see(1, spread("k1:2", 3), current=False) is None
        assert relay.standing == Standing("k1:1", "key")
        assert relay.see(2, spread("k1:2", 3)) == "converged"


class TestDiverged:
    def test_the_deadline(self) -> None:
        """It is announced once, and when it has ended, as converged."""
        relay = settled()
        assert relay.see(1, spread("k1:2", 2)) is None
        assert relay.standing is not None
        assert relay.standing.due(LIMIT) == 1 + LIMIT
        assert relay.see(LIMIT, spread("k1:2", 2)) is None
        assert relay.judge(1 + LIMIT, spread("k1:2", 2)) == ("diverged", "k1:1")
        assert relay.standing.due(LIMIT) is None
        assert relay.see(9 + LIMIT, spread("k1:2", 2)) is None
        assert relay.judge(9 + LIMIT, spread("k1:2", 3)) == ("converged", "k1:1")
        assert relay.see(10 + LIMIT, spread("k1:2", 3)) is None

    def test_a_version_that_had_converged(self) -> None:
        """One lost it later; the end says that this was the version before, too."""
        relay = settled()
        relay.see(1, spread("k1:1", 2))
        assert relay.judge(1 + LIMIT, spread("k1:1", 2)) == ("diverged", "k1:1")
        assert relay.judge(2 + LIMIT, spread("k1:1", 3)) == ("converged", "k1:1")

    def test_the_next_version(self) -> None:
        """It has its own time to spread, and is announced if it does not."""
        relay = settled()
        relay.see(0, spread("k1:2", 2))
        assert relay.see(LIMIT, spread("k1:2", 2)) == "diverged"
        assert relay.see(LIMIT + 9, spread("k1:3", 1)) is None
        assert relay.see(2 * LIMIT, spread("k1:3", 2)) is None
        assert relay.see(2 * LIMIT + 9, spread("k1:3", 2)) == "diverged"
        assert relay.see(3 * LIMIT, spread("k1:1", 3)) == "converged"

    def test_rotations_in_a_row_do_not_put_it_off(self) -> None:
        """It has not converged for as long as the limit, in whatever version."""
        relay = settled()
        seen = [relay.see(at, spread(f"k1:{at}", 2)) for at in range(0, 601, 200)]
        assert seen == [None, None, None, "diverged"]

    def test_a_bucket_that_cannot_be_read(self) -> None:
        """All become silent, which is what is known of them."""
        relay = settled()
        silent = spread("k1:1", 0, older=(), silent=("n0", "n1", "n2"))
        assert relay.see(1, silent, current=False) is None
        assert relay.see(1 + LIMIT, silent, current=False) == "diverged"

    def test_a_clock_that_is_set_back(self) -> None:
        """The deadline is not further away than the limit."""
        relay = settled()
        relay.see(1_000_000, spread("k1:2", 2))
        assert relay.see(5, spread("k1:2", 2)) is None
        assert relay.see(5 + LIMIT, spread("k1:2", 2)) == "diverged"


class TestKeys:
    """Under a new fingerprint key each version is another one."""

    def test_a_new_key_is_no_rotation(self) -> None:
        """Whether something ever arrived or not; a clock that is corrected may differ a bit."""
        for last, now in ((None, None), (50.0, 50.0), (50.0, None), (50.0, 52.0)):
            relay = settled("k1:1", last)
            assert relay.see(100, spread("k1:9", 1, key="new", incomparable=("n1",))) is None
            assert relay.see(101, spread("k1:9", 3, key="new", last=now)) is None
            assert relay.see(102, spread("k1:9", 3, key="new", last=now)) is None

    def test_a_key_has_more_time_to_spread(self) -> None:
        """Where nothing else differs; afterwards it is missing somewhere."""
        relay = settled()
        other = spread("k1:1", 2, older=(), incomparable=("n2",))
        assert [relay.see(at, other) for at in (0, LIMIT, LIMIT + KEY_TIME - 1)] == [None] * 3
        assert relay.see(LIMIT + KEY_TIME, other) == "diverged"

    def test_a_rotation_together_with_a_new_key(self) -> None:
        """Something arrived since."""
        for last in (None, 50.0):
            found = spread("k1:9", 3, key="new", last=99.0)
            assert settled("k1:1", last).judge(100, found) == ("converged", "k1:1")

    def test_a_divergence_that_ends_under_a_new_key(self) -> None:
        """It ends in the version that it had, whatever its name is now."""
        relay = settled("k1:1", 50.0)
        relay.see(100, spread("k1:1", 2))
        assert relay.see(100 + LIMIT, spread("k1:1", 2)) == "diverged"
        found = spread("k1:9", 3, key="new", last=50.0)
        assert relay.judge(900, found) == ("converged", "k1:9")


class TestAbsence:
    def test_a_secret_that_all_have_lost(self) -> None:
        """It has no version, and no installation is behind another."""
        relay = Relay()
        assert relay.see(0, spread(None, 0)) is None
        assert relay.standing is None
        relay = settled()
        relay.see(1, spread("k1:1", 2))
        assert relay.see(2 * LIMIT, spread(None, 0)) is None
        assert relay.see(2 * LIMIT, spread("k1:1", 2)) is None

    def test_a_secret_that_no_installation_has(self) -> None:
        """It is remembered for a while: the bucket may have lost it, and not the fleet."""
        relay = Relay()
        assert relay.see(0, spread(None, 0, 0)) is None
        assert relay.standing is None
        relay = settled()
        assert relay.see(1, spread(None, 0, 0)) is None
        assert relay.see(FORGET_AFTER, spread(None, 0, 0)) is None
        assert relay.see(FORGET_AFTER, spread("k1:1", 2)) is None
        assert relay.see(FORGET_AFTER, spread("k1:2", 3)) == "converged"
        relay.see(FORGET_AFTER, spread(None, 0, 0))
        relay.see(2 * FORGET_AFTER, spread(None, 0, 0))
        assert relay.standing is None


def test_the_data_of_an_event() -> None:
    """Who is behind and why, times, and at most so many names."""
    silent = tuple(f"n{number:05}" for number in range(2 * MOST_NAMED))
    found = spread("k1:2", 1, 5000, silent=silent, first=0.0, last=2.5)
    data = fleet_data(found, (Scope("Client", "c"),), "k1:1")
    assert (data.scope, data.version, data.previous_version) == (
        Scope("Client", "c"),
        "k1:2",
        "k1:1",
    )
    assert (data.instances, data.have, data.seconds) == (5000, 1, 2.5)
    assert (data.first_at, data.last_at) == (
        "1970-01-01T00:00:00.000Z",
        "1970-01-01T00:00:02.500Z",
    )
    assert len(data.lagging) == len(data.silent) == MOST_NAMED
    nothing = fleet_data(spread("k1:2", 1), (), None)
    assert (nothing.first_at, nothing.last_at, nothing.seconds) == (None, None, None)
