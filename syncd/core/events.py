"""Events: how syncd reports changes, as CloudEvents 1.0.

The ledger keeps an `Event`: position, time, type, subject and data. A `CloudEvent` goes over the
wire (CloudEvents 1.0.2, JSON event format 1.0.2). The data of each type is in `event_data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Final

import msgspec

from syncd.core.event_data import (
    DATA_TYPES,
    PING,
    RESET,
    SECRET_CHANGED,
    SECRET_CONVERGED,
    VAULT_CONFIG_CHANGED,
    AdoptionData,
    Data,
    DestinationData,
    FleetData,
    PingData,
    ResetData,
    SecretData,
    SecretState,
    VaultConfigData,
    scopes_of,
    secret_data,
)
from syncd.core.model import ChangeKind, Known, Scope, secret_key
from syncd.core.text import escape_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncd.core.changes import Plan
    from syncd.core.model import Grant

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"


class Origin(msgspec.Struct, frozen=True):
    """The origin of an event that another installation made and a relay passes on.

    Attributes:
        id: Its event id there.
        source: The source URI of that installation.
    """

    id: str
    source: str

    def is_before(self, id_: str) -> bool:
        """Whether it is an older event than another one of the same installation and ledger."""
        other = Stamp(id_.rpartition("-")[0], self.source)
        sequence, later = other.sequence(self.id), other.sequence(id_)
        return sequence is not None and later is not None and sequence < later


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event as the ledger keeps it.

    Attributes:
        sequence: Position in the ledger, growing by one per event.
        time: When the scan saw the change (RFC 3339, UTC).
        type: CloudEvents type.
        subject: Secret's name, or the vault config's path.
        data: Payload, of the type's structure.
        visible_to: The scopes, by secret name, that decide who may see the event; None where the
            scope in its data decides.
        origin: Where a relay passes the event on, the event that it was; else None.
    """

    sequence: int
    time: str
    type: str
    subject: str
    data: Data
    visible_to: Mapping[str, tuple[Scope, ...]] | None = None
    origin: Origin | None = None

    @property
    def audience(self) -> Mapping[str, tuple[Scope, ...]]:
        """The scopes, by secret name, that decide who may see the event."""
        if self.visible_to is not None:
            return self.visible_to
        if isinstance(self.data, VaultConfigData):
            return {}
        return {self.subject: scopes_of(self.data.scope)}

    @property
    def secret(self) -> str | None:
        """The `Entry.key` of the secret that it is about; None where it is about several."""
        if isinstance(self.data, VaultConfigData):
            return None
        return secret_key(self.subject, self.origin.source if self.origin else None)

    @property
    def is_extra(self) -> bool:
        """Whether it is about a file outside the vault config."""
        return isinstance(self.data, SecretData) and self.data.extra is True

    @property
    def slot(self) -> str:
        """Key by which a newer event supersedes a pending one in a mailbox.

        Changes of the vault config supersede nothing. Two installations may have secrets of one
        name, so the slot of another installation's secret has its source.
        """
        key = secret_key(self.subject, self.origin.source if self.origin else None)
        if isinstance(self.data, SecretData):
            return "secret:" + key
        if isinstance(self.data, AdoptionData):
            return f"adoption:{self.data.consumer}:{key}"
        if isinstance(self.data, FleetData):
            return f"{self.type.rpartition('.')[2]}:{key}"
        if isinstance(self.data, DestinationData):
            return f"destination:{self.data.consumer}:{self.data.scope.id}:{key}"
        return f"event:{self.sequence}"

    @property
    def succession(self) -> SecretData | FleetData | None:
        """The data, where its version takes the place of the one that a receiver knows; or None."""
        data = self.data
        follows = isinstance(data, SecretData) or self.type == SECRET_CONVERGED
        return data if isinstance(data, SecretData | FleetData) and follows else None

    def seen_by(self, grant: Grant) -> Event | None:
        """The event as far as a grant allows to see it, or None."""
        if not grant.takes(self.type) or (self.is_extra and not grant.extra):
            return None
        if grant.scopes is None:
            return self
        return self.about(n for n, scopes in self.audience.items() if grant.sees(scopes))

    def about(self, names: Iterable[str]) -> Event | None:
        """The event as far as it concerns these secrets, or None if it does not."""
        visible = frozenset(names)
        if isinstance(self.data, VaultConfigData):
            seen = self.data.about(visible)
            return msgspec.structs.replace(self, data=seen) if seen else None
        return self if self.subject in visible else None

    def since(self, acknowledged: str | None) -> Event:
        """The event as a change from the version that its receiver acknowledged last.

        A receiver that was away gets the newest state instead of the history, so `change` and
        `previous_version` depend on what that receiver knows.
        """
        data = self.succession
        if data is None or data.previous_version == acknowledged:
            return self
        if isinstance(data, FleetData):
            data = msgspec.structs.replace(data, previous_version=acknowledged)
            return msgspec.structs.replace(self, data=data)
        if data.version is None:
            change = ChangeKind.REMOVED
        elif acknowledged is None:
            change = ChangeKind.ADDED
        else:
            change = ChangeKind.MODIFIED
        data = msgspec.structs.replace(data, change=change, previous_version=acknowledged)
        return msgspec.structs.replace(self, data=data)


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """The context attributes that every event carries (CloudEvents 1.0.2)."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str


class CloudEvent(Attributes, frozen=True, gc=False):
    """The wire form of an event."""

    data: Any


class Commit(msgspec.Struct, frozen=True):
    """Events that were committed to the ledger in one transaction.

    Attributes:
        events: In order; those of a scan all have one time.
        inventory: Everything known afterwards.
        detected: Monotonic clock when the scan began or the events arrived, seconds.
    """

    events: tuple[Event, ...]
    inventory: Mapping[str, Known]
    detected: float


class Stamp(msgspec.Struct, frozen=True):
    """The ledger's epoch and the source URI, which an installation writes on its events."""

    epoch: str
    source: str

    def id(self, sequence: int) -> str:
        """The event id `<epoch>-<sequence>`."""
        return f"{self.epoch}-{sequence}"

    def sequence(self, event_id: str) -> int | None:
        """The sequence of an event id, or None where it is of another epoch or malformed."""
        epoch, _, sequence = event_id.rpartition("-")
        if epoch != self.epoch or not (sequence.isascii() and sequence.isdigit()):
            return None
        return int(sequence) if len(sequence) < 19 else None  # noqa: PLR2004 - digits of 2**63

    def origin(self, event: Event) -> Origin:
        """The id and source of an event, which stay the same when a relay passes it on."""
        return event.origin or Origin(self.id(event.sequence), self.source)

    def cloud_event(self, event: Event) -> CloudEvent:
        """The wire form of an event."""
        return _wire_form(self.origin(event), event.type, event.subject, event.time, event.data)

    def encode_reset(self, secrets: tuple[SecretState, ...], sequence: int, at: str) -> bytes:
        """An `io.syncd.reset` event as JSON: the state at a time, up to the event `sequence`."""
        origin = Origin(self.id(sequence), self.source)
        return _encode(_wire_form(origin, RESET, "secrets", at, ResetData(secrets)))

    def ping(self, consumer: str, ident: str, at: str) -> CloudEvent:
        """The wire form of an `io.syncd.ping` event; its id is no position."""
        origin = Origin(self.ping_id(ident), self.source)
        return _wire_form(origin, PING, consumer, at, PingData(consumer))

    def ping_id(self, ident: str) -> str:
        """The id of a ping: `<epoch>-ping-<ident>`."""
        return f"{self.epoch}-ping-{ident}"

    def encode_ping(self, consumer: str, ident: str, at: str) -> bytes:
        """An `io.syncd.ping` event as JSON."""
        return _encode(self.ping(consumer, ident, at))

    def encode(self, event: Event) -> bytes:
        """The event as JSON, in structured content mode."""
        return _encode(self.cloud_event(event))

    def encode_batch(self, events: Iterable[Event]) -> bytes:
        """Several events as JSON, in batch content mode."""
        return _encode([self.cloud_event(event) for event in events])


