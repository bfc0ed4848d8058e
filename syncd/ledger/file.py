"""The ledger's file: how it is opened, upgraded, and set aside where it cannot be used."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import sys
from typing import Final

from syncd.core.errors import StateError
from syncd.ledger.rows import meta
from syncd.ledger.schema import TABLES, UPGRADES, VERSION

DAMAGE: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
"""Errors that mean that the file's content is damaged."""

_SUFFIXES: Final = ("", "-wal", "-shm")
_DISK_FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # the latter: no room for its -shm file
_NOT_WRITABLE = "make state_dir and its files writable for this user"
_REMEDIES = {
    **dict.fromkeys(
        (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
        "close the other program that has the ledger open",
    ),
    **dict.fromkeys(
        (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY), _NOT_WRITABLE
    ),
    **dict.fromkeys(DAMAGE, "restart syncd: it sets the file aside and starts from a new baseline"),
}
_MACHINE_ERRORS = (_REMEDIES.keys() - DAMAGE) | {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
}


def open_file(path: str, key_id: str) -> tuple[sqlite3.Connection, str | None]:
    """Opens or creates the file; one that cannot be used is renamed and replaced.

    Its versions must have been made with the fingerprint key `key_id`.

    Returns:
        The connection, and why an existing file was replaced, or None.

    Raises:
        StateError: A newer syncd wrote it, or another user.
        OSError: The file cannot be opened or renamed.
        sqlite3.Error: The file cannot be read or written now, which says nothing of its content.
    """
    _require_own(path)
    connection: sqlite3.Connection | None = None
    rebuilt = "emptied" if _is_emptied(path) else None
    try:
        if rebuilt is None:
            connection = _connect(path)
            rebuilt = _unusable(connection, path, key_id)
    except sqlite3.Error as error:
        if error_code(error) in _MACHINE_ERRORS:
            raise
        rebuilt = "damaged"
    finally:
        # Before the next file is made, because closing removes the log by its name, and by then
        # that could be the log of the next file.
        if connection is not None and (rebuilt is not None or sys.exception() is not None):
            connection.close()
    if connection is None or rebuilt is not None:
        _set_aside(path)
        connection = _connect(path)
    return connection, rebuilt


def is_trusted(status: os.stat_result) -> bool:
    """Whether a file belongs to this process's user or to root."""
    return status.st_uid in (0, os.geteuid())


def _require_own(path: str) -> None:
    """Refuses files that somebody else put there: SQLite would replay their log."""
    for suffix in _SUFFIXES:
        try:
            found = os.lstat(path + suffix)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode) or not is_trusted(found):
            owner = f"it belongs to uid {found.st_uid}"
            reason = owner if stat.S_ISREG(found.st_mode) else "it is not a regular file"
            remedy = "remove it to start from a new baseline"
            raise StateError(f"cannot use {path}{suffix}: {reason}", remedy)


def error_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, or 0."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def state_error(
    action: str, error: OSError | sqlite3.Error, remedy: str = _NOT_WRITABLE
) -> StateError:
    """An error of the file system or of SQLite as one of syncd.

    Its text has SQLite's name of the error, since SQLite's own text may quote a statement.

    Args:
        action: What failed, such as `use the ledger`.
        error: Why.
        remedy: What to do about an error of the file system, unless the disk is full.
    """
    if isinstance(error, OSError):
        reason, is_full = error.strerror, error.errno in (errno.ENOSPC, errno.EDQUOT)
    else:
        name = str(getattr(error, "sqlite_errorname", "SQLITE_ERROR"))
        is_full = name in _DISK_FULL
        reason = name.removeprefix("SQLITE_").replace("_", " ").lower()
        remedy = _REMEDIES.get(error_code(error), "check the disk that state_dir is on")
    if is_full:
        reason, remedy = "the disk is full", "free disk space"
    return StateError(f"cannot {action}: {reason}", remedy)


def _connect(path: str) -> sqlite3.Connection:
    """Opens the file and brings it to the current schema."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "cache_size = -1024",
            "journal_size_limit = 1048576",
        ):
            connection.execute(f"PRAGMA {pragma}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        upgrade = UPGRADES.get(version)
        if upgrade is not None:
            connection.executescript(
                f"BEGIN IMMEDIATE; {upgrade} PRAGMA user_version = {VERSION}; COMMIT;"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _unusable(connection: sqlite3.Connection, path: str, key_id: str) -> str | None:
    """Why a ledger that could be opened must be replaced, or None."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StateError(
            f"cannot use {path}: a newer syncd wrote it",
            "run that version, or remove the file to start from a new baseline",
        )
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    if not TABLES.issubset(name for (name,) in tables):
        return "damaged"
    (expected,) = connection.execute(
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    ).fetchone()
    closed_cleanly = meta(connection, "open_since_boot") == ""
    if not closed_cleanly or os.path.getsize(path) < expected:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            return "damaged"
    return None if meta(connection, "key_id") in (None, key_id) else "fingerprint key replaced"


def _is_emptied(path: str) -> bool:
    try:
        return os.path.getsize(path) == 0
    except FileNotFoundError:
        return False


def _set_aside(path: str) -> None:
    for suffix in _SUFFIXES:
        if os.path.exists(path + suffix):
            os.replace(path + suffix, f"{path}.set-aside{suffix}")
