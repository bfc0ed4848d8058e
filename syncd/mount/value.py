"""Reading one secret's value, for the two purposes for which syncd passes a value on.

One is the credentials of systemd's units; the other is verifying that Aidbox accepts a new value. A
value is read as a scan reads it (`syncd.mount.read`): through one pinned generation, beneath the
watch roots, of a limited size, at rest. It is not kept here, and callers drop it after use.

Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncd.core.errors import RefusedError
from syncd.mount.read import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from syncd.config.settings import Watch
    from syncd.core.model import Entry, Observation


class _ValueReader(Reader):
    """Keeps the content that it read last."""

    value = b""

    def fingerprint(self, name: str, content: bytes) -> str:
        self.value = content
        return super().fingerprint(name, content)


def read_value(
    name: str,
    entries: Mapping[str, Entry],
    watch: Watch,
    *,
    key: bytes,
    known: Callable[[str], str | None],
) -> bytes | None:
    """Reads the value that a secret of the vault config has now.

    Args:
        name: Of the secret.
        entries: Those of the vault config, by name.
        watch: The section of the configuration.
        key: Key of the fingerprints.
        known: The version of a secret in the inventory.

    Returns:
        The value; None while it is being written or replaced: try again soon.

    Raises:
        RefusedError: The value cannot be read, or is empty.
    """
    entry = entries.get(name)
    if entry is None:
        raise RefusedError("is not in the vault config")
    seen, value = _read(entry, watch, key, known)
    if not seen.settled:
        return None
    if seen.problem is not None:
        raise RefusedError(f"{entry.path}: {seen.problem}")
    if not value:
        raise RefusedError(f"{entry.path}: is empty")
    return value


def read_version(entry: Entry, watch: Watch, version: str, *, key: bytes) -> bytes | None:
    """Reads a secret's value if its file lies in the roots and still has a certain version.

    The arguments are those of `read_value`.

    Returns:
        The content, or None where it cannot be read or has another version.
    """
    seen, value = _read(entry, watch, key, lambda _name: version)
    return value if seen.version == version else None


def _read(
    entry: Entry, watch: Watch, key: bytes, known: Callable[[str], str | None]
) -> tuple[Observation, bytes]:
    reader = _ValueReader(key, watch, settle=watch.settle, grace=0.0)
    seen = reader.scan({entry.name: entry}, known=known).observations[entry.name]
    return seen, reader.value
