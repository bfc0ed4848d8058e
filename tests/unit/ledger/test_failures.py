"""syncd.ledger.failures: errors of SQLite as a person can act on them."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE

from syncd.ledger.failures import state_error

if TYPE_CHECKING:
    from pathlib import Path


def failed(name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError("near a statement that holds a canary")
    error.sqlite_errorname = name
    error.sqlite_errorcode = getattr(sqlite3, name)
    return error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SQLITE_FULL", "the disk is full; free disk space"),
        ("SQLITE_IOERR_SHMSIZE", "the disk is full; free disk space"),
        ("SQLITE_READONLY", "it is read-only (SQLITE_READONLY); make state_dir and its files"),
        (
            "SQLITE_READONLY_DBMOVED",
            "the file was moved or removed while in use (SQLITE_READONLY_DBMOVED); restart syncd",
        ),
        ("SQLITE_BUSY", "it is locked (SQLITE_BUSY); close the other program"),
        ("SQLITE_CORRUPT", "it is damaged (SQLITE_CORRUPT); restart syncd"),
        ("SQLITE_IOERR", "I/O error (SQLITE_IOERR); check the disk"),
        ("SQLITE_IOERR_WRITE", "I/O error when writing (SQLITE_IOERR_WRITE); check the disk"),
        ("SQLITE_IOERR_LOCK", "the file system refuses a lock (SQLITE_IOERR_LOCK); put state_dir"),
        ("SQLITE_CANTOPEN", "a file cannot be opened (SQLITE_CANTOPEN); make state_dir"),
        ("SQLITE_NOMEM", "out of memory (SQLITE_NOMEM); free memory"),
        ("SQLITE_IOERR_NOMEM", "out of memory (SQLITE_IOERR_NOMEM); free memory"),
        ("SQLITE_AUTH", "SQLite reports an error (SQLITE_AUTH); check the disk"),
    ],
)
def test_each_error_has_the_remedy_that_fits(name: str, message: str) -> None:
    """The reason is SQLite's name of it; its text never shows."""
    error = state_error("use the ledger", failed(name))
    assert str(error).startswith(f"cannot use the ledger: {message}")
    assert "canary" not in str(error)


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("SQLITE_CANTOPEN", errno.EMFILE, "Too many open files; raise syncd's limit"),
        ("SQLITE_IOERR", errno.ESTALE, "Stale file handle; mount the file system again"),
        ("SQLITE_READONLY", errno.EROFS, "Read-only file system; mount the file system read-write"),
        ("SQLITE_READONLY", errno.EACCES, "Permission denied; make state_dir and its files"),
    ],
)
def test_the_system_is_asked_for_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, message: str
) -> None:
    """SQLite keeps the error number to itself, and has one code for many."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    error = state_error("use the ledger", failed(name), directory=str(tmp_path))
    assert str(error).startswith(f"cannot use the ledger: {message}")


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    """What to do about it is the caller's to say."""
    error = state_error("x", failed("SQLITE_IOERR"), path="restart", directory=f"{tmp_path}/gone")
    assert str(error) == "cannot x: No such file or directory; restart"


def test_a_file_system_without_locks_is_not_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite reports ENOLCK as SQLITE_BUSY; another program is blamed only where there is one."""
    (tmp_path / "lock").touch()
    for number, message in (
        (None, "it is locked (SQLITE_BUSY); close the other program"),
        (errno.EAGAIN, "it is locked (SQLITE_BUSY); close the other program"),
        (errno.ENOLCK, "No locks available; use a file system that supports locks"),
    ):

        def lock(_descriptor: int, _operation: int, number: int | None = number) -> None:
            if number is not None:
                raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.lockf", lock)
        error = state_error("use the ledger", failed("SQLITE_BUSY"), directory=str(tmp_path))
        assert str(error).startswith(f"cannot use the ledger: {message}")


def test_asking_leaves_the_locks_of_sqlite_alone(tmp_path: Path) -> None:
    """Closing a descriptor of the database would drop them (fcntl(2))."""
    (tmp_path / "lock").touch()
    path = tmp_path / "ledger.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE one (x)")
        db.execute("BEGIN IMMEDIATE")
        for name in ("SQLITE_BUSY", "SQLITE_CANTOPEN"):
            state_error("use the ledger", failed(name), directory=str(tmp_path))
        write = f"import sqlite3; sqlite3.connect({str(path)!r}, 0).execute('DELETE FROM one')"
        other = subprocess.run(
            [sys.executable, "-c", write], capture_output=True, timeout=DEADLINE, check=False
        )
        assert b"locked" in other.stderr
