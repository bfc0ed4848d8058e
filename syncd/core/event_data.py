"""What an event tells: the data of each type, made of and read back into the core's nouns.

Nothing here can hold a secret's value, its length or an unkeyed hash of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from syncd.core.model import ChangeKind, Entry, Known, Scope, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.core.model import Change, VaultConfigChange

SECRET_CHANGED: Final = "io.syncd.secret.changed"  # noqa: S105 - an event type
SECRET_ADOPTED: Final = "io.syncd.secret.adopted"  # noqa: S105 - an event type
SECRET_REJECTED: Final = "io.syncd.secret.rejected"  # noqa: S105 - an event type
VAULT_CONFIG_CHANGED: Final = "io.syncd.vault_config.changed"
RESET: Final = "io.syncd.reset"

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
