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
from syncd.ledger.failures import LOCK_NAME, state_error
from syncd.system.errnos import LOCKS
from syncd.system.files import UnsuitableError, ensure_directory, read_file, sync_directory

_KEY_SIZE = 32


class StateDir:
    """An open, locked state directory.

    Attributes:
        path: The directory.
        key: 32 random bytes, the key of all fingerprints of this installation.
        key_id: Names the key and reveals nothing of it.
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
        try:
            ensure_directory(path, 0o700)
            lock = os.open(f"{path}/{LOCK_NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            remedy = "set state_dir to a directory that this user can write to"
            raise state_error(f"write to {path}", error, path=remedy, access=remedy) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StateError(
                f"cannot use {path}: another syncd uses it",
                "stop that syncd, or set state_dir to another directory",
            ) from None
        except OSError as error:
            os.close(lock)
            raise state_error(f"lock {path}", error, otherwise=LOCKS) from None
        try:
            return cls(path, lock, _read_or_make_key(path))
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._lock)


def _read_or_make_key(directory: str) -> bytes:
    path = f"{directory}/fingerprint.key"
    try:
        key, _ = read_file(path, _KEY_SIZE)
    except FileNotFoundError:
        return _make_key(directory, path)
    except UnsuitableError:
        key = b""
    except OSError as error:
        remedy = "make it readable for this user"
        raise state_error(f"read {path}", error, path=remedy, access=remedy) from None
    if len(key) != _KEY_SIZE:
        raise StateError(
            f"cannot use {path}: it is not a file of {_KEY_SIZE} bytes",
            "restore it from a backup, or remove it to start from a new baseline",
        )
    return key


def _make_key(directory: str, path: str) -> bytes:
    key = secrets.token_bytes(_KEY_SIZE)
    temporary = f"{path}.new"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, key)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
        # The ledger that is made next holds versions made with this key. After a power cut a
        # ledger without its key would be a ledger without a memory.
        sync_directory(directory)
    except OSError as error:
        remedy = "make the directory writable for this user"
        raise state_error(f"write {path}", error, path=remedy, access=remedy) from None
    return key
