"""Event streams to subscribers (Server-Sent Events, WHATWG HTML section 9.2).

A stream has no queue, only its position in the log: events that it has not sent are in `History`,
which all streams share. So the memory of a subscriber is bounded by one chunk and the transport's
buffer; and one that does not read can be disconnected at any time, since it resumes by its
`Last-Event-ID`.

One task, `Broadcast`, wakes all streams, a few at a time, so that a thousand of them take turns
with the daemon's other tasks. Its only timer is the heartbeat's, which runs only while there are
subscribers.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import structlog

from syncd.api.answers import CHUNK, SEND_TIMEOUT, Answers, BusyError
from syncd.api.history import FEW, History, frame
from syncd.api.link import Blocked
from syncd.api.positions import AllPositions
from syncd.api.report import states
from syncd.core.errors import StateError
from syncd.core.event_data import RESET
from syncd.core.timing import rfc3339
from syncd.ledger.numbering import grant_key

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Mapping,
        MutableMapping,
        Sequence,
    )
    from typing import Any

    from syncd.api.answers import Slot
    from syncd.api.history import Item
    from syncd.api.link import Link
    from syncd.api.positions import Place, Positions
    from syncd.api.subscribers import Caller, View
    from syncd.core.events import Event, Stamp
    from syncd.core.model import Grant, Known
    from syncd.ledger.reads import Reads
    from syncd.telemetry.metrics import Metrics

RETRY: Final = 1000
"""Milliseconds after which a client that lost its stream reconnects (`retry:`)."""

BACKLOG: Final = 1000
"""Events that may arrive while a subscriber reads nothing, before it is disconnected."""

STALLED: Final = 30.0
"""Seconds that a subscriber may read nothing while data waits for it."""

HEARTBEAT: Final = 15.0
"""Seconds between two comments (WHATWG HTML section 9.2.7 advises "every 15 seconds or so")."""

_LARGE_CHUNK: Final = 64 << 10
_BURST_TIMEOUT: Final = 1.0
_TURN: Final = 32
_PAUSE: Final = 0.0005
_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
log = structlog.get_logger()


class Stream:
    """An ASGI response: the event stream of one subscriber.

    Args:
        broadcast: Wakes it, and holds the history that all streams share.
        view: The secrets that it shows.
        link: The connection under it.
        positions: What ids mean to the subscriber.
        place: The last event that the subscriber has; None if the log does not hold that position:
            the stream then begins with a reset.
        subscriber: Whose stream it is.
        follow: Whether to continue with new events.
        head: Whether to send only the header.
    """

    def __init__(
        self,
        broadcast: Broadcast,
        view: View,
        link: Link,
        *,
        positions: Positions,
        place: Place | None,
        subscriber: Caller,
        follow: bool,
        head: bool = False,
    ) -> None:
        self._broadcast = broadcast
        self._view = view
        self._link = link
        self._head = head
        self._follow = follow
        self._end = broadcast.history.last
        self._positions = positions
        self._lost_track = place is None
        self._number = self._announced = 0 if place is None else place.number
        self._woken = anyio.Event()
        self._due = False
        self._blocked: Blocked | None = None
        # what a subscriber that does not read costs, of which root has no reason to make many
        self._chunk = _LARGE_CHUNK if subscriber.privileged else CHUNK
        self._send: Callable[[MutableMapping[str, Any]], Awaitable[None]]
        self.caller = subscriber
        self.position = self._end if place is None else place.sequence

    async def __call__(
        self,
        _scope: MutableMapping[str, Any],
        _receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Sends until the subscriber disconnects or the daemon stops."""
        self._send = send
        self._link.send_timeout = 2 * STALLED  # `overdue` comes first
        headers = list(_HEADERS)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if not self._head:
            self._link.on_lost = self.wake
            with self._broadcast.joined(self):
                try:
                    await self._run()
                except (StateError, BusyError) as error:
                    log.warning("stream.failed", subscriber=self.caller.name, problem=str(error))
                    self._link.abort()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def wake(self, *, heartbeat: bool = False) -> None:
        """Wakes the stream: there may be events, or a heartbeat is due."""
        self._due |= heartbeat
        self._woken.set()

    def is_held(self, now: float) -> bool:
        """Whether its subscriber has read nothing for a while; `now` is in monotonic seconds."""
        return self._blocked is not None and now - self._blocked.since >= _BURST_TIMEOUT

    def overdue(self, now: float) -> bool:
        """Whether the subscriber has read nothing for too long; `now` is in monotonic seconds."""
        blocked, last = self._blocked, self._broadcast.history.last
        if blocked is None:
            return False
        unsent = self._link.unsent
        if unsent < blocked.unsent:
            self._blocked = Blocked(now, last, unsent)
            return False
        waited = now - blocked.since
        if waited >= STALLED or self._positions.limited:
            return waited >= STALLED  # else it would notice how many other secrets change
        return waited >= _BURST_TIMEOUT and last - blocked.last > BACKLOG

    def disconnect(self) -> None:
        """Disconnects the subscriber."""
        log.warning(
            "subscriber.stalled",
            subscriber=self.caller.name,
            position=self.position,
            behind=self._broadcast.history.last - self.position,
            unsent=self._link.unsent,
            hint="it resumes by its Last-Event-ID",
        )
        self._link.abort()

    async def _run(self) -> None:
        await self._send_preamble()
        if self._lost_track:
            await self._reset()
        history = self._broadcast.history
        while not self._link.lost:
            if not self._follow and self.position >= self._end:
                return
            items = await history.read(self.position)
            if items is None:
                await self._resume()
            elif items:
                await self._send_items(items)
                if history.is_large and self.position % FEW < len(items):
                    self._broadcast.free_sent()
                # a long backlog must not starve other tasks, nor worker threads
                await anyio.sleep(0 if self.caller.privileged else _PAUSE)
            elif self._broadcast.closing:
                return
            else:
                if self._due:
                    await self._heartbeat()
                await self._woken.wait()
                self._woken = anyio.Event()

    async def _send_preamble(self) -> None:
        """Sends the reconnection time and, unless a reset follows, the position.

        A block without data sets the position and is not an event (WHATWG HTML section 9.2.6).
        """
        lines = f": syncd\nretry: {RETRY}\n"
        if not self._lost_track:
            lines += self._id_line()
        await self._write([f"{lines}\n".encode()])

    def _id_line(self) -> str:
        self._announced = self._number
        return f"id: {self._positions.stamp.id(self._number)}\n"

    async def _heartbeat(self) -> None:
        """Sends a comment; with the position, if events were skipped that are not shown."""
        self._due = False
        lines = ": heartbeat\n"
        if self._announced != self._number:
            lines += self._id_line()
        await self._write([f"{lines}\n".encode()])

    async def _reset(self) -> None:
        # a slot, since this is as large as an answer about every secret
        async with self._broadcast.answers.slot(self.caller) as slot:
            data, place = await self._broadcast.reset(self._view, self._positions, slot)
            with anyio.move_on_after(SEND_TIMEOUT) as sending:
                chunk = self._chunk
                await self._write(data[at : at + chunk] for at in range(0, len(data), chunk))
        if sending.cancelled_caught:
            self.disconnect()
        self.position, self._lost_track = place.sequence, False
        self._number = self._announced = place.number

    async def _resume(self) -> None:
        """Goes on where events were pruned, with a reset if the subscriber was to see any."""
        find = partial(self._positions.resume, self._number, self._broadcast.history.last)
        place = await self._broadcast.answers.run(find)
        if place is None or place.sequence <= self.position:
            await self._reset()
        else:
            self.position = place.sequence

    async def _send_items(self, items: Sequence[Item]) -> None:
        chunk: list[bytes] = []
        size, largest, see = 0, self._chunk, self._frame_of
        if self._view.shows_all and not self._positions.limited:
            see = self._whole_frame_of  # a thousand of these streams take every event
        for item in items:
            frame = see(item)
            if frame is not None:
                self._announced = self._number
                chunk.append(frame)
                size += len(frame)
            if size >= largest:
                await self._write([b"".join(chunk)])
                self.position = item.event.sequence
                chunk, size = [], 0
        if chunk:
            await self._write([b"".join(chunk)])
        self.position = items[-1].event.sequence

    def _whole_frame_of(self, item: Item) -> bytes | None:
        self._number = item.event.sequence
        return item.whole(self._broadcast.stamp)

    def _frame_of(self, item: Item) -> bytes | None:
        number = self._number = self._positions.after(self._number, item.event)
        frame = item.frame(self._view, self._positions, number)
        hidden = frame is None or (self._positions.limited and self._has_moved_away(item.event))
        return None if hidden else frame

    def _has_moved_away(self, event: Event) -> bool:
        """Whether an older event is of a secret that has left the subscriber's scope."""
        known = self._broadcast.inventory().get(event.secret or "")
        return known is not None and not self.caller.grant.sees(known.entry.scopes)

    async def _write(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            if self._link.lost:
                return
            self._blocked = Blocked(
                anyio.current_time(), self._broadcast.history.last, self._link.unsent
            )
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._blocked = None


class Broadcast:
    """Wakes streams, and holds their shared history.

    Args:
        ledger: Holds the event log.
        stamp: The attributes that are added to events.
        metrics: Where open streams are counted.
        inventory: Returns every secret, as of the last `publish`.
        last: Sequence of the newest event.
        limited: The positions of limited grants, by `grant_key`.

    Attributes:
        history: The events.
        answers: The threads and slots of the API.
        inventory: Returns every secret.
        closing: Whether streams should end.
    """

    def __init__(
        self,
        ledger: Reads,
        stamp: Stamp,
        metrics: Metrics,
        inventory: Callable[[], Mapping[str, Known]],
        last: int,
        *,
        limited: Mapping[str, Positions] | None = None,
    ) -> None:
        self._limited = limited or {}
        self._all = AllPositions(stamp, ledger)
        self.answers = Answers()
        self.history = History(ledger, last, self.answers)
        self._published = last
        self.stamp = stamp
        self.closing = False
        self._ledger = ledger
        self._metrics = metrics
        self.inventory = inventory
        self._streams: dict[Stream, None] = {}
        self._news = anyio.Event()
        self._resetting = anyio.Lock()
        self._last_reset: tuple[object, tuple[bytes, Place]] | None = None

    def count(self, caller: Caller) -> int:
        """The number of open streams; for a caller with a limited scope, those with that scope."""
        scopes = caller.grant.scopes
        if scopes is None:
            return len(self._streams)
        return sum(stream.caller.grant.scopes == scopes for stream in self._streams)

    def publish(self, events: Sequence[Event]) -> None:
        """Adds one or more committed events and wakes the streams. In the event loop only."""
        self._published = events[-1].sequence
        if not self._streams:
            self.history.add(events, keep=False)
            return
        self.history.forget(self._needed())
        self.history.add(events, keep=True)
        if len(self._streams) > _TURN:
            self._news.set()  # `run` wakes them in turns
            return
        now = anyio.current_time()
        for stream in list(self._streams):
            self._wake(stream, now)

    @staticmethod
    def _wake(stream: Stream, now: float, *, heartbeat: bool = False) -> None:
        if stream.overdue(now):
            stream.disconnect()
        else:
            stream.wake(heartbeat=heartbeat)

    @contextmanager
    def joined(self, stream: Stream) -> Iterator[None]:
        """Registers a stream while the block runs."""
        if not self._streams:
            self._news.set()  # without streams there was no heartbeat: start it
        self._streams[stream] = None
        self._metrics.set_subscribers(len(self._streams))
        try:
            yield
        finally:
            del self._streams[stream]
            self._metrics.set_subscribers(len(self._streams))

    def close(self) -> None:
        """Ends every stream after it has sent its backlog."""
        self.closing = True
        for stream in self._streams:
            stream.wake()

    def positions(self, grant: Grant) -> Positions:
        """What ids mean to a grant."""
        return self._all if grant.scopes is None else self._limited[grant_key(grant)]

    async def reset(self, view: View, positions: Positions, slot: Slot) -> tuple[bytes, Place]:
        """An `io.syncd.reset` event for a view, and the position that it stands for."""
        async with self._resetting:
            # `_published`, not the ledger's newest: the inventory has no later event either
            inventory, last = self.inventory(), self._published
            key = (view.key, last, id(inventory))
            if self._last_reset is None or self._last_reset[0] != key:
                encode = partial(self._encode_reset, inventory, view, positions, last)
                started = anyio.current_time()
                self._last_reset = (key, await self.answers.run(encode))
                slot.cost += anyio.current_time() - started
            return self._last_reset[1]

    def _encode_reset(
        self, inventory: Mapping[str, Known], view: View, positions: Positions, last: int
    ) -> tuple[bytes, Place]:
        now, place, stamp = rfc3339(time.time()), positions.place(last), positions.stamp
        data = stamp.encode_reset(states(inventory, view), place.number, now)
        return frame(stamp.id(place.number), RESET, data), place

    async def run(self) -> None:
        """Wakes streams until cancelled."""
        beat = anyio.current_time() + HEARTBEAT
        while True:
            idle = not self._streams
            with anyio.CancelScope(deadline=math.inf if idle else beat):
                await self._news.wait()
            self._news = anyio.Event()
            now = anyio.current_time()
            heartbeat = now >= beat and not idle
            if heartbeat or idle:
                beat = now + HEARTBEAT
                await self._tidy()
            for number, stream in enumerate(list(self._streams), 1):
                self._wake(stream, now, heartbeat=heartbeat)
                if number % _TURN == 0:
                    # a loop that is never idle would starve the worker threads (scans, the
                    # ledger, and so the webhooks), which wait for the interpreter's lock
                    await anyio.sleep(_PAUSE)

    def free_sent(self) -> None:
        """Frees what all streams have sent, but for pages, which streams that resume share."""
        self.history.free(self._needed())

    def _needed(self) -> int:
        """The position up to which all streams that make progress have sent everything."""
        last, now = self.history.last, anyio.current_time()
        return min((s.position for s in self._streams if not s.is_held(now)), default=last)

    async def _tidy(self) -> None:
        """Frees what no stream needs, and looks for events that were not published."""
        self._last_reset = None
        if not self._streams:
            self.history.forget(self.history.last)
            return
        self.history.forget(self._needed())
        try:
            _, last = await self.answers.run(self._ledger.span)
        except StateError:
            return  # the reconcile loop reports it
        self.history.last = max(self.history.last, last)
