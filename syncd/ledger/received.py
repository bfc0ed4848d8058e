"""What a relay received from other installations: where a stream goes on, and what is new.

A stream delivers a message again after a lost acknowledgement, and can be deleted and made again
with other positions. The functions here decide, in the transaction that also appends the events,
which messages are new, so that each is passed on once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from syncd.core.event_data import SecretData, known_of
from syncd.core.events import Event
from syncd.ledger.rows import meta, set_meta

if TYPE_CHECKING:
    import sqlite3

    from syncd.core.model import Known

_decode_secret = msgspec.json.Decoder(SecretData).decode


MOST_SECRETS: Final = 100_000
"""Secrets of other installations that are remembered, about a KiB each in memory."""

MOST_OTHERS: Final = 10_000
"""Changes of vault configs, and other events without a state, that are remembered: many times what
a server can deliver again, which is what it waits to be acknowledged."""


class Arrival(msgspec.Struct, frozen=True):
    """An event of another installation, as a stream delivered it.

    Attributes:
        event: It has an origin.
        position: Its place in the stream, growing by one for each message stored there.
    """

    event: Event
    position: int


def follow(db: sqlite3.Connection, stream: str, last: int) -> int:
    """Returns the position that the past of a stream ends with; see `Ledger.follow`."""
    followed = meta(db, "stream")
    if followed != stream:
        # Positions of a new stream begin anew, so those of the old one must not make it look late.
        db.execute("UPDATE received SET position = 0")
        past = last if followed is None else 0
        set_meta(db, stream=stream, stream_past=str(past))
    return int(meta(db, "stream_past") or 0)


class Receipt(msgspec.Struct):
    """What became of some arrivals.

    Attributes:
        events: Those that are new, as they were committed.
        forgotten: `Entry.key` of removed secrets that made room for others.
        refused: How many events were of further secrets, and not taken.
    """

    events: list[Event] = []
    forgotten: list[str] = []
    refused: int = 0


class Capacity:
    """How many secrets, and other events, are remembered, and how many may be.

    Args:
        db: The ledger.
        most: Secrets, at most.
    """

    def __init__(self, db: sqlite3.Connection, most: int) -> None:
        self.most = most
        self.secrets, everything = db.execute(
            "SELECT count(data), count(*) FROM received"
        ).fetchone()
        self.others = everything - self.secrets

    def make(self, db: sqlite3.Connection, receipt: Receipt) -> bool:
        """Makes room for one more secret; forgets the one that was removed first for it."""
        if self.secrets < self.most:
            self.secrets += 1
            return True
        if receipt.refused:
            return False  # there was none to forget for an arrival before this one
        found = db.execute(
            "DELETE FROM received WHERE slot = (SELECT slot FROM received WHERE data IS NOT NULL"
            " AND json_extract(data, '$.version') IS NULL ORDER BY position LIMIT 1) RETURNING slot"
        ).fetchone()
        if found is not None:
            receipt.forgotten.append(found[0].removeprefix("secret:"))
        return found is not None

    def tidy(self, db: sqlite3.Connection) -> None:
        """Forgets the oldest of the other events, which cannot be delivered again any longer."""
        if self.others > 2 * MOST_OTHERS:
            db.execute(
                "DELETE FROM received WHERE slot IN (SELECT slot FROM received WHERE data IS NULL"
                " ORDER BY position DESC LIMIT -1 OFFSET ?)",
                (MOST_OTHERS,),
            )
            self.others = MOST_OTHERS


def admit(
    db: sqlite3.Connection, arrival: Arrival, capacity: Capacity, receipt: Receipt
) -> Event | None:
    """Remembers an arrival, and returns its event, or None for one that is not new.

    An event is not new if it was received before, or if a newer one of the same secret was: a
    server that was cut off can store a message late, after the one that took its place. Its
    `previous_version` becomes the version that was received last, which is another one where the
    stream dropped what lay between. Where there is no room for one more secret, its event is
    refused.
    """
    event, origin = arrival.event, arrival.event.origin
    assert origin is not None
    secret = isinstance(event.data, SecretData)
    slot = event.slot if secret else f"event:{origin.source} {origin.id}"
    known = db.execute("SELECT id, position, data FROM received WHERE slot = ?", (slot,)).fetchone()
    if known is not None:
        id_, position, data = known
        if id_ == origin.id or arrival.position <= position or origin.is_before(id_):
            return None
        event = event.since(_decode_secret(data).version)
    elif not secret:
        capacity.others += 1
    elif not capacity.make(db, receipt):
        receipt.refused += 1
        return None
    db.execute(
        "INSERT OR REPLACE INTO received VALUES (?, ?, ?, ?, ?, ?)",
        (
            *(slot, origin.id, arrival.position, event.time, origin.source),
            msgspec.json.encode(event.data).decode() if secret else None,
        ),
    )
    return event


def received_secrets(db: sqlite3.Connection) -> dict[str, Known]:
    """What is known of other installations' secrets, by `Entry.key`."""
    rows = db.execute("SELECT time, source, data FROM received WHERE data IS NOT NULL")
    everything = (known_of(time, source, _decode_secret(data)) for time, source, data in rows)
    return {known.entry.key: known for known in everything}
