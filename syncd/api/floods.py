"""Users who connect to the Unix socket faster than connections can be accepted.

The queue of a listening socket is one for all users, and while it is full, every `connect` fails
(EAGAIN) or waits. Accepting and refusing fast enough (`syncd.api.admission.Gate`) keeps it from
filling up where a processor is free for it; a user with several processes can fill it all the same.
So a user who connects in vain more often than any well-behaved client would is denied by the
kernel for a while (`SocketFile.deny`), and no other user notices.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FLOOD: Final = 2000
"""Connections in vain, within `_WINDOW` seconds, that make a flood where they fill the queue."""

DENIED: Final = 60.0
"""Seconds for which a user is denied."""

_WINDOW: Final = 1.0
_MOST: Final = 64
log = structlog.get_logger()


class Floods:
    """Counts connections in vain by user, and denies users who make too many.

    Args:
        deny: Sets which users the kernel refuses; raises an `OSError` where that is not possible.
        clock: Monotonic seconds.
    """

    def __init__(
        self, deny: Callable[[Iterable[int]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._deny = deny
        self._clock = clock
        self._since = clock()
        self._counts: dict[int, float] = {}
        self._denied: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, uid: int, count: float) -> None:
        """Counts connections in vain of a user. In the event loop only."""
        now = self._clock()
        if now - self._since > _WINDOW:
            self._since = now
            self._counts.clear()
        self._counts[uid] = self._counts.get(uid, 0) + count
        if self._counts[uid] >= FLOOD and uid not in self._denied:
            if len(self._denied) >= _MOST:
                del self._denied[next(iter(self._denied))]
            self._denied[uid] = now + DENIED
            self._report(uid)

    def _report(self, uid: int) -> None:
        seconds, hint = DENIED, "find the process that connects in a loop"
        if not self._apply():
            seconds = 0
        log.warning("api.flooded", uid=uid, denied_for=seconds, hint=hint)

    def _apply(self) -> bool:
        if self._denied and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DENIED, self._lift)
        try:
            self._deny(self._denied)
        except OSError:
            return False
        return True

    def _lift(self) -> None:
        now, self._timer = self._clock(), None
        self._denied = {uid: until for uid, until in self._denied.items() if until > now}
        self._apply()

    def close(self) -> None:
        """Ends every denial."""
        if self._timer is not None:
            self._timer.cancel()
        if self._denied:
            self._denied.clear()
            self._apply()
