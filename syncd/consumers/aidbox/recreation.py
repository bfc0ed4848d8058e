"""The steps that recreate one destination without losing a message.

DELETE drops what is not delivered, and what is published until the POST finds no destination. So:

1. a stand-in is created where possible (`syncd.consumers.aidbox.destinations`), and runs at every
   replica before the next step;
2. the body is kept outside of Aidbox (`Term.begin`), and a POST that changes nothing shows that
   syncd may create it;
3. the queue becomes empty, as every replica reports it, within a limited time;
4. DELETE, and POST with the same id and body until that succeeds;
5. every replica has a sender that started after the rotation;
6. the stand-in has delivered what it has, and is deleted.

A destination is never left missing: however the process ends between 4 and 5, `recover` creates it
from what was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import msgspec
import structlog

from syncd.consumers.aidbox.destinations import (
    STAND_IN,
    body_of,
    is_current,
    is_outdated,
    obstacle,
    unfinished,
)
from syncd.consumers.aidbox.references import DESTINATION
from syncd.consumers.aidbox.resources import Reader, location
from syncd.consumers.aidbox.session import RejectedError
from syncd.core.attempts import Attempts
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.timing import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
    from random import Random

    from syncd.config.settings import Recreate
    from syncd.consumers.aidbox.leadership import Term
    from syncd.consumers.aidbox.resources import Resource, Sender
    from syncd.consumers.aidbox.session import Session
    from syncd.net.replicas import Replica

START_LIMIT: Final = 10.0
"""Seconds that the senders of a new destination may take at all replicas; the vendor documents that
less than one is normal."""

TOGETHER: Final = 4.0
"""Seconds for which DELETE and POST are completed although syncd stops or has lost the Lease: less
than a Lease lasts after that, and than syncd has for a stop."""

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.25
_MISSING: Final = frozenset((HTTPStatus.NOT_FOUND, HTTPStatus.GONE))
_EXISTS: Final = frozenset((HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED))
_FHIR: Final = {"content-type": "application/fhir+json"}
_RESTART: Final = "restart the replicas of Aidbox, which loses nothing"

T = TypeVar("T")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a destination.

    Attributes:
        senders: Its sender at each replica, by address; None where the replica does not answer.
        has_acted: Whether it was recreated.
        reason: Why it still has an old value, or may have one, or None.
        remedy: What a person can do about that.
    """

    senders: Mapping[str, Sender | None]
    has_acted: bool = False
    reason: str | None = None
    remedy: str = _RESTART

    @classmethod
    def refused(cls, error: RefusedError) -> Outcome:
        """The outcome where Aidbox does not allow it."""
        return cls({}, reason=error.problem, remedy=error.remedy or _RESTART)


