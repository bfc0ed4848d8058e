"""Adoption: after a change, authenticates as the Client until each replica accepts the new value.

Changes to verify have a mailbox of their own in the ledger, so they survive a restart, and a newer
change replaces an older one. Each secret is verified by itself: one that Aidbox never accepts
delays no other, and no delivery. The outcome is an event for the other consumers:
`io.syncd.secret.adopted`, or `io.syncd.secret.rejected` after the deadline.

The value is read for each attempt, only while the file holds the announced version, and dropped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.core.adoption import (
    NOT_VERIFIABLE,
    Adoption,
    AdoptionState,
    accepts,
    client_of,
    mailbox_of,
)
from syncd.core.attempts import Attempts
from syncd.core.errors import StateError, SyncdError
from syncd.core.event_data import (
    SECRET_ADOPTED,
    SECRET_REJECTED,
    AdoptionData,
    ReplicaData,
    SecretData,
)
from syncd.core.events import Event
from syncd.core.model import Scope
from syncd.core.timing import Backoff, rfc3339, seconds_of
from syncd.telemetry.log import describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from syncd.consumers.aidbox.session import Session
    from syncd.core.model import Grant
    from syncd.ledger.ledger import Ledger
    from syncd.net.replicas import Replica, Replicas
    from syncd.telemetry.metrics import AdoptionMetrics

RETRY: Final = 10.0
"""Seconds after which a verification that could not be recorded starts again."""

_PARALLEL: Final = 16
_MAX_PENDING: Final = 10_000
_NEWLINE: Final = b"\n"
log = structlog.get_logger()


@dataclass(slots=True)
class _Progress:
    """The adoption of one version so far.

    Attributes:
        detected: When the scan saw the version, seconds since the epoch.
        seconds: Replicas that have adopted it, and after how long.
        reasons: Replicas that have not, and why.
    """

    path: str
    version: str
    client: str
    detected: float
    seconds: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def adopted(self) -> bool:
        return bool(self.seconds) and not self.reasons

    def elapsed(self, now: float) -> float:
        return round(max(0.0, now - self.detected), 3)

    def restrict(self, replicas: Sequence[Replica]) -> None:
        """Drops replicas that no longer exist: they are not waited for."""
        names = set(map(str, replicas))
        self.seconds = {name: took for name, took in self.seconds.items() if name in names}
        self.reasons = {name: why for name, why in self.reasons.items() if name in names}

    def data(self) -> tuple[ReplicaData, ...]:
        return tuple(
            ReplicaData(name, name in self.seconds, self.seconds.get(name), self.reasons.get(name))
            for name in sorted({*self.seconds, *self.reasons})
        )


class Verifier:
    """Verifies adoption for one consumer of kind `aidbox`.

    Args:
        consumer: Its name.
        grant: What it may see.
        timeout: Seconds that Aidbox has to adopt a version.
        replicas: The replicas that must adopt it.
        session: Sends requests to them; closed when `run` ends.
        ledger: Holds the mailbox and earlier events.
        read: Reads a secret by name, path and version; blocks.
        publish: Commits an event and delivers it to the other consumers.
        metrics: Where to count.
        rng: Source of the jitter.
        clock: Seconds since the epoch.

    Attributes:
        adoptions: The newest adoption of each secret, by name.
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
        metrics: AdoptionMetrics,
        rng: Random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.adoptions: dict[str, Adoption] = {}
        self._consumer = consumer
        self._grant = grant
        self._timeout = timeout
        self._replicas = replicas
        self._session = session
        self._ledger = ledger
        self._read = read
        self._publish = publish
        self._metrics = metrics
        self._rng = rng
        self._clock = clock
        self._running: dict[str, tuple[int, anyio.CancelScope]] = {}
        self._limiter = anyio.Semaphore(_PARALLEL)
        self._woken = anyio.Event()
        self._drained = anyio.Event()

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
        if not self._running and not self._woken.is_set():
            self._drained.set()

    def _start(self, tasks: anyio.abc.TaskGroup, event: Event) -> None:
        sequence, scope = self._running.get(event.subject, (None, None))
        if sequence == event.sequence:
            return
        if scope is not None:
            scope.cancel()  # a newer change replaces it
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
            self.adoptions[event.subject] = Adoption(AdoptionState.PENDING, data.version)
            progress = _Progress(data.path, data.version, client, seconds_of(event.time))
            with anyio.move_on_after(self._timeout):
                await self._until_adopted(event.subject, progress)
            await self._conclude(event, progress)
        await anyio.to_thread.run_sync(
            self._ledger.acknowledge, mailbox_of(self._consumer), (event,)
        )

    async def _until_adopted(self, secret: str, progress: _Progress) -> None:
        # the first attempt waits a moment, too: the delivery of the same change drops the caches
        backoff = Backoff(first=0.1, cap=2.0)
        while not progress.adopted:
            await anyio.sleep(backoff.next(self._rng))
            async with self._limiter:
                try:
                    replicas = await self._replicas.current()
                except SyncdError as error:
                    progress.reasons["Aidbox"] = error.problem
                    continue
                value = await anyio.to_thread.run_sync(
                    self._read, secret, progress.path, progress.version
                )
                progress.restrict(replicas)
                async with anyio.create_task_group() as tasks:
                    for replica in replicas:
                        if str(replica) not in progress.seconds:
                            tasks.start_soon(self._attempt, replica, value, progress)
                del value  # not kept while waiting for the next attempt

    async def _attempt(self, replica: Replica, value: bytes | None, progress: _Progress) -> None:
        name = str(replica)
        progress.reasons.setdefault(name, "no answer yet")
        if value is None:
            progress.reasons[name] = "the file no longer holds this version"
            return
        # a person who types the secret leaves out the newline that an editor put at its end
        for candidate in {value: None, value.removesuffix(_NEWLINE): None}:
            try:
                status = await self._session.status_as(replica, progress.client, candidate)
            except SyncdError as error:
                progress.reasons[name] = error.problem
                return
            progress.reasons[name] = f"it answers {status}"
            if accepts(status):
                del progress.reasons[name]
                progress.seconds[name] = progress.elapsed(self._clock())
                return

    async def _conclude(self, event: Event, progress: _Progress) -> None:
        secret, adopted, now = event.subject, progress.adopted, self._clock()
        took = max(progress.seconds.values()) if adopted else progress.elapsed(now)
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


def _adoption(data: AdoptionData) -> Adoption:
    failed = [item for item in data.replicas if not item.adopted]
    if data.replicas and not failed:
        return Adoption(AdoptionState.ADOPTED, data.version, data.seconds)
    reasons = "; ".join(f"{item.address}: {item.reason}" for item in failed)
    problem = reasons or "no replica answered"
    return Adoption(AdoptionState.REJECTED, data.version, data.seconds, problem)