_encoder = msgspec.json.Encoder()


def encode_event(event: CloudEvent) -> bytes:
    """An event as JSON, in structured content mode."""
    return _encode(event)


def _encode(events: CloudEvent | list[CloudEvent]) -> bytes:
    """JSON without raw line separators and invisible characters: some clients split lines there."""
    return escape_json(_encoder.encode(events))


def _wire_form(
    origin: Origin, type_: str, subject: str, time: str, data: Data | ResetData | PingData
) -> CloudEvent:
    return CloudEvent(
        "1.0", origin.id, origin.source, type_, subject, time, "application/json", data
    )


def events_of(
    plan: Plan, known: Mapping[str, Known], vault_config_path: str, at: str, first: int
) -> list[Event]:
    """The events of a plan: first the vault config's, then the secrets' by name.

    Args:
        plan: The changes.
        known: The inventory before the plan, for the scopes that entries had.
        vault_config_path: Subject of a vault config event.
        at: Time of the scan.
        first: Sequence of the first event.
    """
    events: list[Event] = []
    if plan.vault_config:
        change = plan.vault_config
        names = sorted(set().union(*msgspec.structs.astuple(change)))
        audience = {
            name: tuple(
                dict.fromkeys(
                    scope
                    for inventory in (known, plan.inventory)
                    if name in inventory
                    for scope in inventory[name].entry.scopes
                )
            )
            for name in names
        }
        events.append(Event(first, at, VAULT_CONFIG_CHANGED, vault_config_path, change, audience))
    for sequence, secret in enumerate(plan.changes, first + len(events)):
        name = secret.entry.name
        events.append(Event(sequence, at, SECRET_CHANGED, name, secret_data(secret)))
    return events


def _wire_type(type_: str, data: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The structure of one type: `io.syncd.secret.changed` is described as `_SecretChanged`."""
    words = type_.removeprefix("io.syncd.").replace("_", ".").split(".")
    fields = [(name, str) for name in Attributes.__struct_fields__ if name != "type"]
    return msgspec.defstruct(
        "_" + "".join(map(str.capitalize, words)),
        [*fields, ("data", data)],
        tag=type_,
        tag_field="type",
    )


WIRE_DATA: Final[Mapping[str, type[msgspec.Struct]]] = {
    **DATA_TYPES,
    RESET: ResetData,
    PING: PingData,
}
"""The structure of the data of every type of event, by type."""

WIRE_TYPES: Final[Any] = reduce(or_, [_wire_type(*item) for item in WIRE_DATA.items()])
"""Every event as it goes over the wire, for `syncd schema event`."""