class Recreation:
    """The steps at one Aidbox, during one term.

    Args:
        session: Makes the requests.
        replicas: Every replica, at least one.
        term: In which to act.
        options: Limits.
        owner: The consumer, by which what is begun is found again.
        event_id: The event that calls for it, or None.
        rng: Source of the jitter.
    """

    def __init__(
        self,
        session: Session,
        replicas: Sequence[Replica],
        term: Term,
        options: Recreate,
        *,
        owner: str,
        event_id: str | None,
        rng: Random,
    ) -> None:
        self._session = session
        self._replicas = replicas
        self._term = term
        self._options = options
        self._owner = owner
        self._event_id = event_id
        self._rng = rng
        self._reader = Reader(session, event_id)

    async def destinations(self) -> tuple[Resource, ...]:
        """All destinations, from the first replica that answers."""
        return await self._at_any(lambda replica: self._reader.all(replica, DESTINATION))

    async def recover(self) -> None:
        """Creates what an earlier process deleted and did not create."""
        own = f"{self._owner}/"
        for name, body in dict(self._term.begun).items():
            if not name.startswith(own):
                continue
            id_ = name.removeprefix(own)
            if await self._is_missing(id_):
                log.warning("destination.recovering", destination=id_)
                await self._create(id_, body)
            await self._term.end(name)

    async def recreate(
        self, resource: Resource, rotated: float, stand_in: str | None, *, left_over: bool
    ) -> Outcome:
        """Recreates a destination, unless every sender is current.

        Args:
            resource: The destination.
            rotated: When the secret was rotated, seconds since the epoch.
            stand_in: The id that its stand-in may have, or None for none.
            left_over: Whether an earlier process has left a stand-in.

        Raises:
            SyncdError: Aidbox or the term fails; the destination exists all the same.
        """
        id_ = str(resource.get("id", ""))
        before, silent = await self._look(id_)
        senders = [sender for sender in before.values() if sender is not None]
        if not any(is_outdated(sender, rotated) for sender in senders):
            if silent is not None:
                raise TemporaryError(silent)
            return Outcome(before, reason=_dead(senders))
        problem = obstacle(resource)
        if problem is not None:
            return Outcome(before, reason=problem)
        name = f"{self._owner}/{id_}"
        if stand_in is not None:
            problem = await self._start_stand_in(resource, stand_in, left_over=left_over)
            if problem is not None:
                return Outcome(before, reason=problem)
        elif left_over:
            await self.dismiss(resource)
        body = body_of(resource)
        await self._prove_allowed(id_, body)
        await self._term.begin(name, body)
        waits = await self._drain(resource, id_)
        if waits is not None and not self._options.force:
            await self._drop_stand_in(stand_in, left_over=left_over)
            await self._term.end(name)
            return Outcome(before, reason=f"not delivered within the time: {waits}")
        log.info("destination.deleting", destination=id_, waits=waits, stand_in=stand_in)
        is_back = False
        with anyio.move_on_after(TOGETHER, shield=True):  # a stop does not come in between
            await self._delete(id_)
            await self._create(id_, body)
            is_back = True
        if not is_back:
            await self._create(id_, body)
        after, reason = await self._wait_for_senders(id_, body, rotated, before)
        await self._term.end(name)
        return Outcome(after, has_acted=True, reason=reason)

    async def dismiss(self, resource: Resource) -> None:
        """Deletes the stand-in of a destination that is current, if there is one.

        Raises:
            TemporaryError: It has not delivered everything yet.
        """
        id_ = f"{resource.get('id', '')}{STAND_IN}"
        if await self._is_missing(id_):
            return
        waits = await self._drain(resource, id_)
        if waits is not None:
            raise TemporaryError(f"cannot delete {DESTINATION}/{id_} yet: {waits}")
        await self._delete(id_)

    async def _look(self, id_: str) -> tuple[dict[str, Sender | None], str | None]:
        """The sender at each replica, and why one is not known."""
        found: dict[str, Sender | None] = {str(replica): None for replica in self._replicas}
        problems: list[str] = []

        async def ask(replica: Replica) -> None:
            try:
                found[str(replica)] = await self._reader.sender(replica, id_, settled=False)
            except SyncdError as error:
                problems.append(error.problem)

        async with anyio.create_task_group() as tasks:
            for replica in self._replicas:
                tasks.start_soon(ask, replica)
        return found, problems[0] if problems else None

    async def _drain(self, resource: Resource, id_: str) -> str | None:
        """Waits until nothing is left to deliver; returns what is left at the end."""
        deadline, pause = anyio.current_time() + self._options.drain_timeout, _FIRST_PAUSE
        while True:
            senders, problem = await self._look(id_)
            waits = problem or unfinished(resource, [s for s in senders.values() if s is not None])
            if waits is None or anyio.current_time() >= deadline:
                return waits
            await anyio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _start_stand_in(self, resource: Resource, id_: str, *, left_over: bool) -> str | None:
        """Creates the stand-in, which must run at every replica; returns why it does not.

        Where it has no sender, a new one of the destination itself would not start, either: then an
        old one is better than none, since events cannot be published to a destination without.
        """
        await self._post(id_, body_of(resource, id_))
        deadline, pause = anyio.current_time() + START_LIMIT, _FIRST_PAUSE
        while True:
            senders, problem = await self._look(id_)
            missing = [name for name, s in senders.items() if s is None or not s.is_alive]
            if not missing:
                return None
            if anyio.current_time() >= deadline:
                await self._drop_stand_in(id_, left_over=left_over)
                return problem or f"a new sender does not start at {missing[0]}"
            await anyio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _drop_stand_in(self, id_: str | None, *, left_over: bool) -> None:
        """Deletes a stand-in that has nothing which its original has not.

        One that is left over can have what was published while its original was missing.
        """
        if id_ is not None and not left_over:
            await self._delete(id_)

    async def _wait_for_senders(
        self, id_: str, body: str, rotated: float, before: Mapping[str, Sender | None]
    ) -> tuple[dict[str, Sender | None], str | None]:
        """Waits until every replica has a new sender; returns why not, where one has none."""
        deadline, pause = anyio.current_time() + START_LIMIT, _FIRST_PAUSE
        while True:
            senders, problem = await self._look(id_)
            late = [name for name, s in senders.items() if not _is_new(s, rotated, before[name])]
            if not late:
                return senders, None
            if anyio.current_time() >= deadline:
                return senders, problem or f"it has no new sender at {late[0]}"
            if await self._is_missing(id_):  # a DELETE can arrive after its time limit
                await self._create(id_, body)
            await anyio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _prove_allowed(self, id_: str, body: str) -> None:
        """Shows that syncd may create it: a conditional create of what exists changes nothing."""
        await self._post(id_, body, accept=_EXISTS)

    async def _create(self, id_: str, body: str) -> None:
        """Creates a destination that was deleted, until that succeeds."""
        attempts = Attempts(Backoff(first=0.1, cap=5.0))
        while True:
            try:
                await self._post(id_, body, accept=_EXISTS)
            except SyncdError as error:
                failure = attempts.fail(error, self._rng)
                if failure.is_news:
                    log.error("destination.missing", destination=id_, problem=str(error))
                await anyio.sleep(failure.delay)
            else:
                return

    async def _post(self, id_: str, body: str, accept: Container[int] = ()) -> None:
        async def post(replica: Replica) -> None:
            await self._session.request(
                *(f"cannot create {DESTINATION}/{id_}", replica, "POST", f"/fhir/{DESTINATION}"),
                headers={**_FHIR, "if-none-exist": f"_id={id_}"},
                content=body.encode(),
                accept=accept,
                event_id=self._event_id,
            )

        await self._at_any(post)

    async def _delete(self, id_: str) -> None:
        # at one replica only: where one does not answer, it may delete later all the same
        await self._session.request(
            *(f"cannot delete {DESTINATION}/{id_}", self._replicas[0], "DELETE", location(id_)),
            accept=_MISSING,
            event_id=self._event_id,
        )

    async def _is_missing(self, id_: str) -> bool:
        try:
            await self._at_any(lambda r: self._reader.get(r, location(id_), msgspec.Raw))
        except RejectedError as error:
            if error.status in _MISSING:
                return True
            raise
        return False

    async def _at_any(self, request: Callable[[Replica], Awaitable[T]]) -> T:
        """Asks the first replica that answers: they share a database."""
        failure: TemporaryError | None = None
        for replica in self._replicas:
            try:
                return await request(replica)
            except TemporaryError as error:
                failure = failure or error
        assert failure is not None
        raise failure


def _is_new(sender: Sender | None, rotated: float, before: Sender | None) -> bool:
    """Whether a sender started after the rotation, or since it was looked at before.

    The second is for a clock of Aidbox's that is behind, or that reports whole seconds.
    """
    if sender is None or not sender.is_alive:
        return False
    if is_current(sender, rotated):
        return True
    return before is not None and sender.started != before.started


def _dead(senders: Sequence[Sender]) -> str | None:
    dead = [sender.replica for sender in senders if not sender.is_alive]
    return f"it has no sender at {dead[0]}" if dead else None
