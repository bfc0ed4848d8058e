"""`syncd wait`: waits until every secret of the vault config is readable, or a timeout.

For an init container or `ExecStartPre=`, so that the program that starts afterwards finds its
secrets. What is missing is reported at once and whenever it changes: a pod that hangs in its init
container has the reason in its log.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from syncd.config.extra import extra_entries
from syncd.core.decode import did_you_mean
from syncd.core.errors import ConfigurationError
from syncd.core.model import State
from syncd.mount.read import LIMIT, Reader
from syncd.mount.vault_config_file import VaultConfigFile
from syncd.mount.watch import Watcher
from syncd.mount.way import Watched
from syncd.system.threads import run

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from syncd.config.settings import Settings
    from syncd.core.model import Entry

_INTERVAL: Final = 1.0
"""Seconds between two scans at most: not every change gives a hint, and inotify may not work."""

_SHORTEST: Final = 0.1
"""Seconds that a scan may take at least, however little time is left."""


_NAMED: Final = 20
"""Lines that one report has at most."""


def _silent(_line: str) -> None:
    pass


async def wait(
    settings: Settings,
    limit: float,
    *,
    only: Collection[str] = (),
    report: Callable[[str], object] = _silent,
) -> list[str]:
    """Waits until every entry is present and readable, at most `limit` seconds; 0 scans once.

    Args:
        settings: The configuration.
        limit: Seconds.
        only: Names of the secrets to wait for; all if there is none.
        report: Is called with one line for each secret that is missing, as soon as that is known
            and when it changes.

    Returns:
        One line per entry that is still missing; empty when none is.
    """
    waiting = _Waiting(settings, only, report)
    end = time.monotonic() + limit
    try:
        retry = await waiting.scan(min(limit, LIMIT) or LIMIT)
        if waiting.unsettled:
            # a file is read when it is the same at two looks, and that long even no time lasts
            await anyio.sleep(retry)
            retry = await waiting.scan(LIMIT)
        with anyio.move_on_after(end - time.monotonic()):
            while waiting.missing:
                waiting.report()
                # a change between that scan and the new watches gave no hint
                await run(waiting.watcher.arm, waiting.watched)
                retry = await waiting.scan(min(LIMIT, end - time.monotonic()))
                if waiting.missing:
                    with anyio.move_on_after(retry):
                        await waiting.watcher.next_hint()
    finally:
        waiting.watcher.close()
    return waiting.missing


class _Waiting:
    """What the last scan found.

    Attributes:
        missing: One line per entry that is not there.
        unsettled: Whether a file must be looked at a second time.
        watched: What must be watched for the rest to appear.
    """

    def __init__(
        self, settings: Settings, only: Collection[str], report: Callable[[str], object]
    ) -> None:
        watch = settings.watch
        self.watcher = Watcher(watch.mode)
        self.missing: list[str] = []
        self.unsettled = False
        self.watched = Watched()
        self._only = only
        self._report = report
        self._reported: list[str] = []
        self._path = settings.vault_config
        self._settle = watch.settle
        self._extra = extra_entries(watch)
        self._reader = Reader(b"", watch, settle=watch.settle, grace=0.0)

    def report(self) -> None:
        """Reports what is missing, where that is not what was reported last."""
        news = [line for line in self.missing if line not in self._reported]
        if self.missing == self._reported:
            return
        for line in news[:_NAMED]:
            self._report(f"waiting: {line}")
        if len(news) > _NAMED:
            self._report(f"waiting: and {len(news) - _NAMED} more secrets")
        if not news:
            self._report(f"waiting: still missing: {len(self.missing)}")
        self._reported = self.missing

    def _wanted(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        return {
            name: item for name, item in entries.items() if not self._only or name in self._only
        }

    async def scan(self, limit: float) -> float:
        """Scans for so many seconds at most; returns after how many to scan again."""
        file = VaultConfigFile(self._path, self._settle, self._extra)
        self.missing, self.unsettled = [f"{self._path}: its file system does not answer"], False
        with anyio.move_on_after(limit) as patience:
            try:
                await file.load()
            except ConfigurationError as error:
                self.missing, self.watched = list(error.lines), file.watched
                return _INTERVAL
        if patience.cancelled_caught:
            return _INTERVAL
        self._reader.forget_mounts()
        entries = self._wanted(file.entries)
        snapshot = await run(
            partial(
                self._reader.scan,
                entries,
                is_written=self.watcher.is_written,
                limit=max(limit, _SHORTEST),
            )
        )
        self.missing = [
            f"{entry.path}: secret {name} is {seen.state}: {seen.problem or 'still being written'}"
            for name, entry in entries.items()
            if not (seen := snapshot.observations[name]).settled or seen.state is not State.PRESENT
        ]
        for name in self._only:
            if name not in entries:
                hint = did_you_mean(name, file.entries, "correct the name, or add an entry")
                self.missing.append(f"{self._path}: there is no secret {name}; {hint}")
        self.unsettled = any(
            seen.state is State.PRESENT and not seen.settled
            for seen in snapshot.observations.values()
        )
        self.watched = snapshot.watched
        return min(_INTERVAL if snapshot.retry_in is None else snapshot.retry_in, _INTERVAL)
