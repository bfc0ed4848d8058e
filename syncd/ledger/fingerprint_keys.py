"""The keys of fingerprints, as `fingerprint.key` holds them.

The first key makes versions; the ones after it made the versions of files that could not be read
since the key was replaced. A file is the same content if it has its known version under any of
them, so a new key is never a change.

The file has the 32 bytes of the installation's own key. Once another key was in use it has JSON,
which syncd before `fingerprint_key_file` refuses instead of taking a new baseline.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

import msgspec

KEY_SIZE: Final = 32
"""Bytes of a key."""

MOST_KEYS: Final = 8
"""Keys that are kept. A file that was unreadable through so many replacements counts as changed."""

MAX_SIZE: Final = 4096
"""Bytes that the file may have."""


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    shared: bool
    keys: list[bytes]


class FingerprintKeys:
    """The keys of an installation, which no `repr` shows.

    Attributes:
        current: The key that makes versions.
        former: The keys before it, the newest first.
        shared: Whether the current key came from `fingerprint_key_file`.
    """

    __slots__ = ("current", "former", "shared")

    def __init__(self, current: bytes, former: tuple[bytes, ...] = (), *, shared: bool) -> None:
        self.current = current
        self.former = former
        self.shared = shared

    def __repr__(self) -> str:
        return f"FingerprintKeys({self.key_id!r}, shared={self.shared})"

    @classmethod
    def own(cls) -> FingerprintKeys:
        """A new key of this installation alone."""
        return cls(secrets.token_bytes(KEY_SIZE), shared=False)

    @classmethod
    def decode(cls, content: bytes) -> FingerprintKeys | None:
        """The keys of a file's content, or None where it holds none."""
        if len(content) == KEY_SIZE:
            return cls(content, shared=False)
        try:
            stored = msgspec.json.decode(content, type=_Stored)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if not stored.keys or any(len(key) != KEY_SIZE for key in stored.keys):
            return None
        return cls(stored.keys[0], tuple(stored.keys[1:]), shared=stored.shared)

    def encode(self) -> bytes:
        """The file's content."""
        if not (self.shared or self.former):
            return self.current
        return msgspec.json.encode(_Stored(self.shared, [self.current, *self.former]))

    @property
    def key_id(self) -> str:
        """Names the current key and reveals nothing of it."""
        return key_id(self.current)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The names of all keys, the current one first."""
        return (self.key_id, *map(key_id, self.former))

    def replaced(self, shared: bytes | None) -> FingerprintKeys:
        """The keys with another current one; these where it stays.

        Args:
            shared: The content of `fingerprint_key_file`; None for a key of this installation,
                which is a new one where the current key is shared.
        """
        if shared is None:
            if not self.shared:
                return self
            current = secrets.token_bytes(KEY_SIZE)
        else:
            current = hashlib.blake2b(
                shared, digest_size=KEY_SIZE, person=b"syncd versions"
            ).digest()
            if current == self.current:
                return FingerprintKeys(current, self.former, shared=True)
        former = tuple(key for key in (self.current, *self.former) if key != current)
        return FingerprintKeys(current, former[: MOST_KEYS - 1], shared=shared is not None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FingerprintKeys) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.key_id)


def key_id(key: bytes) -> str:
    """The name of a key, which reveals nothing of it."""
    return hashlib.blake2b(b"syncd key id", key=key, digest_size=8).hexdigest()
