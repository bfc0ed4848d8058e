"""What a person should look at: the lines of `attention`, and whether the daemon is ready.

Pure, and slow with many secrets: call it in a worker thread.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from syncd.api.status import MountStatus, RelayStatus
from syncd.core.model import State

if TYPE_CHECKING:
    from syncd.api.status import DaemonStatus
    from syncd.core.model import Known

_NAMED: Final = 5
_REJECTED: Final = (
    "the last reload was rejected, keeping the previous configuration; see the log",
)
_OVERDUE: Final = 3


class ReadinessReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the daemon is ready, and if not, why.

    Attributes:
        ready: Whether there is no reason against it.
        reasons: Why it is not ready.
        warnings: What a person should look at although it is ready.
    """

    ready: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def readiness(status: DaemonStatus) -> ReadinessReport:
    """Whether the daemon is ready; names no secret."""
    reasons = []
    mount = status.source if isinstance(status.source, MountStatus) else None
    if not status.ready:
        reasons.append("the first scan is not done" if mount else "the relay has not started")
    if mount is not None and not mount.vault_config_valid:
        reasons.append("the vault config on disk is not valid; see the log or run syncd check")
    if mount is not None:
        reasons += [problem for _, problem in sorted(mount.unreadable.items())]
    if status.failure is not None:
        reasons.append(status.failure)
    warnings = _REJECTED if status.reload_problems else ()
    relay = status.source if isinstance(status.source, RelayStatus) else None
    if relay is not None and relay.fleet is not None and relay.fleet.failure is not None:
        warnings = (*warnings, f"the fleet is not known: {relay.fleet.failure}")
    return ReadinessReport(not reasons, tuple(reasons), warnings)


def reload_problems(status: DaemonStatus, *, limited: bool) -> tuple[str, ...]:
    """Why the configuration on disk is not in use."""
    if limited and status.reload_problems:
        return _REJECTED  # the lines may name consumers and files
    return tuple(f"the last reload was rejected: {line}" for line in status.reload_problems)


def daemon_problems(status: DaemonStatus, now: datetime, *, limited: bool) -> list[str]:
    """What is wrong with the daemon as a whole, `now`."""
    if limited:
        # what cannot be committed, and when there was a scan, depends on all secrets
        return list(readiness(replace(status, failure=None)).reasons)
    problems = list(readiness(status).reasons)
    match status.source:
        case MountStatus(scanned_at=str(last), rescan_interval=interval):
            what = "the last scan was"
        case RelayStatus(heard_at=str(last), max_silence=interval):
            what = "the stream last answered"
        case _:
            return problems
    age = (now - datetime.fromisoformat(last)).total_seconds()
    if age > _OVERDUE * interval + 1:
        problems.append(f"{what} {age:.0f} s ago")
    return problems


def fleet_problems(status: DaemonStatus) -> list[str]:
    """What is wrong with the fleet of a relay."""
    if isinstance(status.source, MountStatus) or status.source.fleet is None:
        return []
    fleet = status.source.fleet
    problems = [] if fleet.failure is None else [f"the fleet is not known: {fleet.failure}"]
    if fleet.instances and not any(fleet.instances.values()):
        where = "set state_bucket of their NATS consumers, or correct relay.state_bucket"
        problems.append(f"no installation writes to bucket {fleet.bucket}; {where}")
    problems += [
        f"{fleet.instances[state]} installations are {state}; run syncd fleet status"
        for state in ("silent", "unreadable")
        if fleet.instances.get(state)
    ]
    diverged = [f"secret {name} has diverged: {text}" for name, text in fleet.diverged.items()]
    return problems + shortened(sorted(diverged), "secrets have diverged")


def secret_problems(status: DaemonStatus, shown: list[Known]) -> list[str]:
    """The secrets that cannot be used, or have an unusable content."""
    found = [
        f"secret {known.entry.key} is {known.state.value}"
        + (f": {known.problem}" if known.problem else "")
        for known in shown
        if known.problem or known.state is not State.PRESENT
    ]
    content = status.content_problems
    keys = (known.entry.key for known in shown)
    found += [f"secret {key}: {content[key]}" for key in keys if key in content]
    return shortened(found, "secrets are missing or have a problem")


def shortened(lines: list[str], subject: str) -> list[str]:
    """The first lines, and how many more there are."""
    rest = len(lines) - _NAMED
    return lines if rest <= 0 else [*lines[:_NAMED], f"{rest} more {subject}"]


def unusable(status: DaemonStatus) -> list[str]:
    """What is known to be wrong with consumers before anything is delivered."""
    return [
        f"consumer {name} is not usable: {line}"
        for name, (_, health) in status.consumers.items()
        for line in health.findings
    ]
