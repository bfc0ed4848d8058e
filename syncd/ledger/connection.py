"""The ledger's connections: transactions, reads, and errors that quote no statement."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from syncd.core.errors import StateError
from syncd.core.timing import rfc3339
from syncd.ledger.failures import DAMAGE, error_code, is_full, state_error
from syncd.ledger.room import PAGE
from syncd.ledger.rows import set_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from syncd.ledger.room import Room

_STEP: Final = 8
"""Pages that a full volume gets back at once: they go through the log."""


class ReadConnection:
    """A connection in autocommit mode that threads share, one at a time.

    Where the file cannot be used, its methods raise `StateError`.
    """

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._lock = threading.Lock()

    def read(self, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple]:  # type: ignore[type-arg] # sqlite3's rows
        """All rows of a statement."""
        with self.held() as db:
            return db.execute(statement, parameters).fetchall()

    @contextmanager
    def held(self) -> Iterator[sqlite3.Connection]:
        """Locks the connection against other threads."""
        with self._lock:
            try:
                yield self._connection
            except (OSError, sqlite3.Error) as error:
                failure = state_error(
                    "use the ledger",
                    error,
                    path="restart syncd, and leave state_dir alone while it runs",
                    directory=os.path.dirname(self._path),
                )
                self._failed(error, failure)
                raise failure from None

    def _failed(self, error: OSError | sqlite3.Error, failure: StateError) -> None:
        """Called with each error, and with what is raised for it, before that is raised."""


class LedgerConnection(ReadConnection):
    """The connection that writes.

    `checkpoint` and `close` ignore errors.

    Attributes:
        on_damage: Called with the error when the file is found damaged, in the thread that does so.
    """

    def __init__(self, path: str, connection: sqlite3.Connection, room: Room) -> None:
        super().__init__(path, connection)
        self._room = room
        self._damaged = False
        self.on_damage: Callable[[StateError], object] | None = None
        self._autocheckpoint: int | None = None

    @contextmanager
    def transaction(self, *, checkpoint: bool = True) -> Iterator[sqlite3.Connection]:
        """Commits all that the block does, or nothing.

        With `checkpoint` the commit also moves a long log into the database.
        """
        with self.held() as db:
            self._checkpoint_after(db, self._room.log_pages if checkpoint else 0)
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                self._keep_room(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            self._room.is_full = False
            # now rather than before the next one, which may be of an event that is waited for; an
            # error must not turn what is committed into a failure
            with suppress(sqlite3.Error):
                self._checkpoint_after(db, 0)

    def _checkpoint_after(self, db: sqlite3.Connection, pages: int) -> None:
        if pages != self._autocheckpoint:
            db.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            self._autocheckpoint = pages

    def _keep_room(self, db: sqlite3.Connection) -> None:
        """Makes sure that the next checkpoint has room for what the database has grown by."""
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        self._room.keep_for(pages * PAGE - os.path.getsize(self._path))

    def _failed(self, error: OSError | sqlite3.Error, failure: StateError) -> None:
        if isinstance(error, sqlite3.Error) and error_code(error) in DAMAGE:
            # Not closed cleanly, the file is checked at the next opening and replaced.
            self._damaged = True
            if self.on_damage is not None:
                self.on_damage(failure)
        if is_full(error):
            self._room.is_full = True
            with self._room.lent():
                self._empty_log()

    def checkpoint(self) -> None:
        """Moves what was committed from the log into the database, when the log is long.

        An error is ignored: the next commit meets it again and raises it.
        """
        with suppress(StateError, OSError), self.held() as db:
            if os.path.getsize(f"{self._path}-wal") > self._room.log_pages * PAGE:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                self._room.shrink()

    def truncate_log(self) -> None:
        """Moves all that was committed into the database, and syncs it to the disk."""
        with self.held() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _empty_log(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def in_last_room(self) -> Iterator[None]:
        """Lets the block use the reserve, and gives what it frees back to the volume afterwards.

        For a few small transactions that delete something.
        """
        with self._room.lent():
            yield
            self.give_back()

    def give_back(self) -> None:
        """Returns pages of the database that hold nothing to the volume."""
        with self.held() as db:
            self._empty_log()
            (free,) = db.execute("PRAGMA freelist_count").fetchone()
            while free:
                before = free
                db.execute(f"PRAGMA incremental_vacuum({_STEP})").fetchall()
                self._empty_log()
                (free,) = db.execute("PRAGMA freelist_count").fetchone()
                if free >= before:  # made by an older syncd, without `auto_vacuum`
                    return

    def close(self) -> None:
        """Closes the file cleanly, unless it was found damaged."""
        with self._lock:
            try:
                self._mark_as_closed()
            except sqlite3.Error:
                # else the next opening takes it for a crash, which is safe
                with self._room.lent(), suppress(sqlite3.Error):
                    self._empty_log()
                    self._mark_as_closed()
            self._connection.close()

    def _mark_as_closed(self) -> None:
        if not self._damaged:
            set_meta(self._connection, open_since_boot="", closed=rfc3339(time.time()))
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
