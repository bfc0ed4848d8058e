"""One subscriber's event stream (Server-Sent Events, WHATWG HTML section 9.2).

A stream holds no queue, only its position in the log: what it has not sent is in `History`, which
all streams share. So what a subscriber costs is bounded by what lies between it and the kernel,
one chunk and the transport's buffer; and one that does not read can be cut off at any time, since
its `Last-Event-ID` is where it goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import anyio
import anyio.lowlevel
import structlog

from syncd.core.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
    from typing import Any

    from syncd.api.broadcast import Broadcast
    from syncd.api.history import Item
    from syncd.api.subscribers import View

RETRY: Final = 1000
"""Milliseconds after which a client that lost its stream comes back (`retry:`)."""

CHUNK: Final = 64 << 10
"""Bytes that are handed to the transport at once."""

BACKLOG: Final = 1000
"""Events that may come while a subscriber takes nothing, before it is cut off."""

STALLED: Final = 30.0
"""Seconds that a subscriber may take nothing while something waits for it."""

_PATIENCE: Final = 1.0
_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
log = structlog.get_logger()


class Link(Protocol):
    """The connection under a stream.

    Attributes:
        on_lost: To be called when the peer is gone.
    """

    on_lost: Callable[[], None] | None

    @property
    def lost(self) -> bool:
        """Whether the peer is gone."""

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""

    def abort(self) -> None:
        """Closes at once; what is unsent is dropped."""


@dataclass(slots=True)
class _Blocked:
    """A send that waits for the peer.

    Attributes:
        since: When the peer last took something, seconds.
        last: The newest event at that time.
        unsent: Bytes that waited at that time.
    """

    since: float
    last: int
    unsent: int


class Stream:
    """An ASGI response that lasts for as long as its subscriber does.

    Args:
        broadcast: Wakes it, and holds what all streams share.
        view: What it shows.
        link: The connection under it.
        position: The last event that the subscriber has; None if that one is not known, which
            begins the stream with a reset.
        subscriber: What log lines call it.
        follow: Whether to go on after what is there now.
        head: Whether to send the header only.
    """

    def __init__(
        self,
        broadcast: Broadcast,
        view: View,
        link: Link,
        *,
        position: int | None,
        subscriber: str,
        follow: bool,
        head: bool = False,
    ) -> None:
        self._broadcast = broadcast
        self._view = view
        self._link = link
        self._head = head
        self._follow = follow
        self._end = broadcast.history.last
        self._told = self._end if position is None else position
        self._lost_track = position is None
        self._woken = anyio.Event()
        self._due = False
        self._blocked: _Blocked | None = None
        self._send: Callable[[MutableMapping[str, Any]], Awaitable[None]]
        self.subscriber = subscriber
        self.position = self._told

    async def __call__(
        self,
        _scope: MutableMapping[str, Any],
        _receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Sends until the subscriber, or the daemon, goes."""
        self._send = send
        headers = list(_HEADERS)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if not self._head:
            self._link.on_lost = self.wake
            with self._broadcast.joined(self):
                try:
                    await self._run()
                except StateError as error:
                    log.warning("stream.failed", subscriber=self.subscriber, problem=str(error))
                    self._link.abort()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def wake(self, *, heartbeat: bool = False) -> None:
        """Says that there may be events, or that it is time for a sign of life."""
        self._due |= heartbeat
        self._woken.set()

    @property
    def blocked(self) -> bool:
        """Whether it waits for its subscriber to take something."""
        return self._blocked is not None

    def overdue(self, now: float) -> bool:
        """Whether the subscriber has taken nothing for too long.

        Args:
            now: Seconds that only grow.
        """
        blocked, last = self._blocked, self._broadcast.history.last
        if blocked is None:
            return False
        unsent = self._link.unsent
        if unsent < blocked.unsent:
            self._blocked = _Blocked(now, last, unsent)
            return False
        waited = now - blocked.since
        return waited >= STALLED or (waited >= _PATIENCE and last - blocked.last > BACKLOG)

    def cut(self) -> None:
        """Disconnects the subscriber."""
        log.warning(
            "subscriber.stalled",
            subscriber=self.subscriber,
            position=self.position,
            behind=self._broadcast.history.last - self.position,
            unsent=self._link.unsent,
            hint="it resumes by its Last-Event-ID",
        )
        self._link.abort()

    async def _run(self) -> None:
        await self._hello()
        if self._lost_track:
            await self._reset()
        history = self._broadcast.history
        while not self._link.lost:
            if not self._follow and self.position >= self._end:
                return
            items = await history.read(self.position)
            if items is None:
                await self._reset()
            elif items:
                await self._tell(items)
                # a long backlog must not keep the loop from everybody else
                await anyio.lowlevel.checkpoint()
            elif self._broadcast.closing:
                return
            else:
                if self._due:
                    await self._heartbeat()
                await self._woken.wait()
                self._woken = anyio.Event()

    async def _hello(self) -> None:
        """Tells the reconnection time, and a subscriber without a position where it begins.

        A block without data sets the position and is no event (WHATWG HTML section 9.2.6).
        """
        lines = f": syncd\nretry: {RETRY}\n"
        if not self._lost_track:
            lines += f"id: {self._broadcast.stamp.id(self.position)}\n"
        await self._write([f"{lines}\n".encode()])

    async def _heartbeat(self) -> None:
        """A comment; with the position, where events went by that are not shown."""
        self._due = False
        lines = ": heartbeat\n"
        if self._told != self.position:
            lines += f"id: {self._broadcast.stamp.id(self.position)}\n"
            self._told = self.position
        await self._write([f"{lines}\n".encode()])

    async def _reset(self) -> None:
        data, position = await self._broadcast.reset(self._view)
        await self._write(data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
        self.position = self._told = position
        self._lost_track = False

    async def _tell(self, items: Sequence[Item]) -> None:
        chunk: list[bytes] = []
        size, stamp = 0, self._broadcast.stamp
        for item in items:
            frame = item.frame(self._view, stamp)
            if frame is not None:
                self._told = item.event.sequence
                chunk.append(frame)
                size += len(frame)
            if size >= CHUNK:
                await self._write([b"".join(chunk)])
                self.position = item.event.sequence
                chunk, size = [], 0
        if chunk:
            await self._write([b"".join(chunk)])
        self.position = items[-1].event.sequence

    async def _write(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self._blocked = _Blocked(
                anyio.current_time(), self._broadcast.history.last, self._link.unsent
            )
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._blocked = None
