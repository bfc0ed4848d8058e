"""What the log and the metrics show of passes, problems and the watcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.core.model import Known
    from syncd.mount.contents import Contents
    from syncd.mount.record import Recorded
    from syncd.mount.vault_config_file import VaultConfigFile
    from syncd.mount.watch import Watcher
    from syncd.telemetry.metrics import Metrics

_LOGGED_CHANGES: Final = 20
_LOGGED_FINDINGS: Final = 50
log = structlog.get_logger()


class Reporter:
    """Logs and counts; in the event loop only."""

    def __init__(self, metrics: Metrics, watcher: Watcher, contents: Contents) -> None:
        self._metrics = metrics
        self._contents = contents
        self._watcher = watcher
        self._degraded: str | None = None
        self._failed: dict[str, str] = {}

    def inventory(self, known: Mapping[str, Known]) -> None:
        """The inventory that the ledger had at the start."""
        self._metrics.set_inventory(known.values())

    def scanned(self, reason: str, duration: float, root: str | None = None) -> None:
        """A scan of a root, or of all, ended after so many seconds."""
        watcher = self._watcher
        if watcher.degraded != self._degraded:
            if watcher.degraded is not None:
                log.warning("watch.degraded", mode=watcher.mode, problem=watcher.degraded)
            else:
                log.info("watch.recovered", mode=watcher.mode)
            self._degraded = watcher.degraded
        self._metrics.scanned(reason, duration)
        log.debug("mount.scanned", root=root, reason=reason, duration=duration)

    def root(self, path: str, problem: str | None) -> None:
        """The state of a root after a scan, or after it could not be scanned."""
        before = self._failed.get(path)
        if problem == before:
            return
        if problem is None:
            del self._failed[path]
            log.info("mount.recovered", root=path)
        else:
            self._failed[path] = problem
            hint = "the secrets keep their versions; other mounts are not affected"
            log.error("mount.unreadable", root=path, problem=problem, hint=hint)
        self._metrics.set_unreadable_roots(len(self._failed))

    def forget(self, path: str) -> None:
        """A root is no longer scanned."""
        self._failed.pop(path, None)
        self._metrics.set_unreadable_roots(len(self._failed))

    def recorded(self, result: Recorded) -> None:
        """A comparison was recorded; comes after the notification of consumers."""
        planned = result.plan
        changes = planned.changes if result.commit is not None and result.commit.events else ()
        self._metrics.changed(changes)
        if planned.touched or planned.dropped:
            self._metrics.set_inventory(planned.inventory.values())
        # at the first pass nothing is touched, and contents are seen for the first time
        self._metrics.set_not_after(self._contents.not_after)
        for change in changes[:_LOGGED_CHANGES]:
            log.info("secret.changed", secret=change.entry.name, change=change.kind.value)
        if len(changes) > _LOGGED_CHANGES:
            log.info("mount.changed", secrets=len(changes), listed=_LOGGED_CHANGES)
        if result.commit is not None:
            self._problems(result)

    def _problems(self, result: Recorded) -> None:
        logged = 0
        for name in result.plan.touched:
            item, old = result.plan.inventory[name], result.before.get(name)
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

    def vault_config(self, file: VaultConfigFile) -> None:
        """The vault config was read, and differs from before."""
        self._metrics.set_vault_config_valid(valid=file.valid)
        # errors first: they are why it is not in force
        for finding in sorted(file.findings, key=lambda item: not item.is_error)[:_LOGGED_FINDINGS]:
            report = log.error if finding.is_error else log.warning
            report("vault_config.finding", code=finding.code, finding=str(finding))
        more = len(file.findings) - _LOGGED_FINDINGS
        if more > 0:
            log.warning("vault_config.findings", more=more, hint="syncd check shows them")
