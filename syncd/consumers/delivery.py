"""Delivery: one loop per consumer that empties its mailbox, as long as the daemon runs.

Each consumer has a mailbox of pending events in the ledger. A loop takes the oldest events, hands
them to its consumer, and removes them from the mailbox once the consumer has acknowledged them. So
it promises (guarantees 1, 2 and 4 of the delivery contract)

- at least once: events are removed after the acknowledgement, never before, so what was delivered
  and not recorded as such is delivered again, under the same id;
- in order per secret, the newest state only: while a loop waits, newer events replace older ones
  in the mailbox, and the next attempt takes what is there then;
- isolation: nothing that one consumer does, not even a bug in its code, delays another one.

How a request is made and what its answer means is the consumer's part.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog
from msgspec.structs import asdict

from syncd.core.attempts import Attempts
from syncd.core.errors import RefusedError, StateError, TemporaryError
from syncd.core.health import ConsumerHealth
from syncd.core.timing import seconds_of
from syncd.telemetry.log import describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from syncd.core.attempts import Failure
    from syncd.core.events import Event
    from syncd.core.model import Grant
    from syncd.ledger.ledger import Ledger
    from syncd.telemetry.metrics import Metrics

SHUTDOWN_GRACE = 5.0
"""Seconds that a delivery in flight has at shutdown to get its answer and have it recorded."""

EAGER_REST = 0.5
"""Seconds that an eager loop rests at least after a failure."""

MAX_RETRY_AFTER = 3600.0
"""Seconds of `Retry-After` that are honoured at most: a rotation cannot wait longer."""

log = structlog.get_logger()


class Consumer(Protocol):
    """What events are delivered to."""

    @property
    def name(self) -> str:
        """Its name in the configuration, and that of its mailbox."""

    @property
    def grant(self) -> Grant:
        """What it may see."""

    @property
    def max_batch(self) -> int:
        """Events that it takes at once, at most."""

    async def deliver(self, events: Sequence[Event]) -> None:
        """Hands over events, oldest first; returns when the consumer has acknowledged them all.

        Raises:
            TemporaryError: It did not accept them now.
            RefusedError: It rejects them, or only a person can make the request possible.
        """

    async def aclose(self) -> None:
        """Closes its connections."""


class Delivery:
    """The loop of one consumer.

    Args:
        consumer: Gets the events; closed when the loop ends.
        ledger: Holds the mailbox; used in worker threads only.
        metrics: Counts deliveries.
        rng: Source of the jitter.
        eager: Whether a new event ends the wait after a failure: for a consumer of several
            servers, of which only some have failed.
        clock: Seconds since the epoch.
        sleep: Waits for some seconds.

    Attributes:
        grace: Seconds that a delivery in flight gets when the loop is cancelled.
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
        self.grace = SHUTDOWN_GRACE
        self._consumer = consumer
        self._ledger = ledger
        self._metrics = metrics.consumer(consumer.name)
        self._rng = rng
        self._eager = eager
        self._clock = clock
        self._sleep = sleep
        self._attempts = Attempts()
        self._woken = anyio.Event()
        self._drained = anyio.Event()
        self._in_flight: anyio.CancelScope | None = None
        self._pending = 0

    @property
    def health(self) -> ConsumerHealth:
        """How the consumer is doing now."""
        return ConsumerHealth(**asdict(self._attempts.health), pending=self._pending)

    def wake(self) -> None:
        """Notifies the loop of new events in the mailbox. Call it from the event loop."""
        self._woken.set()
        if self._drained.is_set():
            self._drained = anyio.Event()

    async def drained(self) -> None:
        """Returns when the loop has found the mailbox empty, with no `wake` since."""
        while not self._drained.is_set():
            await self._drained.wait()

    async def run(self) -> None:
        """Delivers until cancelled; a delivery in flight then gets its `grace`."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._bound_shutdown)
                while True:
                    await self._round()
        finally:
            # connections that cannot be closed end with the process
            with anyio.move_on_after(1, shield=True), contextlib.suppress(Exception):
                await self._consumer.aclose()

    async def _bound_shutdown(self) -> None:
        """Turns the cancellation of `run` into a deadline for the delivery that is shielded."""
        try:
            await anyio.sleep_forever()
        finally:
            # A request that is cut off here may have reached the consumer: without its answer the
            # event would be delivered again at the next start. So the answer gets some time, but
            # not as much as the consumer's own timeout: systemd and the kubelet kill after theirs.
            if self._in_flight is not None:
                self._in_flight.deadline = anyio.current_time() + self.grace

    async def _round(self) -> None:
        """Empties the mailbox and waits for more; or fails once and waits to try again."""
        try:
            events = await self._exchange(())
            while events:
                # delivery and commit belong together: neither is cancelled without the other
                with anyio.CancelScope(shield=True) as self._in_flight:
                    events = await self._deliver(events)
                await anyio.lowlevel.checkpoint_if_cancelled()
        except TemporaryError as error:
            failure = self._retry(str(error), min(error.retry_after or 0.0, MAX_RETRY_AFTER))
        except StateError as error:
            failure = self._retry(str(error))
        except RefusedError as error:
            failure = self._reject(str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one consumer must not stop the others
            failure = self._survive(error)
        else:
            # `wake` during the last look at the mailbox: it may hold events again
            if not self._woken.is_set():
                self._drained.set()
            await self._woken.wait()
            return
        await self._wait(failure.delay)

    async def _deliver(self, events: Sequence[Event]) -> Sequence[Event]:
        """Delivers events and records it; returns those that come next.

        The commit follows the acknowledgement. A crash in between means a second delivery under
        the same id, which consumers recognize; the other order would lose the event.
        """
        await self._consumer.deliver(events)
        following = await self._exchange(events)
        self._succeed(events)
        return following

    async def _exchange(self, delivered: Sequence[Event]) -> Sequence[Event]:
        """One trip to the ledger: records what was delivered, takes what comes next."""
        if self._woken.is_set():
            # reset before the look, not after it: an event that is committed meanwhile sets it
            self._woken = anyio.Event()
            known = None
        else:
            known = self._pending - len(delivered) if delivered else None
        events, self._pending = await anyio.to_thread.run_sync(self._trip, delivered, known)
        self._metrics.set_pending(self._pending)
        return events

    def _trip(self, delivered: Sequence[Event], known: int | None) -> tuple[Sequence[Event], int]:
        """Does the work of `_exchange`, in a worker thread.

        Counting a long mailbox after every event would take quadratic time, so the count is
        skipped where nothing but `delivered` can have changed the number (`known`).
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
        self._attempts.schedule(self._clock(), delay)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_count, tasks.cancel_scope)
            await self._sleep(delay)
            tasks.cancel_scope.cancel()
        self._attempts.next_attempt_at = None

    async def _keep_count(self, waiting: anyio.CancelScope) -> None:
        """Keeps the number of pending events up to date while nothing is delivered."""
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
            after_failures=self._attempts.succeed(now),
        )

    def _retry(self, reason: str, at_least: float = 0.0) -> Failure:
        failure = self._attempts.retry(reason, self._rng, at_least=at_least)
        self._metrics.retried()
        self._report("delivery.retry", log.warning, failure, reason=reason)
        return failure

    def _reject(self, reason: str) -> Failure:
        failure = self._attempts.refuse(reason, self._rng, at_cap=True)
        self._metrics.rejected()
        self._report("delivery.rejected", log.error, failure, reason=reason)
        return failure

    def _survive(self, error: Exception) -> Failure:
        """Counts a bug by class and place: the text of a foreign exception may hold anything."""
        reason = f"{describe(error)}, a bug in syncd; please report it"
        failure = self._attempts.refuse(reason, self._rng, at_cap=True)
        self._metrics.retried()
        self._report("delivery.failed", log.error, failure, error=describe(error))
        return failure

    def _report(
        self, event: str, report: Callable[..., None], failure: Failure, **details: str
    ) -> None:
        if not failure.is_news:
            report = log.debug
        report(
            event,
            consumer=self._consumer.name,
            **details,
            failures=self._attempts.failures,
            pending=self._pending,
            retry_in=round(failure.delay, 1),
        )
