"""The positions of streams: what event ids mean to a caller.

Callers who may see everything get the ledger's own: `<epoch>-<sequence>`, where sequences count all
events. To a caller with a limited scope they would tell when and how often other secrets change, so
such a caller's grant has a numbering of its own (`syncd.ledger.numbering`): an epoch of its own,
and numbers that grow by one for each event that the grant shows.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from threading import Lock
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from syncd.core.events import Origin, Stamp
from syncd.ledger.numbering import Base

if TYPE_CHECKING:
    from syncd.core.events import Event
    from syncd.core.model import Grant
    from syncd.ledger.reads import Reads

START: Final = "start"
"""The position before the oldest event in the log, for `?after=`."""

_PAGE: Final = 1000


class Place(msgspec.Struct, frozen=True):
    """A position in the event log.

    Attributes:
        sequence: The ledger's own.
        number: What ids call it.
    """

    sequence: int
    number: int


class Positions(Protocol):
    """What ids mean to one grant."""

    @property
    def stamp(self) -> Stamp:
        """What writes them."""

    @property
    def limited(self) -> bool:
        """Whether they differ from the ledger's own."""

    def after(self, number: int, event: Event) -> int:
        """The number after an event, from the one before it."""

    def place(self, sequence: int) -> Place:
        """The position of a sequence. Blocks."""

    def find(self, after: str, last: int) -> Place | None:
        """The position that a caller names; None if the ledger does not hold it. Blocks.

        Args:
            after: An event id, or `START`.
            last: Sequence of the newest event that streams may send.
        """

    def resume(self, number: int, last: int) -> Place | None:
        """The position that a number stands for, as `find`."""


class AllPositions:
    """The ledger's own positions.

    Args:
        stamp: The attributes that an installation adds to events.
        ledger: Says what is still held.
    """

    limited = False

    def __init__(self, stamp: Stamp, ledger: Reads) -> None:
        self.stamp = stamp
        self._ledger = ledger

    def after(self, number: int, event: Event) -> int:  # noqa: ARG002 - the protocol's
        """See `Positions`."""
        return event.sequence

    def place(self, sequence: int) -> Place:
        """See `Positions`."""
        return Place(sequence, sequence)

    def find(self, after: str, last: int) -> Place | None:
        """See `Positions`."""
        first, _ = self._ledger.span()
        sequence = first if after == START else self.stamp.sequence(after)
        held = sequence is not None and first <= sequence <= last
        return self.place(sequence) if sequence is not None and held else None

    def resume(self, number: int, last: int) -> Place | None:
        """See `Positions`."""
        first, _ = self._ledger.span()
        return self.place(number) if first <= number <= last else None


class GrantPositions:
    """The positions of a limited grant.

    It knows the sequences of all events in the log that the grant shows: eight bytes each, read
    when they are first needed.

    Args:
        base: Where the numbering had got to when the ledger was asked.
        grant: The scopes.
        source: The source URI of this installation.
        ledger: Holds the events.
    """

    limited = True

    def __init__(self, base: Base, grant: Grant, source: str, ledger: Reads) -> None:
        self.stamp = Stamp(base.epoch, source)
        self._grant = grant
        self._ledger = ledger
        self._sequence, self._number = base.sequence, base.number
        self._known = base.sequence
        self._visible = array("Q")
        self._lock = Lock()  # threads of the API use it at the same time

    def after(self, number: int, event: Event) -> int:
        """See `Positions`."""
        return number + (event.seen_by(self._grant) is not None)

    def place(self, sequence: int) -> Place:
        """See `Positions`."""
        with self._lock:
            self._read(sequence)
            return Place(sequence, self._number + bisect_right(self._visible, sequence))

    def find(self, after: str, last: int) -> Place | None:
        """See `Positions`."""
        if after != START:
            number = self.stamp.sequence(after)
            return None if number is None else self.resume(number, last)
        with self._lock:
            self._read(last)
            return Place(self._sequence, self._number)

    def resume(self, number: int, last: int) -> Place | None:
        """See `Positions`."""
        with self._lock:
            self._read(last)
            index = number - self._number
            if not 0 <= index <= bisect_right(self._visible, last):
                return None
            return Place(self._visible[index - 1] if index else self._sequence, number)

    def _read(self, last: int) -> None:
        """Reads up to a sequence what the grant shows, and forgets what was pruned."""
        pruned, _ = self._ledger.span()
        while True:
            if pruned > self._known:
                self._begin_again(pruned)
            began, found = self._known, self._visible_events(last)
            pruned, _ = self._ledger.span()
            if pruned <= began:
                break
            # pruned meanwhile, perhaps before they were read
        self._visible.extend(found)
        self._known = max(self._known, last)
        gone = bisect_right(self._visible, pruned)
        del self._visible[:gone]
        self._sequence, self._number = max(self._sequence, pruned), self._number + gone

    def _visible_events(self, last: int) -> list[int]:
        found, known = [], self._known
        while known < last:
            events = self._ledger.events_after(known, _PAGE)
            if not events:
                break
            found += [
                event.sequence
                for event in events
                if event.sequence <= last and event.seen_by(self._grant) is not None
            ]
            known = events[-1].sequence
        return found

    def _begin_again(self, pruned: int) -> None:
        """Takes what the ledger counted of events that were pruned before they were read here."""
        base = self._ledger.base(self._grant)
        if base is None or base.epoch != self.stamp.epoch or base.sequence < pruned:
            base = Base.new(pruned)  # it could not be stored: positions from before are lost
            self.stamp = Stamp(base.epoch, self.stamp.source)
        self._sequence, self._number, self._known = base.sequence, base.number, base.sequence
        del self._visible[:]


def numbered(event: Event, stamp: Stamp, number: int) -> Event:
    """An event under a number of a limited grant, also if it came from another installation."""
    source = stamp.source if event.origin is None else event.origin.source
    return msgspec.structs.replace(event, sequence=number, origin=Origin(stamp.id(number), source))
