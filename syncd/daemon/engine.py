"""The engine of `syncd run`: provisioning, watching a mount, verification, delivery."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal

import anyio
import anyio.to_thread
import structlog

from syncd.api.status import DaemonStatus, MountStatus
from syncd.api.systemd_credentials import CredentialSource
from syncd.config.extra import extra_entries
from syncd.config.settings import credential_files
from syncd.core.errors import StateError
from syncd.core.events import Commit
from syncd.core.model import Entry
from syncd.daemon.actions import Actions, outcome_audience
from syncd.daemon.fingerprint_key import FingerprintKeyFile
from syncd.daemon.pipeline import Pipeline
from syncd.daemon.resources import open_resources
from syncd.mount.reconcile import Reconciler
from syncd.mount.value import OwnFiles, read_value, read_version
from syncd.mount.vault_config_file import VaultConfigFile
from syncd.system.memory import uncollected
from syncd.system.threads import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyio.abc import TaskStatus

    from syncd.config.settings import ConsumerSettings, Settings
    from syncd.consumers.aidbox.recreate import Recreator
    from syncd.consumers.aidbox.rollout import Roller
    from syncd.consumers.aidbox.verify import Verifier
    from syncd.consumers.delivery import Delivery
    from syncd.consumers.state import StateWriter
    from syncd.core.events import Event
    from syncd.core.findings import Finding
    from syncd.core.model import Known
    from syncd.daemon.resources import Resources
    from syncd.provision.refresh import Refresher

_SETTLE_LIMIT: Final = 5.0
_FIRST_FETCH_LIMIT: Final = 5.0
log = structlog.get_logger()


async def open_engine(
    settings: Settings,
    resources: Resources,
    previous: MountEngine | None,
    *,
    config: str | None = None,
) -> MountEngine:
    """Makes an engine and reads what it needs; takes over the vault clients of a previous one.

    Args:
        settings: The configuration.
        resources: What outlives the engine.
        previous: The engine that runs now, at a reload.
        config: The file of the configuration, which is never read as a secret's value.

    Raises:
        ConfigurationError: The vault config or a manifest cannot be used.
    """
    reason: Literal["start", "reload"] = "start" if previous is None else "reload"
    engine = MountEngine(settings, resources, reason, config)
    await engine.prepare(previous)
    return engine


async def run_once(settings: Settings, limit: float, config: str | None = None) -> bool:
    """Makes one pass and delivers it (`syncd run --once`).

    Args:
        settings: The configuration.
        limit: Seconds for all of it: fetching, scanning and delivery.
        config: As for `open_engine`.

    Returns:
        Whether all providers succeeded, all consumers acknowledged, and the state is in its bucket
        in time.

    Raises:
        ConfigurationError: The vault config or a manifest cannot be used.
        StateError: The state directory cannot be used.
    """
    deadline = anyio.current_time() + limit
    async with open_resources(settings) as resources:
        with uncollected():
            engine = await open_engine(settings, resources, None, config=config)
        return await engine.run_once(deadline)


class MountEngine:
    """Everything that one configuration calls for, running.

    The arguments are those of `open_engine`; `reason` is that of the first scan.

    Attributes:
        pipeline: The consumers.
        credentials: The secrets that systemd's units get.
        refreshers: The loops of the providers.
        verifiers: What verifies adoption, by the name of the consumer.
    """

    def __init__(
        self,
        settings: Settings,
        resources: Resources,
        reason: Literal["start", "reload"],
        config: str | None = None,
    ) -> None:
        self._settings = settings
        self._config = config
        self._resources = resources
        self._reason = reason
        self.pipeline = Pipeline(settings, resources)
        self._vault_config = VaultConfigFile(
            settings.vault_config, settings.watch.settle, extra_entries(settings.watch)
        )
        self._reconciler = Reconciler(
            settings.watch,
            self._vault_config,
            key=resources.state.keys.current,
            ledger=resources.ledger,
            consumers=self.pipeline.grants,
            metrics=resources.metrics,
            post=self.pipeline.post,
            on_commit=self._committed,
        )
        self._key_file = FingerprintKeyFile(settings.fingerprint_key_file, resources, self._use_key)
        self._use_key()
        self._actions = Actions(
            settings,
            self.pipeline,
            resources,
            read=self._read_version,
            inventory=lambda: self._reconciler.inventory,
            publish=self._publish,
        )
        self.verifiers = self._actions.verifiers
        self.refreshers: list[Refresher] = []
        granted = settings.credentials.grants
        self.credentials = CredentialSource(
            settings.credentials.socket,
            {(item.unit, item.credential): item.secret for item in granted},
            self._read_value,
        )

    def _read_value(self, secret: str) -> bytes | None:
        """Reads a value for a credential; see `read_value`."""
        return read_value(
            secret,
            self._vault_config.entries,
            self._settings.watch,
            key=self._resources.state.keys.current,
            former=self._resources.state.keys.former,
            known=self._reconciler.version_of,
            own=self._own_files(),
        )

    def _read_version(
        self, consumer: ConsumerSettings, name: str, path: str, version: str
    ) -> bytes | None:
        """Reads a value to verify that Aidbox accepts it; see `read_version`."""
        # Aidbox gets the secret of syncd's own Client with every login to it
        own = self._own_files(getattr(consumer, "client_secret_file", None))
        return read_version(
            Entry(name, path, ()),
            self._settings.watch,
            version,
            key=self._resources.state.keys.current,
            former=self._resources.state.keys.former,
            own=own,
        )

    def _own_files(self, but: str | None = None) -> OwnFiles:
        """What is never read as a value: credentials, configurations, the state directory."""
        settings = self._settings
        files = [
            *(path for _, path in credential_files(settings) if path != but),
            *(entry.manifest for entry in settings.provision),
            settings.vault_config,
        ]
        if self._config is not None:
            files.append(self._config)
        return OwnFiles(tuple(files), (settings.state_dir,))

    async def prepare(self, previous: MountEngine | None) -> None:
        """Loads the vault config and the manifests; see `open_engine`."""
        await self._vault_config.load()
        for name, verifier in (previous.verifiers if previous else {}).items():
            if name in self.verifiers:
                self.verifiers[name].follow(verifier)
        if self._settings.provision:
            reuse = () if previous is None else previous.refreshers
            self.refreshers = await anyio.to_thread.run_sync(self._open_refreshers, reuse)

    def _open_refreshers(self, reuse: Sequence[Refresher]) -> list[Refresher]:
        from syncd.provision.factory import open_refreshers  # noqa: PLC0415 - only where configured

        return open_refreshers(
            self._settings.provision, self._resources.metrics, self.pipeline.rng, reuse
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled; reports as started after the first scan.

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
                tasks.start_soon(self._key_file.run)
                tasks.start_soon(self._log_findings)
                tasks.start_soon(self.pipeline.examine, self._look_at_consumers)
                tasks.start_soon(self.pipeline.watch_credentials)
                task_status.started()
                await self._reconciler.run()
        finally:
            self._reconciler.watcher.close()
            await self._actions.aclose()

    async def _log_findings(self) -> None:
        """Logs what the linter finds of the mount."""
        try:
            findings = await run(self._look_at_mount)
        except Exception as error:  # noqa: BLE001 - it must never end the daemon
            log.error("check.failed", error=type(error).__name__, hint="run syncd check")
            return
        for found in findings:
            report = log.error if found.is_error else log.warning
            report("check.finding", code=found.code, finding=str(found))

    def _look_at_mount(self) -> list[Finding]:
        # in the thread, where a lack of descriptors is caught, and not before the first fetch
        from syncd.lint.files import check_mount  # noqa: PLC0415
        from syncd.lint.own_files import files_of_manifest, own_files  # noqa: PLC0415

        own = own_files(self._settings, self._config)
        if self._settings.provision:
            from syncd.provision.plan import plan_provision  # noqa: PLC0415 - only where configured

            plans, _ = plan_provision(self._settings.provision)
            own = own.union(*(files_of_manifest(plan.text) for plan in plans))
        config = self._config or "configuration"
        return check_mount(self._settings, self._vault_config.entries, own, config)

    def _look_at_consumers(self) -> dict[str, tuple[str, ...]]:
        from syncd.lint.consumers import examine_consumers  # noqa: PLC0415 - in a thread, as above

        return examine_consumers(self._settings, self._vault_config.entries)

    async def run_once(self, deadline: float) -> bool:
        """Fetches, scans once and delivers, until the deadline; see the function `run_once`."""
        provisioned = await self._fetch_once(deadline)
        scanned = False
        for delivery in self.pipeline.deliveries.values():
            delivery.grace = 0.0  # the deadline is that of a delivery in flight, too
        try:
            with anyio.CancelScope(deadline=deadline):
                async with anyio.create_task_group() as tasks:
                    await self._start()
                    await self._reconciler.settle(_SETTLE_LIMIT)
                    scanned = True
                    for worker in self._workers:
                        tasks.start_soon(worker.run)
                    for worker in self._workers:
                        await worker.drained()
                    tasks.cancel_scope.cancel()
        finally:
            self._reconciler.watcher.close()
            await self._actions.aclose()
        if not scanned:
            hint = "raise --timeout, or see which mount or vault does not answer"
            log.error("run.unfinished", reason="the time is over before the scan", hint=hint)
        delivered = True
        for name in self.pipeline.grants:
            left = await anyio.to_thread.run_sync(self._resources.ledger.pending_count, name)
            if left:
                delivered = False
                hint = "they will be delivered on the next run"
                log.error("delivery.unfinished", consumer=name, pending=left, hint=hint)
        for state in self.pipeline.states:
            if state.unfinished is not None:
                delivered = False
                hint = "until the next run the fleet does not know this installation's state"
                reason = state.unfinished
                log.error("state.unfinished", consumer=state.name, reason=reason, hint=hint)
        return provisioned and scanned and delivered

    async def _first_fetch(self) -> None:
        """Waits for the first fetch where a target is still empty, for a short time.

        A scan before the first generation would record every secret as removed. An unavailable
        vault must not delay watching files that are there.
        """
        with anyio.move_on_after(_FIRST_FETCH_LIMIT):
            for refresher in self.refreshers:
                if not await anyio.to_thread.run_sync(refresher.has_files):
                    await refresher.attempted()

    async def _fetch_once(self, deadline: float) -> bool:
        """Fetches from every provider; returns whether all succeeded in time.

        With consumers it takes at most half of the time that is left, so that a vault that is away
        does not keep events from being delivered.
        """
        succeeded = [False] * len(self.refreshers)

        async def fetch(index: int) -> None:
            succeeded[index] = await self.refreshers[index].run_once()

        left = deadline - anyio.current_time()
        with anyio.move_on_after(left / 2 if self._workers else left):
            async with anyio.create_task_group() as tasks:
                for index in range(len(self.refreshers)):
                    tasks.start_soon(fetch, index)
        return all(succeeded)

    def _use_key(self) -> None:
        keys = self._resources.state.keys
        self._reconciler.use_key(keys.current, keys.former)

    async def _start(self) -> None:
        await self._key_file.check()
        try:
            await self.pipeline.forget_removed()
        except StateError:
            # after a reload the engine runs without it: the next start deletes the mailboxes
            if self._reason == "start":
                raise
        await self._reconciler.start(self._reason)
        self.pipeline.inventory = self._reconciler.inventory

    @property
    def _workers(self) -> Sequence[Delivery | Verifier | Recreator | Roller | StateWriter]:
        # actions first: `run_once` drains in this order, and what they publish is delivered, too
        deliveries = self.pipeline.deliveries.values()
        return (*self._actions.workers, *deliveries, *self.pipeline.states)

    def summary(self) -> dict[str, object]:
        """The number of secrets and the watch mode, for the log."""
        return {
            "secrets": len(self._vault_config.entries),
            "watch": self._reconciler.watcher.mode,
        }

    def status(self, inventory: Mapping[str, Known], *, ready: bool) -> DaemonStatus:
        """The state of the engine now."""
        reconciler = self._reconciler
        return DaemonStatus(
            ready=ready,
            inventory=inventory,
            source=MountStatus(
                scanned_at=reconciler.scanned_at,
                watch_mode=reconciler.watcher.mode,
                watch_problem=reconciler.watcher.degraded,
                vault_config=self._vault_config.path,
                vault_config_valid=self._vault_config.valid,
                rescan_interval=self._settings.watch.rescan_interval,
                unreadable=reconciler.unreadable,
            ),
            failure=reconciler.failure,
            consumers=self.pipeline.health(),
            actions=self.pipeline,
            providers={item.provider.name: item.health for item in self.refreshers},
            refresh=self.refresh if self.refreshers else None,
            adoptions={name: item.adoptions for name, item in self.verifiers.items()},
            not_after=reconciler.contents.not_after,
            content_problems=reconciler.contents.problems,
        )

    def refresh(self) -> int:
        """Starts a fetch by every provider, regardless of interval and backoff; returns how many.

        In the event loop only.
        """
        for refresher in self.refreshers:
            refresher.wake()
        return len(self.refreshers)

    def release(self, following: MountEngine | None = None) -> None:
        """Closes the vault clients that the following engine does not take over.

        Ends the metrics of consumers and providers that the following engine does not have.
        """
        kept = [item.provider for item in following.refreshers] if following else []
        for refresher in self.refreshers:
            if refresher.provider not in kept:
                refresher.provider.close()
        if following is None:
            return
        metrics = self._resources.metrics
        for name in {item.provider.name for item in self.refreshers} - {p.name for p in kept}:
            metrics.forget_provider(name)
        for name in self.verifiers.keys() - following.verifiers.keys():
            metrics.forget_adoption(name)
        self.pipeline.release(following.pipeline)

    def _committed(self, commit: Commit) -> None:
        if commit.events:
            for worker in self._actions.workers:
                worker.wake()
        self.pipeline.committed(commit)

    async def _publish(self, event: Event) -> None:
        """Commits the outcome of an action.

        Raises:
            StateError: The ledger cannot be used.
        """
        audience = outcome_audience(self._settings, event)
        event = await anyio.to_thread.run_sync(self._resources.ledger.append, event, audience)
        self._committed(Commit((event,), self._reconciler.inventory, time.monotonic()))
