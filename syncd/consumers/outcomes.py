"""What an attempt's outcome means, for the receiver and for the events.

The rules are those of `syncd.consumers.consumer`; what follows for the order of deliveries is
decided by `syncd.consumers.backlog`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from syncd.consumers.consumer import Undelivered, UndeliveredError, UnusableError
from syncd.core.errors import SyncdError, TemporaryError
from syncd.telemetry.log import describe
from syncd.telemetry.unexpected import unexpected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from syncd.consumers.backlog import Backlog
    from syncd.consumers.lanes import Batch
    from syncd.consumers.report import Report
    from syncd.consumers.trail import Trail
    from syncd.core.events import Event
    from syncd.core.record import Outcome

MAX_RETRY_AFTER: Final = 3600.0
"""Seconds of `Retry-After` that are honoured at most: a rotation cannot wait longer."""


class Outcomes:
    """The outcomes of one consumer's deliveries.

    Args:
        backlog: What is being delivered.
        report: Reports failures.
        trail: Keeps the attempts.
        rng: Source of the jitter.
        clock: Seconds since the epoch.
        monotonic: Seconds that no change of the clock affects.

    Attributes:
        acknowledged: Events that are still in the mailbox, with the failures before that.
        stopped_at: When the receiver failed last (monotonic).
    """

    def __init__(
        self,
        backlog: Backlog,
        report: Report,
        trail: Trail,
        rng: Random,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._backlog = backlog
        self._report = report
        self._trail = trail
        self._rng = rng
        self._clock = clock
        self._monotonic = monotonic
        self.acknowledged: list[tuple[Sequence[Event], int]] = []
        self.stopped_at = 0.0

    def judge(self, batch: Batch, error: Exception | int | None) -> None:
        """Takes an outcome.

        Args:
            batch: What was delivered.
            error: Why not, or the status of the answer that acknowledges it.
        """
        if not isinstance(error, Exception):
            self._succeed(batch.events, error)
        elif isinstance(error, UndeliveredError):
            failed = {event.sequence for group in error.groups for event in group.events}
            self._succeed([event for event in batch.events if event.sequence not in failed])
            for group in error.groups:
                self._fail(group, answered=True)
        elif isinstance(error, UnusableError):
            failure = self._report.receiver.refuse(str(error), self._rng, at_cap=True)
            self._stop(batch, failure.delay)
            self._note(batch.events, error)
            self._report.stopped(failure, str(error), refused=True)
        elif isinstance(error, TemporaryError):
            if error.retry_after is None and self._backlog.blames_events(batch):
                self._fail(Undelivered(batch.events, error), answered=False)
                return
            at_least = min(error.retry_after or 0.0, MAX_RETRY_AFTER)
            failure = self._report.receiver.retry(str(error), self._rng, at_least=at_least)
            self._stop(batch, failure.delay)
            self._note(batch.events, error)
            self._report.stopped(failure, str(error), refused=False)
        elif isinstance(error, SyncdError):
            self._fail(Undelivered(batch.events, error), answered=True)
        else:
            self._survive(batch, error)

    def _succeed(self, events: Sequence[Event], status: int | None = None) -> None:
        if not events:
            return
        now = self._clock()
        failures = self._backlog.succeeded(events, self._monotonic())
        failures = max(failures, self._report.receiver.succeed(now))
        self._trail.delivered(events, status, now)
        self.acknowledged.append((events, failures))

    def _fail(self, group: Undelivered, *, answered: bool) -> None:
        reason, refused = str(group.error), not isinstance(group.error, TemporaryError)
        self._note(group.events, group.error)
        delay = self._backlog.failed(
            group.events, reason, self._monotonic(), refused=refused, answered=answered
        )
        if answered:
            self._report.receiver.recover()
        failures = self._backlog.failures(group.events[0])
        self._report.failed(group.events, reason, delay, failures, refused=refused)

    def _survive(self, batch: Batch, error: Exception) -> None:
        found = unexpected(error)
        if isinstance(found, TemporaryError):  # the machine is short: no bug, and not the consumer
            self.judge(batch, found)
            return
        reason = str(found)
        delay = self._backlog.failed(
            batch.events, reason, self._monotonic(), refused=True, answered=False
        )
        self._trail.failed(batch.events, "rejected", None, reason, self._clock())
        self._report.broken(describe(error), delay)

    def _note(self, events: Sequence[Event], error: SyncdError) -> None:
        outcome: Outcome = "retried" if isinstance(error, TemporaryError) else "rejected"
        self._trail.failed(events, outcome, error.status, str(error), self._clock())

    def _stop(self, batch: Batch, delay: float) -> None:
        self.stopped_at = self._monotonic()
        self._backlog.stopped(batch, self.stopped_at, delay)
        self._report.receiver.schedule(self._clock(), self._backlog.resume - self.stopped_at)
