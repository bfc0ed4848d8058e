"""What outlives a reload: the locked state directory, the ledger in it, and the metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiofiles
import anyio
import anyio.to_thread
import msgspec
import structlog

from syncd.config.settings import Settings
from syncd.core.events import Commit
from syncd.ledger.ledger import UNKNOWN_BOOT, Ledger
from syncd.ledger.state_dir import StateDir
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from syncd.config.settings import RelaySettings

log = structlog.get_logger()


class Resources(msgspec.Struct, frozen=True):
    """What every engine of a daemon uses.

    Attributes:
        state: The locked state directory.
        ledger: The open ledger.
        metrics: The metrics of this process.
        listeners: Called with each commit, in the event loop.
    """

    state: StateDir
    ledger: Ledger
    metrics: Metrics
    listeners: list[Callable[[Commit], None]] = msgspec.field(default_factory=list)


@asynccontextmanager
async def open_resources(settings: Settings | RelaySettings) -> AsyncIterator[Resources]:
    """Locks the state directory and opens the ledger, for as long as the block runs.

    Raises:
        StateError: The state directory cannot be used.
    """
    state = await anyio.to_thread.run_sync(StateDir.open, settings.state_dir)
    if state.exposure is not None:
        hint = "remove that permission, or set state_dir to a directory of syncd's user"
        log.warning("state_dir.exposed", path=state.path, problem=state.exposure, hint=hint)
    try:
        ledger = await anyio.to_thread.run_sync(Ledger.open, state, await _boot_id())
        if ledger.rebuilt is not None:
            log.error("ledger.rebuilt", reason=ledger.rebuilt, old="ledger.sqlite3.set-aside")
        try:
            names, mount = settings.api.metrics_secret_names, isinstance(settings, Settings)
            yield Resources(state, ledger, Metrics(secret_names=names, mount=mount))
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(ledger.close)
    finally:
        state.close()


async def _boot_id() -> str:
    try:
        async with aiofiles.open("/proc/sys/kernel/random/boot_id") as file:
            return (await file.read()).strip()
    except OSError:
        return UNKNOWN_BOOT
