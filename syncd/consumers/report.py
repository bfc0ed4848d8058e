"""What is reported of one consumer's deliveries: log, metrics and health.

Many events can fail for one reason, and each would be reported alone: a reason that needs a person
is an error once, and one that may resolve itself a warning that gets rarer, until nothing waits any
longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from syncd.core.attempts import Attempts
from syncd.core.health import ConsumerHealth
from syncd.core.timing import rfc3339, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from syncd.core.attempts import Failure
    from syncd.core.events import Event
    from syncd.telemetry.metrics import ConsumerMetrics

log = structlog.get_logger()


class Report:
    """The reports of one consumer.

    Args:
        consumer: Its name.
        metrics: Counts deliveries.

    Attributes:
        receiver: Attempts at the consumer as a whole.
        ledger: Attempts to use the ledger.
        pending: Events in the mailbox.
        is_proven: Whether it has ever acknowledged an event at its address.
        findings: Why it cannot work, as far as can be known without a delivery.
    """

    def __init__(self, consumer: str, metrics: ConsumerMetrics) -> None:
        self._consumer = consumer
        self._metrics = metrics
        self.receiver = Attempts()
        self.ledger = Attempts()
        self.pending = 0
        self.is_proven = True
        self.findings: tuple[str, ...] = ()
        self._refused: set[str] = set()
        self._last_error: str | None = None
        self._told: dict[str, int] = {}

    def health(
        self, waiting: Mapping[str, int], failures: int, due: float | None, ahead: float
    ) -> ConsumerHealth:
        """How the consumer is doing.

        Args:
            waiting: Events that failed by themselves, by reason.
            failures: The most failures of one of them.
            due: When the next one is tried again (monotonic, seconds).
            ahead: What the clock is ahead of the monotonic clock, seconds.
        """
        found = self._health(waiting, failures, due, ahead)
        refused = found.last_error in self._refused or self.receiver.is_refused
        return msgspec.structs.replace(
            found,
            is_proven=self.is_proven,
            is_refused=bool(found.failures) and refused,
            findings=() if self.receiver.last_success_at else self.findings,
        )

    def _health(
        self, waiting: Mapping[str, int], failures: int, due: float | None, ahead: float
    ) -> ConsumerHealth:
        success = self.receiver.last_success_at
        for whole in (self.ledger, self.receiver):
            reason = whole.last_error
            if reason is not None:
                rest = self.pending - sum(waiting.values())
                waiting = {reason: rest, **waiting} if rest > 0 else waiting
                return ConsumerHealth(
                    success, reason, whole.failures, whole.next_attempt_at, self.pending, waiting
                )
        if not waiting:
            return ConsumerHealth(success, pending=self.pending)
        reason = self._last_error if self._last_error in waiting else next(iter(waiting))
        at = None if due is None else rfc3339(due + ahead)
        return ConsumerHealth(success, reason, failures, at, self.pending, waiting)

    def acknowledged(self, events: Sequence[Event], failures: int, now: float) -> None:
        """Events were delivered, and it is recorded; `now` in seconds since the epoch."""
        self.is_proven = True
        latency = 0.0
        for event in events:
            latency = max(0.0, now - seconds_of(event.time))
            self._metrics.delivered(latency)
        log.info(
            "delivery.acknowledged",
            consumer=self._consumer,
            events=len(events),
            sequence=events[-1].sequence,
            subject=events[-1].subject,
            latency_ms=round(latency * 1000, 1),
            after_failures=failures,
        )

    def stopped(self, failure: Failure, reason: str, *, refused: bool) -> None:
        """The receiver, or the ledger, failed as a whole."""
        self._count(refused=refused)
        failures = self.ledger.failures or self.receiver.failures
        self._log(reason, failures, failure.delay, refused=refused, is_news=failure.is_news)

    def failed(
        self, events: Sequence[Event], reason: str, delay: float, failures: int, *, refused: bool
    ) -> None:
        """Events failed for a reason of their own; with a delay of 0 they are tried apart."""
        self._count(refused=refused)
        if len(events) > 1:
            log.debug("delivery.divided", consumer=self._consumer, events=len(events))
            return
        self._last_error = reason
        if refused:
            self._refused.add(reason)
        count = self._told[reason] = self._told.get(reason, 0) + 1
        is_news = count == 1 if refused else count & (count - 1) == 0
        subject = events[0].subject
        self._log(reason, failures, delay, refused=refused, is_news=is_news, subject=subject)

    def broken(self, error: str, delay: float) -> None:
        """A bug in syncd: by class and place, because a foreign text may hold anything."""
        self._metrics.retried()
        count = self._told[error] = self._told.get(error, 0) + 1
        self._emit(
            "delivery.failed", log.error if count == 1 else log.debug, delay, count, error=error
        )

    def calm(self) -> None:
        """Nothing waits any longer: every failure that follows is news."""
        self._told.clear()
        self._refused.clear()
        self._last_error = None

    def count(self, pending: int) -> None:
        """Sets the number of events in the mailbox."""
        self.pending = pending
        self._metrics.set_pending(pending)

    def _count(self, *, refused: bool) -> None:
        if refused:
            self._metrics.rejected()
        else:
            self._metrics.retried()

    def _log(
        self,
        reason: str,
        failures: int,
        delay: float,
        *,
        refused: bool,
        is_news: bool,
        **more: str,
    ) -> None:
        report = log.error if refused else log.warning
        self._emit(
            "delivery.rejected" if refused else "delivery.retry",
            report if is_news else log.debug,
            delay,
            failures,
            reason=reason,
            **more,
        )

    def _emit(
        self, event: str, report: Callable[..., None], delay: float, failures: int, **more: str
    ) -> None:
        report(
            event,
            consumer=self._consumer,
            **more,
            failures=failures,
            pending=self.pending,
            retry_in=round(delay, 1),
        )
