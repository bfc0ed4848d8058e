"""Reading one secret's value, for the only ones who get values from syncd.

These are systemd's units, and Aidbox, which is asked as a Client whether it accepts one. A value is
taken as a scan would take it (`syncd.mount.read`): through one pinned generation, beneath the watch
roots, of a sane size, at rest. It is never kept: whoever asked passes it on and drops it.

Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from syncd.core.errors import RefusedError
from syncd.mount.read import Reader
from syncd.mount.roots import derive_roots

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.config.settings import Watch
    from syncd.core.model import Entry, Observation


class _ValueReader(Reader):
    """Keeps what it read last, beside the fingerprint of it."""

    value = b""

    def fingerprint(self, name: str, content: bytes) -> str:
        self.value = content
        return super().fingerprint(name, content)

    def read(self, entry: Entry) -> Observation:
        """One scan for one secret."""
        found = self.scan({entry.name: entry}, now=time.time(), monotonic=time.monotonic())
        return found.observations[entry.name]


def read_value(name: str, entries: Mapping[str, Entry], watch: Watch) -> bytes | None:
    """Reads the value that a secret has now.

    Args:
        name: The secret's.
        entries: Of the vault config, by name.
        watch: The section `watch` of the configuration.

    Returns:
        The value; None while it is being written or replaced: ask again soon.

    Raises:
        RefusedError: There is no value to give, an empty one included; says why.
    """
    entry = entries.get(name)
    if entry is None:
        raise RefusedError("is not in the vault config")
    reader = _reader(b"", watch.roots or derive_roots(entries.values()), watch)
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
    """Reads a secret only while its file holds the version that was announced.

    Args:
        key: Key of the fingerprints.
        roots: Directories that the file must lie in, after resolving symlinks.
        watch: The section `watch` of the configuration.
        entry: The secret's.
        version: What the content must be.

    Returns:
        The content, or None where it cannot be read or is another version by now.
    """
    reader = _reader(key, roots, watch)
    return reader.value if reader.read(entry).version == version else None


def _reader(key: bytes, roots: Iterable[str], watch: Watch) -> _ValueReader:
    return _ValueReader(key, roots, max_size=watch.max_secret_size, settle=watch.settle, grace=0.0)
