"""Events: what syncd says when something changed, as CloudEvents 1.0.

An `Event` is what the ledger keeps: position, time, type, subject and data. `CloudEvent` is what
goes over the wire (CloudEvents 1.0.2, JSON event format 1.0.2). Nothing here can hold a secret's
value, its length or an unkeyed hash of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from syncd.core.changes import restrict
from syncd.core.model import (
    ChangeKind,
    Entry,
    Known,
    Scope,
    State,
    VaultConfigChange,
    secret_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncd.core.changes import Plan
    from syncd.core.model import Change, Grant

SECRET_CHANGED: Final = "io.syncd.secret.changed"  # noqa: S105 - an event type
SECRET_ADOPTED: Final = "io.syncd.secret.adopted"  # noqa: S105 - an event type
SECRET_REJECTED: Final = "io.syncd.secret.rejected"  # noqa: S105 - an event type
VAULT_CONFIG_CHANGED: Final = "io.syncd.vault_config.changed"
RESET: Final = "io.syncd.reset"
STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"

Version = Annotated[
    str,
    msgspec.Meta(
        pattern="^k[0-9]+:[0-9a-f]+$",
        description="Keyed hash of the content; comparable within one installation only.",
    ),
]


class SecretData(msgspec.Struct, frozen=True, gc=False):
    """Data of `io.syncd.secret.changed`.

    Attributes:
        secret: Name in the vault config.
        change: `added`, `modified` or `removed`, as seen by the receiver of the event.
        path: The file that holds the secret.
        scope: Who may use it; a list where the vault config uses the older list form with
            several elements.
        version: Version now, null when removed.
        previous_version: The version that this receiver acknowledged last, null when added.
    """

    secret: str
    change: ChangeKind
    path: str
    scope: Scope | list[Scope]
    version: Version | None
    previous_version: Version | None


class VaultConfigData(msgspec.Struct, frozen=True):
    """Data of `io.syncd.vault_config.changed`: names of secrets whose entry changed."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    rescoped: tuple[str, ...]
    repointed: tuple[str, ...]


class ReplicaData(msgspec.Struct, frozen=True):
    """What one replica of Aidbox made of a new value.

    Attributes:
        address: Its URL, and the IP address where the name has several.
        adopted: Whether it accepts the value.
        seconds: From the scan that saw the change until the replica accepted it, or null.
        reason: Why it did not, one line, or null.
    """

    address: str
    adopted: bool
    seconds: float | None
    reason: str | None


class AdoptionData(msgspec.Struct, frozen=True):
    """Data of `io.syncd.secret.adopted` and `io.syncd.secret.rejected`.

    Attributes:
        secret: Name in the vault config.
        scope: The Client whose secret it is.
        version: The version that was verified.
        consumer: Name of the consumer that verified it.
        seconds: From the scan that saw the change until the last replica accepted the value, or
            for a rejection until the deadline.
        replicas: Each of them.
    """

    secret: str
    scope: Scope
    version: Version
    consumer: str
    seconds: float
    replicas: tuple[ReplicaData, ...]


class SecretState(msgspec.Struct, frozen=True):
    """What is known of one secret now.

    Attributes:
        secret: Name in the vault config.
        path: The file that holds the secret.
        scope: Who may use it, as in `SecretData`.
        state: What the last scan found at the path.
        version: The last version seen; kept while the file is unreadable, null when missing.
        changed_at: When the version last changed (RFC 3339, UTC); null if it was never seen to.
        problem: What is wrong, one line, or null.
        source: Whose secret it is; only at a relay, where two may have one name.
    """

    secret: str
    path: str
    scope: Scope | list[Scope]
    state: State
    version: Version | None
    changed_at: str | None
    problem: str | None
    source: str | msgspec.UnsetType = msgspec.UNSET


class ResetData(msgspec.Struct, frozen=True):
    """Data of `io.syncd.reset`: what a subscriber missed cannot be told, so this is what is so now.

    It takes the place of all events up to the one that its id names.

    Attributes:
        secrets: Every secret within the receiver's scope and filters, by name. What is not in
            it is not in the vault config, or not the receiver's to see.
    """

    secrets: tuple[SecretState, ...]


Data = SecretData | AdoptionData | VaultConfigData
DATA_TYPES: Final[Mapping[str, type[Data]]] = {
    SECRET_CHANGED: SecretData,
    SECRET_ADOPTED: AdoptionData,
    SECRET_REJECTED: AdoptionData,
    VAULT_CONFIG_CHANGED: VaultConfigData,
}


