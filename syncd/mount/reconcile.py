"""The reconcile loop: wait for a reason, scan, compare, commit, notify.

The loop is level-triggered. A hint from the watcher or the rescan interval only starts a pass; what
changed is decided by comparing a whole scan with the ledger's inventory. So lost, merged or late
hints cost time and never a change, and a pass that failed is simply repeated.

Every root has a loop of its own (`Lane`). Scan, comparison and commit of a pass are one trip to a
thread (`syncd.mount.passes`), which only commits are one at a time in; a small root that was
swapped is looked at by the thread that notices it (`syncd.mount.attendant`). A root whose file
system does not answer keeps its thread, and delays no other root: its secrets are unreadable.

However fast a publisher swaps, passes take at most half of the time, and a fifth of it in the long
run (`core.timing.Pace`); the loop rests in between, and then scans the newest state.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

import anyio
import structlog

from syncd.core.errors import StateError
from syncd.core.model import State
from syncd.core.timing import rfc3339
from syncd.mount.attendant import Attendant
from syncd.mount.contents import Contents, formats_of
from syncd.mount.lane import Follower, Lane, Probe
from syncd.mount.ledger_use import LedgerUse
from syncd.mount.passes import SLOTS, Passes
from syncd.mount.read import LIMIT, OUTSIDE, Reader, await_all, unanswered
from syncd.mount.record import Recorder
from syncd.mount.report import Reporter
from syncd.mount.watch import Hint, Watcher
from syncd.system.threads import Call, run, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from anyio.abc import TaskGroup

    from syncd.config.settings import Watch
    from syncd.core.events import Commit
    from syncd.core.model import Entry, Grant, Known
    from syncd.ledger.ledger import Ledger
    from syncd.mount.lane import Errand, Pass
    from syncd.mount.read import Members
    from syncd.mount.record import Recorded
    from syncd.mount.snapshot import Snapshot
    from syncd.mount.vault_config_file import VaultConfigFile
    from syncd.mount.way import Watched
    from syncd.telemetry.metrics import Metrics

_BASELINE_LIMIT: Final = 5.0
_PROBE_INTERVAL: Final = 6.0
_PROBE_LIMIT: Final = 1.0
_VAULT_CONFIG: Final = "vault config"
_HEAD_START: Final = 0.002
_HEAD_START_SHARE: Final = 0.25
"""Delivery gets the processor before the events are logged and counted: for so many seconds, and
after a long pass for this share of its duration."""

_ANYWHERE: Final = Hint("inotify", urgent=True, directories=frozenset())
log = structlog.get_logger()


class Reconciler:
    """Keeps the ledger in step with the mounts.

    Args:
        settings: The `watch` section.
        vault_config: Already loaded.
        key: Key of the fingerprints.
        ledger: Where changes are committed.
        consumers: Names of the mailboxes to fill, and what each consumer may see.
        metrics: The daemon's metrics.
        post: Called after each commit of events, in the thread that made it.
        on_commit: Called in the event loop after each commit.

    Attributes:
        scanned_at: When the last pass ended (RFC 3339, UTC), or None.
        watcher: Gives the hints; its `mode` is how changes are noticed.
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
        post: Callable[[Commit], None],
        on_commit: Callable[[Commit], None],
    ) -> None:
        self._settings = settings
        self.vault_config = vault_config
        self._ledger = ledger
        self._on_commit = on_commit
        self.watcher = Watcher(settings.mode)
        self.contents = Contents(formats_of(settings))
        self._reader = Reader.configured(key, settings, self.contents)
        self._recorder = Recorder(ledger, vault_config.path, consumers, post)
        self._reporter = Reporter(metrics, self.watcher, self.contents)
        self._use = LedgerUse()
        self._passes = Passes(
            self._reader,
            self._recorder,
            self.watcher,
            self._use,
            announce=self._announce,
            give_up=self._give_up,
        )
        self._attendant = Attendant(
            self.watcher, work=self._passes.perform, notify=self._notify, landed=self._landed
        )
        self._lanes: dict[str, Lane] = {}
        self._config = Follower(settings.rescan_interval, settings.settle)
        self._regroup = anyio.Event()
        self.scanned_at: str | None = None

    @property
    def failure(self) -> str | None:
        """Why what was seen cannot be committed, or None."""
        return self._use.failure

    @property
    def inventory(self) -> Mapping[str, Known]:
        """Every secret, as of the last commit."""
        return self._recorder.inventory

    def use_key(self, key: bytes, former: Iterable[bytes]) -> None:
        """Makes versions with another key, and compares every file with the former ones, too."""
        self._reader.use(key, former)
        for lane in self._lanes.values():
            lane.schedule.notify(_ANYWHERE)

    def version_of(self, name: str) -> str | None:
        """The version of a secret, or None."""
        return self._recorder.version_of(name)

    @property
    def settled(self) -> bool:
        """Whether the last passes found no file that is being written and no mount away."""
        return all(lane.settled for lane in self._lanes.values())

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Why a root cannot be read, by its path."""
        return {path: lane.failed for path, lane in self._lanes.items() if lane.failed}

    async def start(self, reason: Literal["start", "reload"] = "start") -> None:
        """Loads the ledger's inventory, and makes the first pass over all roots.

        Args:
            reason: Of the first pass. At a `reload` the daemon is already running, and a ledger
                that cannot be written does not end it: `run` repeats the pass until it can.

        Raises:
            StateError: The ledger cannot be used; only with the reason `start`.
        """
        await self._use.call(_VAULT_CONFIG, self._recorder.load)
        self._reporter.inventory(self.inventory)
        self._reporter.vault_config(self.vault_config)
        born = time.monotonic()
        try:
            recorded = False
            while not recorded:
                patient = time.monotonic() - born < _BASELINE_LIMIT
                recorded = await self._survey(reason, patient=patient)
                await anyio.sleep(0 if recorded else self._settings.settle)
        except StateError as error:
            if reason == "start":
                raise
            self._use.fail(_VAULT_CONFIG, error)
            self._regroup.set()

    async def settle(self, limit: float) -> None:
        """Makes passes until everything is settled, or the limit (seconds) is over."""
        with anyio.move_on_after(limit):
            while not self.settled:
                await anyio.sleep(self._settings.settle)
                await self._survey("interval", patient=False)

    async def _survey(self, reason: str, *, patient: bool) -> bool:
        """Scans all roots and commits once, so that the baseline is one.

        With `patient`, the baseline is put off while files are being written: a secret that it
        lacks would be reported as added as soon as its file is written, although nothing changed.
        Returns whether something was committed.
        """
        entries, started = self.vault_config.entries, time.monotonic()
        located, outside = await run(self._reader.locate, entries)
        self._lanes = {path: self._lane(members, entries) for path, members in located.items()}
        observations = dict.fromkeys(outside, OUTSIDE)
        for path, snapshot in (await run(self._scan_all)).items():
            self._lanes[path].saw(snapshot)
            observations.update(snapshot.observations)
        self.scanned_at = rfc3339(time.time())
        written = any(not o.settled and o.state is State.PRESENT for o in observations.values())
        if patient and self._recorder.fresh and written:
            return False
        recorded = await self._use.call(
            _VAULT_CONFIG, self._recorder.replace_entries, entries, observations
        )
        self._committed(recorded)
        self._reporter.scanned(reason, time.monotonic() - started)
        for path, lane in self._lanes.items():
            lane.schedule.reason = reason
            self._reporter.root(path, lane.failed)
        await self._report(recorded)
        return True

    def _scan_all(self) -> dict[str, Snapshot]:
        """Scans every root, each in a thread of its own."""
        calls = {
            path: start(lane.scan, self._reader, self._recorder, self.watcher)
            for path, lane in self._lanes.items()
        }
        await_all(calls, self._lanes, LIMIT)
        return {
            path: call.result() if call.done() else unanswered(self._lanes[path].members)
            for path, call in calls.items()
        }

    def _lane(self, members: Members, entries: Mapping[str, Entry]) -> Lane:
        settings = self._settings
        return Lane(members, entries, settings.rescan_interval, settings.settle)

    async def run(self) -> None:
        """Follows the mounts until cancelled. `start` comes first."""
        try:
            async with anyio.create_task_group() as tasks:
                for lane in self._lanes.values():
                    if lane.failed:
                        lane.schedule.retry = 0.0
                    tasks.start_soon(self._follow, lane)
                tasks.start_soon(self._follow_vault_config)
                tasks.start_soon(self._follow_roots, tasks)
                tasks.start_soon(self._probe)
                self._attend_to_all()
                await self._attendant.run()
        finally:
            for lane in self._lanes.values():
                errand = lane.adopt()
                if errand is not None and not errand.announced:
                    with suppress(StateError):
                        await self._passes.abandon(errand)

    def _attend_to_all(self) -> None:
        self._attendant.followers = (*self._lanes.values(), self._config)

    def _notify(self, hint: Hint) -> None:
        if not hint.directories:
            self._reader.forget_mounts()
        for follower in self._attendant.followers:
            if follower.concerns(hint.directories):
                follower.schedule.notify(hint)

    def _landed(self, lane: Lane, errand: Errand) -> None:
        """Announces what an errand has committed at once; the lane's task does the rest."""
        if lane.errand is not errand:
            return
        if errand.future.exception() is None:
            self._announce(errand.future.result(), errand)
        lane.schedule.conclude()

    async def _follow(self, lane: Lane) -> None:
        """One root's loop."""
        with lane.scope:
            while True:
                reason = await lane.schedule.next()
                if (errand := lane.adopt()) is not None:
                    await self._turn(lane, errand.reason, errand)
                if reason == "interval":
                    self._reader.forget_mounts()
                if reason is not None:
                    await self._turn(lane, reason)

    async def _turn(self, lane: Lane, reason: str, errand: Errand | None = None) -> None:
        try:
            result = await self._passes.run(lane, errand)
            if result is not None:
                await self._finish(lane, reason, result, errand)
        except StateError as error:
            # The inventory in memory is still the ledger's, so the next pass finds the same changes
            # again and nothing is lost.
            self._use.fail(lane.path, error)
            lane.schedule.retry = self._use.pause()

    async def _give_up(self, lane: Lane) -> None:
        """The root's secrets are unreadable until its file system answers."""
        snapshot = unanswered(lane.members)
        lane.failed, lane.settled = snapshot.failed, False
        self._reporter.root(lane.path, lane.failed)
        entries, now = lane.entries, time.monotonic()
        try:
            recorded = await self._use.call(
                lane.path, self._recorder.record, entries, snapshot.observations, now
            )
        except StateError as error:
            # it is shown all the same; another pass would only keep one more thread
            self._use.fail(lane.path, error)
            return
        if recorded is not None:
            self._committed(recorded)
            await self._report(recorded)

    async def _finish(self, lane: Lane, reason: str, result: Pass, errand: Errand | None) -> None:
        """Takes over the result of a pass, and reports it after the events had a head start."""
        lane.saw(result.snapshot)
        lane.schedule.looked(result.took)
        self.scanned_at = rfc3339(time.time())
        recorded = result.recorded
        if recorded is None:
            if result.moved:
                lane.schedule.retry = self._settings.settle
                self._regroup.set()
            return
        self._announce(result, errand)
        self._use.recover(lane.path)
        try:
            if recorded.commit is not None and recorded.commit.events:
                await anyio.sleep(max(_HEAD_START, _HEAD_START_SHARE * result.duration))
        finally:
            self._reporter.scanned(reason, result.duration, lane.path)
            self._reporter.root(lane.path, lane.failed)
            await self._report(recorded)
        if recorded.commit is not None:
            await self._use.call(lane.path, self._ledger.checkpoint)

    async def _report(self, recorded: Recorded) -> None:
        """Reports what was recorded, with what is known of the contents by then."""
        entries, now = self._recorder.entries, time.time()
        try:
            if self.contents.is_due(entries, now):
                await run(self.contents.judge, entries, now)
        finally:
            self._reporter.recorded(recorded)

    def _announce(self, result: Pass, errand: Errand | None = None) -> None:
        """Announces what a pass has committed, unless that was done for its errand."""
        if result.recorded is not None and not (errand and errand.announced):
            self._committed(result.recorded)
        if errand is not None:
            errand.announced = True

    def _committed(self, recorded: Recorded) -> None:
        if recorded.commit is not None:
            self._on_commit(recorded.commit)

    async def _follow_vault_config(self) -> None:
        file, follower = self.vault_config, self._config

        def arm(watched: Watched) -> None:
            follower.watched = watched  # first: its hints can come before the reading is known
            self.watcher.arm(watched, _VAULT_CONFIG)

        while True:
            await follower.schedule.next()
            changed = await file.refresh(arm=arm)
            follower.schedule.retry = self._settings.settle if file.postponed else None
            if changed:
                if file.valid:
                    log.info("vault_config.loaded", path=file.path, secrets=len(file.entries))
                else:
                    hint = "keeping the previous vault config"
                    log.error("vault_config.rejected", path=file.path, hint=hint)
                self._reporter.vault_config(file)
                self._regroup.set()

    async def _follow_roots(self, tasks: TaskGroup) -> None:
        """Groups the entries by their roots again when these, or the vault config, changed."""
        while True:
            await self._regroup.wait()
            self._regroup = anyio.Event()
            entries = self.vault_config.entries
            located, outside = await run(self._reader.locate, entries)
            try:
                recorded = await self._use.call(
                    _VAULT_CONFIG,
                    self._recorder.replace_entries,
                    entries,
                    dict.fromkeys(outside, OUTSIDE),
                )
            except StateError as error:
                self._use.fail(_VAULT_CONFIG, error)
                await anyio.sleep(self._use.pause())
                self._regroup.set()
                continue
            self._committed(recorded)
            await self._report(recorded)
            for path in self._lanes.keys() - located.keys():
                self._lanes.pop(path).scope.cancel()
                self.watcher.disarm(path)
                self._reporter.forget(path)
                self._use.recover(path)
            for path, members in located.items():
                lane = self._lanes.get(path)
                if lane is None:
                    self._lanes[path] = lane = self._lane(members, entries)
                    tasks.start_soon(self._follow, lane)
                else:
                    lane.members, lane.entries = members, entries
                    lane.schedule.notify(_ANYWHERE)
            self._attend_to_all()

    async def _probe(self) -> None:
        """Finds the roots that no longer answer long before their next rescan."""
        held: list[Call[None]] = []
        while True:
            await anyio.sleep(_PROBE_INTERVAL)
            held = [call for call in held if not call.done]
            if len(held) == SLOTS:
                continue
            answering = [lane for lane in self._lanes.values() if not lane.failed]
            probe = Probe(answering, self._settings.roots)
            call = Call(probe.run)
            suspects = probe.failed
            if not await call.wait(_PROBE_LIMIT):
                held.append(call)
                suspects = [*probe.failed, *probe.left[:1]]
            for lane in suspects:
                lane.schedule.notify(_ANYWHERE)
