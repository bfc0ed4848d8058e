"""New events in the mailboxes: per consumer and slot the newest one that it may see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncd.ledger import withdrawal
from syncd.ledger.rows import previous_version

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from syncd.core.events import Event
    from syncd.core.model import Grant


def put(db: sqlite3.Connection, events: Sequence[Event], consumers: Mapping[str, Grant]) -> int:
    """Puts events into mailboxes; returns how many left one, since its consumer may not see them.

    Args:
        db: In a transaction.
        events: In the order of their sequences.
        consumers: Names of the mailboxes to fill, and what each consumer may see.
    """
    withdrawals = 0
    for consumer, grant in consumers.items():
        wanted = [event for event in events if grant.takes(event.type)]
        seen = [event for event in wanted if event.seen_by(grant) is not None]
        if len(seen) < len(wanted) and withdrawal.has_pending(db, consumer):
            # where the scope of a secret changed, an older event may be pending
            hidden = {event.slot for event in wanted} - {event.slot for event in seen}
            withdrawn = db.executemany(
                "DELETE FROM pending WHERE consumer = ? AND slot = ?",
                [(consumer, slot) for slot in hidden],
            )
            withdrawals += withdrawn.rowcount
        # On a conflict an older event of the slot is pending: the newer one takes its place and
        # keeps `acknowledged`, which is still what the consumer knows.
        db.executemany(
            "INSERT INTO pending VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET sequence = excluded.sequence",
            [(consumer, event.slot, event.sequence, previous_version(event)) for event in seen],
        )
    return withdrawals
