"""Passes over roots: each in a thread, which a file system that does not answer keeps.

A pass that makes no progress for `LIMIT` seconds is disowned: its result is void, whenever it
comes, and then a new one begins at once. One that is committing is waited for, since what is
committed must become known. During a pass the garbage collector is off: it makes tens of thousands
of objects and no cycle.
"""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Final

import anyio

from syncd.mount.read import LIMIT
from syncd.system.memory import uncollected
from syncd.system.threads import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from syncd.mount.lane import Errand, Lane, Pass
    from syncd.mount.ledger_use import LedgerUse
    from syncd.mount.read import Reader
    from syncd.mount.record import Recorder
    from syncd.mount.watch import Watcher

SLOTS: Final = 8
_SLOT_LIMIT: Final = 0.1
"""So many passes run at a time; one that takes longer than so many seconds frees its slot, so that
mounts that do not answer hold up no others."""


class Passes:
    """Runs them.

    Args:
        reader: Reads the files.
        recorder: Compares and commits.
        watcher: Is armed by scans.
        use: Hears of a ledger that does not answer.
        announce: Called with the result of a pass whose lane is cancelled.
        give_up: Called with a lane whose file system does not answer.
    """

    def __init__(
        self,
        reader: Reader,
        recorder: Recorder,
        watcher: Watcher,
        use: LedgerUse,
        *,
        announce: Callable[[Pass], None],
        give_up: Callable[[Lane], Awaitable[None]],
    ) -> None:
        self._reader = reader
        self._recorder = recorder
        self._watcher = watcher
        self._use = use
        self._announce = announce
        self._give_up = give_up
        self._slots = anyio.CapacityLimiter(SLOTS)

    def perform(self, lane: Lane, errand: Errand) -> Pass:
        """Performs an errand. Blocks, perhaps for ever."""
        return lane.work(errand.claim, self._reader, self._recorder, self._watcher, swapped=True)

    async def run(self, lane: Lane, errand: Errand | None = None) -> Pass | None:
        """Scans and commits; None where the file system did not answer and now does.

        With an errand, it is that which does.

        Raises:
            StateError: The ledger cannot be used.
        """
        if errand is not None and errand.future.done():
            return errand.future.result()
        with uncollected():
            if errand is None:
                call, claim, answered = await self._start(lane)
            else:
                call, claim, answered = Call.of(errand.future), errand.claim, False
            while not answered:
                before = lane.progress
                answered = await self._wait(call, claim, LIMIT)
                if not answered and lane.progress == before:
                    break
        if answered:
            return call.result()
        if claim.acquire(blocking=False):
            # from now on the thread's result is void, whenever it comes
            await self._give_up(lane)
            await call.wait()
            lane.schedule.retry = 0.0
            return None
        while not await self._wait(call, claim, LIMIT):
            self._use.hang(lane.path)
        return call.result()

    async def _start(self, lane: Lane) -> tuple[Call[Pass], Lock, bool]:
        """Begins a pass when there is a slot; returns also whether it has ended soon."""
        claim, swapped = Lock(), lane.was_swapped
        work = partial(lane.work, claim, self._reader, self._recorder, self._watcher)
        try:
            self._slots.acquire_on_behalf_of_nowait(lane)
        except anyio.WouldBlock:
            await self._slots.acquire_on_behalf_of(lane)
        try:
            call = Call(partial(work, swapped=swapped))
            return call, claim, await self._wait(call, claim, _SLOT_LIMIT)
        finally:
            self._slots.release_on_behalf_of(lane)

    async def _wait(self, call: Call[Pass], claim: Lock, limit: float) -> bool:
        """Waits for a pass. A cancellation abandons a scan, and waits for a commit."""
        try:
            return await call.wait(limit)
        except anyio.get_cancelled_exc_class():
            await self._abandon(call, claim)
            raise

    async def abandon(self, errand: Errand) -> None:
        """Gives an errand up that is scanning; announces what one is committing.

        Raises:
            StateError: The ledger cannot be used.
        """
        await self._abandon(Call.of(errand.future), errand.claim)

    async def _abandon(self, call: Call[Pass], claim: Lock) -> None:
        if not claim.acquire(blocking=False):
            # what is being committed must become known here, too
            with anyio.CancelScope(shield=True):
                if await call.wait(LIMIT):
                    self._announce(call.result())
