"""`syncd status`: the state of the running daemon, as a table or as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.api.report import RelayReport, SecretReport, SecretsReport, StatusReport
from syncd.commands.client import Client
from syncd.commands.text import scope_text
from syncd.core.model import secret_key
from syncd.core.text import escape_json, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from syncd.api.report import AdoptionReport, ConsumerReport, ProviderReport

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))


class Status(msgspec.Struct, frozen=True):
    """The output of `--format json`: both answers of the API."""

    status: StatusReport
    secrets: tuple[SecretReport, ...]


def query(path: str) -> Status:
    """Queries the daemon at a socket.

    Raises:
        UnreachableError: It cannot be reached.
        DeniedError: It refused.
    """
    with Client(path) as client:
        status = client.get("/v1/status", StatusReport)
        return Status(status, client.get("/v1/secrets", SecretsReport).secrets)


def as_json(status: Status) -> str:
    """For scripts."""
    return msgspec.json.format(escape_json(msgspec.json.encode(status)), indent=2).decode()


def as_text(status: Status, now: datetime) -> str:
    """For people; `now` is the present time, for ages."""
    daemon = status.status
    state = "ready" if daemon.ready else "starting"
    scan = f"scanned {_age(daemon.last_scan, now)} ago" if daemon.last_scan else "not scanned yet"
    position = f"{daemon.epoch}-{daemon.sequence}"
    source = f"vault config {daemon.vault_config}"
    if isinstance(daemon.relay, RelayReport):
        scan = f"heard {_age(daemon.last_scan, now)} ago" if daemon.last_scan else "not heard yet"
        source = f"relaying {daemon.relay.subject}"
    elif not daemon.vault_config_valid:
        source += "  not valid: the last valid version is in use"
    lines = [
        "  ".join((f"syncd {daemon.version}", state, daemon.watch_mode, scan, f"at {position}")),
        source,
    ]
    if daemon.watch_problem:
        lines.append(f"watching by {daemon.watch_mode}: {daemon.watch_problem}")
    lines += [
        "",
        *_table(*_secrets(status, now)),
    ]
    if daemon.consumers:
        head = ("CONSUMER", "STATE", "PENDING", "LAST SUCCESS", "PROBLEM")
        lines += ["", *_table(head, [_consumer(*item, now) for item in daemon.consumers.items()])]
    waiting = [
        (name, str(item.events), item.reason)
        for name, consumer in daemon.consumers.items()
        for item in consumer.waiting
    ]
    if waiting:
        lines += ["", *_table(("CONSUMER", "WAITING", "REASON"), waiting)]
    if daemon.providers:
        head = ("PROVIDER", "STATE", "FILES", "LAST SUCCESS", "PROBLEM")
        lines += ["", *_table(head, [_provider(*item, now) for item in daemon.providers.items()])]
    if daemon.attention:
        lines += ["", "needs attention:", *(f"  {line}" for line in daemon.attention)]
    return "\n".join(map(visible, lines))


def _secrets(status: Status, now: datetime) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """Head and rows; with a column for adoption where a consumer verifies it."""
    head: tuple[str, ...] = ("SECRET", "SCOPE", "STATE", "CHANGED", "DELIVERED TO", "PENDING")
    verified = any(at.adoption for item in status.secrets for at in item.consumers.values())
    rows = []
    for item in status.secrets:
        pending = [name for name, at in item.consumers.items() if at.pending]
        delivered = [name for name in item.consumers if name not in pending]
        changed = f"{_age(item.changed_at, now)} ago" if item.changed_at else "-"
        state = f"{item.state}!" if item.problem else item.state.value
        row = (
            *(secret_key(item.secret, item.source or None), scope_text(item.scope), state, changed),
            *(", ".join(delivered) or "-", ", ".join(pending) or "-"),
        )
        found = [at.adoption for at in item.consumers.values() if at.adoption is not None]
        rows.append((*row, ", ".join(map(_adoption, found)) or "-") if verified else row)
    return (*head, "ADOPTION") if verified else head, rows


def _adoption(item: AdoptionReport) -> str:
    state = item.state.value.replace("_", " ")
    return state if item.seconds is None else f"{state} after {item.seconds:.1f} s"


def _consumer(name: str, item: ConsumerReport, now: datetime) -> Sequence[str]:
    return (name, item.state, str(item.pending), *_outcome(item, now))


def _provider(name: str, item: ProviderReport, now: datetime) -> Sequence[str]:
    return (name, item.state, "-" if item.files is None else str(item.files), *_outcome(item, now))


def _outcome(item: ConsumerReport | ProviderReport, now: datetime) -> tuple[str, str]:
    success = f"{_age(item.last_success_at, now)} ago" if item.last_success_at else "-"
    return success, item.last_error or "-"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    table = [head, *([visible(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _age(moment: str, now: datetime) -> str:
    seconds = max(0, int((now - datetime.fromisoformat(moment).astimezone(UTC)).total_seconds()))
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
