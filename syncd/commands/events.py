"""`syncd events`: past events and, with `--follow`, new ones.

It reads the daemon's event stream (WHATWG HTML section 9.2), and reconnects where it stopped: the
last id is the position that it resumes from.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.commands.client import Client, UnreachableError
from syncd.commands.text import listed, scope_text
from syncd.core.event_data import (
    DESTINATION_RECREATED,
    DESTINATION_STALE,
    RESET,
    SECRET_ADOPTED,
    SECRET_CHANGED,
    SECRET_CONVERGED,
    SECRET_DIVERGED,
    SECRET_REJECTED,
    AdoptionData,
    DestinationData,
    FleetData,
    ResetData,
    SecretData,
    VaultConfigData,
)
from syncd.core.events import CloudEvent
from syncd.core.text import escape_json, visible
from syncd.core.timing import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from syncd.core.event_data import Version

BACKOFF_CAP: Final = 10.0
"""Seconds between two attempts to reconnect, at most."""

_SHOWN: Final = 14


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a stream: an event if it has data."""

    type: str
    data: str
    id: str | None


def blocks(lines: Iterable[str]) -> Iterator[Block]:
    """Parses a stream (WHATWG HTML section 9.2.6); drops comments and unknown fields."""
    type_, data, id_ = "", list[str](), None
    for line in lines:
        if not line:
            if data or id_ is not None:
                yield Block(type_ or "message", "\n".join(data), id_)
            type_, data, id_ = "", [], None
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            type_ = value
        elif name == "id" and "\0" not in value:
            id_ = value


@dataclass(slots=True)
class EventReader:
    """Reads events from a daemon.

    Args:
        path: The path of its socket.
        follow: Whether to go on with new events.
        after: Id of the event to start after; None for the oldest event in the log.
        secrets: Names to show; empty for all.
        resources: `Type` or `Type/id` to show; empty for all.
        warn: Called once when the daemon becomes unreachable, with a line that says why.
    """

    path: str
    follow: bool
    after: str | None
    secrets: Sequence[str]
    resources: Sequence[str]
    warn: Callable[[str], None]
    rng: Random = field(default_factory=Random)
    sleep: Callable[[float], None] = time.sleep

    def events(self) -> Iterator[Block]:
        """The events, oldest first; endless with `follow`.

        Raises:
            UnreachableError: The first attempt failed, or any attempt without `follow`.
            DeniedError: The daemon refused.
        """
        backoff = Backoff(first=0.2, cap=BACKOFF_CAP)
        last: str | None = None
        while True:
            try:
                for block in self._once(last):
                    backoff.reset()
                    last = block.id or last
                    if block.data:
                        yield block
                if not self.follow:
                    return
            except UnreachableError as error:
                if not self.follow or last is None:
                    raise
                if not backoff.failures:
                    self.warn(f"{error.problem}; trying again")
            self.sleep(backoff.next(self.rng))

    def _once(self, last: str | None) -> Iterator[Block]:
        parameters: dict[str, str | list[str]] = {
            "after": self.after or "start",
            "follow": "true" if self.follow else "false",
            "secret": list(self.secrets),
            "resource": list(self.resources),
        }
        with Client(self.path) as client, client.stream("/v1/events", parameters, last) as lines:
            yield from blocks(lines)


def as_json(block: Block) -> str:
    """One event in a line, for scripts."""
    return escape_json(block.data.encode()).decode()


def as_text(block: Block) -> str:
    """One event in a line, or a reset in a line for each secret."""
    event = msgspec.json.decode(block.data, type=_Envelope)
    prefix = f"{event.time}  "
    if event.type == SECRET_CHANGED:
        data = msgspec.json.decode(event.data, type=SecretData)
        versions = f"{_short(data.previous_version)} -> {_short(data.version)}"
        text = f"{data.secret}  {data.change}  {scope_text(data.scope)}  {versions}"
    elif event.type in (SECRET_ADOPTED, SECRET_REJECTED):
        text = _adoption(event.type, msgspec.json.decode(event.data, type=AdoptionData))
    elif event.type in (SECRET_CONVERGED, SECRET_DIVERGED):
        text = _fleet(event.type, msgspec.json.decode(event.data, type=FleetData))
    elif event.type in (DESTINATION_RECREATED, DESTINATION_STALE):
        text = _destination(event.type, msgspec.json.decode(event.data, type=DestinationData))
    elif event.type == RESET:
        state = msgspec.json.decode(event.data, type=ResetData)
        lines = [f"{prefix}earlier events are no longer in the log; present state:  {event.id}"]
        lines += [
            f"{prefix}{s.secret}  {s.state}  {scope_text(s.scope)}  {_short(s.version)}"
            for s in state.secrets
        ]
        return "\n".join(map(visible, lines))
    else:
        config = msgspec.json.decode(event.data, type=VaultConfigData)
        parts: Mapping[str, tuple[str, ...]] = msgspec.structs.asdict(config)
        changes = "; ".join(f"{how} {', '.join(names)}" for how, names in parts.items() if names)
        text = f"vault config {event.subject}  {changes}"
    return visible(f"{prefix}{text}  {event.id}")


class _Envelope(CloudEvent, frozen=True):
    data: msgspec.Raw


def _adoption(type_: str, data: AdoptionData) -> str:
    how = type_.rpartition(".")[2]
    by = ", ".join(item.address for item in data.replicas if item.adopted == (how == "adopted"))
    text = f"{data.secret}  {how} by {by}  {scope_text(data.scope)}  {_short(data.version)}"
    return f"{text}  after {data.seconds:.1f} s"


def _fleet(type_: str, data: FleetData) -> str:
    how = type_.rpartition(".")[2]
    text = f"{data.secret}  {how}  {scope_text(data.scope)}  {_short(data.version)}"
    text = f"{text}  {data.have} of {data.instances} installations"
    missing = f"; waiting for {listed(data.lagging)}" if data.lagging else ""
    return f"{text}{missing}"


def _destination(type_: str, data: DestinationData) -> str:
    how = type_.rpartition(".")[2]
    text = f"{data.secret}  {how}  {data.scope}  {_short(data.version)}  after {data.seconds:.1f} s"
    return text if data.reason is None else f"{text}  {data.reason}"


def _short(version: Version | None) -> str:
    if version is None:
        return "none"
    return version if len(version) <= _SHOWN else version[:_SHOWN] + "…"
