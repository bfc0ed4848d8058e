"""The data of each type of event, made from and converted back to the core's types.

Nothing here can hold a secret's value, its length or an unkeyed hash of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from syncd.core.model import ChangeKind, Entry, Known, Scope, State

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from syncd.core.model import Change

SECRET_CHANGED: Final = "io.syncd.secret.changed"  # noqa: S105 - an event type
SECRET_ADOPTED: Final = "io.syncd.secret.adopted"  # noqa: S105 - an event type
SECRET_REJECTED: Final = "io.syncd.secret.rejected"  # noqa: S105 - an event type
SECRET_CONVERGED: Final = "io.syncd.secret.converged"  # noqa: S105 - an event type
SECRET_DIVERGED: Final = "io.syncd.secret.diverged"  # noqa: S105 - an event type
DESTINATION_RECREATED: Final = "io.syncd.destination.recreated"
DESTINATION_STALE: Final = "io.syncd.destination.stale"
VAULT_CONFIG_CHANGED: Final = "io.syncd.vault_config.changed"
RESET: Final = "io.syncd.reset"
PING: Final = "io.syncd.ping"

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
        secret: Name in the vault config, or in `watch.extra`.
        change: `added`, `modified` or `removed`, compared with `previous_version`.
        path: The file that holds the secret.
        scope: The resources that may use it; a list where the vault config has the older list form
            with several elements, and an empty one for a file outside the vault config without a
            scope.
        version: Version now, null when removed.
        previous_version: The version that this receiver acknowledged last, null when added.
        extra: True for a file outside the vault config (`watch.extra`); else left out.
    """

    secret: str
    change: ChangeKind
    path: str
    scope: Scope | list[Scope]
    version: Version | None
    previous_version: Version | None
    extra: bool | msgspec.UnsetType = msgspec.UNSET


