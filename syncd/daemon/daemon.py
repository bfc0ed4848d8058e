"""The daemon: puts the parts together, runs them, and takes them down again.

An `Engine` is everything that one configuration calls for; the `Daemon` owns what outlives a
reload (state directory, ledger, metrics) and the signals. SIGHUP prepares a new engine first and
only then stops the old one: what a reload cannot use, it does not break. Whatever happens between
the two is in the mount and in the ledger, so nothing is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal

import aiofiles
import anyio
import anyio.to_thread
import structlog

from syncd import __version__
from syncd.api.service import Service
from syncd.api.status import Facts
from syncd.config.settings import Aidbox, Settings, grant
from syncd.consumers.factory import mailboxes, open_verifier
from syncd.core.errors import StateError, SyncdError
from syncd.core.events import Commit
from syncd.core.model import State
from syncd.daemon.pipeline import Pipeline, make_stamp
from syncd.daemon.retention import Retention
from syncd.ledger.ledger import UNKNOWN_BOOT, Ledger
from syncd.ledger.state_dir import StateDir
from syncd.lint.check import log_findings
from syncd.mount.reconcile import Reconciler
from syncd.mount.value import read_value
from syncd.mount.vault_config_file import VaultConfigFile
from syncd.telemetry.log import configure as configure_log
from syncd.telemetry.metrics import Metrics
from syncd.telemetry.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from anyio.abc import TaskStatus

    from syncd.core.events import Event
    from syncd.core.model import Known
    from syncd.daemon.pipeline import AnySettings
    from syncd.provision.refresh import Refresher

_SETTLE_LIMIT: Final = 5.0
_FIRST_FETCH_LIMIT: Final = 5.0
_M_ARENA_MAX: Final = -8
log = structlog.get_logger()


class Engine(Pipeline):
    """Everything that one configuration calls for, running.

    Args:
        settings: The configuration.
        state: The locked state directory.
        ledger: The open ledger.
        metrics: What operators scrape.
        listeners: Called with each commit, in the event loop.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        state: StateDir,
        ledger: Ledger,
        metrics: Metrics,
        listeners: list[Callable[[Commit], None]],
    ) -> None:
        super().__init__(settings, ledger=ledger, metrics=metrics, listeners=listeners)
        self.settings = settings
        self.vault_config = VaultConfigFile(settings.vault_config, settings.watch.settle)
        self.reconciler = Reconciler(
            settings.watch,
            self.vault_config,
            key=state.key,
            ledger=ledger,
            consumers=self._grants(),
            metrics=metrics,
            on_commit=self._committed,
        )
        self._reason: Literal["start", "reload"] = "start"
        verifiers = {
            item.name: open_verifier(
                item,
                ledger=ledger,
                metrics=metrics,
                rng=self._rng,
                read=self.reconciler.read_value,
                publish=self._publish,
            )
            for item in settings.consumers
        }
        self.verifiers = {name: item for name, item in verifiers.items() if item is not None}

    async def prepare(self, previous: Pipeline | None = None) -> None:
        """Reads what the engine needs before it can start.

        Args:
            previous: The engine that this one replaces; its vault clients are taken over.

        Raises:
            ConfigurationError: The vault config or a manifest cannot be used.
        """
        self._reason = "start" if previous is None else "reload"
        await self.vault_config.load()
        if self.settings.provision:
            self.refreshers = await anyio.to_thread.run_sync(self._open_refreshers, previous)

    def _open_refreshers(self, previous: Pipeline | None) -> list[Refresher]:
        # a sidecar does not pay for it
        from syncd.provision.factory import open_refreshers  # noqa: PLC0415

        return open_refreshers(
            self.settings.provision,
            self._metrics,
            self._rng,
            previous.refreshers if previous is not None else (),
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled; reports as started after the first pass.

        Raises:
            StateError: The ledger cannot be used at the start.
        """
        try:
            async with anyio.create_task_group() as tasks:
                for refresher in self.refreshers:
                    tasks.start_soon(refresher.run)
                await self._first_fetch()
                await self._start()
                for worker in self._workers:
                    tasks.start_soon(worker.run)
                tasks.start_soon(log_findings, self.settings, self.vault_config)
                task_status.started()
                await self.reconciler.run()
        finally:
            self.reconciler.watcher.close()

    async def run_once(self, limit: float) -> bool:
        """Provisioning, one pass, then delivery; whether all of it succeeded.

        Args:
            limit: How long to try to fetch, and then to deliver, seconds.
        """
        provisioned = await self._fetch_once(limit)
        try:
            async with anyio.create_task_group() as tasks:
                await self._start()
                await self.reconciler.settle(_SETTLE_LIMIT)
                for worker in self._workers:
                    tasks.start_soon(worker.run)
                with anyio.move_on_after(limit):
                    for worker in self._workers:
                        await worker.drained()
                tasks.cancel_scope.cancel()
        finally:
            self.reconciler.watcher.close()
        delivered = True
        for name in mailboxes(self.settings.consumers):
            left = await anyio.to_thread.run_sync(self._ledger.pending_count, name)
            if left:
                delivered = False
                hint = "it gets them at the next run"
                log.error("delivery.unfinished", consumer=name, pending=left, hint=hint)
        return provisioned and delivered

    async def _first_fetch(self) -> None:
        """Lets a fresh boot find its files, but never waits long, or at all where there are some.

        A scan before the first generation would take every secret for removed; a vault that is
        away must not keep anybody from watching the files that are there.
        """
        with anyio.move_on_after(_FIRST_FETCH_LIMIT):
            for refresher in self.refreshers:
                if not await anyio.to_thread.run_sync(refresher.has_files):
                    await refresher.attempted()

    async def _fetch_once(self, limit: float) -> bool:
        succeeded = [False] * len(self.refreshers)

        async def fetch(index: int) -> None:
            succeeded[index] = await self.refreshers[index].run_once()

        with anyio.move_on_after(limit):
            async with anyio.create_task_group() as tasks:
                for index in range(len(self.refreshers)):
                    tasks.start_soon(fetch, index)
        return all(succeeded)

    async def _start(self) -> None:
        try:
            await self._forget_others()
        except StateError:
            if self._reason == "start":
                raise
            # a mailbox of nobody's waits for the next start
        await self.reconciler.start(self._reason)
        self.inventory = self.reconciler.inventory

    def summary(self) -> dict[str, object]:
        """How many secrets, and how they are watched."""
        mode = self.reconciler.watcher.mode
        return {"secrets": len(self.vault_config.entries), "watch": mode}

    def facts(self, inventory: Mapping[str, Known], *, ready: bool) -> Facts:
        """What can be told about it now, after `Pipeline.facts`."""
        reconciler = self.reconciler
        return Facts(
            ready=ready,
            inventory=inventory,
            scanned_at=reconciler.scanned_at,
            failure=reconciler.failure,
            watch_mode=reconciler.watcher.mode,
            watch_problem=reconciler.watcher.degraded,
            vault_config=self.vault_config.path,
            vault_config_valid=self.vault_config.valid,
            rescan_interval=self.settings.watch.rescan_interval,
            consumers=self._health(),
            providers={item.provider.name: item.health for item in self.refreshers},
            refresh=self.refresh if self.refreshers else None,
            adoptions={name: item.adoptions for name, item in self.verifiers.items()},
        )

    async def _publish(self, event: Event) -> None:
        """Commits what a verifier found out, and tells everybody who is not its source.

        Raises:
            StateError: The ledger cannot be used.
        """
        told = {
            c.name: grant(c.scope) for c in self.settings.consumers if not isinstance(c, Aidbox)
        }
        event = await anyio.to_thread.run_sync(self._ledger.append, event, told)
        self._committed(Commit((event,), self.reconciler.inventory, time.monotonic()))


class Daemon:
    """Owns what outlives a reload, and the signals.

    Args:
        settings: The configuration to start with.
        reload: Reads the configuration again, for SIGHUP.
    """

    def __init__(self, settings: AnySettings, reload: Callable[[], AnySettings]) -> None:
        self.settings = settings
        self._load = reload
        self.metrics = Metrics(secret_names=settings.api.metrics_secret_names)
        self.listeners: list[Callable[[Commit], None]] = []
        self.engine: Pipeline | None = None
        self._next: Pipeline | None = None
        self._shown: Pipeline | None = None
        self._inventory: Mapping[str, Known] = {}
        self._settled = anyio.Event()
        self._notifier = Notifier()
        self._service: Service | None = None
        self._scope: anyio.CancelScope | None = None
        self._stopping = False

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT.

        Raises:
            ConfigurationError: The vault config or an address cannot be used at the start.
            ListenError: The API cannot listen where it should.
            StateError: The state directory cannot be used.
        """
        _share_one_arena()
        async with self._opened() as (state, ledger):
            self._shown = self._next = await self._prepare(self.settings, state, ledger)
            self._service = Service(
                ledger,
                make_stamp(ledger, self.settings.instance),
                self.metrics,
                self._facts,
                self._settled,
                read=self._read,
            )
            retention = Retention(ledger, lambda: self.settings.event_log)
            self.listeners += [self._noted, self._service.committed, retention.committed]
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._listen, state, ledger)
                await tasks.start(self._service.run, self.settings)
                tasks.start_soon(retention.run)
                tasks.start_soon(self._notifier.keep_watchdog)
                while self._next is not None and not self._stopping:
                    self.engine, self._next = self._next, None
                    with anyio.CancelScope() as self._scope:
                        await self._run_engine(self.engine)
                    self.engine.release(self._next)
                tasks.cancel_scope.cancel()
        self._notifier.close()
        log.info("daemon.stopped")

    async def run_once(self, limit: float) -> bool:
        """One pass and its delivery; whether everything was acknowledged in time.

        Args:
            limit: How long to try to deliver, seconds.
        """
        async with self._opened() as (state, ledger):
            engine = await self._prepare(self.settings, state, ledger)
            assert isinstance(engine, Engine)
            return await engine.run_once(limit)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[StateDir, Ledger]]:
        state = await anyio.to_thread.run_sync(StateDir.open, self.settings.state_dir)
        try:
            ledger = await anyio.to_thread.run_sync(Ledger.open, state, await _boot_id())
            if ledger.rebuilt is not None:
                log.error("ledger.rebuilt", reason=ledger.rebuilt, old="ledger.sqlite3.set-aside")
            try:
                yield state, ledger
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(ledger.close)
        finally:
            state.close()

    def refresh(self) -> None:
        """Asks every provider now (SIGUSR1). From the event loop."""
        if self.engine is not None:
            self.engine.refresh()
            log.info("daemon.refreshing", providers=len(self.engine.refreshers))

    async def _prepare(self, settings: AnySettings, state: StateDir, ledger: Ledger) -> Pipeline:
        assert isinstance(settings, Settings)
        engine = Engine(
            settings, state=state, ledger=ledger, metrics=self.metrics, listeners=self.listeners
        )
        await engine.prepare(self.engine)
        return engine

    async def _run_engine(self, engine: Pipeline) -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(engine.run)
            _release_memory()
            self._shown, self._inventory = engine, engine.inventory
            self._settled.set()
            self._notifier.ready()
            self._tell_systemd()
            log.info(
                "daemon.ready",
                version=__version__,
                consumers=sorted(engine.deliveries),
                **engine.summary(),
            )

    async def _listen(
        self,
        state: StateDir,
        ledger: Ledger,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        with anyio.open_signal_receiver(*wanted) as signals:
            # what came before now is received now
            signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    await self._reload(state, ledger)
                    continue
                if number == signal.SIGUSR1:
                    self.refresh()
                    continue
                log.info("daemon.stopping", signal=signal.Signals(number).name)
                self._notifier.stopping()
                self._stopping = True
                self._end_engine()
                return

    def _facts(self) -> Facts:
        """What can be told now: during a reload still about the engine that made its first pass."""
        assert self._shown is not None
        return self._shown.facts(self._inventory, ready=self._settled.is_set())

    def _read(self, secret: str) -> bytes | None:
        """A secret's value now, for the credentials of systemd's units; see `read_value`."""
        assert isinstance(self._shown, Engine)
        return read_value(secret, self._shown.vault_config.entries, self._shown.settings.watch)

    def _noted(self, commit: Commit) -> None:
        self._inventory = commit.inventory
        if self._settled.is_set():
            self._tell_systemd()

    def _tell_systemd(self) -> None:
        states = Counter(known.state.value for known in self._inventory.values())
        counts = ", ".join(f"{states[state.value]} {state.value}" for state in State)
        self._notifier.status(f"{len(self._inventory)} secrets: {counts}")

    async def _reload(self, state: StateDir, ledger: Ledger) -> None:
        self._notifier.reloading()
        engine = None
        try:
            settings = await anyio.to_thread.run_sync(self._load)
            engine = await self._prepare(settings, state, ledger)
            if self._service is not None:
                await self._service.reconfigure(settings)
        except SyncdError as error:
            if engine is not None:
                engine.release(self.engine)
            self._notifier.ready()
            for line in str(error).splitlines():
                log.error("daemon.reload_rejected", problem=line, hint="the old one stays")
            return
        for setting in ("state_dir", "instance"):
            if getattr(settings, setting) != getattr(self.settings, setting):
                log.warning("daemon.restart_needed", setting=setting)
        configure_log(settings.log.level, settings.log.format)
        if self._next is not None:  # a reload came while the engine before it was being stopped
            self._next.release(engine)
        self.settings, self._next = settings, engine
        log.info("daemon.reloaded")
        self._end_engine()

    def _end_engine(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


def _share_one_arena() -> None:
    """Keeps glibc from giving each worker thread a heap of its own: they never run at once."""
    with contextlib.suppress(AttributeError, OSError):  # glibc only: mallopt(3)
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _release_memory() -> None:
    """Gives back what starting up needed: a few hundred KiB beside somebody's pod."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError, OSError):  # glibc only: malloc_trim(3)
        ctypes.CDLL(None).malloc_trim(0)


async def _boot_id() -> str:
    try:
        async with aiofiles.open("/proc/sys/kernel/random/boot_id") as file:
            return (await file.read()).strip()
    except OSError:
        return UNKNOWN_BOOT