class Origin(msgspec.Struct, frozen=True):
    """Where an event comes from that another installation made and a relay passes on.

    Attributes:
        id: The event id that it has there.
        source: That installation's source.
    """

    id: str
    source: str


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event as the ledger keeps it.

    Attributes:
        sequence: Position in the ledger, growing by one per event.
        time: When the scan saw the change (RFC 3339, UTC).
        type: CloudEvents type.
        subject: Secret's name, or the vault config's path.
        data: Payload, of the type's structure.
        told_to: The scopes, by secret name, that decide who may see the event; None where those of
            its own data do.
        origin: Whose event it is, where a relay passes it on; None for our own.
    """

    sequence: int
    time: str
    type: str
    subject: str
    data: Data
    told_to: Mapping[str, tuple[Scope, ...]] | None = None
    origin: Origin | None = None

    @property
    def audience(self) -> Mapping[str, tuple[Scope, ...]]:
        """The scopes, by secret name, that decide who may see the event."""
        if self.told_to is not None:
            return self.told_to
        if isinstance(self.data, VaultConfigData):
            return {}
        return {self.subject: scopes_of(self.data.scope)}

    @property
    def slot(self) -> str:
        """Events of one slot supersede each other; a vault config's changes do not.

        Two installations may have a secret of one name, so the source of another's is part of it.
        """
        key = secret_key(self.subject, self.origin.source if self.origin else None)
        if isinstance(self.data, SecretData):
            return "secret:" + key
        if isinstance(self.data, AdoptionData):
            return f"adoption:{self.data.consumer}:{key}"
        return f"event:{self.sequence}"

    def seen_by(self, grant: Grant) -> Event | None:
        """The event as far as a grant allows to see it, or None."""
        if grant.scopes is None:
            return self
        return self.about(n for n, scopes in self.audience.items() if grant.sees(scopes))

    def about(self, names: Iterable[str]) -> Event | None:
        """The event as far as it concerns these secrets, or None if it does not."""
        visible = frozenset(names)
        if isinstance(self.data, VaultConfigData):
            data = self.data
            seen = restrict(
                VaultConfigChange(data.added, data.removed, data.rescoped, data.repointed), visible
            )
            return msgspec.structs.replace(self, data=vault_config_data(seen)) if seen else None
        return self if self.subject in visible else None

    def since(self, acknowledged: str | None) -> Event:
        """The event for a receiver whose last acknowledged version is another one.

        A receiver that was away gets the newest state instead of the history, so the change is
        told against what that receiver knows.
        """
        data = self.data
        if not isinstance(data, SecretData) or data.previous_version == acknowledged:
            return self
        if data.version is None:
            change = ChangeKind.REMOVED
        elif acknowledged is None:
            change = ChangeKind.ADDED
        else:
            change = ChangeKind.MODIFIED
        data = msgspec.structs.replace(data, change=change, previous_version=acknowledged)
        return msgspec.structs.replace(self, data=data)


class CloudEvent(msgspec.Struct, frozen=True, gc=False):
    """The wire form (CloudEvents 1.0.2, section "Context Attributes")."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str
    data: Any


class Stamp(msgspec.Struct, frozen=True):
    """What an installation writes on its events: the ledger's epoch and the source URI."""

    epoch: str
    source: str

    def id(self, sequence: int) -> str:
        """The event id `<epoch>-<sequence>`."""
        return f"{self.epoch}-{sequence}"

    def sequence(self, event_id: str) -> int | None:
        """The position that an id names, or None if it is not one of this epoch."""
        epoch, _, sequence = event_id.rpartition("-")
        if epoch != self.epoch or not (sequence.isascii() and sequence.isdigit()):
            return None
        return int(sequence) if len(sequence) < 19 else None  # noqa: PLR2004 - digits of 2**63

    def origin(self, event: Event) -> Origin:
        """The id and source that an event has everywhere, whoever passes it on."""
        return event.origin or Origin(self.id(event.sequence), self.source)

    def cloud_event(self, event: Event) -> CloudEvent:
        """The wire form of an event."""
        origin = self.origin(event)
        return CloudEvent(
            "1.0",
            origin.id,
            origin.source,
            event.type,
            event.subject,
            event.time,
            "application/json",
            event.data,
        )

    def encode_reset(self, secrets: tuple[SecretState, ...], sequence: int, at: str) -> bytes:
        """An `io.syncd.reset` event as JSON.

        Args:
            secrets: The state that it tells.
            sequence: The newest event that the state includes.
            at: Now (RFC 3339, UTC).
        """
        return _encoder.encode(
            CloudEvent(
                "1.0",
                self.id(sequence),
                self.source,
                RESET,
                "secrets",
                at,
                "application/json",
                ResetData(secrets),
            )
        )

    def encode(self, event: Event) -> bytes:
        """The event as JSON, in structured content mode."""
        return _encoder.encode(self.cloud_event(event))

    def encode_batch(self, events: Iterable[Event]) -> bytes:
        """Several events as JSON, in batch content mode."""
        return _encoder.encode([self.cloud_event(event) for event in events])


