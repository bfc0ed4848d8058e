"""The attempts to deliver events, in the ledger for as long as the log has the event.

They are written in the transaction of an acknowledgement, and deleted with the event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from syncd.core.record import Record

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

TABLE: Final = """
-- Attempts to deliver events (`syncd.core.record`): several that failed alike are one row. Times
-- are seconds since the epoch.
CREATE TABLE attempt (
    sequence INTEGER NOT NULL, consumer TEXT NOT NULL, at REAL NOT NULL, until REAL NOT NULL,
    attempts INTEGER NOT NULL, outcome TEXT NOT NULL, status INTEGER, reason TEXT,
    PRIMARY KEY (sequence, consumer, at)
) WITHOUT ROWID;
"""

_COLUMNS: Final = "sequence, at, until, attempts, outcome, status, reason"


def store(db: sqlite3.Connection, consumer: str, records: Iterable[Record]) -> None:
    """Writes records, over what was written of them before. In a transaction."""
    db.executemany(
        f"INSERT OR REPLACE INTO attempt (consumer, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constant
        [
            (
                *(consumer, item.sequence, item.at, item.until, item.attempts),
                *(item.outcome, item.status, item.reason),
            )
            for item in records
        ],
    )


def prune(db: sqlite3.Connection, newest: int) -> None:
    """Deletes what belongs to events that were pruned up to a sequence. In a transaction."""
    db.execute(
        "DELETE FROM attempt WHERE sequence <= ?"
        " AND sequence NOT IN (SELECT sequence FROM pending)",
        (newest,),
    )


def read(db: sqlite3.Connection, sequences: Sequence[int]) -> dict[int, dict[str, list[Record]]]:
    """The records of events, by sequence and consumer, oldest first."""
    found: dict[int, dict[str, list[Record]]] = {}
    statement = f"SELECT consumer, {_COLUMNS} FROM attempt WHERE sequence = ? ORDER BY at"  # noqa: S608 - constant
    for sequence in sequences:
        for consumer, *columns in db.execute(statement, (sequence,)):
            found.setdefault(sequence, {}).setdefault(consumer, []).append(Record(*columns))
    return found
