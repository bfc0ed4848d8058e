"""The thread that waits for hints, and looks at a root itself where its generation was swapped.

From a swap to its commit, a look at a few secrets takes less time than the event loop needs to hear
of it and to have it done by a thread. So the thread that reads the hint also scans, compares and
commits (`Lane.work`), and what the event loop hears of is the commit. Every other hint goes to the
event loop.

Such a look is an errand. A root that does not answer must hold up no other one, so after `SLOW`
seconds another thread waits for the hints, and the event loop follows the errand as it does with
every pass.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Final

import anyio

from syncd.mount.lane import Lane
from syncd.system.alarm import Alarm
from syncd.system.threads import start

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVarTuple, Unpack

    from syncd.mount.lane import Errand, Follower, Pass
    from syncd.mount.watch import Hint, Watcher

    _A = TypeVarTuple("_A")

SLOW: Final = 0.1
_TRY_AGAIN: Final = 1.0


class Attendant:
    """The thread, and what the event loop does for it.

    Args:
        watcher: Gives the hints; the thread ends when it is closed.
        work: Performs an errand. Called in the thread.
        notify: Takes a hint that is no errand's. Called in the event loop.
        landed: Hears that an errand is done. Called in the event loop.

    Attributes:
        followers: All that hints may concern. A tuple, since the thread reads it at any time.
    """

    def __init__(
        self,
        watcher: Watcher,
        *,
        work: Callable[[Lane, Errand], Pass],
        notify: Callable[[Hint], None],
        landed: Callable[[Lane, Errand], None],
    ) -> None:
        self.followers: tuple[Follower, ...] = ()
        self._watcher = watcher
        self._work = work
        self._notify = notify
        self._landed = landed
        self._lock = Lock()
        self._alarm: Alarm | None = None
        self._shift: object = None
        self._errand: tuple[Lane, Errand] | None = None
        self._failure: asyncio.Future[None]

    async def run(self) -> None:
        """Attends until cancelled; from then on it begins no errand."""
        self._loop = asyncio.get_running_loop()
        self._failure = self._loop.create_future()
        with suppress(OSError):  # without it there are no errands
            self._alarm = Alarm()
        self._shift = object()
        start(self._attend, self._shift)
        try:
            async with anyio.create_task_group() as tasks:
                if self._alarm is not None:
                    tasks.start_soon(self._relieve_who_is_slow, self._alarm)
                await self._failure
        finally:
            with self._lock:
                alarm, self._alarm, self._shift = self._alarm, None, None
            if alarm is not None:
                alarm.close()

    async def _relieve_who_is_slow(self, alarm: Alarm) -> None:
        while True:
            await anyio.wait_readable(alarm)
            with self._lock:
                alarm.set(0)
                slow, shift = self._errand, object()
                if slow is None:
                    continue
                try:
                    start(self._attend, shift)
                except RuntimeError:  # no thread can be started now
                    alarm.set(_TRY_AGAIN)
                    continue
                self._errand, self._shift = None, shift
            slow[0].schedule.conclude()

    def _attend(self, shift: object) -> None:
        """Waits for hints, in a thread, until the watcher is closed or another thread does."""
        try:
            while (hint := self._watcher.wait()) is not None:
                lane = self._concerned(hint)
                errand = None if lane is None else self._begin(lane, hint, shift)
                if lane is None or errand is None:
                    self._tell(self._notify, hint)
                    continue
                self._perform(lane, errand)
                self._tell(self._landed, lane, errand)
                if not self._end(shift):
                    return
        except Exception as error:  # noqa: BLE001 - it ends the daemon, as it would in a task
            self._tell(self._fail, error)

    def _concerned(self, hint: Hint) -> Lane | None:
        """The root that an errand could look at."""
        if not hint.swap:
            return None
        concerned = [it for it in self.followers if it.concerns(hint.directories)]
        return concerned[0] if len(concerned) == 1 and isinstance(concerned[0], Lane) else None

    def _begin(self, lane: Lane, hint: Hint, shift: object) -> Errand | None:
        with self._lock:
            if self._shift is not shift or self._alarm is None:
                return None
            errand = lane.take(hint)
            if errand is not None:
                self._errand = lane, errand
                self._alarm.set(SLOW)
        return errand

    def _perform(self, lane: Lane, errand: Errand) -> None:
        try:
            errand.future.set_result(self._work(lane, errand))
        except BaseException as error:  # noqa: BLE001 - it is raised in the lane's task
            errand.future.set_exception(error)

    def _end(self, shift: object) -> bool:
        """Whether this thread is still the one that waits for hints."""
        with self._lock:
            if self._shift is not shift:
                return False
            self._errand = None
            if self._alarm is not None:
                self._alarm.set(0)
        return True

    def _fail(self, error: Exception) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    def _tell(self, function: Callable[[Unpack[_A]], None], *arguments: *_A) -> None:
        with suppress(RuntimeError):  # the loop is closed: the daemon ends
            self._loop.call_soon_threadsafe(function, *arguments)
