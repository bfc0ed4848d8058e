"""The reconcile loop: wait for a reason, scan, compare, commit, notify.

The loop is level-triggered. A hint from the watcher or the rescan interval only starts a pass; what
changed is decided by comparing a whole scan with the ledger's inventory. So lost, merged or late
hints cost time and never a change, and a pass that failed is simply repeated.

Scan, comparison and commit are one trip to a worker thread, during which the garbage collector is
off: a pass makes tens of thousands of objects and no cycle. However fast a publisher swaps, passes
take at most half of the time, and a fifth of it in the long run (`core.timing.Pace`); the loop
rests in between, and then scans the newest state.
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
from syncd.mount.read import Reader
from syncd.mount.roots import mounts_of, parents_of, watch_path
from syncd.mount.value import read_version
from syncd.mount.watch import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from syncd.config.settings import Watch
    from syncd.core.changes import Plan
    from syncd.core.model import Grant, Known
    from syncd.ledger.ledger import Ledger
    from syncd.mount.snapshot import Snapshot
    from syncd.mount.vault_config_file import VaultConfigFile
    from syncd.telemetry.metrics import Metrics

_BASELINE_LIMIT: Final = 5.0
_LOGGED_CHANGES: Final = 20
_REARMS: Final = 5
_HEAD_START: Final = 0.002
_HEAD_START_SHARE: Final = 0.25
"""Delivery gets the processor before the events are logged and counted: for so many seconds, and
after a long pass for this share of its duration."""
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Pass:
    snapshot: Snapshot
    plan: Plan
    commit: Commit | None
    duration: float


@contextmanager
def _uncollected() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Reconciler:
    """Keeps the ledger in step with the mount.

    Args:
        settings: The `watch` section.
        vault_config: Already loaded.
        key: Key of the fingerprints.
        ledger: Where changes are committed.
        consumers: Names of the mailboxes to fill, and what each consumer may see.
        metrics: The daemon's metrics.
        on_commit: Called in the event loop after each commit.

    Attributes:
        inventory: The inventory as of the last pass.
        scanned_at: When the last pass ended (RFC 3339, UTC), or None.
        failure: Why the last pass could not be committed, or None.
        watcher: Gives the hints; its `mode` is how changes are noticed.
        settled: Whether the last pass found no file that is being written and no mount away.
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
        self._reader = Reader(
            key,
            settings.roots,
            max_size=settings.max_secret_size,
            settle=settings.settle,
            grace=settings.remount_grace,
        )
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

    def read_value(self, name: str, path: str, version: str) -> bytes | None:
        """Reads a secret's value, to verify that Aidbox accepts it; see `read_version`. Blocks."""
        entry = Entry(name, path, ())
        return read_version(self._key, self._reader.roots, self._settings, entry, version)

    async def start(self, reason: Literal["start", "reload"] = "start") -> None:
        """Loads the ledger's inventory, and makes the first pass.

        Args:
            reason: Of the first pass. At a `reload` the daemon is already running, and a ledger
                that cannot be written does not end it: `run` repeats the pass until it can.

        Raises:
            StateError: The ledger cannot be used; only with the reason `start`.
        """
        self._first_reason = reason
        self.inventory = await anyio.to_thread.run_sync(self._ledger.inventory)
        self._metrics.set_inventory(self.inventory.values())
        self._log_findings()
        try:
            result = await self._pass(reason)
        except StateError as error:
            if reason == "start":
                raise
            self._fail(error)
            return
        while self._ledger.fresh:
            # A secret that the baseline lacks would be reported as added as soon as its file is
            # written, although nothing changed. So the baseline waits for files that are being
            # written (and for those only so long: `_still_being_written`).
            await anyio.sleep(min(result.snapshot.retry_in or 0.0, self._settings.settle))
            result = await self._pass(reason)

    async def settle(self, limit: float) -> None:
        """Makes passes until everything is settled, or the limit (seconds) is over."""
        with anyio.move_on_after(limit):
            while not self.settled:
                await anyio.sleep(self._settings.settle)
                await self._pass("interval")

    async def run(self) -> None:
        """Follows the mount until cancelled. `start` comes first."""
        reason: str = self._first_reason
        rest, retry = 0.0, None if self.settled else 0.0
        # The vault config was loaded before it was watched. A change in between gave no hint.
        if await self._follow_vault_config():
            retry = 0.0
        while True:
            reason = await self._wake(rest, retry, reason)
            if self._vault_config_stale:
                await self._follow_vault_config()
            try:
                result = await self._pass(reason)
            except StateError as error:
                # The inventory in memory is still the ledger's, so the next pass finds the same
                # changes again and nothing is lost.
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
        if self.failure != str(error):
            log.error("ledger.unusable", problem=str(error))
        self.failure = str(error)

    async def _wake(self, rest: float, retry: float | None, reason: str) -> str:
        """Waits until the next pass is due; returns its reason.

        A hint starts the pass after `rest` seconds at the earliest. Without a hint, a pass after
        `retry` seconds continues the last one and has its reason.
        """
        now = time.monotonic()
        rested = now + rest
        if self._vault_config_stale:  # it was being written, and is read when it is at rest
            settle = self._settings.settle
            retry = settle if retry is None else min(retry, settle)
        due, next_reason = now + self._settings.rescan_interval, "interval"
        if retry is not None and now + retry < due:
            due, next_reason = max(now + retry, rested), reason
        # Hints bring the next pass forward, never back: under a stream of hints it still comes. An
        # urgent one (a swap) starts it now. Another one may be the first of many writes, and starts
        # it after the settle time, when the file can be read.
        while (now := time.monotonic()) < due:
            with anyio.move_on_after(due - now):
                hint = await self.watcher.next_hint()
                now = time.monotonic()
                at = max(rested, now if hint.urgent else now + self._settings.settle)
                if at < due:
                    due, next_reason = at, hint.reason
                if not hint.directories or hint.directories & self._vault_config_watch:
                    self._vault_config_stale = True
        # the safety net for a vault config that cannot be watched, too
        self._vault_config_stale |= next_reason == "interval"
        return next_reason

    async def _follow_vault_config(self) -> bool:
        """Returns whether the vault config or its validity changed."""
        file = self.vault_config
        changed = await file.refresh()
        self._vault_config_stale = file.postponed
        if not changed:
            return False
        if file.valid:
            log.info("vault_config.loaded", path=file.path, secrets=len(file.entries))
        else:
            hint = "keeping the previous vault config"
            log.error("vault_config.rejected", path=file.path, hint=hint)
        self._log_findings()
        return True

    def _log_findings(self) -> None:
        self._metrics.set_vault_config_valid(valid=self.vault_config.valid)
        for finding in self.vault_config.findings:
            report = log.error if finding.is_error else log.warning
            report("vault_config.finding", code=finding.code, finding=str(finding))

    async def _pass(self, reason: str) -> _Pass:
        before = self.inventory
        # A cancellation waits for the thread, because what it commits must become known here too.
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
            self._report(result, before, reason)
        if result.commit is not None:
            await anyio.to_thread.run_sync(self._ledger.checkpoint)
        return result

    @_uncollected()
    def _scan_and_commit(self) -> _Pass:
        started = time.monotonic()
        # Which directories matter depends on what the scan finds (links, mounts, missing parents),
        # but they must be watched before the scan, or a change between scan and watch would give no
        # hint. So: watch what mattered last time, scan, and if the scan shows that something else
        # matters, watch that and scan again, until a scan ran entirely under its own watches.
        # Arming the same directories again is needed, too: one that was replaced by another of the
        # same name gets a new watch.
        self.watcher.arm(self._watch)
        for _ in range(_REARMS):
            snapshot = self._scan()
            watch = dict(snapshot.watch)
            self._watch_vault_config(watch)
            if watch == self._watch:
                break
            self._watch = watch
            self.watcher.arm(watch)
        else:
            # The mount changes with every scan. This snapshot is consistent all the same, and what
            # its watches may miss is found by a scan after the settle time.
            snapshot.retry_within(self._settings.settle)
        before = self.inventory
        now = rfc3339(time.time())
        planned = plan(before, self.vault_config.entries, snapshot.observations, now)
        commit, fresh = None, self._ledger.fresh
        postponed = fresh and self._still_being_written(snapshot)
        if not postponed and (fresh or planned.touched or planned.dropped):
            events = self._ledger.record(
                planned, before, self.vault_config.path, now, self._consumers
            )
            commit = Commit(tuple(events), planned.inventory, started)
        return _Pass(snapshot, planned, commit, time.monotonic() - started)

    def _scan(self) -> Snapshot:
        entries = self.vault_config.entries
        if not self._settings.roots:
            # Derived roots can change without the vault config: a mount can appear above what was a
            # directory of plain files.
            if entries is not self._entries:
                self._entries, self._parents = entries, parents_of(entries.values())
            self._reader.set_roots(mounts_of(self._parents, self._reader.roots))
        return self._reader.scan(
            entries, now=time.time(), monotonic=time.monotonic(), is_written=self.watcher.is_written
        )

    def _still_being_written(self, snapshot: Snapshot) -> bool:
        # bounded, since a file that is written all the time must not keep the daemon from starting
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
            watch[directory] = None if others is None or names is None else others | names
        self._vault_config_watch = frozenset(mine)

    def _report(self, result: _Pass, before: Mapping[str, Known], reason: str) -> None:
        """Logs and counts a pass; comes after the notification of consumers and subscribers."""
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
            self._log_problems(planned, before)

    def _log_problems(self, planned: Plan, before: Mapping[str, Known]) -> None:
        logged = 0
        for name in planned.touched:
            item, old = planned.inventory[name], before.get(name)
            was = None if old is None else old.problem
            if item.problem == was or logged == _LOGGED_CHANGES:
                continue
            logged += 1
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
