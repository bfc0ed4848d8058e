"""Attempts at something that is tried until it succeeds: when to try again, what to report.

A failure that may heal is a warning, and the warnings get rarer while it lasts: the first, second,
fourth, eighth attempt. One that only a person can change is an error, once for each reason: a
person who has read it needs no reminder, and a new reason must not hide behind an old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from syncd.core.errors import StateError, TemporaryError
from syncd.core.health import Health
from syncd.core.timing import Backoff, rfc3339

if TYPE_CHECKING:
    from random import Random

    from syncd.core.errors import SyncdError


class Failure(msgspec.Struct, frozen=True):
    """A failed attempt.

    Attributes:
        delay: Seconds until the next attempt.
        is_news: Whether to log it above debug level.
    """

    delay: float
    is_news: bool


class Attempts(msgspec.Struct):
    """The attempts at one thing so far; the attributes are those of `Health`."""

    backoff: Backoff = msgspec.field(default_factory=Backoff)
    last_error: str | None = None
    next_attempt_at: str | None = None
    _succeeded: float | None = None
    _refusals: set[str] = msgspec.field(default_factory=set)

    @property
    def last_success_at(self) -> str | None:
        """When the last success was (RFC 3339, UTC), or None."""
        return None if self._succeeded is None else rfc3339(self._succeeded)

    @property
    def failures(self) -> int:
        """Attempts that failed since the last success."""
        return self.backoff.failures

    @property
    def is_refused(self) -> bool:
        """Whether the last attempt failed for a reason that only a person can change."""
        return self.last_error in self._refusals

    @property
    def health(self) -> Health:
        """The present state, for reports."""
        return Health(self.last_success_at, self.last_error, self.failures, self.next_attempt_at)

    def fail(self, error: SyncdError, rng: Random) -> Failure:
        """Counts a failure: as `retry` does where it may heal by itself, else as `refuse` does."""
        heals = isinstance(error, TemporaryError | StateError)
        return (self.retry if heals else self.refuse)(str(error), rng)

    def retry(self, reason: str, rng: Random, *, at_least: float = 0.0) -> Failure:
        """Counts a failure that may heal.

        The next attempt is not before `at_least` seconds, which the other side asked to wait
        (`Retry-After`). The reason is one line.
        """
        delay = self.backoff.next(rng, at_least=at_least)
        self.last_error = reason
        return Failure(delay, is_news=self.failures & (self.failures - 1) == 0)

    def refuse(self, reason: str, rng: Random, *, at_cap: bool = False) -> Failure:
        """Counts a failure that only a person can change.

        With `at_cap` the delay is as long as the backoff allows from the first failure on. The
        reason is one line.
        """
        delay = self.backoff.at_cap(rng) if at_cap else self.backoff.next(rng)
        self.last_error = reason
        is_news = reason not in self._refusals
        self._refusals.add(reason)
        return Failure(delay, is_news)

    def schedule(self, now: float, delay: float) -> None:
        """Records that the next attempt is due `delay` seconds after `now` (since the epoch)."""
        self.next_attempt_at = rfc3339(now + delay)

    def recover(self) -> None:
        """Forgets the failures, without a success: what failed is no longer in the way."""
        self.backoff.reset()
        self._refusals.clear()
        self.last_error = self.next_attempt_at = None

    def succeed(self, now: float) -> int:
        """Counts a success at `now` (seconds since the epoch); returns the failures before it."""
        failures = self.failures
        self.recover()
        self._succeeded = now
        return failures
