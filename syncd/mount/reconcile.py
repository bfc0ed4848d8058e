"""The one loop: a wake-up, a snapshot, a comparison, a commit, and then everybody is told.

Scanning, comparing and committing are one trip to a worker thread, during which no garbage is
collected: a pass makes tens of thousands of objects and not one cycle. However fast a publisher
swaps, passes take at most half of the time, and a fifth of it in the long run (`core.timing.Pace`):
the loop rests in between, and then looks at what is there.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final, Literal

import anyio
import anyio.to_thread
import structlog

from syncd.core.changes import plan
from syncd.core.errors import StateError
from syncd.core.events import Commit
from syncd.core.model import Entry, State
from syncd.core.timing import Backoff, Pace, rfc3339
from syncd.mount.read import Reader, Snapshot
from syncd.mount.roots import mounts_of, parents_of, watch_path
from syncd.mount.value import read_version
from syncd.mount.watch import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from syncd.config.settings import Watch
    from syncd.core.changes import Plan
    from syncd.core.model import Grant, Known
    from syncd.ledger.ledger import Ledger
    from syncd.mount.vault_config_file import VaultConfigFile
    from syncd.telemetry.metrics import Metrics

_BASELINE_LIMIT: Final = 5.0
_LOGGED_CHANGES: Final = 20
_REARMS: Final = 5
_HEAD_START: Final = 0.002
_HEAD_START_SHARE: Final = 0.25
"""Whoever waits for events has the processor before they are logged and counted: for so many
seconds, and after a long pass for this share of its duration."""
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Pass:
    snapshot: Snapshot
    plan: Plan
    commit: Commit | None
    duration: float


class Reconciler:
    """Keeps the ledger in step with the mount.

    Args:
        settings: The `watch` section.
        vault_config: Already loaded.
        key: Key of the fingerprints.
        ledger: Where changes are committed.
        consumers: Whose mailboxes to fill, and what each may see.
        metrics: What operators scrape.
        on_commit: Called in the event loop after each commit that made events.

    Attributes:
        inventory: What is known, as of the last pass.
        scanned_at: When the last pass ended (RFC 3339, UTC), or None.
        failure: Why the last pass could not be committed, or None.
        watcher: Tells how changes are noticed.
        settled: Whether the last pass left nothing to look at again at once.
    """

    def __init__(
        self,
        settings: Watch,
        vault_config: VaultConfigFile,
        *,
        key: bytes,
        ledger: Ledger,
        consumers: Mapping[str, Grant],
        metrics: Metrics,
        on_commit: Callable[[Commit], None],
    ) -> None:
        self._settings = settings
        self.vault_config = vault_config
        self._key = key
        self._ledger = ledger
        self._consumers = consumers
        self._metrics = metrics
        self._on_commit = on_commit
        self.watcher = Watcher(settings.mode)
        self.inventory: Mapping[str, Known] = {}
        self.scanned_at: str | None = None
        self.failure: str | None = None
        self.settled = False
        self._first_reason: Literal["start", "reload"] = "start"
        self._reader = self._make_reader()
        self._entries: Mapping[str, Entry] = {}
        self._parents: frozenset[str] = frozenset()
        self._watch: dict[str, frozenset[str] | None] = {}
        self._vault_config_watch: frozenset[str] = frozenset()
        self._vault_config_stale = False
        self._backoff = Backoff(first=0.2, cap=10.0)
        self._pace = Pace()
        self._rng = Random()  # noqa: S311 - jitter
        self._degraded: str | None = None
        self._born = time.monotonic()

    def _make_reader(self) -> Reader:
        settings = self._settings
        return Reader(
            self._key,
            settings.roots,
            max_size=settings.max_secret_size,
            settle=settings.settle,
            grace=settings.remount_grace,
        )

    def read_value(self, name: str, path: str, version: str) -> bytes | None:
        """Reads a secret for whoever must prove that it is accepted. Blocks.

        Args:
            name: The secret's name.
            path: Its file.
            version: What the content must be.

        Returns:
            The content, or None where it cannot be read or is another version by now.
        """
        entry = Entry(name, path, ())
        return read_version(self._key, self._reader.roots, self._settings, entry, version)

    async def start(self, reason: Literal["start", "reload"] = "start") -> None:
        """Takes over what the ledger knows, and makes the first pass.

        Args:
            reason: Of the first pass. After a `reload`, whose old engine could go on while the
                ledger could not be written, `run` makes it again until it can.

        Raises:
            StateError: The ledger cannot be used, at the start.
        """
        self._first_reason = reason
        self.inventory = await anyio.to_thread.run_sync(self._ledger.inventory)
        self._metrics.set_inventory(self.inventory.values())
        self._say_findings()
        try:
            result = await self._pass(reason)
        except StateError as error:
            if reason == "start":
                raise
            self._fail(error)
            return
        while self._ledger.fresh:
            # the baseline waits for files that are being written, or it would not be one
            await anyio.sleep(min(result.snapshot.retry_in or 0.0, self._settings.settle))
            result = await self._pass(reason)

    async def settle(self, limit: float) -> None:
        """Makes passes until nothing is being written, or the limit (seconds) is over."""
        with anyio.move_on_after(limit):
            while not self.settled:
                await anyio.sleep(self._settings.settle)
                await self._pass("interval")

    async def run(self) -> None:
        """Follows the mount until cancelled. `start` comes first."""
        reason: str = self._first_reason
        rest, retry = 0.0, None if self.settled else 0.0
        # whoever wrote the vault config between its loading and its being watched made no hint
        if await self._follow_vault_config():
            retry = 0.0
        while True:
            reason = await self._wake(rest, retry, reason)
            if self._vault_config_stale:
                await self._follow_vault_config()
            try:
                result = await self._pass(reason)
            except StateError as error:
                rest, retry = 0.0, self._backoff.next(self._rng)
                self._fail(error)
                continue
            if self.failure is not None:
                log.info("ledger.recovered")
            self.failure = None
            self._backoff.reset()
            rest = self._pace.rest(time.monotonic(), result.duration)
            retry = result.snapshot.retry_in

    def _fail(self, error: StateError) -> None:
        """Notes that the ledger cannot be used, and says so once."""
        if self.failure != str(error):
            log.error("ledger.unusable", problem=str(error))
        self.failure = str(error)

    async def _wake(self, rest: float, retry: float | None, reason: str) -> str:
        """Waits until the next pass is due; returns its reason.

        Args:
            rest: How long to leave the mount alone after the last pass, seconds.
            retry: When to look again without a hint, seconds, or None.
            reason: The last pass's, which a retry continues.
        """
        now = time.monotonic()
        rested = now + rest
        if self._vault_config_stale:  # it was being written
            settle = self._settings.settle
            retry = settle if retry is None else min(retry, settle)
        due, next_reason = now + self._settings.rescan_interval, "interval"
        if retry is not None and now + retry < due:
            due, next_reason = max(now + retry, rested), reason
        while (now := time.monotonic()) < due:
            with anyio.move_on_after(due - now):
                hint = await self.watcher.next_hint()
                now = time.monotonic()
                at = max(rested, now if hint.urgent else now + self._settings.settle)
                if at < due:
                    due, next_reason = at, hint.reason
                if not hint.directories or hint.directories & self._vault_config_watch:
                    self._vault_config_stale = True
        self._vault_config_stale |= next_reason == "interval"
        return next_reason

    async def _follow_vault_config(self) -> bool:
        """Reads the vault config again if it may have changed; whether it or its state did."""
        file = self.vault_config
        changed = await file.refresh()
        self._vault_config_stale = file.postponed
        if not changed:
            return False
        if file.valid:
            log.info("vault_config.loaded", path=file.path, secrets=len(file.entries))
        else:
            log.error("vault_config.rejected", path=file.path, hint="the last good one stays")
        self._say_findings()
        return True

    def _say_findings(self) -> None:
        self._metrics.set_vault_config_valid(valid=self.vault_config.valid)
        for finding in self.vault_config.findings:
            say = log.error if finding.is_error else log.warning
            say("vault_config.finding", code=finding.code, finding=str(finding))

    async def _pass(self, reason: str) -> _Pass:
        before = self.inventory
        result = await anyio.to_thread.run_sync(self._scan_and_commit)
        if result.commit is not None:
            self.inventory = result.commit.inventory
            self._on_commit(result.commit)
        self.scanned_at = rfc3339(time.time())
        self.settled = result.snapshot.retry_in is None
        try:
            if result.commit is not None and result.commit.events:
                await anyio.sleep(max(_HEAD_START, _HEAD_START_SHARE * result.duration))
        finally:
            self._tell(result, before, reason)
        if result.commit is not None:
            await anyio.to_thread.run_sync(self._ledger.checkpoint)
        return result

    def _scan_and_commit(self) -> _Pass:
        with _uncollected():
            return self._scan_compare_commit()

    def _scan_compare_commit(self) -> _Pass:
        started = time.monotonic()
        self.watcher.arm(self._watch)
        for _ in range(_REARMS):
            snapshot = self._scan()
            watch = dict(snapshot.watch)
            self._watch_vault_config(watch)
            if watch == self._watch:
                break
            # what changed between the scan and the new watches would go unnoticed: look again
            self._watch = watch
            self.watcher.arm(watch)
        else:
            snapshot.retry_within(self._settings.settle)
        before = self.inventory
        now = rfc3339(time.time())
        planned = plan(before, self.vault_config.entries, snapshot.observations, now)
        commit = None
        if self._ledger.fresh and self._still_being_written(snapshot):
            return _Pass(snapshot, planned, None, time.monotonic() - started)
        if self._ledger.fresh or planned.touched or planned.dropped:
            events = self._ledger.record(
                planned, before, self.vault_config.path, now, self._consumers
            )
            commit = Commit(tuple(events), planned.inventory, started)
        duration = time.monotonic() - started
        return _Pass(snapshot, planned, commit, duration)

    def _scan(self) -> Snapshot:
        entries = self.vault_config.entries
        if not self._settings.roots:
            # a mount can appear above what looked like a directory of plain files
            if entries is not self._entries:
                self._entries, self._parents = entries, parents_of(entries.values())
            self._reader.set_roots(mounts_of(self._parents, self._reader.roots))
        return self._reader.scan(
            entries,
            now=time.time(),
            monotonic=time.monotonic(),
            is_written=self.watcher.is_written,
        )

    def _still_being_written(self, snapshot: Snapshot) -> bool:
        young = time.monotonic() - self._born < _BASELINE_LIMIT
        return young and any(
            not seen.settled and seen.state is State.PRESENT
            for seen in snapshot.observations.values()
        )

    def _watch_vault_config(self, watch: dict[str, frozenset[str] | None]) -> None:
        mine: dict[str, frozenset[str] | None] = {}
        watch_path(mine, self.vault_config.path)
        for directory, names in mine.items():
            others = watch.get(directory, frozenset())
            both = None if others is None or names is None else others | names
            watch[directory] = both
        self._vault_config_watch = frozenset(mine)

    def _tell(self, result: _Pass, before: Mapping[str, Known], reason: str) -> None:
        """Logs and counts a pass, after everybody who waits for its events was woken."""
        watcher = self.watcher
        if watcher.degraded != self._degraded:
            if watcher.degraded is not None:
                log.warning("watch.degraded", mode=watcher.mode, problem=watcher.degraded)
            else:
                log.info("watch.recovered", mode=watcher.mode)
            self._degraded = watcher.degraded
        planned = result.plan
        changes = planned.changes if result.commit is not None and result.commit.events else ()
        self._metrics.scanned(reason, result.duration)
        self._metrics.changed(changes)
        if planned.touched or planned.dropped:
            self._metrics.set_inventory(planned.inventory.values())
        log.debug("mount.scanned", reason=reason, duration=result.duration, changes=len(changes))
        for change in changes[:_LOGGED_CHANGES]:
            log.info("secret.changed", secret=change.entry.name, change=change.kind.value)
        if len(changes) > _LOGGED_CHANGES:
            log.info("mount.changed", secrets=len(changes), listed=_LOGGED_CHANGES)
        if result.commit is not None:
            self._tell_problems(planned, before)

    def _tell_problems(self, planned: Plan, before: Mapping[str, Known]) -> None:
        said = 0
        for name in planned.touched:
            item, old = planned.inventory[name], before.get(name)
            was = None if old is None else old.problem
            if item.problem == was or said == _LOGGED_CHANGES:
                continue
            said += 1
            if item.problem is None:
                log.info("secret.recovered", secret=name, path=item.entry.path)
            else:
                log.warning(
                    "secret.problem",
                    secret=name,
                    state=item.state.value,
                    path=item.entry.path,
                    problem=item.problem,
                )


@contextmanager
def _uncollected() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
