"""What an answer may cost: threads, memory and time that callers of the API share.

Scans, the ledger and deliveries must never wait for callers, so the API

- has worker threads of its own (`Answers.run`), and not those that scans and deliveries use;
- makes an answer once for all who ask for the same at the same time (`Answers.shared`): a thousand
  requests cost one body, which all of them send;
- sends a body in chunks, the next one when the kernel has taken the last one, and within a time
  (`Answer`);
- gives each user a number of slots: further requests of that user wait, others' do not. A user who
  does not read therefore holds a few bodies, until their time is over.

A stream has a slot, too, for the one large event that it may begin with.
"""

from __future__ import annotations

import math
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec
import structlog

from syncd.core.errors import TemporaryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, MutableMapping

    from syncd.api.server import Connection
    from syncd.api.subscribers import Caller

    Body = tuple[bytes, str]  # with its media type
    T = TypeVar("T")
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

THREADS: Final = 2
"""Worker threads of the API."""

CHUNK: Final = 32 << 10
"""Bytes that are passed to the transport at once, and so what a client that does not read costs."""

SEND_TIMEOUT: Final = 10.0
"""Seconds in which a client must take a whole answer."""

WAIT_TIMEOUT: Final = 30.0
"""Seconds that a request waits for earlier ones of the same user, before it is refused."""

SLOTS: Final = 2
"""Answers that are made for, or sent to, one granted user at once."""

PRIVILEGED_SLOTS: Final = 16
"""The same for root and the daemon's own user."""

_REST: Final = 4
_LONGEST_REST: Final = 0.5
"""A granted user's slot rests after an answer: for this many times as long as it took to make it,
and for so many seconds at most. One user then takes a part of the processor, not all of it."""

CROWD: Final = 4
"""Answers in progress from which on `Answers.recent` sends one again that is not new."""

RECENT: Final = 1.0
"""Seconds that such an answer may be old."""

_KEYS: Final = 8

log = structlog.get_logger()


class BusyError(TemporaryError):
    """Earlier requests of the same user are not finished."""


class Slot(msgspec.Struct):
    """A user's slot, while it is held.

    Attributes:
        cost: Seconds that it took to make the answer, if that was done for this request.
    """

    cost: float = 0.0


class _Slots:
    """The slots of one user, and how many requests hold or await them."""

    def __init__(self, number: int) -> None:
        self.free = anyio.Semaphore(number)
        self.users = 0


class _Making:
    """A body that is being made for all who await it; None if that failed."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.body: Body | None = None


class Answers:
    """The threads and slots of one application."""

    def __init__(self) -> None:
        self._room = anyio.Semaphore(THREADS)
        self._threads = anyio.CapacityLimiter(math.inf)  # `_room` is the limit
        self._slots: dict[int, _Slots] = {}
        self._awaited: dict[Hashable, _Making] = {}
        self._recent: dict[Hashable, tuple[float, Body]] = {}
        self.in_progress = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Calls a function that blocks, in a thread of the API."""
        async with self._room:
            return await anyio.to_thread.run_sync(work, limiter=self._threads)

    async def shared(
        self, key: Hashable, prepare: Callable[[], Callable[[], Body]], slot: Slot
    ) -> Body:
        """A body that is made once for all who ask before its making begins.

        Who asks later gets a newer one: a body is never older than its request.

        Args:
            key: Requests with equal keys get the same body.
            prepare: Called in the event loop when the making begins: takes the state of that
                moment, and returns what makes the body of it in a thread.
            slot: Where the time is added that this request caused.
        """
        while True:
            making = self._awaited.get(key)
            if making is None:
                return await self._make(key, prepare, slot)
            await making.done.wait()
            if making.body is not None:
                return making.body

    async def _make(
        self, key: Hashable, prepare: Callable[[], Callable[[], Body]], slot: Slot
    ) -> Body:
        making = self._awaited[key] = _Making()
        try:
            async with self._room:
                del self._awaited[key]
                started = time.monotonic()
                making.body = await anyio.to_thread.run_sync(prepare(), limiter=self._threads)
                slot.cost += time.monotonic() - started
                return making.body
        finally:
            if self._awaited.get(key) is making:  # cancelled before it began
                del self._awaited[key]
            making.done.set()

    async def recent(self, key: Hashable, make: Callable[[], Body]) -> Body:
        """As `shared`, but while many answers are in progress, a body that was just made.

        For callers who have no slots.
        """
        last = self._recent.get(key)
        if last and self.in_progress > CROWD and time.monotonic() - last[0] < RECENT:
            return last[1]
        body = await self.shared(key, lambda: make, Slot())
        if len(self._recent) >= _KEYS:
            self._recent.clear()
        self._recent[key] = (time.monotonic(), body)
        return body

    @asynccontextmanager
    async def slot(self, caller: Caller) -> AsyncIterator[Slot]:
        """Holds one of the caller's slots while the block runs, and for a rest after it.

        Raises:
            BusyError: Earlier requests of the same user took too long.
        """
        slots = self._slots.get(caller.uid)
        if slots is None:
            number = PRIVILEGED_SLOTS if caller.privileged else SLOTS
            slots = self._slots[caller.uid] = _Slots(number)
        slots.users += 1
        try:
            with anyio.move_on_after(WAIT_TIMEOUT) as waiting:
                await slots.free.acquire()
            if waiting.cancelled_caught:
                raise BusyError(
                    f"user {caller.uid} has {slots.users} requests in progress",
                    "read the answers to earlier requests, or close their connections",
                )
            slot = Slot()
            try:
                yield slot
                if not caller.privileged:
                    await anyio.sleep(min(_LONGEST_REST, _REST * slot.cost))
            finally:
                slots.free.release()
        finally:
            slots.users -= 1
            if not slots.users:
                del self._slots[caller.uid]


class Answer:
    """An ASGI response that is sent in chunks and within a time.

    Args:
        answers: Counts it while it is in progress.
        connection: The connection under it.
        obtain: Returns the body, and its media type.
        caller: Whose slot it holds; None for a caller who has none.
    """

    def __init__(
        self,
        answers: Answers,
        connection: Connection,
        obtain: Callable[[Slot], Awaitable[Body]],
        caller: Caller | None = None,
    ) -> None:
        self._answers = answers
        self._connection = connection
        self._obtain = obtain
        self._caller = caller

    async def __call__(
        self, _scope: MutableMapping[str, Any], _receive: object, send: Send
    ) -> None:
        """Makes the answer and sends it; aborts the connection of a client that does not read."""
        self._answers.in_progress += 1
        try:
            if self._caller is None:
                await self._send(Slot(), send)
                return
            async with self._answers.slot(self._caller) as slot:
                if not self._connection.lost:
                    await self._send(slot, send)
        finally:
            self._answers.in_progress -= 1

    async def _send(self, slot: Slot, send: Send) -> None:
        body, type_ = await self._obtain(slot)
        headers = [
            (b"content-length", str(len(body)).encode()),
            (b"content-type", type_.encode("latin-1")),
        ]
        with anyio.move_on_after(SEND_TIMEOUT) as sending:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for at in range(0, max(len(body), 1), CHUNK):
                if self._connection.lost:
                    return
                chunk = body[at : at + CHUNK]
                more = at + CHUNK < len(body)
                await send({"type": "http.response.body", "body": chunk, "more_body": more})
        if sending.cancelled_caught:
            name = None if self._caller is None else self._caller.name
            log.warning("caller.stalled", caller=name, unsent=self._connection.unsent)
            self._connection.abort()
