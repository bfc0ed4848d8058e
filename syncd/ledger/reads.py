"""What can be asked of the ledger, by its owner or by readers that must not be in the owner's way.

A `LedgerReader` has a connection of its own: in WAL mode it reads what was committed while another
connection writes (https://sqlite.org/wal.html#concurrency), so that a long reading never keeps a
scan or a delivery from the ledger.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.core.event_data import (
    DESTINATION_RECREATED,
    DESTINATION_STALE,
    SECRET_ADOPTED,
    SECRET_CHANGED,
    SECRET_REJECTED,
)
from syncd.ledger import numbering, received, records, standings
from syncd.ledger.connection import ReadConnection
from syncd.ledger.failures import state_error
from syncd.ledger.rows import (
    EVENT_COLUMNS,
    INVENTORY_COLUMNS,
    event_of,
    last_sequence,
    meta,
    secret_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from syncd.core.announcements import Standing
    from syncd.core.events import Event
    from syncd.core.model import Grant, Known
    from syncd.core.record import Record
    from syncd.ledger.numbering import Base

_OUTCOMES: Final = (SECRET_ADOPTED, SECRET_REJECTED, DESTINATION_RECREATED, DESTINATION_STALE)
_CACHE: Final = 256
"""KiB of pages that a reader keeps: it reads once and forgets."""


class Pending(msgspec.Struct, frozen=True):
    """One secret's place in a consumer's mailbox.

    Attributes:
        acknowledged_version: The version that the consumer acknowledged last, or None.
        sequence: The event that is pending.
    """

    acknowledged_version: str | None
    sequence: int


class Reads:
    """The questions, over one connection. They block, and raise `StateError` if it fails."""

    def __init__(self, file: ReadConnection) -> None:
        self._file = file

    def inventory(self) -> dict[str, Known]:
        """Everything known, by secret name."""
        rows = self._file.read(f"SELECT {INVENTORY_COLUMNS} FROM secret")  # noqa: S608 - constant
        return {known.entry.name: known for known in map(secret_of, rows)}

    def received(self) -> dict[str, Known]:
        """What is known of other installations' secrets, by `Entry.key`."""
        with self._file.held() as db:
            return received.received_secrets(db)

    def standings(self) -> tuple[dict[str, Standing], str | None]:
        """What a relay knows of the convergence of each secret, and the bucket that it is from."""
        with self._file.held() as db:
            return standings.load(db)

    def pending(self) -> dict[str, dict[str, Pending]]:
        """Per consumer, what is pending, by secret name (other events by their slot)."""
        pending: dict[str, dict[str, Pending]] = {}
        for consumer, slot, sequence, acknowledged in self._file.read("SELECT * FROM pending"):
            name = slot.removeprefix("secret:")
            pending.setdefault(consumer, {})[name] = Pending(acknowledged, sequence)
        return pending

    def pending_count(self, consumer: str) -> int:
        """Number of events that are pending for a consumer."""
        rows = self._file.read("SELECT count(*) FROM pending WHERE consumer = ?", (consumer,))
        return int(rows[0][0])

    def events_after(self, sequence: int, limit: int) -> list[Event]:
        """The events that follow a position, oldest first."""
        rows = self._file.read(
            f"SELECT {EVENT_COLUMNS} FROM event WHERE sequence > ? ORDER BY sequence LIMIT ?",  # noqa: S608 - constant
            (sequence, limit),
        )
        return list(map(event_of, rows))

    def events_of(self, types: Sequence[str]) -> list[Event]:
        """The events of some types that the log holds, oldest first."""
        marks = ", ".join("?" * len(types))
        rows = self._file.read(
            f"SELECT {EVENT_COLUMNS} FROM event WHERE type IN ({marks}) ORDER BY sequence",  # noqa: S608 - marks
            tuple(types),
        )
        return list(map(event_of, rows))

    def changes(self, names: Iterable[str] | None, most: int) -> list[Event]:
        """The newest changes of secrets in the log, oldest first.

        Args:
            names: Of these secrets; None for all.
            most: How many, at most.
        """
        only, parameters = _among(names)
        rows = self._file.read(
            f"SELECT {EVENT_COLUMNS} FROM event WHERE type = ?{only}"  # noqa: S608 - constant
            " ORDER BY sequence DESC LIMIT ?",
            (SECRET_CHANGED, *parameters, most),
        )
        return list(map(event_of, reversed(rows)))

    def outcomes(self, names: Iterable[str], after: int) -> list[Event]:
        """What actions made of changes of some secrets, after a sequence, oldest first."""
        only, parameters = _among(names)
        rows = self._file.read(
            f"SELECT {EVENT_COLUMNS} FROM event WHERE sequence > ? AND type IN (?, ?, ?, ?){only}"  # noqa: S608 - constant
            " ORDER BY sequence",
            (after, *_OUTCOMES, *parameters),
        )
        return list(map(event_of, rows))

    def attempts(self, sequences: Sequence[int]) -> dict[int, dict[str, list[Record]]]:
        """The attempts to deliver events, by sequence and consumer, oldest first."""
        with self._file.held() as db:
            return records.read(db, sequences)

    def baseline(self) -> str:
        """When the first scan was recorded (RFC 3339, UTC); empty before that."""
        with self._file.held() as db:
            return meta(db, "baseline") or ""

    def span(self) -> tuple[int, int]:
        """The sequence of the newest event that was pruned, and that of the newest of all.

        A subscriber whose position is at least the first can resume without a gap. Older events
        can still be in the log, because they are pending in a mailbox.
        """
        with self._file.held() as db:
            return int(meta(db, "pruned") or 0), last_sequence(db)

    def base(self, grant: Grant) -> Base | None:
        """Where the numbering of a limited grant has got to; None for a grant without one."""
        with self._file.held() as db:
            return numbering.base(db, grant)


def _among(names: Iterable[str] | None) -> tuple[str, tuple[str, ...]]:
    """A condition on the subject, and its parameter: one, however many names there are."""
    if names is None:
        return "", ()
    text = msgspec.json.encode(sorted(names)).decode()
    return " AND subject IN (SELECT value FROM json_each(?))", (text,)


class LedgerReader(Reads):
    """A connection that only reads. Close it before the ledger, which empties the log then."""

    def __init__(self, path: str) -> None:
        try:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in (f"cache_size = -{_CACHE}", "query_only = ON"):
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error as error:
            raise state_error(f"open {path}", error) from None
        self._connection = connection
        super().__init__(ReadConnection(path, connection))

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()
