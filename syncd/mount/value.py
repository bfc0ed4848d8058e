"""Reading one secret's value, for the two purposes for which syncd passes a value on.

One is the credentials of systemd's units; the other is verifying that Aidbox accepts a new value. A
value is read as a scan reads it (`syncd.mount.read`): through one pinned generation, beneath the
watch roots, of a limited size, at rest. It is not kept here, and callers drop it after use.

Values are more than versions, so two rules are stricter. A root is a boundary: a link from one
configured root into another is not followed, else the writer of one could have a file of the other
sent out. And syncd's own credentials, configuration and state are never read as values, by
any path, link or hard link they are reached.

Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from syncd.core.errors import RefusedError
from syncd.mount.read import Reader
from syncd.mount.roots import is_inside
from syncd.mount.way import Watched, contains, follow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from syncd.config.settings import Watch
    from syncd.core.model import Entry, Observation


class OwnFiles(msgspec.Struct, frozen=True):
    """The files that are never read as values.

    Attributes:
        files: Paths of credentials and configurations.
        directories: Paths of directories with everything in them.
    """

    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()

    def include(self, descriptor: int) -> bool:
        """Whether an open file is one of these. Blocks."""
        real, status = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor)
        listed = (entry for path in self.directories for entry in _listed(path))
        for path in (*self.files, *listed):
            if follow(path, Watched()) == real:
                return True
            try:
                other = os.stat(path)
            except OSError:
                continue
            if os.path.samestat(status, other):
                return True
        return any(contains(follow(path, Watched()), real) for path in self.directories)


def _listed(directory: str) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in os.listdir(directory)]
    except OSError:
        return []


class _ValueReader(Reader):
    """Keeps the content that it read last."""

    value = b""

    def __init__(
        self, key: bytes, former: Iterable[bytes], watch: Watch, entry: Entry, own: OwnFiles
    ) -> None:
        super().__init__(key, watch, settle=watch.settle, grace=0.0, former=former, see=self._see)
        self._rules = msgspec.structs.replace(
            self._rules,
            boundary=_limits(entry, watch.roots),
            refuses=own.include,
            strict=True,
        )

    def _see(self, _name: str, _version: str, content: bytes) -> None:
        self.value = content


def _limits(entry: Entry, roots: Iterable[str]) -> tuple[str, ...]:
    """The configured roots that a file lies in by its path.

    Of a file outside the vault config the operator named the directory, too.
    """
    path = entry.path
    named = tuple(root for root in roots if contains(os.path.normpath(root), path))
    if named:
        return named
    if entry.extra:
        return (os.path.dirname(path),)
    directory, every = follow(os.path.dirname(path), Watched()), tuple(roots)
    # a path that lies in none is refused by all of them
    return tuple(root for root in every if is_inside(path, directory, (root,))) or every


def read_value(
    name: str,
    entries: Mapping[str, Entry],
    watch: Watch,
    *,
    key: bytes,
    former: Iterable[bytes] = (),
    known: Callable[[str], str | None],
    own: OwnFiles,
) -> bytes | None:
    """Reads the value that a secret of the vault config, or a file of `watch.extra`, has now.

    Args:
        name: Of the secret.
        entries: Those of the vault config and of `watch.extra`, by name.
        watch: The section of the configuration.
        key: Key of the fingerprints.
        former: The keys before it.
        known: The version of a secret in the inventory.
        own: The files that are never read.

    Returns:
        The value; None while it is being written or replaced: try again soon.

    Raises:
        RefusedError: The value cannot be read, or is empty.
    """
    entry = entries.get(name)
    if entry is None:
        raise RefusedError("is not in the vault config")
    seen, value = _read(entry, watch, (key, *former), known, own)
    if not seen.settled:
        return None
    if seen.problem is not None:
        raise RefusedError(f"{entry.path}: {seen.problem}")
    if not value:
        raise RefusedError(f"{entry.path}: is empty")
    return value


def read_version(
    entry: Entry,
    watch: Watch,
    version: str,
    *,
    key: bytes,
    former: Iterable[bytes] = (),
    own: OwnFiles,
) -> bytes | None:
    """Reads a secret's value if its file lies in the roots and still has a certain version.

    The arguments are those of `read_value`.

    Returns:
        The content, or None where it cannot be read or has another version.
    """
    seen, value = _read(entry, watch, (key, *former), lambda _name: version, own)
    return value if version in (seen.version, seen.former) else None


def _read(
    entry: Entry,
    watch: Watch,
    keys: Sequence[bytes],
    known: Callable[[str], str | None],
    own: OwnFiles,
) -> tuple[Observation, bytes]:
    reader = _ValueReader(keys[0], keys[1:], watch, entry, own)
    seen = reader.scan({entry.name: entry}, known=known).observations[entry.name]
    return seen, reader.value
