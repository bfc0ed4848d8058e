"""Errors of the state directory and of SQLite, as a person can act on them.

SQLite reports a few codes for many causes, and keeps the system's error number to itself: without a
free descriptor a file "cannot be opened", and a file system without locks is "busy"
(src/os_unix.c, `sqliteErrorFromPosixError`). Where a code leaves the cause open, the system is
asked again, at the file `lock` beside the database: closing any descriptor of the database itself
would drop SQLite's locks on it (fcntl(2), "Advisory record locking").
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from typing import Final

from syncd.core.errors import StateError
from syncd.system import errnos

LOCK_NAME: Final = "lock"
"""The file in the state directory that a daemon keeps locked."""

DAMAGE: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
"""Errors that mean that the file's content is damaged."""

_FULL: Final = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # the latter: no room for its -shm file
_WRITABLE: Final = "make state_dir and its files writable for this user"
_DISK: Final = "check the disk, or the server, of the file system that state_dir is on"
_BY_NAME: Final = {
    "SQLITE_READONLY_DBMOVED": (
        "the file was moved or removed while in use",
        "restart syncd, and leave state_dir alone while it runs",
    ),
    "SQLITE_IOERR_NOMEM": ("out of memory", "free memory, or raise the memory limit of syncd"),
    **dict.fromkeys(
        ("SQLITE_IOERR_LOCK", "SQLITE_IOERR_RDLOCK", "SQLITE_IOERR_UNLOCK"),
        ("the file system refuses a lock", "put state_dir on a local disk"),
    ),
    "SQLITE_IOERR_WRITE": ("I/O error when writing", f"{_DISK}, and its quota"),
}
_BY_CODE: Final = {
    sqlite3.SQLITE_BUSY: ("it is locked", "close the other program that has the ledger open"),
    sqlite3.SQLITE_LOCKED: ("it is locked", "close the other program that has the ledger open"),
    sqlite3.SQLITE_CANTOPEN: ("a file cannot be opened", _WRITABLE),
    sqlite3.SQLITE_PERM: ("permission denied", _WRITABLE),
    sqlite3.SQLITE_READONLY: ("it is read-only", _WRITABLE),
    sqlite3.SQLITE_IOERR: ("I/O error", _DISK),
    sqlite3.SQLITE_FULL: ("the disk is full", "free disk space"),
    sqlite3.SQLITE_NOMEM: ("out of memory", "free memory, or raise the memory limit of syncd"),
    sqlite3.SQLITE_PROTOCOL: ("it is locked", "close the other program that has the ledger open"),
    **dict.fromkeys(
        DAMAGE,
        (
            "it is damaged",
            "restart syncd: it sets the file aside and starts from a new baseline",
        ),
    ),
}
MACHINE_ERRORS: Final = _BY_CODE.keys() - DAMAGE
"""Errors of the machine, which say nothing of the file's content."""

_OPEN: Final = frozenset(
    (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    )
)
_LOCKED: Final = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL))


def error_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, or 0."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_full(error: OSError | sqlite3.Error) -> bool:
    """Whether there was no room on the disk."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return _name(error) in _FULL


def state_error(
    action: str,
    error: OSError | sqlite3.Error,
    *,
    path: str = "create the directory, or correct state_dir",
    access: str = _WRITABLE,
    otherwise: str = _DISK,
    directory: str | None = None,
) -> StateError:
    """An error of the file system or of SQLite as one of syncd.

    SQLite's own text is dropped, since it may quote a statement. Blocks where a directory is given.

    Args:
        action: What failed, such as `use the ledger`.
        error: Why.
        path: What to do where the path is wrong.
        access: What to do where a permission is missing.
        otherwise: What to do about an error of the file system that is not known.
        directory: The state directory, to be asked where SQLite's code leaves the cause open.
    """
    if isinstance(error, sqlite3.Error):
        found = None if directory is None else _cause(error, directory)
        if found is None:
            reason, remedy = _of_sqlite(error)
            return StateError(f"cannot {action}: {reason}", remedy)
        error = found
    reason = errnos.reason(error)
    remedy = errnos.remedy(error, path=path, access=access, otherwise=otherwise)
    if error.errno == errno.ENOSPC:
        reason = "the disk is full"
    return StateError(f"cannot {action}: {reason}", remedy)


def _name(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", "SQLITE_ERROR"))


def _of_sqlite(error: sqlite3.Error) -> tuple[str, str]:
    name = _name(error)
    if is_full(error):
        return _BY_CODE[sqlite3.SQLITE_FULL]
    otherwise = ("SQLite reports an error", _DISK)
    reason, remedy = _BY_NAME.get(name) or _BY_CODE.get(error_code(error), otherwise)
    return f"{reason} ({name})", remedy


def _cause(error: sqlite3.Error, directory: str) -> OSError | None:
    """What the system says about the state directory now, if that explains the error."""
    code = error_code(error)
    if code not in _OPEN | _LOCKED or _name(error) in _FULL:
        return None
    try:
        lock = os.open(f"{directory}/{LOCK_NAME}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as cause:
        return cause
    try:
        if code in _LOCKED:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        held = cause.errno in (errno.EAGAIN, errno.EACCES)
        return None if held else cause
    finally:
        os.close(lock)
    return None
