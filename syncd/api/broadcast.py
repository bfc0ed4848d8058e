"""All event streams together: told of commits, kept alive, and cut off when they stall.

One task wakes the streams, a few at a time, so that a thousand of them take turns with everything
else that the daemon does. Its only timer is the heartbeat's, and that one runs only while somebody
subscribes.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.api.history import History, frame
from syncd.api.report import states
from syncd.core.errors import StateError
from syncd.core.events import RESET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from syncd.api.stream import Stream
    from syncd.api.subscribers import View
    from syncd.core.events import Event, Stamp
    from syncd.core.model import Known
    from syncd.ledger import Ledger
    from syncd.telemetry.metrics import Metrics

HEARTBEAT: Final = 15.0
"""Seconds between two comments (WHATWG HTML section 9.2.7 advises "every 15 seconds or so")."""

_TURN: Final = 32
_PAUSE: Final = 0.0005
log = structlog.get_logger()


class Broadcast:
    """Wakes streams, and holds what they share.

    Args:
        ledger: Holds the event log.
        stamp: What goes on each event.
        metrics: Where open streams are counted.
        inventory: What is known now; of the same moment as the last `publish`.
        last: Sequence of the newest event.

    Attributes:
        history: The events.
        closing: Whether streams should end.
    """

    def __init__(
        self,
        ledger: Ledger,
        stamp: Stamp,
        metrics: Metrics,
        inventory: Callable[[], Mapping[str, Known]],
        last: int,
    ) -> None:
        self.history = History(ledger, last)
        self._published = last
        self.stamp = stamp
        self.closing = False
        self._ledger = ledger
        self._metrics = metrics
        self._inventory = inventory
        self._streams: dict[Stream, None] = {}
        self._news = anyio.Event()
        self._resetting = anyio.Lock()
        self._last_reset: tuple[object, bytes] | None = None

    @property
    def count(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def publish(self, events: Sequence[Event]) -> None:
        """Tells everybody of committed events. Call it from the event loop."""
        if events:
            self._published = events[-1].sequence
        if not self._streams:
            self.history.add(events, keep=False)
            return
        self.history.forget(self._needed())
        self.history.add(events, keep=True)
        self._news.set()

    @contextmanager
    def joined(self, stream: Stream) -> Iterator[None]:
        """Wakes a stream for as long as the block runs."""
        if not self._streams:
            self._news.set()  # the heartbeat was asleep
        self._streams[stream] = None
        self._metrics.set_subscribers(len(self._streams))
        try:
            yield
        finally:
            del self._streams[stream]
            self._metrics.set_subscribers(len(self._streams))

    def close(self) -> None:
        """Lets every stream end after what it has to send."""
        self.closing = True
        for stream in self._streams:
            stream.wake()

    def cut_all(self) -> None:
        """Disconnects whoever is left."""
        for stream in list(self._streams):
            stream.cut()

    async def reset(self, view: View) -> tuple[bytes, int]:
        """An `io.syncd.reset` event for a view, and the position that it stands for."""
        async with self._resetting:
            # what is committed but not told yet is not in the inventory either
            inventory, last = self._inventory(), self._published
            key = (view.key, last, id(inventory))
            if self._last_reset is None or self._last_reset[0] != key:
                block = await anyio.to_thread.run_sync(self._encode_reset, inventory, view, last)
                self._last_reset = (key, block)
            return self._last_reset[1], last

    def _encode_reset(self, inventory: Mapping[str, Known], view: View, last: int) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        data = self.stamp.encode_reset(states(inventory, view), last, now)
        return frame(self.stamp.id(last), RESET, data)

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
                if stream.overdue(now):
                    stream.cut()
                else:
                    stream.wake(heartbeat=heartbeat)
                if number % _TURN == 0:
                    # a loop that is never idle would starve the worker threads, which wait for
                    # the interpreter's lock: scans, the ledger, and so the webhooks
                    await anyio.sleep(_PAUSE)

    def _needed(self) -> int:
        """The position up to which no stream that makes progress needs events any more."""
        last = self.history.last
        return min((s.position for s in self._streams if not s.blocked), default=last)

    async def _tidy(self) -> None:
        """Forgets what nobody needs, and notices events that nobody announced."""
        self._last_reset = None
        if not self._streams:
            self.history.forget(self.history.last)
            return
        self.history.forget(self._needed())
        try:
            _, last = await anyio.to_thread.run_sync(self._ledger.span)
        except StateError:
            return  # the reconcile loop says so
        self.history.last = max(self.history.last, last)
