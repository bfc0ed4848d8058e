"""Delivery: one loop per consumer that empties its mailbox, as long as the daemon runs.

Each consumer has a mailbox of pending events in the ledger. Its loop takes events, hands several at
a time to the consumer, and removes them from the mailbox once the consumer has acknowledged them.
So it promises (guarantees 1, 2 and 4 of the delivery contract)

- at least once: events are removed after the acknowledgement, never before, so what was delivered
  and not recorded as such is delivered again, under the same id;
- in order per secret, the newest state only: newer events replace older ones in the mailbox, and
  an attempt takes what is there then. A secret that fails holds up no other;
- isolation: nothing that one consumer does, not even a bug in its code, delays another one.

What comes next is decided by `syncd.consumers.backlog`, and what an outcome means by
`syncd.consumers.outcomes`. How a request is made is the consumer's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from syncd.consumers.backlog import Backlog
from syncd.consumers.consumer import (
    Consumer,
    Prompt,
    Testable,
    Tested,
)
from syncd.consumers.outcomes import Outcomes
from syncd.consumers.report import Report
from syncd.consumers.shortcut import Shortcut
from syncd.consumers.trail import Trail
from syncd.core.errors import RefusedError, StateError
from syncd.core.timing import rfc3339
from syncd.telemetry.log import at_once

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from syncd.consumers.consumer import Posting
    from syncd.consumers.lanes import Batch
    from syncd.core.events import Event
    from syncd.core.health import ConsumerHealth
    from syncd.core.record import Record
    from syncd.ledger.ledger import Ledger
    from syncd.telemetry.metrics import Metrics

__all__ = ["Consumer", "Delivery"]

SHUTDOWN_GRACE = 5.0
"""Seconds that deliveries in flight have at shutdown to be answered and recorded."""

EAGER_REST = 0.5
"""Seconds that an eager loop rests at least after a failure."""

log = structlog.get_logger()


class _Flight(NamedTuple):
    """A delivery that begins, or has begun where there is a posting."""

    batch: Batch
    posting: Posting | None = None


class _Spare(NamedTuple):
    """A task that has delivered, and waits for more."""

    flight: asyncio.Future[_Flight | None]
    scope: anyio.CancelScope


class Delivery:
    """The loop of one consumer.

    Args:
        consumer: Gets the events; closed when the loop ends.
        ledger: Holds the mailbox; used in worker threads only.
        metrics: Counts deliveries.
        rng: Source of the jitter.
        eager: Whether a new event ends the wait after a failure: for a consumer of several
            servers, of which only some have failed.
        threads: How many loops use the ledger at the same time; a limit of its own by default.
        clock: Seconds since the epoch.
        monotonic: Seconds that no change of the clock affects.
        sleep: Waits for some seconds.

    Attributes:
        grace: Seconds that deliveries in flight get when the loop is cancelled.
    """

    def __init__(
        self,
        consumer: Consumer,
        ledger: Ledger,
        metrics: Metrics,
        rng: Random,
        *,
        eager: bool = False,
        threads: anyio.CapacityLimiter | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.grace = SHUTDOWN_GRACE
        self._consumer = consumer
        self._ledger = ledger
        self._rng = rng
        self._eager = eager
        self._threads = threads or anyio.CapacityLimiter(1)
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._report = Report(consumer.name, metrics.consumer(consumer.name))
        self._trail = Trail()
        self._backlog = Backlog(consumer.max_batch, consumer.max_in_flight, rng)
        self._woken = True
        self._withdrawals = ledger.withdrawals
        self._outcomes = Outcomes(
            self._backlog, self._report, self._trail, rng, clock=clock, monotonic=monotonic
        )
        self._ledger_due = 0.0
        self._in_flight: set[anyio.CancelScope] = set()
        self._spare: _Spare | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._news = anyio.Event()
        self._drained = anyio.Event()
        self._shortcut = Shortcut(consumer.grant, consumer.max_batch)
        self._has_ended = False

    @property
    def health(self) -> ConsumerHealth:
        """How the consumer is doing now."""
        failures, due = self._backlog.troubled()
        ahead = self._clock() - self._monotonic()
        return self._report.health(self._backlog.waiting(), failures, due, ahead)

    def unwritten(self) -> tuple[Record, ...]:
        """Attempts that are not in the ledger yet."""
        return self._trail.pending()

    def examined(self, findings: tuple[str, ...]) -> None:
        """Sets why the consumer cannot work, as far as can be known without a delivery."""
        self._report.findings = findings

    def prove(self, *, proven: bool) -> None:
        """Sets whether the consumer has ever acknowledged an event at its address."""
        self._report.is_proven = proven

    def post(self, committed: Sequence[Event]) -> None:
        """Begins the delivery of a commit where the consumer is idle; `wake` must follow.

        To be called by the thread that has committed, for all events of one commit.
        """
        if self._withdrawals == self._ledger.withdrawals:
            self._shortcut.post(committed)

    def end(self) -> None:
        """Posts no more. In the event loop only."""
        self._has_ended = True
        self._follow_posted()

    def wake(self, committed: Sequence[Event] = ()) -> None:
        """Notifies the loop of new events in the mailbox. Call it from the event loop.

        Args:
            committed: All events of one commit, if that is what is new.
        """
        if self._drained.is_set():
            self._drained = anyio.Event()
        self._news.set()
        if self._follow_posted() and committed and committed[-1].sequence <= self._backlog.cursor:
            return
        if not self._woken and committed and self._offer(committed):
            self._start()
            return
        self._woken = True
        if self._eager:
            backlog = self._backlog
            backlog.resume = min(backlog.resume, self._outcomes.stopped_at + EAGER_REST)

    def _offer(self, committed: Sequence[Event]) -> bool:
        """Delivers straight from a commit what would come next from the ledger."""
        grant = self._consumer.grant
        events = [event for one in committed if (event := one.seen_by(grant)) is not None]
        first, last = committed[0].sequence, committed[-1].sequence
        if not self._backlog.offer(events, first, last):
            return False
        self._report.count(len(events))
        return True

    def _follow_posted(self) -> bool:
        """Closes the shortcut, and follows what was posted, if anything, as if it was offered."""
        posted = self._shortcut.close()
        if posted is None:
            return False
        is_offered = self._backlog.offer(posted.events, posted.first, posted.last)
        batch = self._backlog.next(self._monotonic())
        assert is_offered
        assert batch is not None
        self._report.count(len(posted.events))
        self._launch(_Flight(batch, posted.posting))
        return True

    def retry(self) -> int:
        """Tries what waits now, regardless of the backoff; returns how many events are pending."""
        self._backlog.retry(self._monotonic())
        self._ledger_due = 0.0
        self._woken = True
        self._news.set()
        return self._report.pending

    async def ping(self, ident: str) -> Tested:
        """Sends a ping, past the mailbox; one that is acknowledged can prove the consumer.

        Raises:
            RefusedError: The consumer takes none.
            StateError: The proof cannot be recorded.
        """
        name = self._consumer.name
        if not isinstance(self._consumer, Testable):
            raise RefusedError(f"{name} takes no ping", "see syncd status")
        tested = await self._consumer.ping(ident, rfc3339(self._clock()))
        if tested.error is None and tested.is_proof:
            await anyio.to_thread.run_sync(self._ledger.acknowledge, name, ())
            self._report.is_proven = True
            self._report.findings = ()
        return tested

    async def drained(self) -> None:
        """Returns when the loop has found the mailbox empty, with no `wake` since."""
        while not self._drained.is_set():
            await self._drained.wait()

    async def run(self) -> None:
        """Delivers until cancelled; deliveries in flight then get their `grace`."""
        try:
            async with anyio.create_task_group() as self._tasks:
                try:
                    await self._loop()
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._finish()
        finally:
            # connections that cannot be closed end with the process
            with anyio.move_on_after(1, shield=True), contextlib.suppress(Exception):
                await self._consumer.aclose()

    async def _finish(self) -> None:
        """Gives what is in flight a bounded time, and records what was acknowledged.

        A request that is cut off may have reached the consumer: without its answer the event would
        be delivered again at the next start. So the answer gets some time, but not as much as the
        consumer's own timeout: systemd and the kubelet kill after theirs.
        """
        self.end()
        self._tasks = None
        if self._spare is not None:
            self._spare.flight.set_result(None)
        with anyio.move_on_after(self.grace):
            while self._in_flight:
                self._news = anyio.Event()
                await self._news.wait()
        for scope in self._in_flight:
            scope.cancel()
        done = [event for events, _ in self._outcomes.acknowledged for event in events]
        records = self._trail.take()
        if done or records:
            acknowledge = partial(self._ledger.acknowledge, delivered=bool(done))
            name = self._consumer.name
            with contextlib.suppress(StateError):
                await anyio.to_thread.run_sync(
                    acknowledge, name, done, records, limiter=self._threads
                )
                self._recorded(len(self._outcomes.acknowledged))

    async def _loop(self) -> None:
        while True:
            self._news = anyio.Event()
            if self._outcomes.acknowledged and self._in_flight:
                await anyio.lowlevel.checkpoint()  # other answers that are here share the commit
            now = self._monotonic()
            if self._withdrawals != self._ledger.withdrawals:
                self._withdrawals = self._ledger.withdrawals
                self._backlog.start_over(now)
            self._start()
            limit, slots = (0, []) if now < self._ledger_due else self._backlog.wanted(now)
            if now >= self._ledger_due and (
                limit or slots or self._woken or self._outcomes.acknowledged
            ):
                await self._exchange(limit, slots)
                continue
            if self._backlog.is_empty and not self._woken and not self._outcomes.acknowledged:
                self._drained.set()
                self._open_shortcut(now)
            await self._rest(now)
            self._follow_posted()

    def _start(self) -> None:
        """Begins the deliveries that are possible now."""
        while batch := self._next():
            self._launch(_Flight(batch))

    def _launch(self, flight: _Flight) -> None:
        assert self._tasks is not None
        spare, self._spare = self._spare, None
        scope = anyio.CancelScope(shield=True) if spare is None else spare.scope
        self._in_flight.add(scope)
        if spare is None:
            self._tasks.start_soon(self._deliver, flight, scope)
        else:
            spare.flight.set_result(flight)

    def _open_shortcut(self, now: float) -> None:
        """Has the next commit posted, if it can be."""
        consumer = self._consumer
        if self._has_ended or not isinstance(consumer, Prompt) or not self._backlog.is_calm(now):
            return
        posting = consumer.reserve()
        if posting is not None:
            self._shortcut.open(posting, self._backlog.cursor)

    def _next(self) -> Batch | None:
        """The batch to deliver now, or None."""
        if self._tasks is None or self._withdrawals != self._ledger.withdrawals:
            # at the end; or the ledger took something back, perhaps what comes next here
            return None
        return self._backlog.next(self._monotonic())

    async def _rest(self, now: float) -> None:
        """Waits for news, or until something is due."""
        times = [self._ledger_due] if now < self._ledger_due else []
        due = self._backlog.due(now)
        times += [] if due is None else [due]
        if not times:
            await self._news.wait()
            return
        async with anyio.create_task_group() as tasks:

            async def nap() -> None:
                await self._sleep(min(times) - now)
                self._news.set()

            tasks.start_soon(nap)
            await self._news.wait()
            tasks.cancel_scope.cancel()

    async def _deliver(self, first: _Flight, scope: anyio.CancelScope) -> None:
        """Delivers a batch, and what follows, without waiting for the ledger in between."""
        flight: _Flight | None = first
        try:
            with scope:
                while flight is not None:
                    outcome = await self._attempt(flight)
                    self._backlog.landed(flight.batch)
                    self._outcomes.judge(flight.batch, outcome)
                    self._news.set()
                    batch = self._next()
                    self._start()
                    flight = await self._stand_by(scope) if batch is None else _Flight(batch)
        finally:
            self._in_flight.discard(scope)
            self._news.set()

    async def _stand_by(self, scope: anyio.CancelScope) -> _Flight | None:
        """Waits for the next one, since starting a task takes longer; None for the end."""
        if self._spare is not None or self._tasks is None:
            return None
        self._in_flight.discard(scope)
        self._spare = _Spare(asyncio.get_running_loop().create_future(), scope)
        return await self._spare.flight

    async def _attempt(self, flight: _Flight) -> Exception | int | None:
        try:
            if flight.posting is not None:
                return await flight.posting.outcome()
            return await self._consumer.deliver(flight.batch.events)
        except Exception as error:  # noqa: BLE001 - a bug in one consumer must not stop the others
            return error

    async def _exchange(self, limit: int, slots: list[str]) -> None:
        """One trip to the ledger: records what was delivered, takes what comes next.

        What is acknowledged during a trip shares the commit of the next one. Counting a long
        mailbox after every event would take quadratic time, so it is counted after `wake` only.
        """
        backlog, report = self._backlog, self._report
        generation, after, count = backlog.generation, backlog.cursor, self._woken
        batches = len(self._outcomes.acknowledged)
        done = [event for events, _ in self._outcomes.acknowledged for event in events]
        records = self._trail.take()
        if count:
            # before the look, not after it: an event that is committed meanwhile sets it again
            self._woken, backlog.more = False, True
            limit = limit or backlog.wanted(self._monotonic())[0]

        def trip() -> tuple[list[Event], list[Event], int, int | None]:
            name, grant = self._consumer.name, self._consumer.grant
            if done or records:
                self._ledger.acknowledge(name, done, records, delivered=bool(done))
            again = self._ledger.look_up(name, grant, slots) if slots else []
            newest = self._ledger.span()[1] if limit else 0
            events = self._ledger.take(name, grant, limit, after) if limit else []
            return again, events, newest, self._ledger.pending_count(name) if count else None

        try:
            found = await anyio.to_thread.run_sync(trip, limiter=self._threads)
        except StateError as error:
            self._trail.put_back(records)
            self._woken = self._woken or count
            failure = report.ledger.retry(str(error), self._rng)
            self._ledger_due = self._monotonic() + failure.delay
            report.ledger.schedule(self._clock(), failure.delay)
            report.stopped(failure, str(error), refused=False)
            return
        again, events, newest, pending = found
        report.ledger.succeed(self._clock())
        if generation == backlog.generation:
            backlog.read_again(slots, again)
            if limit:
                backlog.take(events, limit, newest)
        if pending is None:
            pending = max(0, report.pending - len(done))
        self._recorded(batches)
        if self._woken:
            backlog.more = True
        report.count(0 if backlog.is_empty else pending)
        if backlog.is_untroubled and not report.receiver.failures:
            report.calm()
            self._trail.calm()

    def _recorded(self, batches: int) -> None:
        """The first batches of those that were acknowledged have left the mailbox."""
        now = self._clock()
        with at_once():
            for events, failures in self._outcomes.acknowledged[:batches]:
                self._backlog.recorded(events)
                self._report.acknowledged(events, failures, now)
        del self._outcomes.acknowledged[:batches]
