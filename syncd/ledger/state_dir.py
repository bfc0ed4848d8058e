"""The state directory: who may use it, and the key that makes fingerprints unguessable.

It holds the ledger (`syncd.ledger.ledger`), `fingerprint.key` and a lock. Two daemons on one
directory would acknowledge for each other, so the lock is held for as long as the daemon lives.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets

from syncd.core.errors import StateError

_KEY_SIZE = 32


class StateDir:
    """An open, locked state directory.

    Attributes:
        path: The directory.
        key: 32 random bytes, the key of all fingerprints of this installation.
        key_id: Names the key without telling anything about it.
    """

    def __init__(self, path: str, lock: int, key: bytes) -> None:
        self.path = path
        self._lock = lock
        self.key = key
        self.key_id = hashlib.blake2b(b"syncd key id", key=key, digest_size=8).hexdigest()

    def __repr__(self) -> str:
        return f"StateDir({self.path!r})"

    @classmethod
    def open(cls, path: str) -> StateDir:
        """Creates the directory where it is missing, locks it, and reads or makes the key.

        Raises:
            StateError: It cannot be written, is in use, or its key is damaged.
        """
        hint = "give this user a writable directory as state_dir"
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            lock = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"cannot write to {path}: {error.strerror}; {hint}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise StateError(
                f"cannot use {path}: another syncd runs on it; stop it or set its own state_dir"
            ) from None
        try:
            return cls(path, lock, _read_or_make_key(path))
        except OSError as error:
            os.close(lock)
            raise StateError(
                f"cannot use {path}/fingerprint.key: {error.strerror}; {hint}"
            ) from None
        except StateError:
            os.close(lock)
            raise

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._lock)


def _read_or_make_key(directory: str) -> bytes:
    path = f"{directory}/fingerprint.key"
    try:
        with open(path, "rb") as file:
            key = file.read(_KEY_SIZE + 1)
    except FileNotFoundError:
        return _make_key(directory, path)
    if len(key) != _KEY_SIZE:
        raise StateError(
            f"cannot use {path}: it is not {_KEY_SIZE} bytes; restore it, or remove it to start "
            "from a new baseline"
        )
    return key


def _make_key(directory: str, path: str) -> bytes:
    key = secrets.token_bytes(_KEY_SIZE)
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, path)
    sync_directory(directory)
    return key


def sync_directory(path: str) -> None:
    """Makes a rename inside a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
