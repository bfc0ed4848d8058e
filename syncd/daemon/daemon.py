"""The process: signals, reloads, and the order in which everything starts and ends.

An `Engine` is everything that one configuration calls for, and the daemon runs one at a time. What
outlives a reload (state directory, ledger, metrics, the API's sockets) is the daemon's.

SIGHUP prepares the new engine first and only then stops the running one: a configuration that
cannot be used changes nothing. Changes between the two are not lost: they are in the mount or in
the stream, and the ledger knows what was seen of them.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import anyio
import anyio.to_thread
import structlog
from msgspec.structs import replace

from syncd import __version__
from syncd.api.service import Service
from syncd.core.errors import StateError, SyncdError
from syncd.core.model import State
from syncd.daemon.pipeline import make_stamp
from syncd.daemon.resources import open_resources
from syncd.daemon.retention import Retention
from syncd.system.memory import release_memory, share_one_arena, uncollected
from syncd.system.threads import exit_within
from syncd.telemetry.log import configure as configure_log
from syncd.telemetry.systemd import Notifier
from syncd.telemetry.unexpected import unexpected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from threading import Timer
    from typing import Self

    from anyio.abc import TaskStatus

    from syncd.api.status import DaemonStatus
    from syncd.api.systemd_credentials import CredentialSource
    from syncd.config.settings import RelaySettings, Settings
    from syncd.core.events import Commit
    from syncd.core.model import Known
    from syncd.daemon.pipeline import Pipeline
    from syncd.daemon.resources import Resources
    from syncd.ledger.ledger import Ledger

_STOP_LIMIT: Final = 15.0
"""Seconds that a stop may take before the process ends as it is: a state directory whose disk does
not answer would hold it for ever, and the kubelet kills after 30 s."""

log = structlog.get_logger()


class Engine(Protocol):
    """Everything that one configuration calls for, running."""

    @property
    def pipeline(self) -> Pipeline:
        """The consumers."""

    @property
    def credentials(self) -> CredentialSource | None:
        """The secrets that systemd's units get; None where there are no values."""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled; reports as started when the inventory is known.

        Raises:
            StateError: The ledger cannot be used at the start.
        """

    def status(self, inventory: Mapping[str, Known], *, ready: bool) -> DaemonStatus:
        """The state of the engine now.

        Args:
            inventory: Every secret, as of the last commit.
            ready: Whether an engine has started.
        """

    def summary(self) -> dict[str, object]:
        """What the log shows of the engine when it is ready."""

    def refresh(self) -> int:
        """Starts a fetch by every provider; returns how many there are."""

    def release(self, following: Self | None = None) -> None:
        """Frees what the following engine does not take over. The engine is not used again."""


_S = TypeVar("_S", bound="Settings | RelaySettings")
_E = TypeVar("_E", bound=Engine)


class Daemon(Generic[_S, _E]):
    """Owns what outlives a reload, and the signals.

    Args:
        settings: The configuration to start with.
        reload: Reads the configuration again, for SIGHUP. Blocks.
        open_engine: Makes the engine for a configuration, given the running engine at a reload;
            raises a `SyncdError` where the configuration cannot be used.
    """

    def __init__(
        self,
        settings: _S,
        *,
        reload: Callable[[], _S],
        open_engine: Callable[[_S, Resources, _E | None], Awaitable[_E]],
    ) -> None:
        self._settings = settings
        self._load = reload
        self._open_engine = open_engine
        self._running: _E | None = None
        self._next: _E | None = None
        self._reported: _E
        self._inventory: Mapping[str, Known] = {}
        self._settled = anyio.Event()
        self._notifier = Notifier()
        self._scope: anyio.CancelScope | None = None
        self._stopping = False
        self._forced: Timer | None = None
        self._reload_problems: tuple[str, ...] = ()

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT.

        Raises:
            ConfigurationError: The vault config or an address cannot be used at the start.
            ListenError: An address of the API cannot be listened on.
            StateError: The state directory cannot be used, or the ledger was found damaged.
        """
        share_one_arena()
        async with open_resources(self._settings) as resources:
            with uncollected():
                engine = await self._open_engine(self._settings, resources, None)
            self._reported = self._next = engine
            service = Service(
                resources.ledger,
                make_stamp(resources.ledger, self._settings.instance),
                resources.metrics,
                self._status,
                self._settled,
            )
            retention = Retention(resources.ledger, lambda: self._settings.event_log)
            resources.listeners.extend(
                (self._committed, service.committed, retention.committed),
            )
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._handle_signals, resources, service)
                await tasks.start(service.run, self._settings.api, engine.credentials)
                tasks.start_soon(retention.run)
                tasks.start_soon(self._notifier.keep_watchdog)
                tasks.start_soon(self._end_if_damaged, resources.ledger)
                while self._next is not None and not self._stopping:
                    self._running, self._next = self._next, None
                    with anyio.CancelScope() as self._scope:
                        await self._run_engine(self._running)
                    self._running.release(self._next)
                tasks.cancel_scope.cancel()
        if self._forced is not None:
            self._forced.cancel()
        self._notifier.close()
        log.info("daemon.stopped")

    async def _run_engine(self, engine: _E) -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(engine.run)
            release_memory()
            self._reported, self._inventory = engine, engine.pipeline.inventory
            self._settled.set()
            self._notifier.ready()
            self._notify_counts()
            log.info(
                "daemon.ready",
                version=__version__,
                consumers=sorted(engine.pipeline.deliveries),
                **engine.summary(),
            )

    async def _handle_signals(
        self,
        resources: Resources,
        service: Service,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        with anyio.open_signal_receiver(*handled) as signals:
            # the command blocked them until there was a handler: pending ones arrive now
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    await self._reload(resources, service)
                elif number == signal.SIGUSR1:
                    self._refresh()
                else:
                    log.info("daemon.stopping", signal=signal.Signals(number).name)
                    self._notifier.stopping()
                    self._stopping = True
                    self._forced = _force_end(
                        "check the disk of state_dir and the mounts;"
                        " nothing that was committed is lost"
                    )
                    self._stop_engine()
                    return

    async def _reload(self, resources: Resources, service: Service) -> None:
        self._notifier.reloading()
        engine = None
        try:
            settings = await anyio.to_thread.run_sync(self._load)
            engine = await self._open_engine(settings, resources, self._running)
            await service.reconfigure(settings.api, engine.credentials)
        except Exception as error:  # noqa: BLE001 - it must never end the daemon
            if engine is not None:
                engine.release(self._running)
            self._notifier.ready()
            known = error if isinstance(error, SyncdError) else unexpected(error)
            lines = known.lines
            hint = "keeping the previous configuration"
            for line in lines:
                log.error("daemon.reload_rejected", problem=line, hint=hint)
            self._reload_problems = lines
            resources.metrics.set_reload_ok(ok=False)
            self._notify_counts()
            return
        self._reload_problems = ()
        resources.metrics.set_reload_ok(ok=True)
        for setting in ("state_dir", "instance"):
            if getattr(settings, setting) != getattr(self._settings, setting):
                log.warning("daemon.restart_needed", setting=setting)
        configure_log(settings.log.level, settings.log.format)
        if self._next is not None:
            # two reloads in a row: the first one's engine never ran, since the engine before it
            # is still being stopped
            self._next.release(engine)
        self._settings, self._next = settings, engine
        self._stop_engine()
        log.info("daemon.reloaded")  # now that no thread posts to a former address any longer

    async def _end_if_damaged(self, ledger: Ledger) -> None:
        """Ends the daemon when its ledger is found damaged; the next start sets the file aside.

        Raises:
            StateError: It is damaged.
        """
        loop = asyncio.get_running_loop()
        damage: asyncio.Future[StateError] = loop.create_future()

        def found(error: StateError) -> None:
            if not damage.done():
                damage.set_result(error)

        ledger.call_if_damaged(lambda error: loop.call_soon_threadsafe(found, error))
        try:
            error = await damage
        finally:
            ledger.call_if_damaged(None)
        log.error("ledger.damaged", problem=str(error))
        self._forced = _force_end("check the mounts; the next start sets the ledger aside")
        raise error

    def _stop_engine(self) -> None:
        if self._scope is not None:
            if self._running is not None:
                self._running.pipeline.end()
            self._scope.cancel()

    def _refresh(self) -> None:
        if self._running is not None:
            log.info("daemon.refreshing", providers=self._running.refresh())

    def _status(self) -> DaemonStatus:
        # during a reload the engine that made its first scan is reported, not the one to come
        status = self._reported.status(self._inventory, ready=self._settled.is_set())
        return replace(status, reload_problems=self._reload_problems)

    def _committed(self, commit: Commit) -> None:
        self._inventory = commit.inventory
        if self._settled.is_set():
            self._notify_counts()

    def _notify_counts(self) -> None:
        states = Counter(known.state.value for known in self._inventory.values())
        counts = ", ".join(f"{states[state.value]} {state.value}" for state in State)
        rejected = "; the last reload was rejected" if self._reload_problems else ""
        self._notifier.status(f"{len(self._inventory)} secrets: {counts}{rejected}")


def _force_end(hint: str) -> Timer:
    """Ends the process if its stop takes too long, and logs that with a hint."""
    return exit_within(
        _STOP_LIMIT, lambda: log.error("daemon.stop_forced", after=_STOP_LIMIT, hint=hint)
    )
