"""When something is looked at next: a root, or the vault config.

A hint brings the next look forward, never back: under a stream of hints it still comes. An urgent
one (a swap) starts it now. Another one may be the first of many writes: the first look at a file
that is being written is as good as any, and the next comes after the settle time, when the file can
be read if it is still the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from syncd.core.timing import Pace

if TYPE_CHECKING:
    from syncd.mount.watch import Hint


class Schedule:
    """The turns of one thing that is looked at again and again.

    Args:
        interval: Seconds between two looks, at most.
        settle: Seconds between two looks at a file that is being written.

    Attributes:
        retry: Seconds after which the last look must be repeated, or None. At first it is 0: what
            was looked at before it was watched is looked at again.
        reason: Of the last look.
        swapped: Where nothing but a swap of a generation led to the last look: the directories of
            the swaps. Else empty, which means that anything can have changed.
    """

    def __init__(self, interval: float, settle: float) -> None:
        self.retry: float | None = 0.0
        self.reason = "interval"
        self.swapped: frozenset[str] = frozenset()
        self._settle = settle
        self._interval = interval
        self._pace = Pace()
        self._rest = 0.0
        self._rested = 0.0
        self._is_waiting = False
        self._is_concluded = False
        self._hint: Hint | None = None
        self._hinted = anyio.Event()

    def notify(self, hint: Hint) -> None:
        """Takes a hint. In the event loop only."""
        self._hint = hint if self._hint is None else self._hint.merge(hint)
        self._hinted.set()

    @property
    def is_open(self) -> bool:
        """Whether a hint that comes now would begin a turn now. From any thread."""
        is_calm = self._is_waiting and self._hint is None and self.retry is None
        return is_calm and time.monotonic() >= self._rested

    def conclude(self) -> None:
        """Ends the wait for a turn: a look that was begun elsewhere wants to be followed."""
        self._is_concluded = True
        self._hinted.set()

    def looked(self, took: float) -> None:
        """Counts a look that ends now and took so many seconds of the processor.

        Waiting for a file system is not work: a mount that was slow is not scanned less often.
        """
        self._rest = self._pace.rest(time.monotonic(), took)

    async def next(self) -> str | None:
        """Waits for the next turn; returns its reason: `inotify`, `overflow`, `interval`.

        A look that continues the last one, after `retry`, has that one's reason. None means that
        there is no turn, but a look to follow (`conclude`).
        """
        now = time.monotonic()
        rested, due, reason = now + self._rest, now + self._interval, "interval"
        hints: Hint | None = None
        if self.retry is not None and now + self.retry < due:
            due, reason = max(now + self.retry, rested), self.reason
        self._rested, self._is_waiting = rested, True
        try:
            while (now := time.monotonic()) < due and not self._is_concluded:
                with anyio.move_on_after(due - now):
                    hint = await self._next_hint()
                    if hint is None:
                        break
                    hints = hint if hints is None else hints.merge(hint)
                    wait = 0.0 if hint.urgent or self.retry is None else self._settle
                    at = max(rested, time.monotonic() + wait)
                    if at < due:
                        due, reason = at, hint.reason
        finally:
            self._is_waiting = False
        concluded, self._is_concluded = self._is_concluded, False
        if concluded and time.monotonic() < due:
            if hints is not None:
                self.notify(hints)  # its turn is still to come
            return None
        self.swapped = frozenset()
        if hints is not None and hints.swap and reason != "interval" and self.retry is None:
            self.swapped = hints.directories
        self.reason = reason
        return reason

    async def _next_hint(self) -> Hint | None:
        while self._hint is None and not self._is_concluded:
            await self._hinted.wait()
            self._hinted = anyio.Event()
        hint, self._hint = self._hint, None
        return hint
