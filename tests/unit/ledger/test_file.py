"""syncd.ledger.file: errors of SQLite as a person can act on them."""

from __future__ import annotations

import sqlite3

import pytest

from syncd.ledger.file import state_error


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
        ("SQLITE_READONLY_DBMOVED", "readonly dbmoved; make state_dir and its files writable"),
        ("SQLITE_BUSY", "busy; close the other program"),
        ("SQLITE_CORRUPT", "corrupt; restart syncd"),
        ("SQLITE_IOERR", "ioerr; check the disk"),
    ],
)
def test_each_error_has_the_remedy_that_fits(name: str, message: str) -> None:
    """The reason is SQLite's name of it; its text never shows."""
    error = state_error("use the ledger", failed(name))
    assert str(error).startswith(f"cannot use the ledger: {message}")
    assert "canary" not in str(error)
