"""The ledger's one connection: transactions, reads, and errors that quote no statement."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from syncd.core.errors import StateError
from syncd.ledger.failures import DAMAGE, error_code, state_error
from syncd.ledger.rows import set_meta

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKPOINT: Final = 1000
"""Pages in the log after which a commit moves them into the database (SQLite's default)."""

_LONG_LOG: Final = _CHECKPOINT * 4096


class LedgerConnection:
    """A connection in autocommit mode that threads share, one at a time.

    Where the file cannot be used, `checkpoint` and `close` ignore the error, and the other methods
    raise `StateError`.
    """

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._lock = threading.Lock()
        self._damaged = False

    def read(self, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple]:  # type: ignore[type-arg] # sqlite3's rows
        """All rows of a statement."""
        with self.held() as db:
            return db.execute(statement, parameters).fetchall()

    @contextmanager
    def transaction(self, *, checkpoint: bool = True) -> Iterator[sqlite3.Connection]:
        """Commits all that the block does, or nothing.

        With `checkpoint` the commit also moves a long log into the database.
        """
        with self.held() as db:
            db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT if checkpoint else 0}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def held(self) -> Iterator[sqlite3.Connection]:
        """Locks the connection against other threads."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                if error_code(error) in DAMAGE:
                    # Not closed cleanly, the file is checked at the next opening and replaced.
                    self._damaged = True
                raise state_error(
                    "use the ledger",
                    error,
                    path="restart syncd, and leave state_dir alone while it runs",
                    directory=os.path.dirname(self._path),
                ) from None

    def checkpoint(self) -> None:
        """Moves what was committed from the log into the database, when the log is long.

        An error is ignored: the next commit meets it again and raises it.
        """
        with suppress(StateError, OSError), self.held() as db:
            if os.path.getsize(f"{self._path}-wal") > _LONG_LOG:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def truncate_log(self) -> None:
        """Moves all that was committed into the database, and syncs it to the disk."""
        with self.held() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Closes the file cleanly, unless it was found damaged."""
        with self._lock:
            try:
                if not self._damaged:
                    set_meta(self._connection, open_since_boot="")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error:
                pass  # the next opening takes it for a crash, which is safe
            self._connection.close()
