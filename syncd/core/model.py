"""The types of the domain: scope, entry, observation, known secret, change.

All are frozen. Those that a scan makes by the thousand are msgspec's, which take a tenth of a
dataclass's time. None of them can hold a secret's value, only its version, a keyed hash (see
`syncd.mount.read`).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


class Scope(msgspec.Struct, frozen=True, order=True, gc=False, omit_defaults=True):
    """The resources that may use a secret: all of a type, or with an id only that one.

    Attributes:
        resource_type: FHIR or Aidbox resource type, such as `Client`.
        id: The resource's id, or None for all of the type.
    """

    resource_type: str
    id: str | None = None

    def covers(self, other: Scope) -> bool:
        """Whether everything in `other` lies within this scope."""
        return self.resource_type == other.resource_type and self.id in (None, other.id)

    def __str__(self) -> str:
        return self.resource_type if self.id is None else f"{self.resource_type}/{self.id}"


class Grant:
    """What a consumer or subscriber may see: everything, or the secrets within its scopes.

    A secret is visible when one of its scopes lies within one of the granted ones: a grant for
    all Clients covers a secret of one Client, not the other way round. Of what is visible, a
    consumer may want certain types of events only, and nothing of files outside the vault config
    (`extra`).
    """

    __slots__ = ("extra", "scopes", "types")

    def __init__(
        self,
        scopes: Iterable[Scope] | None = None,
        types: Iterable[str] | None = None,
        *,
        extra: bool = True,
    ) -> None:
        self.scopes = None if scopes is None else frozenset(scopes)
        self.types = None if types is None else frozenset(types)
        self.extra = extra

    def takes(self, type_: str) -> bool:
        """Whether events of this type are wanted."""
        return self.types is None or type_ in self.types

    def sees(self, scopes: Iterable[Scope]) -> bool:
        """Whether a secret with these scopes may be seen."""
        if self.scopes is None:
            return True
        return any(granted.covers(scope) for granted in self.scopes for scope in scopes)

    def shows(self, entry: Entry) -> bool:
        """Whether changes of an entry may be seen, and are wanted."""
        return (self.extra or not entry.extra) and self.sees(entry.scopes)


class Entry(msgspec.Struct, frozen=True):
    """One secret of the vault config, or one file of `watch.extra`.

    Attributes:
        name: The name by which resources refer to it.
        path: Absolute path of the file that holds it.
        scopes: The resources that may use it; several only where the older list form is used. For a
            file outside the vault config, who may see it; it may have none.
        source: At a relay, the installation that has it; else None.
        extra: Whether it is a file outside the vault config.
    """

    name: str
    path: str
    scopes: tuple[Scope, ...]
    source: str | None = None
    extra: bool = False

    @property
    def key(self) -> str:
        """The key that identifies the secret; see `secret_key`."""
        return secret_key(self.name, self.source)


def secret_key(name: str, source: str | None) -> str:
    """The key that identifies a secret: its name, and its source if another installation has it.

    A source is a URI reference, so it contains no space.
    """
    return name if source is None else f"{source} {name}"


class State(enum.StrEnum):
    """The state of an entry's file."""

    PRESENT = "present"
    MISSING = "missing"
    UNREADABLE = "unreadable"


class Observation(msgspec.Struct, frozen=True, gc=False):
    """What one scan saw of one secret.

    Attributes:
        state: Present with a version, missing, or there but unreadable.
        version: Keyed hash of the content when present, else None.
        problem: One line for people when something is wrong, else None.
        settled: False where the scan could not decide yet (a file still being written, a mount
            that is away): the known version stays.
        code: Code of the finding that `problem` amounts to (`syncd.core.findings`), else None.
        former: The known version, where the content has it under a fingerprint key that was
            replaced since; else None.
    """

    state: State
    version: str | None = None
    problem: str | None = None
    settled: bool = True
    code: str | None = None
    former: str | None = None


class Known(msgspec.Struct, frozen=True, gc=False):
    """One secret of the inventory: its entry, its last version and its state.

    Attributes:
        entry: The vault config's entry.
        state: As of the last scan.
        version: The last version seen; kept while the file is unreadable; None when missing.
        problem: One line for people, or None.
        changed_at: When the version last changed (RFC 3339, UTC), or None if it never did.
    """

    entry: Entry
    state: State
    version: str | None
    problem: str | None
    changed_at: str | None


class ChangeKind(enum.StrEnum):
    """How the content of a secret changed."""

    ADDED = "added"
    MODIFIED = "modified"
    REMOVED = "removed"


class Change(msgspec.Struct, frozen=True, gc=False):
    """The change of one secret.

    Attributes:
        kind: Added, modified or removed.
        entry: The current entry; for a removed secret, the last one.
        version: The version now; None when removed.
        previous_version: The version before; None when added.
    """

    kind: ChangeKind
    entry: Entry
    version: str | None
    previous_version: str | None
