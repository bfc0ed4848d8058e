"""Adoption: after a change, authenticates as the Client until each replica accepts the new value.

Changes to verify have a mailbox of their own in the ledger, so they survive a restart, and a newer
change replaces an older one. Each secret is verified by itself: one that Aidbox never accepts
delays no other, and no delivery. The outcome is an event for the other consumers:
`io.syncd.secret.adopted`, or `io.syncd.secret.rejected` when a replica has refused the value for
all of its time. Attempts are few (`syncd.core.adoption`), and begin at a replica when its caches
are dropped, where that is configured. After a rejection they go on, ever more rarely: a late
success is an adoption.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.consumers.aidbox.logins import Logins, Progress
from syncd.core.adoption import (
    NOT_VERIFIABLE,
    Adoption,
    AdoptionState,
    client_of,
    judge,
    mailbox_of,
)
from syncd.core.attempts import Attempts
from syncd.core.errors import StateError
from syncd.core.event_data import (
    SECRET_ADOPTED,
    SECRET_REJECTED,
    AdoptionData,
    ReplicaData,
    SecretData,
)
from syncd.core.events import Event
from syncd.core.model import Scope
from syncd.core.timing import rfc3339, seconds_of
from syncd.telemetry.log import describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from syncd.consumers.aidbox.logins import Cause
    from syncd.consumers.aidbox.session import Session
    from syncd.core.events import Stamp
    from syncd.core.model import Grant
    from syncd.ledger.ledger import Ledger
    from syncd.net.replicas import Replicas
    from syncd.telemetry.metrics import AdoptionMetrics

RETRY: Final = 10.0
"""Seconds after which a verification that could not be recorded starts again."""

_PARALLEL: Final = 16
_MAX_PENDING: Final = 10_000
log = structlog.get_logger()


class Verifier:
    """Verifies adoption for one consumer of kind `aidbox`.

    Args:
        consumer: Its name.
        grant: What it may see.
        timeout: Seconds that a replica has to adopt a version, not counting those in which it does
            not answer.
        replicas: The replicas that must adopt it.
        session: Sends requests to them; closed when `run` ends.
        ledger: Holds the mailbox and earlier events.
        read: Reads a secret by name, path and version; blocks.
        publish: Commits an event and delivers it to the other consumers.
        stamp: Makes the ids of events.
        cause: What drops caches; None where nothing does.
        metrics: Where to count.
        rng: Source of the jitter.
        clock: Seconds since the epoch.

    Attributes:
        adoptions: The newest adoption of each secret, by name.
        progress: What is being verified, by the secret's name.
    """

    def __init__(
        self,
        consumer: str,
        grant: Grant,
        timeout: float,
        *,
        replicas: Replicas,
        session: Session,
        ledger: Ledger,
        read: Callable[[str, str, str], bytes | None],
        publish: Callable[[Event], Awaitable[None]],
        stamp: Stamp,
        cause: Cause | None = None,
        metrics: AdoptionMetrics,
        rng: Random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.adoptions: dict[str, Adoption] = {}
        self.progress: dict[str, Progress] = {}
        self._timeout = timeout
        self._consumer = consumer
        self._grant = grant
        self._session = session
        self._logins = Logins(
            replicas=replicas,
            session=session,
            read=read,
            cause=cause,
            timeout=timeout,
            clock=clock,
        )
        self._ledger = ledger
        self._publish = publish
        self._stamp = stamp
        self._cause = cause
        self._metrics = metrics
        self._rng = rng
        self._clock = clock
        self._running: dict[str, tuple[int, anyio.CancelScope]] = {}
        self._concluded: set[str] = set()
        self._limiter = anyio.Semaphore(_PARALLEL)
        self._woken = anyio.Event()
        self._drained = anyio.Event()

    def follow(self, previous: Verifier) -> None:
        """Goes on where the verifier before a reload stops, so that a reload is no new beginning.

        Each refused login is a warning in Aidbox's log. With another timeout the attempts are
        planned anew.
        """
        if previous._timeout == self._timeout:
            self.progress = previous.progress

    def wake(self) -> None:
        """Notifies the verifier of new events in the mailbox. Call it from the event loop."""
        self._woken.set()
        if self._drained.is_set():
            self._drained = anyio.Event()

    async def drained(self) -> None:
        """Returns when nothing is left to verify, with no `wake` since."""
        while not self._drained.is_set():
            await self._drained.wait()

    async def run(self) -> None:
        """Verifies until cancelled."""
        attempts, restored = Attempts(), False
        try:
            async with anyio.create_task_group() as tasks:
                while True:
                    # reset before the look, not after it: an event committed meanwhile sets it
                    self._woken = anyio.Event()
                    try:
                        if not restored:
                            self.adoptions = await anyio.to_thread.run_sync(self._earlier_adoptions)
                            restored = True
                        events = await anyio.to_thread.run_sync(self._take)
                    except StateError as error:
                        failure = attempts.retry(str(error), self._rng)
                        report = log.warning if failure.is_news else log.debug
                        report("adoption.postponed", consumer=self._consumer, reason=str(error))
                        await anyio.sleep(failure.delay)
                        continue
                    attempts.succeed(self._clock())
                    for event in events:
                        self._start(tasks, event)
                    self._check_drained()
                    await self._woken.wait()
        finally:
            with anyio.move_on_after(1, shield=True):
                await self._session.aclose()

    def _earlier_adoptions(self) -> dict[str, Adoption]:
        found = {}
        for event in self._ledger.events_of((SECRET_ADOPTED, SECRET_REJECTED)):
            data = event.data
            if isinstance(data, AdoptionData) and data.consumer == self._consumer:
                found[event.subject] = _adoption(data)
        return found

    def _take(self) -> list[Event]:
        return self._ledger.take(mailbox_of(self._consumer), self._grant, _MAX_PENDING)

    def _check_drained(self) -> None:
        if not self._running.keys() - self._concluded and not self._woken.is_set():
            self._drained.set()

    def _start(self, tasks: anyio.abc.TaskGroup, event: Event) -> None:
        sequence, scope = self._running.get(event.subject, (None, None))
        if sequence == event.sequence:
            return
        if scope is not None:
            scope.cancel()  # a newer change replaces it
        self._concluded.discard(event.subject)
        new = anyio.CancelScope()
        self._running[event.subject] = (event.sequence, new)
        tasks.start_soon(self._verify, event, new)

    async def _verify(self, event: Event, scope: anyio.CancelScope) -> None:
        failed = False
        with scope:
            try:
                await self._process(event)
            except StateError as error:
                log.warning("adoption.postponed", consumer=self._consumer, reason=str(error))
                failed = True
            except Exception as error:  # noqa: BLE001 - a bug in one must not stop the others
                log.error("adoption.failed", consumer=self._consumer, error=describe(error))
                failed = True
            if failed:
                await anyio.sleep(RETRY)
        # else a newer change has replaced this one, and its entry is not ours to remove
        if self._running.get(event.subject, (None, None))[1] is scope:
            del self._running[event.subject]
            self._concluded.discard(event.subject)
            if failed:
                self.wake()
            self._check_drained()

    async def _process(self, event: Event) -> None:
        data = event.data
        client = client_of(event.audience.get(event.subject, ()))
        if not isinstance(data, SecretData) or data.version is None:
            self.adoptions.pop(event.subject, None)
        elif client is None:
            if self.adoptions.get(event.subject) is not NOT_VERIFIABLE:
                hint = "only the secret of a single Client can be verified"
                log.info("adoption.not_verifiable", secret=event.subject, hint=hint)
            self.adoptions[event.subject] = NOT_VERIFIABLE
        else:
            progress = Progress(
                *(event.subject, data.path, data.version, client),
                *(self._stamp.origin(event).id, event.sequence),
                *(seconds_of(event.time), anyio.current_time()),
                awaits_drop=await self._awaits_drop(event),
            )
            before = self.progress.get(event.subject)
            if before is not None and before.is_about(progress):
                progress.trials, progress.begun = before.trials, before.begun
            self.progress[event.subject] = progress
            await self._observe(event, progress)
            self.progress.pop(event.subject, None)
            return
        self.progress.pop(event.subject, None)
        await self._acknowledge(event)

    async def _acknowledge(self, event: Event) -> None:
        mailbox = mailbox_of(self._consumer)
        await anyio.to_thread.run_sync(self._ledger.acknowledge, mailbox, (event,))

    async def _observe(self, event: Event, progress: Progress) -> None:
        """Tries until every replica has accepted the value; reports each outcome once."""
        reported = set[AdoptionState]()
        state = AdoptionState.PENDING
        self.adoptions[event.subject] = Adoption(state, progress.version)
        while state is not AdoptionState.ADOPTED:
            async with self._limiter:
                await self._logins.try_due(progress)
            before, state = state, judge(progress.trials.values(), anyio.current_time())
            if state in (AdoptionState.ADOPTED, AdoptionState.REJECTED):
                if state not in reported:
                    reported.add(state)
                    await self._conclude(event, progress, state)
            elif state is not before and not reported:
                self._note(event.subject, progress, state)
            await anyio.sleep(max(0.0, progress.due - anyio.current_time()))

    async def _awaits_drop(self, event: Event) -> bool:
        """Whether caches will be dropped because of an event: not if that was done before."""
        if self._cause is None:
            return False
        found = await anyio.to_thread.run_sync(
            self._ledger.look_up, self._consumer, self._grant, [event.slot]
        )
        return any(item.sequence <= event.sequence for item in found)

    def _note(self, secret: str, progress: Progress, state: AdoptionState) -> None:
        """Records a state that is no outcome."""
        problem = None
        if state is AdoptionState.UNREACHABLE:
            problem = _problem(progress.data())
            hint = "start Aidbox; verification goes on"
            log.warning(
                "adoption.unreachable",
                secret=secret,
                consumer=self._consumer,
                problem=problem,
                hint=hint,
            )
        self.adoptions[secret] = Adoption(state, progress.version, None, problem)

    async def _conclude(self, event: Event, progress: Progress, state: AdoptionState) -> None:
        secret, adopted, now = event.subject, state is AdoptionState.ADOPTED, self._clock()
        took = (
            max(trial.seconds or 0.0 for trial in progress.trials.values())
            if adopted
            else progress.elapsed(now)
        )
        scope = Scope("Client", progress.client)
        data = AdoptionData(secret, scope, progress.version, self._consumer, took, progress.data())
        type_ = SECRET_ADOPTED if adopted else SECRET_REJECTED
        await self._publish(Event(0, rfc3339(now), type_, secret, data, event.audience))
        found = self.adoptions[secret] = _adoption(data)
        if adopted:
            self._metrics.adopted(took)
            log.info("adoption.adopted", secret=secret, consumer=self._consumer, took=took)
        else:
            self._metrics.rejected()
            log.error(
                "adoption.rejected",
                secret=secret,
                consumer=self._consumer,
                problem=found.problem,
                hint="see docs/aidbox.md",
            )
        self._concluded.add(secret)
        await self._acknowledge(event)
        self._check_drained()


def _adoption(data: AdoptionData) -> Adoption:
    if data.replicas and all(item.adopted for item in data.replicas):
        return Adoption(AdoptionState.ADOPTED, data.version, data.seconds)
    return Adoption(AdoptionState.REJECTED, data.version, data.seconds, _problem(data.replicas))


def _problem(replicas: Sequence[ReplicaData]) -> str:
    failed = [f"{item.address}: {item.reason}" for item in replicas if not item.adopted]
    return "; ".join(failed) or "no replica answered"
