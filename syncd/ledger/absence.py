"""While the daemon did not run: what changed then is found at the next start, at a time of its own.

When it really changed is not known more closely than that: after the daemon was last running, and
before it looked again. Who judges whether a process has the new content needs both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from syncd.ledger.rows import meta, set_meta

if TYPE_CHECKING:
    import sqlite3

_KEY: Final = "late"
_MOST: Final = 100
_decode = msgspec.json.Decoder(dict[str, str]).decode


def last_running(db: sqlite3.Connection) -> str | None:
    """When the daemon was certainly running last (RFC 3339, UTC); None if it never was.

    The time of the clean close, or after a crash that of the newest event.
    """
    if meta(db, "open_since_boot") == "" and (closed := meta(db, "closed")) is not None:
        return closed
    newest = db.execute("SELECT max(time) FROM event").fetchone()[0]
    return newest or meta(db, "baseline")


def note(db: sqlite3.Connection, at: str, since: str) -> None:
    """Notes that what was found at a time may have changed since another. In a transaction."""
    known = {**late(db), at: since}
    kept = dict(list(known.items())[-_MOST:])
    set_meta(db, **{_KEY: msgspec.json.encode(kept).decode()})


def late(db: sqlite3.Connection) -> dict[str, str]:
    """Since when that may have changed which was found at a time, by that time."""
    text = meta(db, _KEY)
    return {} if text is None else _decode(text)