_encoder = msgspec.json.Encoder()


def scope_data(scopes: tuple[Scope, ...]) -> Scope | list[Scope]:
    """Scopes as an event carries them."""
    return scopes[0] if len(scopes) == 1 else list(scopes)


def scopes_of(data: Scope | list[Scope]) -> tuple[Scope, ...]:
    """Scopes from what an event carries."""
    return tuple(data) if isinstance(data, list) else (data,)


def known_of(time: str, source: str, data: SecretData) -> Known:
    """What an event of another installation tells of its secret.

    Args:
        time: When it changed.
        source: The installation.
        data: What changed.
    """
    entry = Entry(data.secret, data.path, scopes_of(data.scope), source)
    state = State.MISSING if data.version is None else State.PRESENT
    return Known(entry, state, data.version, None, time)


def secret_state(known: Known) -> SecretState:
    """What is known of a secret, as it is told."""
    entry = known.entry
    return SecretState(
        entry.name,
        entry.path,
        scope_data(entry.scopes),
        known.state,
        known.version,
        known.changed_at,
        known.problem,
        msgspec.UNSET if entry.source is None else entry.source,
    )


def secret_data(change: Change) -> SecretData:
    """The payload that tells of one change."""
    entry = change.entry
    return SecretData(
        entry.name,
        change.kind,
        entry.path,
        scope_data(entry.scopes),
        change.version,
        change.previous_version,
    )


def vault_config_data(change: VaultConfigChange) -> VaultConfigData:
    """The payload that tells how the vault config changed."""
    return VaultConfigData(change.added, change.removed, change.rescoped, change.repointed)


def events_of(
    plan: Plan, known: Mapping[str, Known], vault_config_path: str, at: str, first: int
) -> list[Event]:
    """The events that a plan amounts to: first the vault config, then secrets by name.

    Args:
        plan: What changed.
        known: The inventory before the plan, for the scopes that entries had.
        vault_config_path: Subject of a vault config event.
        at: Time of the scan.
        first: Sequence of the first event.
    """
    events: list[Event] = []
    if plan.vault_config:
        change = plan.vault_config
        names = {*change.added, *change.removed, *change.rescoped, *change.repointed}
        audience = {
            name: tuple(
                {
                    scope: None
                    for inventory in (known, plan.inventory)
                    if name in inventory
                    for scope in inventory[name].entry.scopes
                }
            )
            for name in sorted(names)
        }
        data = vault_config_data(change)
        events.append(Event(first, at, VAULT_CONFIG_CHANGED, vault_config_path, data, audience))
    for sequence, secret in enumerate(plan.changes, first + len(events)):
        name = secret.entry.name
        events.append(Event(sequence, at, SECRET_CHANGED, name, secret_data(secret)))
    return events


class _SecretChanged(msgspec.Struct, tag=SECRET_CHANGED, tag_field="type"):
    specversion: str
    id: str
    source: str
    subject: str
    time: str
    datacontenttype: str
    data: SecretData


class _SecretAdopted(msgspec.Struct, tag=SECRET_ADOPTED, tag_field="type"):
    specversion: str
    id: str
    source: str
    subject: str
    time: str
    datacontenttype: str
    data: AdoptionData


class _SecretRejected(msgspec.Struct, tag=SECRET_REJECTED, tag_field="type"):
    specversion: str
    id: str
    source: str
    subject: str
    time: str
    datacontenttype: str
    data: AdoptionData


class _VaultConfigChanged(msgspec.Struct, tag=VAULT_CONFIG_CHANGED, tag_field="type"):
    specversion: str
    id: str
    source: str
    subject: str
    time: str
    datacontenttype: str
    data: VaultConfigData


class _Reset(msgspec.Struct, tag=RESET, tag_field="type"):
    specversion: str
    id: str
    source: str
    subject: str
    time: str
    datacontenttype: str
    data: ResetData


WIRE_TYPES: Final = _SecretChanged | _SecretAdopted | _SecretRejected | _VaultConfigChanged | _Reset
"""Every event as it goes over the wire, for `syncd schema event`."""
