"""Which events leave the log, and what leaves with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncd.ledger import numbering, records
from syncd.ledger.rows import last_sequence, meta, set_meta

if TYPE_CHECKING:
    import sqlite3


def prune(db: sqlite3.Connection, max_events: int, older_than: str, most: int) -> int:
    """Deletes events beyond the bounds, but none that is pending; returns how many.

    Args:
        db: In a transaction.
        max_events: Number of events to keep at most.
        older_than: Time (RFC 3339, UTC) before which events are deleted.
        most: How many to delete at most; -1 for all.
    """
    doomed = "FROM event WHERE sequence <= ? AND sequence NOT IN (SELECT sequence FROM pending)"
    last = last_sequence(db)
    # Times grow with sequences unless the clock was set back. Everything before the first
    # young event goes, so an old time among younger ones waits for its turn.
    young = db.execute(
        "SELECT sequence FROM event WHERE time >= ? ORDER BY sequence LIMIT 1", (older_than,)
    ).fetchone()
    limit = max(last - max_events, last if young is None else young[0] - 1)
    (newest,) = db.execute(
        f"SELECT max(sequence) FROM (SELECT sequence {doomed} ORDER BY sequence LIMIT ?)",  # noqa: S608 - constant
        (limit, most),
    ).fetchone()
    if newest is None:
        return 0
    numbering.move(db, newest)
    # Not `RETURNING`: the rows of a busy minute would take tens of MiB.
    gone = db.execute(f"DELETE {doomed}", (newest,)).rowcount
    records.prune(db, newest)
    pruned = max(int(meta(db, "pruned") or 0), newest)
    set_meta(db, pruned=str(pruned))
    return gone
