"""The ledger's file: how it is opened, upgraded, and set aside where it cannot be used."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from typing import TYPE_CHECKING, Final

from syncd.core.errors import StateError
from syncd.ledger.failures import MACHINE_ERRORS, error_code
from syncd.ledger.rows import meta
from syncd.ledger.schema import TABLES, UPGRADES, VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUFFIXES: Final = ("", "-wal", "-shm")


def open_file(path: str, key_ids: Sequence[str]) -> tuple[sqlite3.Connection, str | None]:
    """Opens or creates the file; one that cannot be used is renamed and replaced.

    Its versions must have been made with one of the fingerprint keys of these names.

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
            rebuilt = _unusable(connection, path, key_ids)
    except sqlite3.Error as error:
        if error_code(error) in MACHINE_ERRORS:
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
    """Refuses files that another user put there: SQLite would replay their log."""
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


def _connect(path: str) -> sqlite3.Connection:
    """Opens the file and brings it to the current schema."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (
            # so that a full volume can get pages back; set again, it would write to the file
            *(["auto_vacuum = INCREMENTAL"] if os.path.getsize(path) == 0 else []),
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


def _unusable(connection: sqlite3.Connection, path: str, key_ids: Sequence[str]) -> str | None:
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
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            return "damaged"
    return None if meta(connection, "key_id") in (None, *key_ids) else "fingerprint key replaced"


def _is_emptied(path: str) -> bool:
    try:
        return os.path.getsize(path) == 0
    except FileNotFoundError:
        return False


def _set_aside(path: str) -> None:
    for suffix in _SUFFIXES:
        if os.path.exists(path + suffix):
            os.replace(path + suffix, f"{path}.set-aside{suffix}")
