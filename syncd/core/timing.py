"""When to try again: backoff, jitter and the pace of scans; time and randomness are arguments."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

if TYPE_CHECKING:
    from random import Random


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as events and reports carry them: UTC, milliseconds, `Z`."""
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.removesuffix("+00:00") + "Z"


def seconds_of(moment: str) -> float:
    """Seconds since the epoch of a time as `rfc3339` writes it.

    Raises:
        ValueError: It is not an RFC 3339 time.
    """
    return datetime.fromisoformat(moment).timestamp()


class Backoff(msgspec.Struct):
    """Exponential backoff with jitter, for one thing that fails.

    Every delay lies between half of the step and the step, so that many clients of one server
    drift apart and none waits longer than the cap.

    Attributes:
        first: Upper bound of the first delay, seconds.
        cap: Upper bound of every delay, seconds.
        failures: Failures since the last success.
    """

    first: float = 0.5
    cap: float = 60.0
    failures: int = 0

    def next(self, rng: Random, *, at_least: float = 0.0) -> float:
        """Counts a failure and returns how long to wait, in seconds.

        The other side may ask for `at_least` some seconds (`Retry-After`), also above the cap.
        """
        step = min(self.cap, self.first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return max(at_least, rng.uniform(step / 2, step))

    def at_cap(self, rng: Random) -> float:
        """Counts a failure that is not expected to heal soon, and returns about the cap."""
        self.failures += 1
        return rng.uniform(self.cap / 2, self.cap)

    def reset(self) -> None:
        """Forgets the failures: something succeeded."""
        self.failures = 0


class Pace(msgspec.Struct):
    """Limits the share of the time that repeated work takes, however often it is triggered.

    In a burst the work may take half of the time, in the long run a share. Work that is triggered
    now and then is never delayed.

    Attributes:
        share: Share of the time in the long run, 0 to 1.
        burst: Seconds of work before the share applies.
        longest: Seconds to rest at most, unless the work itself took longer.
        debt: Seconds of work beyond the share, so far.
        at: When the last work ended, seconds; None before the first.
    """

    share: float = 0.2
    burst: float = 1.0
    longest: float = 5.0
    debt: float = 0.0
    at: float | None = None

    def rest(self, now: float, took: float) -> float:
        """Counts work that took some seconds and ends `now`; returns how many seconds to rest."""
        since = 0.0 if self.at is None else now - self.at
        self.at = now
        most = self.burst + self.longest * self.share
        self.debt = min(most, max(0.0, self.debt + took - since * self.share))
        return max(took, (self.debt - self.burst) / self.share)


def jittered(interval: float, rng: Random) -> float:
    """An interval or up to 10 % less: a fleet does not arrive at once, and never too late."""
    return interval * rng.uniform(0.9, 1.0)


class Lifetime(msgspec.Struct, frozen=True):
    """How long something granted for a time lasts: a token, a lease, a certificate.

    It is renewed or replaced at two thirds of the lifetime, so that a third is left for retries. A
    renewal that grants less than the first time has reached a maximum: two thirds of the rest are
    used, and then it is replaced.

    Attributes:
        due: When to renew or replace it, on the caller's clock, seconds; infinite for never.
        end: When it ends.
        renewable: Whether a renewal is worth trying at `due`.
        full: The lifetime that was granted first, seconds.
    """

    due: float
    end: float
    renewable: bool
    full: float

    @classmethod
    def granted(cls, now: float, seconds: float, *, renewable: bool) -> Lifetime:
        """A new grant; 0 seconds mean without end, as Vault writes it."""
        if seconds <= 0:
            return cls(math.inf, math.inf, False, math.inf)
        return cls(now + seconds * 2 / 3, now + seconds, renewable, seconds)

    def renewed(self, now: float, seconds: float, *, renewable: bool) -> Lifetime:
        """The grant after a renewal that returned this many seconds."""
        again = Lifetime.granted(now, seconds, renewable=renewable)
        at_maximum = again.end - now < self.full - _ROUNDING
        return replace(again, renewable=renewable and not at_maximum, full=self.full)

    def postponed(self, now: float) -> Lifetime:
        """The same grant, with the next attempt after a third of the time that is left."""
        return replace(self, due=now + max(0.0, self.end - now) / 3)


_ROUNDING = 1.0
"""Seconds by which a server may shorten a renewal without having reached a maximum."""
