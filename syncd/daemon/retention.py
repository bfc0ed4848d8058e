"""Prunes the event log to its bounds, while the daemon runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.core.errors import StateError
from syncd.core.timing import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncd.config.settings import EventLog
    from syncd.core.events import Commit
    from syncd.ledger.ledger import Ledger

AT_LEAST: Final = 3600.0
"""Seconds after which the log is pruned although nothing was added: events exceed their age."""

log = structlog.get_logger()


class Retention:
    """Prunes after commits, with a pause in between.

    Args:
        ledger: Holds the event log.
        bounds: Returns the present bounds.
    """

    def __init__(self, ledger: Ledger, bounds: Callable[[], EventLog]) -> None:
        self._ledger = ledger
        self._bounds = bounds
        self._grown = anyio.Event()
        self._grown.set()  # limits may have been lowered since the last run

    def committed(self, commit: Commit) -> None:
        """Notes that the log has grown. In the event loop only."""
        if commit.events:
            self._grown.set()

    async def run(self) -> None:
        """Prunes until cancelled."""
        bounds = self._bounds()
        while True:
            await self._due(bounds)
            self._grown = anyio.Event()
            bounds = self._bounds()
            try:
                await anyio.to_thread.run_sync(prune, self._ledger, bounds)
            except StateError as error:
                log.warning("event_log.not_pruned", problem=str(error))
                self._grown.set()  # try again: on a full disk no commit would trigger it
            await anyio.sleep(bounds.prune_interval)

    async def _due(self, pruned_to: EventLog) -> None:
        """Waits until the log has grown, its bounds differ, the volume is full, or it is time."""
        with anyio.move_on_after(AT_LEAST):
            # looked at now and then: a full volume stops the commits that would wake this loop
            while not self._grown.is_set():
                if self._ledger.is_full or self._bounds() != pruned_to:
                    return
                with anyio.move_on_after(pruned_to.prune_interval):
                    await self._grown.wait()


def prune(ledger: Ledger, bounds: EventLog) -> None:
    """Removes events beyond the bounds. Blocks.

    Raises:
        StateError: The ledger cannot be used.
    """
    oldest = max(0.0, time.time() - bounds.max_age)
    count = ledger.prune(bounds.max_events, rfc3339(oldest))
    if count:
        log.info("event_log.pruned", events=count)
