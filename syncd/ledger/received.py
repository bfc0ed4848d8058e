"""What a relay received from other installations: where a stream goes on, and what is new.

A stream delivers a message again after a lost acknowledgement, and can be deleted and made again
with other positions. The functions here decide, in the transaction that also appends the events,
which messages are new, so that each is passed on once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from syncd.core.event_data import SecretData, known_of
from syncd.ledger.rows import meta, set_meta

if TYPE_CHECKING:
    import sqlite3

    from syncd.core.events import Event
    from syncd.core.model import Known

_decode_secret = msgspec.json.Decoder(SecretData).decode


@dataclass(frozen=True, slots=True)
class Arrival:
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


def admit(db: sqlite3.Connection, arrival: Arrival) -> Event | None:
    """Remembers an arrival, and returns its event, or None for one that is not new.

    An event is not new if it was received before, or if a newer one of the same secret was. Its
    `previous_version` becomes the version that was received last, which is another one where the
    stream dropped what lay between.
    """
    event, origin = arrival.event, arrival.event.origin
    assert origin is not None
    secret = isinstance(event.data, SecretData)
    slot = event.slot if secret else f"event:{origin.source} {origin.id}"
    known = db.execute("SELECT id, position, data FROM received WHERE slot = ?", (slot,))
    for id_, position, data in known:
        if id_ == origin.id or arrival.position <= position:
            return None
        event = event.since(_decode_secret(data).version)
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
