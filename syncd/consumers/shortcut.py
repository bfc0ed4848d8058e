"""The short way to an idle consumer: the thread that committed events begins their delivery.

From a commit to a request, the way through the event loop takes longer than the request. It is
saved where nothing has to be decided: nothing waits for the consumer, all goes well with it, the
commit is the next one, and its events fit into one delivery. The event loop opens the shortcut when
its consumer becomes idle and closes it before it does anything else with it, so that an event is
delivered one way or the other.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from syncd.consumers.lanes import lane_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.consumers.consumer import Posting
    from syncd.core.events import Event
    from syncd.core.model import Grant


_MOST: Final = 100
"""Events that are worth a shortcut, at most: the thread that posts them has other work."""


class Posted(NamedTuple):
    """Events on their way.

    Attributes:
        posting: Knows the outcome.
        events: What the consumer may see of the commit.
        first: The first sequence of the commit.
        last: Its last sequence.
    """

    posting: Posting
    events: Sequence[Event]
    first: int
    last: int


class Shortcut:
    """That of one consumer; closed at first.

    Args:
        grant: What the consumer may see.
        most: Events in one delivery, at most.
    """

    def __init__(self, grant: Grant, most: int) -> None:
        self._grant = grant
        self._most = min(most, _MOST)
        self._lock = Lock()
        self._posting: Posting | None = None
        self._cursor = 0
        self._posted: Posted | None = None

    def open(self, posting: Posting, cursor: int) -> None:
        """Lets one delivery begin, of what follows a sequence. In the event loop, when closed."""
        with self._lock:
            self._posting, self._cursor = posting, cursor

    def post(self, committed: Sequence[Event]) -> None:
        """Begins the delivery of a commit, or does nothing. In any thread; does not wait."""
        with self._lock:
            posting = self._posting
            if posting is None or committed[0].sequence != self._cursor + 1:
                return
            # an error, which can only be a bug in the consumer, comes again on the usual way
            with suppress(Exception):
                events = [it for one in committed if (it := one.seen_by(self._grant)) is not None]
                apart = len({lane_of(event) for event in events}) == len(events)
                if 0 < len(events) <= self._most and apart and posting.post(events):
                    first, last = committed[0].sequence, committed[-1].sequence
                    self._posting, self._posted = None, Posted(posting, events, first, last)

    def close(self) -> Posted | None:
        """Returns what was posted since it was opened. In the event loop."""
        with self._lock:
            posting, self._posting = self._posting, None
            posted, self._posted = self._posted, None
        if posting is not None:
            posting.withdraw()
        return posted
