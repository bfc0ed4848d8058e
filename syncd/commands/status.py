"""`syncd status`: the state of the running daemon, as a table or as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.api.report import FleetReport, RelayReport, SecretReport, SecretsReport, StatusReport
from syncd.commands.client import Client
from syncd.commands.table import Screen
from syncd.commands.text import scope_text
from syncd.core.adoption import AdoptionState
from syncd.core.decode import did_you_mean
from syncd.core.errors import SyncdError
from syncd.core.model import State, secret_key
from syncd.core.text import escape_json, visible

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from syncd.api.report import AdoptionReport, ConsumerPosition, ConsumerReport, ProviderReport

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))
_FEW: Final = 3
"""Consumers that a line names; more are counted."""

_WELL: Final = frozenset(("ok", "unproven"))
_NOT_ADOPTED: Final = frozenset((AdoptionState.REJECTED, AdoptionState.UNREACHABLE))


class Status(msgspec.Struct, frozen=True):
    """The output of `--format json`: both answers of the API."""

    status: StatusReport
    secrets: tuple[SecretReport, ...]

    @property
    def is_well(self) -> bool:
        """Whether nothing needs attention."""
        return not self.status.attention

    def only(self, names: Collection[str]) -> Status:
        """What concerns these secrets, consumers and providers.

        Raises:
            SyncdError: There is none of a name.
        """
        status = self.status
        known = {*map(_key, self.secrets), *status.consumers, *status.providers}
        for name in names:
            if name not in known:
                problem = f"there is no secret, consumer or provider {name}"
                raise SyncdError(problem, did_you_mean(name, known, "see syncd status"))
        secrets = tuple(item for item in self.secrets if _key(item) in names)
        consumers = {name: item for name, item in status.consumers.items() if name in names}
        providers = {name: item for name, item in status.providers.items() if name in names}
        attention = (
            *(f"secret {_key(item)}: {line}" for item in secrets for line in _troubles(item)),
            *(
                f"{kind} {name} is {item.state}"
                + (f": {item.last_error}" if item.last_error else "")
                for kind, items in (("consumer", consumers), ("provider", providers))
                for name, item in items.items()
                if item.state not in _WELL or item.last_error
            ),
        )
        limited = msgspec.structs.replace(
            status, consumers=consumers, providers=providers, attention=attention
        )
        return Status(limited, secrets)

    def problems(self) -> Status:
        """What is wrong or pending, without the rest."""
        status = self.status
        limited = msgspec.structs.replace(
            status,
            consumers={
                name: item
                for name, item in status.consumers.items()
                if item.state != "ok" or item.pending or item.last_error
            },
            providers={n: p for n, p in status.providers.items() if p.state != "ok"},
        )
        return Status(limited, tuple(item for item in self.secrets if _troubles(item)))


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


def as_text(status: Status, now: datetime, screen: Screen | None = None) -> str:
    """For people; `now` is the present time, for ages."""
    screen = screen or Screen()
    lines = [*_daemon(status.status, now, screen)]
    if status.secrets:
        lines += ["", *screen.table(*_secrets(status, now))]
    lines += _consumers(status.status, now, screen)
    if status.status.attention:
        lines += ["", "needs attention:"]
        lines += [f"  {screen.alarm(visible(line))}" for line in status.status.attention]
    return "\n".join(lines)


def as_details(status: Status, now: datetime, screen: Screen) -> str:
    """For people, what is known of some secrets, consumers and providers."""
    lines = []
    for item in status.secrets:
        fields = {
            "scope": scope_text(item.scope),
            **({"extra": "outside the vault config"} if item.extra is True else {}),
            "path": item.path,
            "state": screen.state(item.state.value),
            "version": item.version or "-",
            "changed": f"{_age(item.changed_at, now)} ago" if item.changed_at else "-",
            **({"expires": item.not_after} if item.not_after else {}),
            **({"problem": item.problem or item.content_problem or ""} if _is_bad(item) else {}),
        }
        lines += [visible(f"secret {_key(item)}")]
        lines += [f"  {key:<8} {value}" for key, value in fields.items()]
        head = ("CONSUMER", "STATE", "ACKNOWLEDGED VERSION", "ADOPTION")
        rows = [
            (name, _position(item, name, at, status), at.acknowledged_version or "-", _shown(at))
            for name, at in item.consumers.items()
        ]
        lines += [*screen.table(head, rows), ""] if rows else [""]
    lines += _consumers(status.status, now, screen)[1:]
    if status.status.attention:
        lines += ["", *(screen.alarm(visible(line)) for line in status.status.attention)]
    return "\n".join(lines).strip("\n")


def _daemon(daemon: StatusReport, now: datetime, screen: Screen) -> Iterable[str]:
    state = screen.state("ready" if daemon.ready else "starting")
    scan = f"scanned {_age(daemon.last_scan, now)} ago" if daemon.last_scan else "not scanned yet"
    source = f"vault config {daemon.vault_config}"
    if isinstance(daemon.relay, RelayReport):
        scan = f"heard {_age(daemon.last_scan, now)} ago" if daemon.last_scan else "not heard yet"
        source = f"relaying {daemon.relay.subject}"
        if isinstance(daemon.relay.fleet, FleetReport):
            source = f"{source}  {_fleet(daemon.relay.fleet)}"
    elif not daemon.vault_config_valid:
        source += "  not valid: the last valid version is in use"
    position = f"{daemon.epoch}-{daemon.sequence}"
    yield "  ".join((f"syncd {daemon.version}", state, daemon.watch_mode, scan, f"at {position}"))
    yield visible(source)
    if daemon.watch_problem:
        yield visible(f"watching by {daemon.watch_mode}: {daemon.watch_problem}")


def _fleet(fleet: FleetReport) -> str:
    parts = [
        ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        or ("none" if counts else "not known yet")
        for counts in (fleet.instances, fleet.secrets)
    ]
    return f"installations: {parts[0]}  secrets: {parts[1]}"


def _consumers(daemon: StatusReport, now: datetime, screen: Screen) -> list[str]:
    lines: list[str] = []
    if daemon.consumers:
        head = ("CONSUMER", "STATE", "PENDING", "LAST SUCCESS", "PROBLEM")
        rows = [_consumer(*item, now) for item in daemon.consumers.items()]
        lines += ["", *screen.table(head, rows)]
    waiting = [
        (name, str(item.events), item.reason)
        for name, consumer in daemon.consumers.items()
        for item in consumer.waiting
    ]
    if waiting:
        lines += ["", *screen.table(("CONSUMER", "WAITING", "REASON"), waiting)]
    if daemon.providers:
        head = ("PROVIDER", "STATE", "FILES", "LAST SUCCESS", "PROBLEM")
        provided = [_provider(*item, now) for item in daemon.providers.items()]
        lines += ["", *screen.table(head, provided)]
    return lines


def _secrets(status: Status, now: datetime) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """Head and rows; with a column for adoption where a consumer verifies it."""
    head: tuple[str, ...] = ("SECRET", "SCOPE", "STATE", "CHANGED", "DELIVERED TO", "PENDING")
    verified = any(at.adoption for item in status.secrets for at in item.consumers.values())
    rows = []
    for item in status.secrets:
        pending = [name for name, at in item.consumers.items() if at.pending]
        delivered = [
            name
            for name, at in item.consumers.items()
            if _position(item, name, at, status) == "delivered"
        ]
        changed = f"{_age(item.changed_at, now)} ago" if item.changed_at else "-"
        state = f"{item.state}!" if _is_bad(item) else item.state.value
        row = (
            *(_key(item), scope_text(item.scope), state, changed),
            *(_several(delivered, len(item.consumers)), _several(pending, len(item.consumers))),
        )
        found = [at.adoption for at in item.consumers.values() if at.adoption is not None]
        rows.append((*row, ", ".join(map(_adoption, found)) or "-") if verified else row)
    return (*head, "ADOPTION") if verified else head, rows


def _key(item: SecretReport) -> str:
    return secret_key(item.secret, item.source or None)


def _several(names: Sequence[str], total: int) -> str:
    if len(names) > _FEW:
        return f"{len(names)} of {total}"
    return ", ".join(names) or "-"


def _position(item: SecretReport, name: str, at: ConsumerPosition, status: Status) -> str:
    """Where a consumer is with a secret; what was never there was never delivered."""
    if at.pending:
        return "pending"
    consumer = status.status.consumers.get(name)
    if consumer is not None and consumer.state == "unproven":
        return "unproven"
    never_there = at.acknowledged_version is None and item.changed_at is None
    return "-" if never_there else "delivered"


def _troubles(item: SecretReport) -> list[str]:
    found = []
    if item.problem or item.state is not State.PRESENT:
        found.append(item.state.value + (f": {item.problem}" if item.problem else ""))
    if item.content_problem:
        found.append(item.content_problem)
    for name, at in item.consumers.items():
        if at.pending:
            found.append(f"pending for {name}")
        if at.adoption is not None and at.adoption.state in _NOT_ADOPTED:
            found.append(f"not adopted ({name}): {at.adoption.problem}")
    return found


def _is_bad(item: SecretReport) -> bool:
    return bool(item.problem or item.content_problem)


def _shown(at: ConsumerPosition) -> str:
    return "-" if at.adoption is None else _adoption(at.adoption)


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


def _age(moment: str, now: datetime) -> str:
    seconds = max(0, int((now - datetime.fromisoformat(moment).astimezone(UTC)).total_seconds()))
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
