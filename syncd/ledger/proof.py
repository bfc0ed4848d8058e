"""Which consumers have ever acknowledged an event, so that "it works" is a fact and not a hope.

The proof is of a consumer under one address: a row of `meta` has its identity, and a consumer that
is configured for another address is to be proven again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from syncd.ledger.rows import set_meta

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

_PREFIX: Final = "proven:"


def begin(db: sqlite3.Connection, identities: Mapping[str, str]) -> set[str]:
    """Forgets the proofs of other consumers and addresses; returns the consumers that are proven.

    Args:
        db: In a transaction.
        identities: The address of each consumer, in a form that reveals nothing, by name.
    """
    rows = db.execute("SELECT key, value FROM meta WHERE substr(key, 1, 7) = ?", (_PREFIX,))
    found = {key.removeprefix(_PREFIX): value for key, value in rows}
    proven = {name for name, value in found.items() if identities.get(name) == value}
    gone = [(f"{_PREFIX}{name}",) for name in found.keys() - proven]
    db.executemany("DELETE FROM meta WHERE key = ?", gone)
    return proven


def mark(db: sqlite3.Connection, consumer: str, identity: str) -> None:
    """Remembers that a consumer has acknowledged."""
    set_meta(db, **{f"{_PREFIX}{consumer}": identity})
