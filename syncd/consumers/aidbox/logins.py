"""The logins that show whether replicas accept the new value of a Client's secret.

The value is read for each round, only while the file holds the announced version, and dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import anyio
import anyio.to_thread
import msgspec

from syncd.core.adoption import ATTEMPTS, Trial, accepts, plan_attempts
from syncd.core.errors import SyncdError
from syncd.core.event_data import ReplicaData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncd.consumers.aidbox.session import Session
    from syncd.net.replicas import Replica, Replicas

_NEWLINE: Final = b"\n"
_DROP_PAUSE: Final = 1.0
_UNRESOLVED: Final = "Aidbox"


class Cause(Protocol):
    """What drops the caches of replicas, because of the same changes."""

    def dropped_until(self, replica: Replica) -> int:
        """The newest event (by sequence) before which a replica's caches were dropped, or -1."""


class Progress(msgspec.Struct):
    """The adoption of one version so far.

    Attributes:
        secret: Its name; `path` and `version` are what is read.
        client: Id of the Client whose secret it is.
        event_id: The event that announced it, `sequence` that event's position.
        detected: When the scan saw the version, seconds since the epoch.
        begun: When the verification began, on the monotonic clock.
        awaits_drop: Whether caches will be dropped because of the event.
        trials: The attempts at each replica, by its name.
    """

    secret: str
    path: str
    version: str
    client: str
    event_id: str
    sequence: int
    detected: float
    begun: float
    awaits_drop: bool
    trials: dict[str, Trial] = msgspec.field(default_factory=dict)

    @property
    def due(self) -> float:
        """When the next attempt is due, on the monotonic clock."""
        return min((t.due for t in self.trials.values() if not t.is_adopted), default=0.0)

    def elapsed(self, now: float) -> float:
        """Seconds from the scan until `now` (since the epoch)."""
        return round(max(0.0, now - self.detected), 3)

    def restrict(self, replicas: Sequence[Replica]) -> None:
        """Drops replicas that no longer exist: they are not waited for."""
        names = set(map(str, replicas))
        self.trials = {name: trial for name, trial in self.trials.items() if name in names}

    def data(self) -> tuple[ReplicaData, ...]:
        """The result of each replica."""
        return tuple(
            ReplicaData(
                *(name, trial.is_adopted, trial.seconds),
                None if trial.is_adopted else trial.reason,
            )
            for name, trial in sorted(self.trials.items())
        )


class Logins:
    """Makes the attempts; the arguments are those of `Verifier`."""

    def __init__(
        self,
        *,
        replicas: Replicas,
        session: Session,
        read: Callable[[str, str, str], bytes | None],
        cause: Cause | None,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._replicas = replicas
        self._session = session
        self._read = read
        self._cause = cause
        self._timeout = timeout
        self._clock = clock

    async def try_due(self, progress: Progress) -> None:
        """Makes the attempts that are due."""
        now = anyio.current_time()
        try:
            replicas = await self._replicas.current()
        except SyncdError as error:
            trial = progress.trials.get(_UNRESOLVED)
            if trial is None:
                trial = Trial.begin(now, plan_attempts(self._timeout))
            trial.miss(now, error.problem)
            progress.trials = {_UNRESOLVED: trial}
            return
        progress.restrict(replicas)
        ready = [
            (replica, trial)
            for replica in replicas
            if self._is_due(progress, replica, trial := self._trial(progress, replica, now), now)
        ]
        if not ready:
            return
        value = await anyio.to_thread.run_sync(
            self._read, progress.secret, progress.path, progress.version
        )
        # a person who types the secret leaves out the newline that an editor put at its end
        values = [] if value is None else list({value: None, value.removesuffix(_NEWLINE): None})
        plan = plan_attempts(self._timeout, ATTEMPTS // max(1, len(values)))
        async with anyio.create_task_group() as tasks:
            for replica, trial in ready:
                if trial.index == 0:
                    trial.plan = plan
                tasks.start_soon(self._attempt, replica, trial, values, progress)

    def _trial(self, progress: Progress, replica: Replica, now: float) -> Trial:
        trial = progress.trials.get(str(replica))
        if trial is None:
            trial = Trial.begin(now, plan_attempts(self._timeout))
            if progress.awaits_drop:
                trial.due = now  # the drop itself is what is waited for
            progress.trials[str(replica)] = trial
        return trial

    def _is_due(self, progress: Progress, replica: Replica, trial: Trial, now: float) -> bool:
        if trial.is_adopted or trial.due > now:
            return False
        if not self._is_cached(progress, replica):
            return True
        # looks again very soon at first, then every second
        trial.due = now + min(_DROP_PAUSE, 0.005 + (now - progress.begun) / 2)
        return False

    def _is_cached(self, progress: Progress, replica: Replica) -> bool:
        """Whether a replica may still have the old value in a cache that will be dropped."""
        if self._cause is None or not progress.awaits_drop:
            return False
        # a cache that cannot be dropped does not keep the outcome away for ever
        is_late = anyio.current_time() - progress.begun >= self._timeout
        return not is_late and self._cause.dropped_until(replica) < progress.sequence

    async def _attempt(
        self,
        replica: Replica,
        trial: Trial,
        values: Sequence[bytes],
        progress: Progress,
    ) -> None:
        reason = "the file no longer holds this version"
        client, event_id = progress.client, progress.event_id
        for value in values:
            try:
                status = await self._session.status_as(replica, client, value, event_id)
            except SyncdError as error:
                trial.miss(anyio.current_time(), error.problem)
                return
            reason = f"it answers {status}"
            accepted = accepts(status)
            if accepted:
                trial.accept(progress.elapsed(self._clock()))
                return
            if accepted is None:
                trial.miss(anyio.current_time(), reason)
                return
        trial.refuse(anyio.current_time(), reason)
