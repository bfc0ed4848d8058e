"""What a relay has announced of the fleet, so that a restart neither repeats nor loses anything.

It is a row of `meta` for each secret, and one for the bucket that this was read from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from syncd.core.announcements import Standing
from syncd.ledger.rows import meta, set_meta

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

_PREFIX: Final = "fleet:"
_BUCKET: Final = "fleet_bucket"
_decode = msgspec.json.Decoder(Standing).decode


def load(db: sqlite3.Connection) -> tuple[dict[str, Standing], str | None]:
    """What is known of the convergence of each secret, by name, and the bucket that it is from."""
    rows = db.execute("SELECT key, value FROM meta WHERE substr(key, 1, 6) = ?", (_PREFIX,))
    return {key.removeprefix(_PREFIX): _decode(value) for key, value in rows}, meta(db, _BUCKET)


def store(db: sqlite3.Connection, changed: Mapping[str, Standing | None], life: str | None) -> None:
    """Keeps what is known of some secrets; forgets those of which nothing is.

    Args:
        db: In a transaction.
        changed: By name.
        life: Identifies the bucket, if it is known.
    """
    gone = [(_PREFIX + name,) for name, standing in changed.items() if standing is None]
    db.executemany("DELETE FROM meta WHERE key = ?", gone)
    kept = {
        _PREFIX + name: msgspec.json.encode(standing).decode()
        for name, standing in changed.items()
        if standing is not None
    }
    set_meta(db, **kept)
    if life is not None:
        set_meta(db, **{_BUCKET: life})
