"""Reading one secret's value, for the two purposes for which syncd passes a value on.

One is the credentials of systemd's units; the other is verifying that Aidbox accepts a new value. A
value is read as a scan reads it (`syncd.mount.read`): through one pinned generation, beneath the
watch roots, of a limited size, at rest. It is not kept here, and callers drop it after use.

Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from syncd.core.errors import RefusedError
from syncd.mount.read import Reader
from syncd.mount.roots import roots_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.config.settings import Watch
    from syncd.core.model import Entry, Observation


class _ValueReader(Reader):
    """Keeps the content that it read last."""

    value = b""

    def fingerprint(self, name: str, content: bytes) -> str:
        self.value = content
        return super().fingerprint(name, content)

    def read(self, entry: Entry) -> Observation:
        found = self.scan({entry.name: entry}, now=time.time(), monotonic=time.monotonic())
        return found.observations[entry.name]


def read_value(name: str, entries: Mapping[str, Entry], watch: Watch) -> bytes | None:
    """Reads the value that a secret of the vault config has now.

    Returns:
        The value; None while it is being written or replaced: try again soon.

    Raises:
        RefusedError: The value cannot be read, or is empty.
    """
    entry = entries.get(name)
    if entry is None:
        raise RefusedError("is not in the vault config")
    reader = _reader(b"", roots_of(watch, entries), watch)
    seen = reader.read(entry)
    if not seen.settled:
        return None
    if seen.problem is not None:
        raise RefusedError(f"{entry.path}: {seen.problem}")
    if not reader.value:
        raise RefusedError(f"{entry.path}: is empty")
    return reader.value


def read_version(
    key: bytes, roots: Iterable[str], watch: Watch, entry: Entry, version: str
) -> bytes | None:
    """Reads a secret's value if its file lies in the roots and still has a certain version.

    Args:
        key: Key of the fingerprints.
        roots: As for `Reader`.
        watch: The section `watch` of the configuration.
        entry: The secret.
        version: The version that the content must have.

    Returns:
        The content, or None where it cannot be read or has another version.
    """
    reader = _reader(key, roots, watch)
    return reader.value if reader.read(entry).version == version else None


def _reader(key: bytes, roots: Iterable[str], watch: Watch) -> _ValueReader:
    return _ValueReader(key, roots, max_size=watch.max_secret_size, settle=watch.settle, grace=0.0)