class VaultConfigData(msgspec.Struct, frozen=True):
    """Data of `io.syncd.vault_config.changed`: names of secrets whose entry changed, sorted.

    Attributes:
        added: Names that are new.
        removed: Names that are gone.
        rescoped: Names whose scope changed.
        repointed: Names whose path changed.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    rescoped: tuple[str, ...]
    repointed: tuple[str, ...]

    def __bool__(self) -> bool:
        return any(msgspec.structs.astuple(self))

    def about(self, names: Container[str]) -> VaultConfigData:
        """The change as far as it concerns these secrets."""
        lists = msgspec.structs.astuple(self)
        return VaultConfigData(*(tuple(n for n in listed if n in names) for listed in lists))


class ReplicaData(msgspec.Struct, frozen=True):
    """Whether one replica of Aidbox accepts a new value.

    Attributes:
        address: Its URL, and the IP address where the name has several.
        adopted: Whether it accepts the value.
        seconds: From the scan that saw the change until the replica accepted it, or null.
        reason: Why it does not, one line, or null.
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
        replicas: The result of each replica.
    """

    secret: str
    scope: Scope
    version: Version
    consumer: str
    seconds: float
    replicas: tuple[ReplicaData, ...]


class FleetData(msgspec.Struct, frozen=True):
    """Data of `io.syncd.secret.converged` and `io.syncd.secret.diverged`, events of a relay.

    Attributes:
        secret: Name in the vault configs.
        scope: The resources that may use it, as in `SecretData`.
        version: The newest version; comparable between installations with one fingerprint key.
        previous_version: The version that had converged before; equal to `version` where this one
            had, and some installations did not have it since.
        instances: How many installations have the secret in their vault config.
        have: How many of them are known to have the version.
        adopted: How many of these have proven that their replicas accept it.
        lagging: The others, sorted: those with another version or none, and those of the lists
            below. 1,000 names at most, as in each list.
        silent: Installations that have not written their state in time, so nothing is known.
        incomparable: Installations with another fingerprint key.
        unreadable: Installations whose document cannot be read; they may have any secret.
        first_at: When the version arrived first (RFC 3339, UTC); null if it was there from the
            start.
        last_at: When it arrived last.
        seconds: Between these two.
    """

    secret: str
    scope: Scope | list[Scope]
    version: Version | None
    previous_version: Version | None
    instances: int
    have: int
    adopted: int
    lagging: tuple[str, ...]
    silent: tuple[str, ...]
    incomparable: tuple[str, ...]
    unreadable: tuple[str, ...]
    first_at: str | None
    last_at: str | None
    seconds: float | None


class SenderData(msgspec.Struct, frozen=True):
    """The sender of a destination at one replica of Aidbox.

    Attributes:
        address: The replica's, as in `ReplicaData`.
        started_at: When the sender started (RFC 3339, UTC), by Aidbox's clock; null where there is
            none, or the replica does not answer.
    """

    address: str
    started_at: str | None


class DestinationData(msgspec.Struct, frozen=True):
    """Data of `io.syncd.destination.recreated` and `io.syncd.destination.stale`.

    Attributes:
        secret: Name in the vault config of the secret that was rotated.
        scope: The destination, an AidboxTopicDestination with its id.
        version: The version of the secret.
        consumer: Name of the consumer that recreates it.
        seconds: From the scan that saw the change until now.
        reason: Why it was not recreated, one line; null if it was.
        replicas: Its sender at each replica.
    """

    secret: str
    scope: Scope
    version: Version
    consumer: str
    seconds: float
    reason: str | None
    replicas: tuple[SenderData, ...]


class SecretState(msgspec.Struct, frozen=True):
    """The current state of one secret.

    Attributes:
        secret: Name in the vault config.
        path: The file that holds the secret.
        scope: The resources that may use it, as in `SecretData`.
        state: What the last scan found at the path.
        version: The last version seen; kept while the file is unreadable, null when missing.
        changed_at: When the version last changed (RFC 3339, UTC); null if it never did.
        problem: What is wrong, one line, or null.
        source: The installation that has the secret; only at a relay, where two may have one name.
        extra: True for a file outside the vault config (`watch.extra`); else left out.
    """

    secret: str
    path: str
    scope: Scope | list[Scope]
    state: State
    version: Version | None
    changed_at: str | None
    problem: str | None
    source: str | msgspec.UnsetType = msgspec.UNSET
    extra: bool | msgspec.UnsetType = msgspec.UNSET


class ResetData(msgspec.Struct, frozen=True):
    """Data of `io.syncd.reset`: the current state, where missed events are no longer in the log.

    It takes the place of all events up to the one that its id names.

    Attributes:
        secrets: Every secret within the receiver's scope and filters, by name. A secret that is
            not listed is not watched, or outside of that scope.
    """

    secrets: tuple[SecretState, ...]


class PingData(msgspec.Struct, frozen=True):
    """Data of `io.syncd.ping`: a test of the way to a consumer, about no secret.

    Attributes:
        consumer: Name of the consumer that is tested.
    """

    consumer: str


Data = SecretData | AdoptionData | DestinationData | FleetData | VaultConfigData
DATA_TYPES: Final[Mapping[str, type[Data]]] = {
    SECRET_CHANGED: SecretData,
    SECRET_ADOPTED: AdoptionData,
    SECRET_REJECTED: AdoptionData,
    SECRET_CONVERGED: FleetData,
    SECRET_DIVERGED: FleetData,
    DESTINATION_RECREATED: DestinationData,
    DESTINATION_STALE: DestinationData,
    VAULT_CONFIG_CHANGED: VaultConfigData,
}

TYPE_NAMES: Final[Mapping[str, str]] = {
    "changed": SECRET_CHANGED,
    "vault_config": VAULT_CONFIG_CHANGED,
    "adopted": SECRET_ADOPTED,
    "rejected": SECRET_REJECTED,
    "converged": SECRET_CONVERGED,
    "diverged": SECRET_DIVERGED,
    "recreated": DESTINATION_RECREATED,
    "stale": DESTINATION_STALE,
}
"""The short name of each type of event, for `types` of a consumer."""

DECODERS: Final[Mapping[str, Callable[[bytes | str | msgspec.Raw], Data]]] = {
    name: msgspec.json.Decoder(type_).decode for name, type_ in DATA_TYPES.items()
}
"""For each type of event, what decodes its data from JSON."""


def scope_data(scopes: tuple[Scope, ...]) -> Scope | list[Scope]:
    """Scopes as an event carries them."""
    return scopes[0] if len(scopes) == 1 else list(scopes)


def scopes_of(data: Scope | list[Scope]) -> tuple[Scope, ...]:
    """Scopes from what an event carries."""
    return tuple(data) if isinstance(data, list) else (data,)


def known_of(time: str, source: str, data: SecretData) -> Known:
    """The secret of another installation, by the source, time and data of one of its events."""
    entry = Entry(data.secret, data.path, scopes_of(data.scope), source, data.extra is True)
    state = State.MISSING if data.version is None else State.PRESENT
    return Known(entry, state, data.version, None, time)


def secret_state(known: Known) -> SecretState:
    """The state of a secret, as API and events show it."""
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
        _extra(entry),
    )


def secret_data(change: Change) -> SecretData:
    """The data of the event for a change of a secret."""
    entry = change.entry
    return SecretData(
        entry.name,
        change.kind,
        entry.path,
        scope_data(entry.scopes),
        change.version,
        change.previous_version,
        _extra(entry),
    )


def _extra(entry: Entry) -> bool | msgspec.UnsetType:
    return True if entry.extra else msgspec.UNSET
