"""syncd.core.timing: bounded waits, with chance as an argument."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given, settings, strategies as st

from syncd.core.timing import Backoff, Lifetime, Pace, jittered, rfc3339, seconds_of

SEEDS = st.integers(0, 2**32)


@settings(max_examples=60)
@given(st.integers(0, 4_000_000_000_000))
def test_a_time_is_written_in_milliseconds_and_read_again(milliseconds: int) -> None:
    """RFC 3339 in UTC, with a `Z`."""
    moment = rfc3339(milliseconds / 1000)
    assert moment.endswith("Z")
    assert len(moment) == len("1970-01-01T00:00:00.000Z")
    assert abs(seconds_of(moment) - milliseconds / 1000) < 0.0011


class TestBackoff:
    @settings(max_examples=60)
    @given(SEEDS, st.floats(0.01, 10), st.floats(10, 600), st.integers(1, 3000))
    def test_every_delay_is_bounded(
        self, seed: int, first: float, cap: float, failures: int
    ) -> None:
        """However often it failed, a delay lies between half of its step and the cap."""
        backoff, rng = Backoff(first, cap), Random(seed)
        for failure in range(min(failures, 60)):
            delay = backoff.next(rng)
            step = min(cap, first * 2.0**failure)
            assert step / 2 <= delay <= step
        backoff.failures = failures
        assert 0 < backoff.next(rng) <= cap

    def test_grows_and_starts_again_after_a_success(self) -> None:
        """Steps double; a success takes them back to the first."""
        backoff, rng = Backoff(1.0, 60.0), Random(1)
        assert [1 <= backoff.next(rng) * 2 / 2**n <= 2 for n in range(4)] == [True] * 4
        assert backoff.failures == 4
        backoff.reset()
        assert backoff.failures == 0
        assert backoff.next(rng) <= 1.0

    def test_waits_as_long_as_the_other_side_asks(self) -> None:
        """`Retry-After` is honoured beyond the cap, and is no reason to come sooner."""
        backoff, rng = Backoff(1.0, 60.0), Random(1)
        assert backoff.next(rng, at_least=3600.0) == 3600.0
        assert backoff.next(rng, at_least=0.1) >= 1.0

    @given(SEEDS)
    def test_waits_about_the_cap_when_nobody_expects_healing(self, seed: int) -> None:
        """A rejection waits between half of the cap and the cap, and counts."""
        backoff = Backoff(1.0, 60.0)
        assert 30.0 <= backoff.at_cap(Random(seed)) <= 60.0
        assert backoff.failures == 1


@given(SEEDS, st.floats(0, 1e6))
def test_jitter_stays_within_its_share(seed: int, interval: float) -> None:
    """A jittered interval is a tenth shorter than the interval at most, and never longer."""
    assert 0.9 * interval <= jittered(interval, Random(seed)) <= interval


class TestLifetime:
    def test_is_renewed_at_two_thirds(self) -> None:
        """A third is left to correct what fails."""
        assert Lifetime.granted(100.0, 90.0, renewable=True) == Lifetime(160.0, 190.0, True, 90.0)

    def test_of_zero_seconds_never_ends(self) -> None:
        """Vault writes 0 for a token without an end."""
        for_ever = Lifetime.granted(100.0, 0.0, renewable=True)
        assert (for_ever.due, for_ever.end, for_ever.renewable) == (math.inf, math.inf, False)
        assert for_ever.postponed(100.0).due == math.inf

    def test_is_renewed_in_full_until_it_meets_a_maximum(self) -> None:
        """A renewal that grants less than the first time is the last one."""
        first = Lifetime.granted(0.0, 90.0, renewable=True)
        second = first.renewed(60.0, 89.5, renewable=True)
        assert (second.end, second.renewable, second.full) == (149.5, True, 90.0)
        last = second.renewed(120.0, 30.0, renewable=True)
        assert (last.due, last.end, last.renewable, last.full) == (140.0, 150.0, False, 90.0)

    def test_is_not_renewed_once_the_server_says_so(self) -> None:
        """What is not renewable any more is replaced at its next due time."""
        again = Lifetime.granted(0.0, 90.0, renewable=True).renewed(60.0, 90.0, renewable=False)
        assert not again.renewable

    @given(st.floats(0, 1e6), st.floats(1, 1e6), st.floats(0, 2e6))
    def test_is_tried_again_before_it_ends(self, at: float, seconds: float, now: float) -> None:
        """A postponed renewal comes within what is left, and at once where nothing is."""
        lifetime = Lifetime.granted(at, seconds, renewable=True).postponed(now)
        assert now <= lifetime.due <= max(now, lifetime.end)


class TestPace:
    def test_now_and_then(self) -> None:
        """Work that comes now and then rests for as long as it took, and no longer."""
        pace = Pace()
        assert [pace.rest(10.0 * turn, 0.5) for turn in range(100)] == [0.5] * 100

    @settings(max_examples=60)
    @given(st.lists(st.floats(0.001, 20), min_size=50, max_size=300))
    def test_without_end(self, work: list[float]) -> None:
        """Work without end takes half of the time at the most, and no rest is for ever."""
        pace, now = Pace(), 0.0
        for took in work:
            now += took
            rest = pace.rest(now, took)
            assert took <= rest <= max(took, pace.longest + 1e-6)
            now += rest
        assert sum(work) <= now / 2 + 1e-6

    def test_in_the_long_run(self) -> None:
        """After the burst, work without end takes its share of the time and no more."""
        pace, now, worked = Pace(), 0.0, 0.0
        while now < 1000:
            now += 0.01 + pace.rest(now + 0.01, 0.01)
            worked += 0.01
        assert worked < pace.burst + 1000 * pace.share * 1.05
        assert worked > 1000 * pace.share * 0.95
