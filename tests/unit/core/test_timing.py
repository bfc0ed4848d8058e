"""syncd.core.timing: bounded waits, with chance as an argument."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings, strategies as st

from syncd.core.timing import Backoff, jittered

SEEDS = st.integers(0, 2**32)


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


@given(SEEDS, st.floats(0, 1e6), st.floats(0, 1))
def test_jitter_stays_within_its_share(seed: int, interval: float, share: float) -> None:
    """A jittered interval differs from the interval by the share at most."""
    slack = interval * share + 1e-6
    assert abs(jittered(interval, Random(seed), share=share) - interval) <= slack
