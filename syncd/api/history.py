"""The events that streams send: recent ones from memory, older ones from the ledger.

Each is encoded once, however many streams send it. The recent ones are consecutive: an event that
does not follow the last one (another process wrote to the ledger, or there was a commit without
streams) starts a new list, and the ledger fills the gap. Older ones are read in pages that begin at
multiples of the page's size, so that a thousand streams that resume at a thousand positions share
them; one page is read at a time, so that reading does not slow down other work.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from syncd.api.positions import numbered
from syncd.core.event_data import Data
from syncd.core.events import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.api.answers import Answers
    from syncd.api.positions import Positions
    from syncd.api.subscribers import View
    from syncd.core.events import Stamp
    from syncd.ledger.reads import Reads

PAGE: Final = 256
"""Events in a page of the ledger."""

RECENT: Final = 131_072
"""Events in memory, at most, and only while a stream has yet to send them. 100,000 secrets that all
rotate fit in: their events are in memory when they are committed, and take five times as long to
send when they are read back from the ledger."""

FEW: Final = 8192
"""Events that are not worth being freed one page after the other: their frames are a few MiB."""

_PAGES: Final = 8


class Item(msgspec.Struct, eq=False, gc=False):
    """An event and its frames (WHATWG HTML section 9.2.6), one for each distinct view."""

    event: Event
    _frame: bytes | None = None
    _others: dict[tuple[str, Data], bytes] | None = None

    def whole(self, stamp: Stamp) -> bytes:
        """The event as those see it who see everything, encoded."""
        if self._frame is None:
            self._frame = event_frame(self.event, stamp)
        return self._frame

    def frame(self, view: View, positions: Positions, number: int) -> bytes | None:
        """The event as a view shows it, encoded, or None.

        Args:
            view: What is shown.
            positions: What ids mean to the view's caller.
            number: The position after the event.
        """
        seen = view.see(self.event)
        if seen is self.event and not positions.limited:
            return self.whole(positions.stamp)
        if seen is None:
            return None
        if self._others is None:
            self._others = {}
        stamp = positions.stamp
        key = (stamp.epoch, seen.data)
        frame = self._others.get(key)
        if frame is None:
            if positions.limited:
                seen = numbered(seen, stamp, number)
            frame = self._others[key] = event_frame(seen, stamp)
        return frame


def event_frame(event: Event, stamp: Stamp) -> bytes:
    """An event in the stream's format."""
    return frame(stamp.id(event.sequence), event.type, stamp.encode(event))


def frame(id_: str, type_: str, data: bytes) -> bytes:
    """One block of an event stream; JSON keeps line breaks out of `data`."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (id_.encode(), type_.encode(), data)


class History:
    """The events that streams can read.

    Args:
        ledger: Holds older events.
        last: Sequence of the newest event.
        answers: Has the threads in which they are read.

    Attributes:
        last: Sequence of the newest event that streams may send.
    """

    def __init__(self, ledger: Reads, last: int, answers: Answers) -> None:
        self._ledger = ledger
        self._answers = answers
        self.last = last
        self._recent: list[Item] = []
        self._pages: OrderedDict[int, tuple[Item, ...]] = OrderedDict()
        self._reading = anyio.Lock()

    def add(self, events: Sequence[Event], *, keep: bool) -> None:
        """Adds committed events.

        Args:
            events: One or more, in order.
            keep: Whether there are streams that will read them from memory.
        """
        if events[-1].sequence <= self.last:
            return
        joins = self._recent and events[0].sequence == self._recent[-1].event.sequence + 1
        if not keep or not joins:
            self._recent = []
        if keep:
            self._recent += map(Item, events[-RECENT:])
            del self._recent[:-RECENT]
        self.last = events[-1].sequence

    @property
    def is_large(self) -> bool:
        """Whether so much is in memory that it is worth freeing what was sent."""
        return len(self._recent) > FEW

    def free(self, upto: int) -> None:
        """Frees recent events up to a sequence."""
        if self._recent:
            first = self._recent[0].event.sequence
            del self._recent[: max(0, upto + 1 - first)]

    def forget(self, upto: int) -> None:
        """Frees recent events up to a sequence, and all pages."""
        self.free(upto)
        self._pages.clear()

    def at_hand(self, position: int) -> Sequence[Item] | None:
        """The next events after a position; empty if there are none, None if not in memory."""
        if position >= self.last:
            return ()
        if self._recent and position + 1 >= (first := self._recent[0].event.sequence):
            start = position + 1 - first
            return self._recent[start : start + PAGE]
        page = self._pages.get((position + 1) // PAGE)
        return None if page is None else self._after(page, position)

    async def read(self, position: int) -> Sequence[Item] | None:
        """The next events after a position, or None when some of them are no longer held.

        Raises:
            StateError: The ledger cannot be used.
        """
        items = self.at_hand(position)
        if items is None:
            async with self._reading:
                items = self.at_hand(position)
                if items is None:
                    items = await self._load(position)
        if not items and position < self.last:
            return None
        return None if items and items[0].event.sequence != position + 1 else items

    async def _load(self, position: int) -> Sequence[Item]:
        number = (position + 1) // PAGE
        begin = number * PAGE
        last = self.last
        page = await self._answers.run(partial(self._items, begin))
        if begin + PAGE - 1 <= last:
            self._pages[number] = page
            while len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
        else:
            # the ledger can be ahead of `last`: streams send an event only once it was added
            page = tuple(item for item in page if item.event.sequence <= last)
        return self._after(page, position)

    def _items(self, begin: int) -> tuple[Item, ...]:
        """A page, without events that the pruned log holds only for a consumer."""
        events = self._ledger.events_after(begin - 1, PAGE)
        pruned, _ = self._ledger.span()
        return tuple(Item(e) for e in events if e.sequence < begin + PAGE and e.sequence > pruned)

    @staticmethod
    def _after(page: Sequence[Item], position: int) -> Sequence[Item]:
        if not page:
            return ()
        # a page has no gaps: pruned events are missing at its beginning
        return page[max(0, position + 1 - page[0].event.sequence) :]
