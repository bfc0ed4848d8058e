"""The state directory: who may use it, and the key that makes fingerprints unguessable.

It holds the ledger (`syncd.ledger.ledger`), `fingerprint.key` and a lock. Two daemons on one
directory would acknowledge for each other, so the lock is held for as long as the daemon lives.

Who put a key there knows it and can test guesses of secrets, and who put a ledger there decides
what is delivered. So the directory and its files must belong to this user or to root, and are
reached by names in the opened directory, without following links. Only SQLite opens its files by
their path, after they were checked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import Final

from syncd.core.errors import StateError
from syncd.ledger.failures import LOCK_NAME, state_error
from syncd.ledger.file import is_trusted
from syncd.ledger.fingerprint_keys import KEY_SIZE, MAX_SIZE, FingerprintKeys
from syncd.system.errnos import LOCKS
from syncd.system.files import UnsuitableError, ensure_directory, read_file

_KEY: Final = "fingerprint.key"
_KEY_MODE: Final = 0o600
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_UNWRITABLE: Final = "set state_dir to a directory that this user can write to"


class StateDir:
    """An open, locked state directory.

    Attributes:
        path: The directory.
        exposure: Why others can write to it although it is checked, or None.
        keys: The keys of this installation's fingerprints.
    """

    def __init__(
        self, path: str, lock: int, keys: FingerprintKeys, exposure: str | None = None
    ) -> None:
        self.path = path
        self.exposure = exposure
        self._lock = lock
        self.keys = keys

    def __repr__(self) -> str:
        return f"StateDir({self.path!r})"

    @classmethod
    def open(cls, path: str) -> StateDir:
        """Creates the directory where it is missing, locks it, and reads or makes the key.

        Raises:
            StateError: It cannot be written, is in use, belongs to another user, or its key is
                damaged or may be known to others.
        """
        try:
            ensure_directory(path, 0o700)
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise state_error(
                f"write to {path}", error, path=_UNWRITABLE, access=_UNWRITABLE
            ) from None
        try:
            return cls._open(path, directory)
        finally:
            os.close(directory)

    @classmethod
    def _open(cls, path: str, directory: int) -> StateDir:
        exposure = _secure(path, directory)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(LOCK_NAME, flags, 0o600, dir_fd=directory)
        except OSError as error:
            raise state_error(
                f"write to {path}", error, path=_UNWRITABLE, access=_UNWRITABLE
            ) from None
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
            return cls(path, lock, _read_or_make_keys(path, directory), exposure)
        except BaseException:
            os.close(lock)
            raise

    def use_key(self, shared: bytes | None) -> bool:
        """Makes versions with the content of `fingerprint_key_file`, or with an own key again.

        The keys before are kept. Blocks; returns whether there is another key now.

        Raises:
            StateError: The directory cannot be written.
        """
        keys, before, path = self.keys.replaced(shared), self.keys, f"{self.path}/{_KEY}"
        if keys == before:
            return False
        try:
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _not_written(path, error) from None
        try:
            _write_keys(path, directory, keys)
        finally:
            os.close(directory)
        self.keys = keys
        return keys.current != before.current

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._lock)


def _secure(path: str, directory: int) -> str | None:
    """Checks who can write to the directory; takes that from others where this user may.

    Returns:
        Who can write to it all the same, or None.
    """
    status = os.fstat(directory)
    if not is_trusted(status):
        raise StateError(
            f"cannot use {path}: it belongs to uid {status.st_uid}, who could replace its files",
            f"give it to uid {os.geteuid()}, which syncd runs as, or set state_dir to another "
            "directory",
        )
    if status.st_uid == os.geteuid() and status.st_mode & _OTHERS_WRITE:
        os.fchmod(directory, stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)
    elif status.st_mode & stat.S_IWOTH:
        # not its group: a volume with fsGroup is root's, and its group's to write
        return "every user can write to it"
    return None


def _read_or_make_keys(path: str, directory: int) -> FingerprintKeys:
    path = f"{path}/{_KEY}"
    try:
        content, status = read_file(_KEY, MAX_SIZE, directory=directory)
    except FileNotFoundError:
        return _write_keys(path, directory, FingerprintKeys.own())
    except UnsuitableError:
        content = b""
    except OSError as error:
        if error.errno != errno.ELOOP:
            remedy = "make it readable for this user"
            raise state_error(f"read {path}", error, path=remedy, access=remedy) from None
        content = b""  # a link
    keys = FingerprintKeys.decode(content)
    if keys is None:
        raise StateError(
            f"cannot use {path}: it is not a file of {KEY_SIZE} bytes",
            "restore it from a backup, or remove it to start from a new baseline",
        )
    if not is_trusted(status) or status.st_mode & stat.S_IWOTH:
        reason = "every user can write to it"
        if not is_trusted(status):
            reason = f"it belongs to uid {status.st_uid}, who knows the key"
        raise StateError(
            f"cannot use {path}: {reason}",
            "remove it to start from a new baseline",
        )
    if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & ~_KEY_MODE:
        descriptor = os.open(_KEY, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fchmod(descriptor, _KEY_MODE)
        finally:
            os.close(descriptor)
    return keys


def _write_keys(path: str, directory: int, keys: FingerprintKeys) -> FingerprintKeys:
    temporary = f"{_KEY}.new"
    try:
        with contextlib.suppress(FileNotFoundError):  # of a crash, or of another process
            os.unlink(temporary, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, _KEY_MODE, dir_fd=directory)
        try:
            os.fchmod(descriptor, _KEY_MODE)
            os.write(descriptor, keys.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, _KEY, src_dir_fd=directory, dst_dir_fd=directory)
        # The ledger holds versions made with this key from now on. After a power cut a
        # ledger without its key would be a ledger without a memory.
        os.fsync(directory)
    except OSError as error:
        raise _not_written(path, error) from None
    return keys


def _not_written(path: str, error: OSError) -> StateError:
    remedy = "make the directory writable for this user"
    return state_error(f"write {path}", error, path=remedy, access=remedy)
