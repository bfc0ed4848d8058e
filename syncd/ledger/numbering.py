"""Positions for receivers with a limited scope: what they may see, numbered without gaps.

The sequences of events count the changes of all secrets, so that gaps would tell a receiver how
many secrets change that it may not see. For each limited grant the ledger therefore keeps another
numbering, with an epoch of its own: event ids `<epoch>-<number>` then grow by one for each event
that the grant shows, whatever else happens.

Numbers are not stored with the events. A `Base` says how many events a grant had been shown up to
a sequence; the number of a later event is that, and how many visible ones lie in between. Pruning
moves the base along, so that a number means the same event for as long as the event is held.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.core.model import Grant, Scope
from syncd.ledger.rows import EVENT_COLUMNS, event_of, meta, set_meta

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

_PREFIX: Final = "view:"
_encode = msgspec.json.encode


class Base(msgspec.Struct, frozen=True):
    """Where a numbering has got to.

    Attributes:
        epoch: First half of its event ids.
        sequence: A position in the event log, at or after the newest event that was pruned.
        number: How many events up to that position the grant shows.
    """

    epoch: str
    sequence: int
    number: int

    @classmethod
    def new(cls, sequence: int) -> Base:
        """A numbering that begins after a sequence."""
        return cls(secrets.token_hex(4), sequence, 0)


_decode = msgspec.json.Decoder(Base).decode
_decode_scopes = msgspec.json.Decoder(list[Scope]).decode


def grant_key(grant: Grant) -> str:
    """A text that names what a limited grant shows."""
    ordered = sorted(grant.scopes or (), key=lambda scope: (scope.resource_type, scope.id or ""))
    return _encode(ordered).decode()


def base(db: sqlite3.Connection, grant: Grant) -> Base | None:
    """The base of a grant, or None."""
    text = meta(db, _PREFIX + grant_key(grant))
    return None if text is None else _decode(text)


def begin(db: sqlite3.Connection, grants: Iterable[Grant]) -> dict[str, Base]:
    """The bases of grants, by `grant_key`; new ones for new grants. Forgets all other grants.

    A base that pruning did not move along (an older version pruned) begins anew, too.
    """
    pruned = int(meta(db, "pruned") or 0)
    kept = {}
    for grant in grants:
        found = base(db, grant)
        current = found is not None and found.sequence >= pruned
        kept[grant_key(grant)] = found if found is not None and current else Base.new(pruned)
    forget(db)
    _store(db, kept)
    return kept


def forget(db: sqlite3.Connection) -> None:
    """Forgets all numberings, where sequences may repeat."""
    db.execute("DELETE FROM meta WHERE substr(key, 1, ?) = ?", (len(_PREFIX), _PREFIX))


def move(db: sqlite3.Connection, to: int) -> None:
    """Moves all bases to a sequence up to which events are about to be pruned."""
    rows = db.execute(
        "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ?", (len(_PREFIX), _PREFIX)
    )
    bases = {key.removeprefix(_PREFIX): _decode(value) for key, value in rows.fetchall()}
    behind = {key: item for key, item in bases.items() if item.sequence < to}
    if not behind:
        return
    grants = {key: Grant(_decode_scopes(key)) for key in behind}
    counts = dict.fromkeys(behind, 0)
    first = min(item.sequence for item in behind.values())
    rows = db.execute(
        f"SELECT {EVENT_COLUMNS} FROM event WHERE sequence > ? AND sequence <= ?",  # noqa: S608 - constant
        (first, to),
    )
    for event in map(event_of, rows):
        for key, grant in grants.items():
            if event.sequence > behind[key].sequence and event.seen_by(grant) is not None:
                counts[key] += 1
    _store(
        db,
        {key: Base(item.epoch, to, item.number + counts[key]) for key, item in behind.items()},
    )


def _store(db: sqlite3.Connection, bases: Mapping[str, Base]) -> None:
    set_meta(db, **{_PREFIX + key: _encode(base).decode() for key, base in bases.items()})
