"""Recreates destinations of Aidbox after a secret that they use was rotated (opt-in).

An AidboxTopicDestination is immutable, and each replica's sender keeps the secret that it had when
it started. Besides a restart of the replica, Aidbox documents one remedy: DELETE and POST it again,
which reaches every replica. `syncd.consumers.aidbox.recreation` has the steps; this module decides
when they are due, for which destinations, and reports the outcome as events.

One installation acts at a time (`syncd.consumers.aidbox.leadership`). It works on what it finds:
after a crash at any moment the same steps complete what was begun, because the event that caused
them is pending until the last of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.consumers.aidbox.destinations import STAND_IN, stand_in_of, started_at
from syncd.consumers.aidbox.recreation import Outcome, Recreation
from syncd.consumers.aidbox.references import DESTINATION, references_in
from syncd.consumers.aidbox.worker import Worker
from syncd.core.adoption import mailbox_of
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.event_data import (
    DESTINATION_RECREATED,
    DESTINATION_STALE,
    DestinationData,
    SecretData,
    SenderData,
)
from syncd.core.events import Event
from syncd.core.model import Scope
from syncd.core.timing import rfc3339, seconds_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
    from random import Random

    from syncd.config.settings import Aidbox
    from syncd.consumers.aidbox.consumer import AidboxConsumer
    from syncd.consumers.aidbox.leadership import Leadership
    from syncd.consumers.aidbox.resources import Resource
    from syncd.consumers.aidbox.session import Session
    from syncd.core.events import Stamp
    from syncd.core.model import Grant, Known
    from syncd.ledger.ledger import Ledger
    from syncd.net.replicas import Replicas

RECREATE: Final = "recreate_destinations"

_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 1.0
log = structlog.get_logger()


class Recreator:
    """Recreates destinations for one consumer of kind `aidbox`.

    Args:
        settings: The consumer's settings.
        consumer: The consumer, which may drop caches.
        grant: Whose rotations call for it.
        replicas: Every replica of Aidbox.
        session: Sends requests to them; closed when `run` ends.
        ledger: Holds the mailbox.
        leadership: Decides who acts.
        inventory: Every secret, as of the last commit.
        publish: Commits an event and delivers it to the other consumers.
        stamp: Makes the ids of events.
        rng: Source of the jitter.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        settings: Aidbox,
        consumer: AidboxConsumer,
        grant: Grant,
        *,
        replicas: Replicas,
        session: Session,
        ledger: Ledger,
        leadership: Leadership,
        inventory: Callable[[], Mapping[str, Known]],
        publish: Callable[[Event], Awaitable[None]],
        stamp: Stamp,
        rng: Random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._consumer = consumer
        self._options = settings.recreate
        self._drops = "drop_cache" in settings.actions
        self._parallel = settings.max_in_flight
        self._replicas = replicas
        self._session = session
        self._ledger = ledger
        self._leadership = leadership
        self._inventory = inventory
        self._publish = publish
        self._stamp = stamp
        self._rng = rng
        self._clock = clock
        self._reported: set[tuple[str, str | None, str]] = set()
        self._worker = Worker(
            *("recreate", settings.name, mailbox_of(settings.name, RECREATE), grant),
            ledger=ledger,
            handle=self._handle,
            aclose=session.aclose,
            rng=rng,
        )

    async def run(self) -> None:
        """Recreates what is due, until cancelled."""
        await self._worker.run()

    def wake(self) -> None:
        """Notifies it of new events in the mailbox. Call it from the event loop."""
        self._worker.wake()

    async def drained(self) -> None:
        """Returns when nothing is left to do, with no `wake` since."""
        await self._worker.drained()

    async def _handle(self, events: Sequence[Event]) -> None:
        rotated = {
            event.subject: event
            for event in events
            if isinstance(event.data, SecretData) and event.data.version is not None
        }
        if not rotated and (events or not await self._leadership.has_begun()):
            return
        await self._wait_for_aidbox(rotated.values())
        async with self._leadership.hold() as term:
            newest = max(rotated.values(), key=lambda event: event.sequence, default=None)
            recreation = Recreation(
                self._session,
                await self._replicas.current(),
                term,
                self._options,
                owner=self._consumer.name,
                event_id=None if newest is None else self._stamp.origin(newest).id,
                rng=self._rng,
            )
            await recreation.recover()
            if rotated:
                await self._recreate_all(recreation, rotated)

    async def _wait_for_aidbox(self, rotated: Collection[Event]) -> None:
        """Waits until a new sender gets the new value.

        Other replicas' mounts change at times of their own, and Aidbox caches what it read: for
        both there is `delay`, and where caches are dropped, that must have been done.
        """
        if not rotated:
            return
        due = max(seconds_of(event.time) for event in rotated) + self._options.delay
        await anyio.sleep(min(self._options.delay, max(0.0, due - self._clock())))
        pause = _FIRST_PAUSE
        with anyio.move_on_after(self._options.drain_timeout):
            while self._drops and not await self._are_dropped(rotated):
                await anyio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)

    async def _are_dropped(self, rotated: Collection[Event]) -> bool:
        pending = await anyio.to_thread.run_sync(
            self._ledger.look_up,
            *(self._consumer.name, self._consumer.grant, [event.slot for event in rotated]),
        )
        newest = max((event.sequence for event in pending), default=None)
        if newest is None:
            return True
        replicas = await self._replicas.current()
        return all(self._consumer.dropped_until(replica) >= newest for replica in replicas)

    async def _recreate_all(self, recreation: Recreation, rotated: Mapping[str, Event]) -> None:
        """Recreates each destination by itself: one that cannot be delays no other."""
        found = {str(item.get("id", "")): item for item in await recreation.destinations()}
        used = {id_: names for id_, item in found.items() if (names := _used(item, rotated))}
        scopes = {name: known.entry.scopes for name, known in self._inventory().items()}
        errors: list[SyncdError] = []
        limiter = anyio.CapacityLimiter(self._parallel)

        async def recreate(id_: str, events: Sequence[Event]) -> None:
            stand_in = stand_in_of(found[id_], scopes) if self._options.stand_in else None
            left_over = f"{id_}{STAND_IN}" in found
            async with limiter:
                try:
                    await self._recreate(
                        *(recreation, found[id_], events, stand_in), left_over=left_over
                    )
                except SyncdError as error:
                    errors.append(error)

        async with anyio.create_task_group() as tasks:
            for id_, names in used.items():
                if not (id_.endswith(STAND_IN) and id_.removesuffix(STAND_IN) in found):
                    tasks.start_soon(recreate, id_, [rotated[name] for name in names])
        if errors:
            raise _first_of(errors)

    async def _recreate(
        self,
        recreation: Recreation,
        resource: Resource,
        events: Sequence[Event],
        stand_in: str | None,
        *,
        left_over: bool,
    ) -> None:
        id_, refusal = str(resource.get("id", "")), None
        rotated = max(seconds_of(event.time) for event in events)
        try:
            outcome = await recreation.recreate(resource, rotated, stand_in, left_over=left_over)
        except RefusedError as error:
            outcome, refusal = Outcome.refused(error), error
        for event in events:
            await self._report(id_, event, outcome)
        if outcome.reason is not None:
            problem = f"cannot recreate {DESTINATION}/{id_}: {outcome.reason}"
            raise refusal or TemporaryError(problem, outcome.remedy)
        await recreation.dismiss(resource)

    async def _report(self, id_: str, event: Event, outcome: Outcome) -> None:
        """Publishes the outcome of a destination, once for each version and result."""
        data = event.data
        assert isinstance(data, SecretData)
        assert data.version is not None
        if not outcome.has_acted and outcome.reason is None:
            log.debug("destination.current", destination=id_, secret=event.subject)
            return
        key = (id_, data.version, event.subject)
        if outcome.reason is not None:
            if key in self._reported:
                return
            self._reported.add(key)
        now = self._clock()
        result = DestinationData(
            *(event.subject, Scope(DESTINATION, id_), data.version, self._consumer.name),
            round(max(0.0, now - seconds_of(event.time)), 3),
            outcome.reason,
            tuple(SenderData(name, started_at(item)) for name, item in outcome.senders.items()),
        )
        is_done = outcome.reason is None
        type_ = DESTINATION_RECREATED if is_done else DESTINATION_STALE
        await self._publish(Event(0, rfc3339(now), type_, event.subject, result, event.audience))
        if is_done:
            log.info("destination.recreated", destination=id_, secret=event.subject)
        else:
            log.error(
                "destination.stale",
                destination=id_,
                secret=event.subject,
                problem=outcome.reason,
                hint=outcome.remedy,
            )


def _used(resource: Resource, rotated: Mapping[str, Event]) -> list[str]:
    """The rotated secrets that a destination refers to."""
    names = {reference.name for reference in references_in(resource, Scope(DESTINATION))}
    return sorted(names & rotated.keys())


def _first_of(errors: Sequence[SyncdError]) -> SyncdError:
    """One error for several; one that may resolve itself decides when to try again."""
    temporary = next((error for error in errors if isinstance(error, TemporaryError)), None)
    first = temporary or errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    kind = RefusedError if temporary is None else TemporaryError
    return kind(f"{first.problem}{more}", first.remedy)
