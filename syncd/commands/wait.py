"""`syncd wait`: waits until every secret of the vault config is readable, or a timeout.

For an init container or `ExecStartPre=`, so that the program that starts afterwards finds its
secrets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from syncd.core.errors import ConfigurationError
from syncd.core.model import State
from syncd.mount.read import scan_once
from syncd.mount.roots import watch_path
from syncd.mount.vault_config_file import VaultConfigFile
from syncd.mount.watch import Watcher

if TYPE_CHECKING:
    from syncd.config.settings import Settings
    from syncd.mount.snapshot import Snapshot

_INTERVAL: Final = 1.0
"""Seconds between two scans at most: not every change gives a hint, and inotify may not work."""


async def wait(settings: Settings, limit: float) -> list[str]:
    """Waits until every entry is present and readable, at most `limit` seconds; 0 scans once.

    Returns:
        One line per entry that is still missing; empty when none is.
    """
    watcher = Watcher(settings.watch.mode)
    try:
        missing, watch, retry = await _scan_all(settings, watcher)
        with anyio.move_on_after(limit):
            while missing:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(watcher.arm, watch)
                # a change between that scan and the new watches gave no hint
                missing, watch, retry = await _scan_all(settings, watcher)
                if missing:
                    with anyio.move_on_after(retry):
                        await watcher.next_hint()
    finally:
        watcher.close()
    return missing


async def _scan_all(
    settings: Settings, watcher: Watcher
) -> tuple[list[str], dict[str, frozenset[str] | None], float]:
    file = VaultConfigFile(settings.vault_config, settings.watch.settle)
    try:
        await file.load()
    except ConfigurationError as error:
        watch: dict[str, frozenset[str] | None] = {}
        await anyio.to_thread.run_sync(watch_path, watch, settings.vault_config)
        return list(error.lines), watch, _INTERVAL
    snapshot = await anyio.to_thread.run_sync(_scan, settings, file, watcher)
    missing = [
        f"{entry.path}: secret {name} is {seen.state}: {seen.problem or 'still being written'}"
        for name, entry in file.entries.items()
        if not (seen := snapshot.observations[name]).settled or seen.state is not State.PRESENT
    ]
    return missing, snapshot.watch, min(snapshot.retry_in or _INTERVAL, _INTERVAL)


def _scan(settings: Settings, file: VaultConfigFile, watcher: Watcher) -> Snapshot:
    watch = settings.watch
    return scan_once(file.entries, watch, settle=watch.settle, is_written=watcher.is_written)
