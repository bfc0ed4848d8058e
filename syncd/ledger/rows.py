"""Rows of the ledger's tables, from and to the core's types."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.core.event_data import DECODERS, SECRET_CHANGED, secret_data
from syncd.core.events import Event, Origin
from syncd.core.model import Change, ChangeKind, Entry, Known, Scope, State

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from syncd.core.changes import Plan
    from syncd.core.model import Grant

EVENT_COLUMNS: Final = (
    "event.sequence, event.time, event.type, event.subject, event.data, event.audience,"
    " event.origin"
)
"""What a statement selects for `event_of`."""

INVENTORY_COLUMNS: Final = "name, path, scopes, state, version, problem, changed_at, extra"
"""What a statement selects for `secret_of`."""

_INSERT: Final = "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)"
# sqlite3 looks for adapters of a None and of bytes, which takes longer than to store a string: so
# JSON is text, and what is null in nearly all rows is part of the statement
_OWN: Final = "(?, ?, ?, ?, ?, 'null', NULL)"
_INSERT_OWN: Final = f"INSERT INTO event VALUES {_OWN}"  # noqa: S608 - constant
_AT_ONCE: Final = 50
_INSERT_SEVERAL: Final = f"{_INSERT_OWN}{f', {_OWN}' * (_AT_ONCE - 1)}"
"""So many events in one statement take a fifth less time than one by one."""

_encode = msgspec.json.Encoder().encode
_decode_audience = msgspec.json.Decoder(dict[str, tuple[Scope, ...]] | None).decode
_decode_origin = msgspec.json.Decoder(Origin).decode
_decode_scopes = msgspec.json.Decoder(tuple[Scope, ...]).decode


def meta(db: sqlite3.Connection, key: str) -> str | None:
    """The value of a key in the table `meta`, or None."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def set_meta(db: sqlite3.Connection, **values: str) -> None:
    """Sets keys in the table `meta`."""
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())


def last_sequence(db: sqlite3.Connection) -> int:
    """The newest sequence that was ever given out, even if its event was pruned."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
    return 0 if row is None else int(row[0])


def event_of(row: Sequence) -> Event:  # type: ignore[type-arg] # sqlite3's rows
    """The event of a row of `EVENT_COLUMNS`."""
    sequence, time, type_, subject, data, audience, origin = row
    return Event(
        sequence,
        time,
        type_,
        subject,
        DECODERS[type_](data),
        _decode_audience(audience),
        None if origin is None else _decode_origin(origin),
    )


def insert_events(db: sqlite3.Connection, events: Sequence[Event]) -> None:
    """Appends events to the log, at the sequences that they have."""
    own: list[Event] = []
    others: list[Event] = []
    for event in events:
        is_own = event.visible_to is None and event.origin is None
        (own if is_own else others).append(event)
    whole = len(own) - len(own) % _AT_ONCE
    for start in range(0, whole, _AT_ONCE):  # there can be 100,000: not all rows at a time
        rows = map(_row, own[start : start + _AT_ONCE])
        db.execute(_INSERT_SEVERAL, tuple(chain.from_iterable(rows)))
    db.executemany(_INSERT_OWN, map(_row, own[whole:]))
    db.executemany(_INSERT, map(_whole_row, others))


def _row(event: Event) -> tuple[int | str, ...]:
    return event.sequence, event.time, event.type, event.subject, _json(event.data)


def _whole_row(event: Event) -> tuple[int | str | None, ...]:
    origin = None if event.origin is None else _json(event.origin)
    return *_row(event), _json(event.visible_to), origin


def _json(value: object) -> str:
    return _encode(value).decode()


def secret_of(row: Sequence) -> Known:  # type: ignore[type-arg] # sqlite3's rows
    """The secret of a row of `INVENTORY_COLUMNS`."""
    name, path, scopes, state, version, problem, changed_at, extra = row
    entry = Entry(name, path, _decode_scopes(scopes), extra=bool(extra))
    return Known(entry, State(state), version, problem, changed_at)


def store_inventory(db: sqlite3.Connection, plan: Plan, known: Mapping[str, Known]) -> None:
    """Writes what a plan changes of the inventory, which was `known` before it."""
    updates: list[Known] = []
    rows: list[Known] = []
    for name in plan.touched:
        item, before = plan.inventory[name], known.get(name)
        # Most often the content changed and the entry did not: its scopes need no encoding then.
        is_same = before is not None and (before.entry is item.entry or before.entry == item.entry)
        (updates if is_same and item.problem is None else rows).append(item)
    db.executemany(
        "UPDATE secret SET state = ?, version = ?, problem = NULL, changed_at = ? WHERE name = ?",
        ((str(it.state), it.version, it.changed_at, it.entry.name) for it in updates),
    )
    if rows:
        db.executemany(
            "INSERT OR REPLACE INTO secret VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(it.entry.name, it.entry.path, _json(it.entry.scopes)),
                    *(str(it.state), it.version, it.problem, it.changed_at),
                    it.entry.extra,
                )
                for it in rows
            ),
        )
    if plan.dropped:
        db.executemany("DELETE FROM secret WHERE name = ?", [(name,) for name in plan.dropped])


def state_events(
    db: sqlite3.Connection, grant: Grant, secret: str | None, at: str, first: int
) -> list[Event]:
    """The present state of secrets as events, for someone who knows nothing of it.

    Args:
        db: The ledger.
        grant: What the receiver may see.
        secret: One secret, or None for all.
        at: Time of the events (RFC 3339, UTC).
        first: Sequence of the first event.
    """
    if not grant.takes(SECRET_CHANGED):
        return []
    rows = db.execute(f"SELECT {INVENTORY_COLUMNS} FROM secret ORDER BY name")  # noqa: S608 - constant
    changes = [
        Change(kind, known.entry, known.version, None)
        for known in map(secret_of, rows)
        if secret in (None, known.entry.name) and grant.shows(known.entry)
        # one that was never there has no state to send
        if known.version is not None or known.changed_at is not None
        for kind in [ChangeKind.ADDED if known.version else ChangeKind.REMOVED]
    ]
    return [
        Event(sequence, at, SECRET_CHANGED, change.entry.name, secret_data(change))
        for sequence, change in enumerate(changes, first)
    ]


def previous_version(event: Event) -> str | None:
    """The version that an event replaces; None where it replaces none."""
    return None if event.succession is None else event.succession.previous_version
