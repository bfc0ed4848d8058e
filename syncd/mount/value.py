"""Reading one secret's value, for the only ones who get values from syncd: systemd's units.

A value is taken as a scan would take it (`syncd.mount.read`): through one pinned generation,
beneath the watch roots, of a sane size, at rest. It is never kept: whoever asked passes it on and
drops it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from syncd.core.errors import RefusedError
from syncd.mount.read import Reader
from syncd.mount.roots import derive_roots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.core.model import Entry
    from syncd.settings import Watch


class _ValueReader(Reader):
    """Keeps what it read last, where a `Reader` keeps a fingerprint of it."""

    value = b""

    def fingerprint(self, name: str, content: bytes) -> str:
        self.value = content
        return name


def read_value(name: str, entries: Mapping[str, Entry], watch: Watch) -> bytes | None:
    """Reads the value that a secret has now.

    Blocks: call it in a worker thread.

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
    roots = watch.roots or derive_roots(entries.values())
    reader = _ValueReader(
        b"", roots, max_size=watch.max_secret_size, settle=watch.settle, grace=0.0
    )
    snapshot = reader.scan({name: entry}, now=time.time(), monotonic=time.monotonic())
    seen = snapshot.observations[name]
    if not seen.settled:
        return None
    if seen.problem is not None:
        raise RefusedError(f"{entry.path}: {seen.problem}")
    if not reader.value:
        raise RefusedError(f"{entry.path}: is empty")
    return reader.value
