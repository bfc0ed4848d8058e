"""Delivery: one loop per consumer that empties its mailbox, for as long as the daemon lives.

What a consumer must get waits in the ledger; a loop takes the oldest events, hands them to its
consumer, and takes them out of the mailbox once the consumer has acknowledged them. So it promises
(guarantees 1, 2 and 4 of the delivery contract)

- at least once: what was delivered and not recorded as such is delivered again, under the same id;
- in order per secret, the newest state only: while a loop waits, newer events replace older ones
  in the mailbox, and the next attempt takes what is there then;
- on its own: nothing that one consumer does, not even a bug in its code, delays another one.

How a request is made and what its answer means is the consumer's part.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from syncd.core.errors import RefusedError, StateError, TemporaryError
from syncd.core.timing import Backoff, rfc3339, seconds_of
from syncd.telemetry.log import describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from syncd.core.events import Event
    from syncd.core.model import Grant
    from syncd.ledger.ledger import Ledger
    from syncd.telemetry.metrics import Metrics

SHUTDOWN_GRACE = 5.0
"""Seconds that a delivery in flight has at shutdown to get its answer and have it recorded."""

EAGER_REST = 0.5
"""Seconds that an eager loop rests at the least after a failure."""

MAX_RETRY_AFTER = 3600.0
"""Seconds of `Retry-After` that are honoured at the most: a rotation cannot wait longer."""

log = structlog.get_logger()


class Consumer(Protocol):
    """Somebody who must learn of changes."""

    @property
    def name(self) -> str:
        """Its name in the configuration, and that of its mailbox."""

    @property
    def grant(self) -> Grant:
        """What it may see."""

    @property
    def max_batch(self) -> int:
        """How many events it takes at once."""

    async def deliver(self, events: Sequence[Event]) -> None:
        """Hands over events, oldest first; returns when the consumer has acknowledged them all.

        Raises:
            TemporaryError: It could not take them now.
            RefusedError: It does not want them, or cannot be asked without a person's help.
        """

    async def aclose(self) -> None:
        """Closes its connections."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a consumer is doing.

    Attributes:
        pending: Events that it has not acknowledged.
        last_success_at: When it last acknowledged something (RFC 3339, UTC), or None.
        last_error: Why the last attempt failed, one line, or None if it did not.
        failures: Attempts that failed since the last success.
        next_attempt_at: When it is tried again (RFC 3339, UTC), or None when nothing is due.
    """

    pending: int
    last_success_at: str | None
    last_error: str | None
    failures: int
    next_attempt_at: str | None


class Delivery:
    """The loop of one consumer.

    Args:
        consumer: Who gets the events; closed when the loop ends.
        ledger: Holds the mailbox; used in worker threads only.
        metrics: Where to count.
        rng: Source of the jitter.
        eager: Whether something new ends the wait after a failure: for a consumer that is several
            servers, of which only some have failed.
        clock: Seconds since the epoch.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        consumer: Consumer,
        ledger: Ledger,
        metrics: Metrics,
        rng: Random,
        *,
        eager: bool = False,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._consumer = consumer
        self._ledger = ledger
        self._metrics = metrics.consumer(consumer.name)
        self._rng = rng
        self._eager = eager
        self._clock = clock
        self._sleep = sleep
        self._backoff = Backoff()
        self._refusals: set[str] = set()
        self._woken = anyio.Event()
        self._drained = anyio.Event()
        self._in_flight: anyio.CancelScope | None = None
        self._pending = 0
        self._last_success_at: str | None = None
        self._last_error: str | None = None
        self._next_attempt_at: str | None = None

    @property
    def health(self) -> Health:
        """How the consumer is doing now."""
        return Health(
            self._pending,
            self._last_success_at,
            self._last_error,
            self._backoff.failures,
            self._next_attempt_at,
        )

    def wake(self) -> None:
        """Says that there may be something in the mailbox. Call it from the event loop."""
        self._woken.set()
        if self._drained.is_set():
            self._drained = anyio.Event()

    async def drained(self) -> None:
        """Returns when the loop has found the mailbox empty, with no `wake` since."""
        while not self._drained.is_set():
            await self._drained.wait()

    async def run(self) -> None:
        """Delivers until cancelled; then what is in flight gets `SHUTDOWN_GRACE` seconds."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._bound_shutdown)
                while True:
                    await self._round()
        finally:
            # whatever is wrong with its connections, they go with the process
            with anyio.move_on_after(1, shield=True), contextlib.suppress(Exception):
                await self._consumer.aclose()

    async def _bound_shutdown(self) -> None:
        """Turns the cancellation of `run` into a deadline for what is shielded from it."""
        try:
            await anyio.sleep_forever()
        finally:
            if self._in_flight is not None:
                self._in_flight.deadline = anyio.current_time() + SHUTDOWN_GRACE

    async def _round(self) -> None:
        """Empties the mailbox and waits for more; or fails once and waits to try again."""
        try:
            events = await self._exchange(())
            while events:
                with anyio.CancelScope(shield=True) as self._in_flight:
                    events = await self._pass_on(events)
                await anyio.lowlevel.checkpoint_if_cancelled()
        except TemporaryError as error:
            delay = self._retry(str(error), min(error.retry_after or 0.0, MAX_RETRY_AFTER))
        except StateError as error:
            delay = self._retry(str(error))
        except RefusedError as error:
            delay = self._reject(str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one consumer must not stop the others
            delay = self._survive(error)
        else:
            if not self._woken.is_set():
                self._drained.set()
            await self._woken.wait()
            return
        await self._wait(delay)

    async def _pass_on(self, events: Sequence[Event]) -> Sequence[Event]:
        """Delivers events and records it.

        Returns:
            The events that come next.
        """
        await self._consumer.deliver(events)
        following = await self._exchange(events)
        self._succeed(events)
        return following

    async def _exchange(self, delivered: Sequence[Event]) -> Sequence[Event]:
        """One trip to the ledger: records what was delivered, takes what comes next."""
        if self._woken.is_set():
            self._woken = anyio.Event()
            known = None
        else:
            known = self._pending - len(delivered) if delivered else None
        events, self._pending = await anyio.to_thread.run_sync(self._trip, delivered, known)
        self._metrics.set_pending(self._pending)
        return events

    def _trip(self, delivered: Sequence[Event], known: int | None) -> tuple[Sequence[Event], int]:
        """Does what `_exchange` promises, in a worker thread.

        Counting a long mailbox after every event would take time square to its length, so that is
        left out where nothing but `delivered` can have changed it.
        """
        consumer = self._consumer
        if delivered:
            self._ledger.acknowledge(consumer.name, delivered)
        events = self._ledger.take(consumer.name, consumer.grant, consumer.max_batch)
        if len(events) < consumer.max_batch:
            return events, len(events)
        if known is None:
            known = self._ledger.pending_count(consumer.name)
        return events, max(known, len(events))

    async def _wait(self, delay: float) -> None:
        self._next_attempt_at = rfc3339(self._clock() + delay)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_count, tasks.cancel_scope)
            await self._sleep(delay)
            tasks.cancel_scope.cancel()
        self._next_attempt_at = None

    async def _keep_count(self, waiting: anyio.CancelScope) -> None:
        """Keeps the number of waiting events right while nothing is delivered."""
        if self._eager:
            await self._sleep(EAGER_REST)
        while True:
            await self._woken.wait()
            if self._eager:
                waiting.cancel()
                return
            self._woken = anyio.Event()
            with contextlib.suppress(StateError):
                self._pending = await anyio.to_thread.run_sync(
                    self._ledger.pending_count, self._consumer.name
                )
                self._metrics.set_pending(self._pending)

    def _succeed(self, events: Sequence[Event]) -> None:
        now = self._clock()
        latency = 0.0
        for event in events:
            latency = max(0.0, now - seconds_of(event.time))
            self._metrics.delivered(latency)
        log.info(
            "delivery.acknowledged",
            consumer=self._consumer.name,
            events=len(events),
            sequence=events[-1].sequence,
            subject=events[-1].subject,
            latency_ms=round(latency * 1000, 1),
            after_failures=self._backoff.failures,
        )
        self._backoff.reset()
        self._refusals.clear()
        self._last_success_at = rfc3339(now)
        self._last_error = None

    def _retry(self, reason: str, at_least: float = 0.0) -> float:
        """Notes a failure that may heal; the warnings grow rarer as it lasts."""
        delay = self._backoff.next(self._rng, at_least=at_least)
        self._last_error = reason
        self._metrics.retried()
        failures = self._backoff.failures
        report = log.warning if failures & (failures - 1) == 0 else log.debug
        report(
            "delivery.retry",
            consumer=self._consumer.name,
            reason=reason,
            failures=failures,
            pending=self._pending,
            retry_in=round(delay, 1),
        )
        return delay

    def _reject(self, reason: str) -> float:
        """Notes a rejection: an error once per reason, for a person to act on."""
        delay = self._backoff.at_cap(self._rng)
        self._last_error = reason
        self._metrics.rejected()
        report = log.debug if reason in self._refusals else log.error
        self._refusals.add(reason)
        report(
            "delivery.rejected",
            consumer=self._consumer.name,
            reason=reason,
            failures=self._backoff.failures,
            pending=self._pending,
            retry_in=round(delay, 1),
        )
        return delay

    def _survive(self, error: Exception) -> float:
        """Notes a bug by class and place: the text of a foreign exception may hold anything."""
        delay = self._backoff.at_cap(self._rng)
        self._last_error = f"{describe(error)}, a bug in syncd; please report it"
        self._metrics.retried()
        log.error(
            "delivery.failed",
            consumer=self._consumer.name,
            error=describe(error),
            retry_in=round(delay, 1),
        )
        return delay
