"""The floor: one thread that reads and hashes files, as anybody would write it."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

KEY = bytes(32)


def hash_files(paths: Iterable[str]) -> dict[str, bytes]:
    """The keyed hash of each file's content."""
    hashes = {}
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            hashes[path] = blake2b(file.read(), key=KEY, digest_size=16).digest()
    return hashes
