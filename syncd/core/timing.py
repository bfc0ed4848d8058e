"""When to try again: backoff, jitter and the pace of scans, with clock and chance as arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


@dataclass(slots=True)
class Backoff:
    """Exponential backoff with jitter, for one thing that fails.

    Every delay lies between half of the step and the step, so that many clients of one server
    drift apart and yet nobody waits more than the cap.

    Attributes:
        first: Upper bound of the first delay, seconds.
        cap: Upper bound of every delay, seconds.
        failures: Failures since the last success.
    """

    first: float = 0.5
    cap: float = 60.0
    failures: int = 0

    def next(self, rng: Random, *, at_least: float = 0.0) -> float:
        """Counts a failure and tells how long to wait, in seconds.

        Args:
            rng: Source of the jitter.
            at_least: What the other side asked for (`Retry-After`), honoured beyond the cap.
        """
        step = min(self.cap, self.first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return max(at_least, rng.uniform(step / 2, step))

    def at_cap(self, rng: Random) -> float:
        """Counts a failure that nobody expects to heal soon: waits about the cap."""
        self.failures += 1
        return rng.uniform(self.cap / 2, self.cap)

    def reset(self) -> None:
        """Forgets the failures: something succeeded."""
        self.failures = 0


def jittered(interval: float, rng: Random, *, share: float = 0.1) -> float:
    """An interval ± `share` of it, so that a fleet does not arrive at once."""
    return interval * rng.uniform(1 - share, 1 + share)
