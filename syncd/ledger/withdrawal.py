"""What leaves a mailbox because its consumer may no longer see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncd.core.event_data import VAULT_CONFIG_CHANGED

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from syncd.core.model import Grant, Scope


def has_pending(db: sqlite3.Connection, consumer: str) -> bool:
    """Whether a mailbox holds anything."""
    found = db.execute("SELECT 1 FROM pending WHERE consumer = ? LIMIT 1", (consumer,))
    return found.fetchone() is not None


def withdraw(
    db: sqlite3.Connection, name: str, scopes: Sequence[Scope], consumers: Mapping[str, Grant]
) -> int:
    """Removes what is pending of a secret for consumers that may no longer see it.

    Not the change of the vault config: that the secret has gone is what they learn last.

    Returns:
        How many events were removed.
    """
    count = 0
    for consumer, grant in consumers.items():
        if not grant.sees(scopes):
            withdrawn = db.execute(
                "DELETE FROM pending WHERE consumer = ? AND sequence IN ("
                "SELECT sequence FROM pending JOIN event USING (sequence)"
                " WHERE consumer = ? AND subject = ? AND type <> ?)",
                (consumer, consumer, name, VAULT_CONFIG_CHANGED),
            )
            count += withdrawn.rowcount
    return count
