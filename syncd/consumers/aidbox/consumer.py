"""Aidbox itself as a consumer: drops its caches and records changes in its audit trail.

Aidbox documents that it caches contents of secrets' files "with a short TTL" (release 2602,
"External Secrets"), and not for how long. `POST /$drop-cache` clears that cache of the replica that
receives the request, and all other caches with it, so the request is sent once per batch of changes
and replica, never per secret. A batch is acknowledged when every replica that existed at that time
has answered 2xx and each change is recorded as an AuditEvent; a retry repeats only what has not
succeeded. A change that cannot be recorded, for a reason of its own, holds up no other.

Whether the replicas accept the new value is `syncd.consumers.aidbox.verify`'s part.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from syncd.config.settings import grant_of
from syncd.consumers.aidbox.audit import AuditTrail
from syncd.consumers.aidbox.session import PROBE, FailedError, RejectedError, Session
from syncd.consumers.consumer import Target, Tested, Undelivered, UnusableError, undelivered
from syncd.core.audit_event import (
    adoption_audit_event,
    audit_event,
    audit_event_id,
    destination_audit_event,
    fleet_audit_event,
    shared_audit_event_ids,
)
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.event_data import (
    SECRET_ADOPTED,
    SECRET_CONVERGED,
    AdoptionData,
    DestinationData,
    FleetData,
    SecretData,
)
from syncd.net.replicas import Replicas
from syncd.net.tls import Trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.config.settings import Aidbox
    from syncd.core.events import Event, Stamp
    from syncd.net.replicas import Replica

MAX_BATCH: Final = 10_000
"""Events in a batch: the largest number of secrets that one mount is made for."""

_AUDITABLE: Final = SecretData | AdoptionData | DestinationData
_OF_CLIENT: Final = frozenset((401, 403, 404))


def open_replicas(settings: Aidbox) -> Replicas:
    """The replicas that a consumer of kind `aidbox` names."""
    return Replicas(settings.urls, expand=settings.resolve == "all")


def open_session(settings: Aidbox, replicas: Replicas) -> Session:
    """A session with the credentials of a consumer of kind `aidbox`."""
    return Session(
        settings.client_id,
        settings.client_secret_file,
        Trust.of(settings) if replicas.has_tls else None,
        use_token=settings.grant_type == "client_credentials",
        timeout=float(settings.timeout),
    )


class AidboxConsumer:
    """A consumer of kind `aidbox`.

    Args:
        settings: Its settings.
        stamp: Makes the ids of events.
        shared: Whether other installations have the same versions, and record the same changes.

    Raises:
        RefusedError: A URL cannot be used.
    """

    max_batch = MAX_BATCH
    max_in_flight = 1  # one delivery makes several requests at the same time

    def __init__(self, settings: Aidbox, stamp: Stamp, *, shared: bool = False) -> None:
        self.name = settings.name
        self.grant = grant_of(settings)
        self._actions = frozenset(settings.actions)
        self._parallel = settings.max_in_flight
        self._stamp = stamp
        self._is_shared = shared
        self._group = settings.audit_group
        self._replicas = open_replicas(settings)
        self._session = open_session(settings, self._replicas)
        self._dropped: dict[Replica, int] = {}
        self._trail = AuditTrail(settings, self._session, self._replicas)
        self._recorded: dict[str, tuple[int, str | None]] = {}
        self._outcomes: set[int] = set()

    def __repr__(self) -> str:
        return f"AidboxConsumer({self.name!r})"

    async def deliver(self, events: Sequence[Event]) -> None:
        """Drops the caches of every replica and records each change; a failure stops neither.

        Raises:
            TemporaryError: A request failed, and trying again may help.
            UnusableError: All that failed needs a person.
            UndeliveredError: Some changes cannot be recorded, for reasons of their own.
        """
        changes = [event for event in events if isinstance(event.data, SecretData)]
        errors: list[SyncdError] = []
        failed: list[Undelivered] = []
        cached = [event for event in changes if not event.is_extra]
        if cached and "drop_cache" in self._actions:
            errors += await self._drop_caches(max(cached, key=lambda event: event.sequence))
        auditable = list(filter(_is_auditable, events))
        if auditable and "audit_event" in self._actions:
            errors += await self._record(auditable, failed)
        if errors:
            error = _combined([*errors, *(item.error for item in failed)])
            raise UnusableError.of(error) if isinstance(error, RefusedError) else error
        self._recorded.clear()
        self._outcomes.clear()
        if failed:
            raise undelivered(failed)

    async def ping(self, ident: str, at: str) -> Tested:  # noqa: ARG002 - no event is sent
        """Reads something of every replica as the Client, which changes nothing; see `Testable`.

        It shows that the replicas answer and accept the credentials. Whether the Client may drop
        caches and write AuditEvents is another question, so that it is no proof.
        """
        event_id = self._stamp.ping_id(ident)
        try:
            replicas = await self._replicas.current()
        except SyncdError as error:
            return Tested(self.name, self._replicas.has_tls, None, error, is_proof=False)
        targets: dict[Replica, Target] = {}

        async def ask(replica: Replica) -> None:
            status, problem = None, None
            try:
                answer = await self._session.request(
                    *("cannot read", replica, "GET", PROBE),
                    accept=(HTTPStatus.FORBIDDEN,),  # judged after the credentials
                    event_id=event_id,
                )
                status = answer.status
            except SyncdError as error:
                status, problem = error.status, error
            targets[replica] = Target(str(replica), status, problem)

        async with anyio.create_task_group() as tasks:
            for replica in replicas:
                tasks.start_soon(ask, replica)
        found = tuple(targets[replica] for replica in replicas)
        errors = [target.error for target in found if target.error is not None]
        worst = next((target for target in found if target.error is not None), found[0])
        return Tested(
            ", ".join(target.address for target in found),
            self._replicas.has_tls,
            worst.status,
            _combined(errors) if errors else None,
            targets=found,
            is_proof=False,
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._session.aclose()
        await self._trail.aclose()

    def dropped_until(self, replica: Replica) -> int:
        """The newest event (by sequence) before which the caches of a replica were dropped.

        -1 where they were not, in this process.
        """
        return self._dropped.get(replica, -1)

    async def _drop_caches(self, event: Event) -> list[SyncdError]:
        """Drops what was cached before an event, where that is still to do."""
        newest, event_id = event.sequence, self._stamp.origin(event).id
        errors: list[SyncdError] = []
        try:
            replicas = await self._replicas.current()
        except TemporaryError as error:
            return [error]
        self._dropped = {r: at for r, at in self._dropped.items() if r in replicas}
        limiter = anyio.CapacityLimiter(self._parallel)

        async def drop(replica: Replica) -> None:
            async with limiter:
                try:
                    failed = "cannot drop the caches"
                    await self._session.request(
                        failed, replica, "POST", "/$drop-cache", event_id=event_id
                    )
                except SyncdError as error:
                    errors.append(error)
                else:
                    self._dropped[replica] = newest

        async with anyio.create_task_group() as tasks:
            for replica in replicas:
                if self._dropped.get(replica, -1) < newest:
                    tasks.start_soon(drop, replica)
        return errors

    async def _record(
        self, changes: Sequence[Event], failed: list[Undelivered]
    ) -> list[SyncdError]:
        """Makes an AuditEvent of each change.

        Changes that fail by themselves are added to `failed`; after any other failure the rest
        would fail, too.
        """
        errors: list[SyncdError] = []
        waiting = iter(changes)

        async def record() -> None:
            for event in waiting:
                if errors:
                    return
                try:
                    await self._record_one(event)
                except SyncdError as error:
                    if _is_about_change(error):
                        failed.append(Undelivered((event,), error))
                    else:
                        errors.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(min(self._parallel, len(changes))):
                tasks.start_soon(record)
        return errors

    async def _record_outcome(
        self, event: Event, data: AdoptionData | DestinationData | FleetData
    ) -> None:
        if event.sequence in self._outcomes:
            return
        origin = self._stamp.origin(event)
        by = {"event_id": origin.id, "source": origin.source, "time": event.time}
        if isinstance(data, FleetData):
            resource = fleet_audit_event(data, **by)
        elif isinstance(data, DestinationData):
            resource = destination_audit_event(data, **by)
        else:
            adopted = event.type == SECRET_ADOPTED
            resource = adoption_audit_event(data, adopted=adopted, **by)
        about = (event.type, str(data.scope), data.secret, data.version)
        await self._create(event, origin.id, resource, *about)
        self._outcomes.add(event.sequence)

    async def _create(
        self, event: Event, event_id: str, resource: dict[str, Any], *about: str | None
    ) -> None:
        if self._is_shared:
            ids = shared_audit_event_ids(event.time, self._group, *about)
        else:
            ids = (audit_event_id(event_id),)
        content = msgspec.json.encode({**resource, "id": ids[0]})
        await self._trail.create(event_id, ids, content)

    async def _record_one(self, event: Event) -> None:
        data = event.data
        if isinstance(data, AdoptionData | DestinationData | FleetData):
            await self._record_outcome(event, data)
            return
        assert isinstance(data, SecretData)
        sequence, version = self._recorded.get(event.subject, (None, None))
        if sequence == event.sequence:
            return
        if sequence is not None:
            # an earlier attempt recorded an older version: the trail goes on from that one
            data = msgspec.structs.replace(data, previous_version=version)
        origin = self._stamp.origin(event)
        resource = audit_event(data, event_id=origin.id, source=origin.source, time=event.time)
        about = (event.type, data.secret, data.version, data.previous_version)
        await self._create(event, origin.id, resource, *about)
        self._recorded[event.subject] = (event.sequence, data.version)


def _is_auditable(event: Event) -> bool:
    """Changes, outcomes of verifications, and rotations of a fleet, each once.

    A version that has converged before, and was announced again when a divergence ended, is none.
    """
    data = event.data
    if isinstance(data, FleetData):
        return event.type == SECRET_CONVERGED and data.version != data.previous_version
    return isinstance(data, _AUDITABLE)


def _is_about_change(error: SyncdError) -> bool:
    """Whether other changes may be recorded."""
    if isinstance(error, RejectedError):
        return error.status not in _OF_CLIENT
    return isinstance(error, FailedError)


def _combined(errors: Sequence[SyncdError]) -> SyncdError:
    """One error for several; one that may resolve itself decides when to try again."""
    temporary = [error for error in errors if isinstance(error, TemporaryError)]
    first = temporary[0] if temporary else errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    problem = f"{first.problem}{more}"
    if not temporary:
        return RefusedError(problem, first.remedy).answered(first.status)
    waits = [error.retry_after for error in temporary if error.retry_after is not None]
    error = TemporaryError(problem, first.remedy, retry_after=max(waits, default=None))
    return error.answered(first.status)
