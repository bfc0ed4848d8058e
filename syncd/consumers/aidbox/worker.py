"""The loop of an action that has a mailbox of its own: takes what is pending, until it succeeds.

The events of a mailbox are handled together, and leave it when all of that has succeeded, so an
action goes on after a restart. While it fails it is tried again, ever more rarely.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.core.attempts import Attempts
from syncd.core.errors import SyncdError
from syncd.core.timing import Backoff
from syncd.telemetry.unexpected import unexpected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from syncd.core.events import Event
    from syncd.core.model import Grant
    from syncd.ledger.ledger import Ledger

LONGEST_PAUSE: Final = 600.0
"""Seconds between two attempts, at most."""

_MAX_PENDING: Final = 10_000
log = structlog.get_logger()


class Worker:
    """One action of a consumer.

    Args:
        action: Its name, for the log.
        consumer: The consumer.
        mailbox: Name of its mailbox.
        grant: What it may see.
        ledger: Holds the mailbox.
        handle: Does what the events call for; called once without events at the start. Raises a
            `SyncdError` when it must be called again.
        aclose: Closes what `handle` uses; called when `run` ends.
        rng: Source of the jitter.
    """

    def __init__(
        self,
        action: str,
        consumer: str,
        mailbox: str,
        grant: Grant,
        *,
        ledger: Ledger,
        handle: Callable[[Sequence[Event]], Awaitable[None]],
        aclose: Callable[[], Awaitable[None]],
        rng: Random,
    ) -> None:
        self._action = action
        self._consumer = consumer
        self._mailbox = mailbox
        self._grant = grant
        self._ledger = ledger
        self._handle = handle
        self._aclose = aclose
        self._rng = rng
        self._attempts = Attempts(Backoff(first=1.0, cap=LONGEST_PAUSE))
        self._woken = anyio.Event()
        self._drained = anyio.Event()

    def wake(self) -> None:
        """Notifies it of new events in the mailbox. Call it from the event loop."""
        self._woken.set()
        if self._drained.is_set():
            self._drained = anyio.Event()

    async def drained(self) -> None:
        """Returns when the mailbox is empty, with no `wake` since."""
        while not self._drained.is_set():
            await self._drained.wait()

    async def run(self) -> None:
        """Handles what is pending, until cancelled."""
        started = False
        try:
            while True:
                # reset before the look, not after it: an event committed meanwhile sets it
                self._woken = anyio.Event()
                try:
                    if not started:
                        await self._handle(())
                        started = True
                    events = await anyio.to_thread.run_sync(self._take)
                    if events:
                        await self._handle(events)
                        await anyio.to_thread.run_sync(
                            self._ledger.acknowledge, self._mailbox, events
                        )
                        continue
                except SyncdError as error:
                    await self._fail(error)
                    continue
                except Exception as error:  # noqa: BLE001 - a bug in it must never end the daemon
                    await self._fail(unexpected(error))
                    continue
                self._attempts.succeed(time.time())
                if not self._woken.is_set():
                    self._drained.set()
                await self._woken.wait()
        finally:
            with anyio.move_on_after(1, shield=True):
                await self._aclose()

    def _take(self) -> list[Event]:
        return self._ledger.take(self._mailbox, self._grant, _MAX_PENDING)

    async def _fail(self, error: SyncdError) -> None:
        failure = self._attempts.fail(error, self._rng)
        if failure.is_news:
            report = log.error if self._attempts.is_refused else log.warning
            report(
                "action.postponed",
                action=self._action,
                consumer=self._consumer,
                reason=str(error),
                retry_in=round(failure.delay, 1),
            )
        # a newer change may be the remedy
        with anyio.move_on_after(failure.delay):
            await self._woken.wait()
