"""Adoption: after a change, asks each replica of Aidbox as the Client until it takes the new value.

What is to be verified waits in a mailbox of its own in the ledger, so a restart forgets none, and
a newer change takes the place of an older one. Each secret is verified by itself: one that Aidbox
never takes holds up no other, and no delivery. How it ends is an event for everybody else:
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
"""Seconds after which a verification that could not be recorded is begun again."""

_PARALLEL: Final = 16
_MOST: Final = 10_000
_NEWLINE: Final = b"\n"
log = structlog.get_logger()


@dataclass(slots=True)
class _Attempts:
    """What the replicas made of one version so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def adopted(self) -> bool:
        """Whether all of them have adopted it."""
        return bool(self.seconds) and not self.reasons

    def restrict(self, replicas: Sequence[Replica]) -> None:
        """Forgets those that are gone."""
        names = set(map(str, replicas))
        self.seconds = {name: took for name, took in self.seconds.items() if name in names}
        self.reasons = {name: why for name, why in self.reasons.items() if name in names}

    def data(self) -> tuple[ReplicaData, ...]:
        """As the event tells them."""
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
        replicas: Whom to ask.
        session: How; closed when `run` ends.
        ledger: Holds the mailbox and the events of before.
        read: Reads a secret by name, path and version; blocks.
        publish: Commits an event and tells everybody of it.
        metrics: Where to count.
        rng: Source of the jitter.
        clock: Seconds since the epoch.

    Attributes:
        adoptions: What is known, by secret name.
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
        """Says that there may be something in the mailbox. Call it from the event loop."""
        self._woken.set()
        if self._drained.is_set():
            self._drained = anyio.Event()

    async def drained(self) -> None:
        """Returns when nothing is left to verify, with no `wake` since."""
        while not self._drained.is_set():
            await self._drained.wait()

    async def run(self) -> None:
        """Verifies until cancelled."""
        backoff, restored = Backoff(), False
        try:
            async with anyio.create_task_group() as tasks:
                while True:
                    self._woken = anyio.Event()
                    try:
                        if not restored:
                            self.adoptions = await anyio.to_thread.run_sync(self._before)
                            restored = True
                        for event in await anyio.to_thread.run_sync(self._take):
                            self._begin(tasks, event)
                    except StateError as error:
                        log.warning(
                            "adoption.postponed", consumer=self._consumer, reason=str(error)
                        )
                        await anyio.sleep(backoff.next(self._rng))
                        continue
                    backoff.reset()
                    self._settle()
                    await self._woken.wait()
        finally:
            with anyio.move_on_after(1, shield=True):
                await self._session.aclose()

    def _before(self) -> dict[str, Adoption]:
        """What the event log tells of earlier verifications."""
        found = {}
        for event in self._ledger.events_of((SECRET_ADOPTED, SECRET_REJECTED)):
            data = event.data
            if isinstance(data, AdoptionData) and data.consumer == self._consumer:
                found[event.subject] = _concluded(data)
        return found

    def _take(self) -> list[Event]:
        return self._ledger.take(mailbox_of(self._consumer), self._grant, _MOST)

    def _settle(self) -> None:
        if not self._running and not self._woken.is_set():
            self._drained.set()

    def _begin(self, tasks: anyio.abc.TaskGroup, event: Event) -> None:
        sequence, scope = self._running.get(event.subject, (None, None))
        if sequence == event.sequence:
            return
        if scope is not None:
            scope.cancel()  # a newer change supersedes it
        new = anyio.CancelScope()
        self._running[event.subject] = (event.sequence, new)
        tasks.start_soon(self._verify, event, new)

    async def _verify(self, event: Event, scope: anyio.CancelScope) -> None:
        failed = False
        with scope:
            try:
                await self._conclude(event)
            except StateError as error:
                log.warning("adoption.postponed", consumer=self._consumer, reason=str(error))
                failed = True
            except Exception as error:  # noqa: BLE001 - a bug in one must not stop the others
                log.error("adoption.failed", consumer=self._consumer, error=describe(error))
                failed = True
            if failed:
                await anyio.sleep(RETRY)
        if self._running.get(event.subject, (None, None))[1] is scope:
            del self._running[event.subject]
            if failed:
                self.wake()
            self._settle()

    async def _conclude(self, event: Event) -> None:
        """Verifies one change and takes it out of the mailbox."""
        data = event.data
        client = client_of(event.audience.get(event.subject, ()))
        if not isinstance(data, SecretData) or data.version is None:
            self.adoptions.pop(event.subject, None)
        elif client is None:
            if self.adoptions.get(event.subject) is not NOT_VERIFIABLE:
                hint = "only the secret of one Client can be tried"
                log.info("adoption.not_verifiable", secret=event.subject, hint=hint)
            self.adoptions[event.subject] = NOT_VERIFIABLE
        else:
            self.adoptions[event.subject] = Adoption(AdoptionState.PENDING, data.version)
            detected = seconds_of(event.time)
            attempts = _Attempts()
            with anyio.move_on_after(self._timeout):
                await self._until_adopted(data, data.version, client, detected, attempts)
            await self._tell(event, data.version, client, detected, attempts)
        await anyio.to_thread.run_sync(
            self._ledger.acknowledge, mailbox_of(self._consumer), (event,)
        )

    async def _until_adopted(
        self, data: SecretData, version: str, client: str, detected: float, attempts: _Attempts
    ) -> None:
        # the first attempt comes a moment later, when the caches have been dropped
        backoff = Backoff(first=0.1, cap=2.0)
        while not attempts.adopted:
            await anyio.sleep(backoff.next(self._rng))
            async with self._limiter:
                try:
                    replicas = await self._replicas.current()
                except SyncdError as error:
                    attempts.reasons["Aidbox"] = str(error)
                    continue
                value = await anyio.to_thread.run_sync(self._read, data.secret, data.path, version)
                attempts.restrict(replicas)
                async with anyio.create_task_group() as tasks:
                    for replica in replicas:
                        if str(replica) not in attempts.seconds:
                            tasks.start_soon(
                                self._attempt, replica, client, value, detected, attempts
                            )
                del value

    async def _attempt(
        self,
        replica: Replica,
        client: str,
        value: bytes | None,
        detected: float,
        attempts: _Attempts,
    ) -> None:
        name = str(replica)
        attempts.reasons.setdefault(name, "it has not answered yet")
        if value is None:
            attempts.reasons[name] = "the file does not hold this version any more"
            return
        # whoever types it leaves out the newline that an editor put at the end
        for candidate in {value: None, value.removesuffix(_NEWLINE): None}:
            try:
                status = await self._session.is_accepted_as(replica, client, candidate)
            except SyncdError as error:
                attempts.reasons[name] = str(error)
                return
            attempts.reasons[name] = f"it answers {status}"
            if accepts(status):
                del attempts.reasons[name]
                attempts.seconds[name] = round(max(0.0, self._clock() - detected), 3)
                return

    async def _tell(
        self, event: Event, version: str, client: str, detected: float, attempts: _Attempts
    ) -> None:
        adopted = attempts.adopted
        took = (
            max(attempts.seconds.values())
            if adopted
            else round(max(0.0, self._clock() - detected), 3)
        )
        data = AdoptionData(
            event.subject,
            Scope("Client", client),
            version,
            self._consumer,
            took,
            attempts.data(),
        )
        await self._publish(
            Event(
                0,
                rfc3339(self._clock()),
                SECRET_ADOPTED if adopted else SECRET_REJECTED,
                event.subject,
                data,
                event.audience,
            )
        )
        found = self.adoptions[event.subject] = _concluded(data)
        if adopted:
            self._metrics.adopted(took)
            log.info("adoption.adopted", secret=event.subject, consumer=self._consumer, took=took)
        else:
            self._metrics.rejected()
            log.error(
                "adoption.rejected",
                secret=event.subject,
                consumer=self._consumer,
                problem=found.problem,
                hint="see docs/aidbox.md",
            )


def _concluded(data: AdoptionData) -> Adoption:
    failed = [item for item in data.replicas if not item.adopted]
    if data.replicas and not failed:
        return Adoption(AdoptionState.ADOPTED, data.version, data.seconds)
    problem = "; ".join(f"{item.address}: {item.reason}" for item in failed) or "nobody answered"
    return Adoption(AdoptionState.REJECTED, data.version, data.seconds, problem)
