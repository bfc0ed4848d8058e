"""The ledger: what syncd remembers, in one SQLite file.

It owns the inventory (last version per secret), the event log that subscribers resume from, and
the mailboxes: per consumer, the events that it has not acknowledged. It promises that

- a change and its events are committed together, before anyone is told of them;
- a mailbox holds per secret the newest event only, with the version that its consumer last
  acknowledged, and keeps them in the order of their sequences;
- what a relay receives is told once, however often and in whatever order it arrives (`receive`);
- an event id never comes to mean another event. The log is a WAL with `synchronous=NORMAL`
  (https://sqlite.org/wal.html#performance_considerations): a power cut can roll it back, and the
  sequences given out since would be given out again; so a ledger that was open when the machine
  went down gets a new epoch. That it is open is on the disk before the first sequence is given out.

Methods block, may be called from any thread, and raise `StateError` when the file cannot be used.
"""

from __future__ import annotations

import secrets
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.core.errors import StateError
from syncd.core.event_data import DATA_TYPES, SecretData, known_of
from syncd.core.events import Event, Origin, events_of
from syncd.core.model import Entry, Known, Scope, State
from syncd.ledger.connection import LedgerConnection, last_sequence, meta, set_meta
from syncd.ledger.file import open_file, state_error
from syncd.ledger.schema import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from syncd.core.changes import Plan
    from syncd.core.model import Grant
    from syncd.ledger.state_dir import StateDir

UNKNOWN_BOOT: Final = "unknown"
"""A `boot_id` that names no run of the machine: every unclean close counts as its crash."""

_EVENT = (
    "event.sequence, event.time, event.type, event.subject, event.data, event.audience,"
    " event.origin"
)
_decode_audience = msgspec.json.Decoder(dict[str, tuple[Scope, ...]] | None).decode
_decode_origin = msgspec.json.Decoder(Origin).decode
_decode_secret = msgspec.json.Decoder(SecretData).decode
_decode_scopes = msgspec.json.Decoder(tuple[Scope, ...]).decode
_decode_data = {name: msgspec.json.Decoder(type_).decode for name, type_ in DATA_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Pending:
    """One secret's place in a consumer's mailbox.

    Attributes:
        acknowledged_version: The version that the consumer acknowledged last, or None.
        sequence: The event that waits for it.
    """

    acknowledged_version: str | None
    sequence: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event of another installation, as a stream delivered it.

    Attributes:
        event: It has an origin.
        position: Its place in the stream, growing by one for each message stored there.
    """

    event: Event
    position: int


class Ledger:
    """An open ledger.

    Attributes:
        epoch: First half of every event id; changes when sequences might repeat.
        rebuilt: Why the ledger was started anew although one was there, or None.
        fresh: True until the first baseline is recorded.
    """

    def __init__(self, path: str, key_id: str, boot_id: str) -> None:
        connection, self.rebuilt = open_file(path, key_id)
        self._file = LedgerConnection(path, connection)
        try:
            self.epoch = self._begin(key_id, boot_id)
            with self._file.held() as db:
                self.fresh = meta(db, "baseline") is None
            self._file.truncate_log()
        except BaseException:
            connection.close()
            raise

    @classmethod
    def open(cls, state: StateDir, boot_id: str) -> Ledger:
        """Opens or creates the ledger of a state directory.

        A damaged ledger, or one whose fingerprint key is gone, is set aside and a new one is
        begun; `rebuilt` says so.

        Args:
            state: The locked directory.
            boot_id: Names this run of the machine (`/proc/sys/kernel/random/boot_id`).

        Raises:
            StateError: It cannot be opened, or a newer syncd wrote it.
        """
        path = f"{state.path}/{FILE_NAME}"
        try:
            return cls(path, state.key_id, boot_id)
        except OSError as error:
            raise StateError(
                f"cannot open {path}: {error.strerror}", "make it writable for this user"
            ) from None
        except sqlite3.Error as error:
            raise state_error(f"open {path}", error) from None

    def _begin(self, key_id: str, boot_id: str) -> str:
        with self._file.transaction() as db:
            epoch, opened = meta(db, "epoch"), meta(db, "open_since_boot")
            same_boot = opened == boot_id and boot_id != UNKNOWN_BOOT
            if not epoch or not (same_boot or opened == ""):
                epoch = secrets.token_hex(4)
            set_meta(db, epoch=epoch, key_id=key_id, open_since_boot=boot_id)
        return epoch

    def close(self) -> None:
        """Closes the file; the next opening need not doubt its sequences."""
        self._file.close()

    def checkpoint(self) -> None:
        """Moves what `record` committed from the log into the database, when the log is long."""
        self._file.checkpoint()

    def inventory(self) -> dict[str, Known]:
        """Everything known, by secret name."""
        rows = self._file.read(
            "SELECT name, path, scopes, state, version, problem, changed_at FROM secret"
        )
        return {
            name: Known(
                Entry(name, path, _decode_scopes(scopes)),
                State(state),
                version,
                problem,
                changed_at,
            )
            for name, path, scopes, state, version, problem, changed_at in rows
        }

    def record(
        self,
        plan: Plan,
        known: Mapping[str, Known],
        vault_config_path: str,
        at: str,
        consumers: Mapping[str, Grant],
    ) -> list[Event]:
        """Commits a plan: inventory, events and mailboxes in one transaction.

        The first plan of a fresh ledger is the baseline and makes no events. Whoever waits for them
        should not wait for the log, too: call `checkpoint` when they are told.

        Args:
            plan: What a scan amounts to.
            known: The inventory before it.
            vault_config_path: Subject of a vault config event.
            at: Time of the scan (RFC 3339, UTC).
            consumers: Whose mailboxes to fill, and what each may see.

        Returns:
            The events, in order.
        """
        with self._file.transaction(checkpoint=False) as db:
            events: list[Event] = []
            if self.fresh:
                set_meta(db, baseline=at)
            else:
                events = events_of(plan, known, vault_config_path, at, last_sequence(db) + 1)
            self._store_inventory(db, plan, known)
            self._append(db, events, consumers)
        self.fresh = False
        return events

    def append(self, event: Event, consumers: Mapping[str, Grant]) -> Event:
        """Commits one more event, at the next sequence whatever `event.sequence` says."""
        with self._file.transaction() as db:
            event = msgspec.structs.replace(event, sequence=last_sequence(db) + 1)
            self._append(db, [event], consumers)
        return event

    def follow(self, stream: str, last: int) -> int:
        """Tells where the past of a stream ends; in another stream positions begin anew.

        Args:
            stream: Names one life of a stream: one that is deleted and made again is another.
            last: Its newest position; what there is when a ledger follows its first stream is the
                past, and not to be told.

        Returns:
            The position that the past ends with; 0 where there is none.
        """
        with self._file.transaction() as db:
            followed = meta(db, "stream")
            if followed != stream:
                db.execute("UPDATE received SET position = 0")
                past = last if followed is None else 0
                set_meta(db, stream=stream, stream_past=str(past))
            return int(meta(db, "stream_past") or 0)

    def receive(self, arrivals: Iterable[Arrival], consumers: Mapping[str, Grant]) -> list[Event]:
        """Commits events of other installations, with sequences of our own.

        What was received before is left out, and so is what comes late: older, in the stream, than
        what is known of the same secret. An event whose `previous_version` is not the one received
        last (the stream dropped what lay between) is told against that one, so that a mailbox
        always knows what its consumer acknowledged.

        Returns:
            The events that are new.
        """
        with self._file.transaction() as db:
            events: list[Event] = []
            for arrival in arrivals:
                event = self._admit(db, arrival)
                if event is not None:
                    sequence = last_sequence(db) + 1
                    events.append(msgspec.structs.replace(event, sequence=sequence))
                    self._append(db, events[-1:], consumers)
        return events

    def _admit(self, db: sqlite3.Connection, arrival: Arrival) -> Event | None:
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

    def received(self) -> dict[str, Known]:
        """What is known of other installations' secrets, by `Entry.key`."""
        rows = self._file.read("SELECT time, source, data FROM received WHERE data IS NOT NULL")
        everything = (known_of(time, source, _decode_secret(data)) for time, source, data in rows)
        return {known.entry.key: known for known in everything}

    def _store_inventory(
        self, db: sqlite3.Connection, plan: Plan, known: Mapping[str, Known]
    ) -> None:
        rows, updates = [], []
        for name in plan.touched:
            item, before = plan.inventory[name], known.get(name)
            seen = (item.state.value, item.version, item.problem, item.changed_at)
            if before is not None and (before.entry is item.entry or before.entry == item.entry):
                updates.append((*seen, name))
            else:
                scopes = msgspec.json.encode(item.entry.scopes).decode()
                rows.append((name, item.entry.path, scopes, *seen))
        db.executemany(
            "UPDATE secret SET state = ?, version = ?, problem = ?, changed_at = ? WHERE name = ?",
            updates,
        )
        db.executemany("INSERT OR REPLACE INTO secret VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        db.executemany("DELETE FROM secret WHERE name = ?", [(name,) for name in plan.dropped])

    def _append(
        self, db: sqlite3.Connection, events: Sequence[Event], consumers: Mapping[str, Grant]
    ) -> None:
        encode = msgspec.json.encode
        db.executemany(
            "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(e.sequence, e.time, e.type, e.subject, encode(e.data), encode(e.told_to)),
                    None if e.origin is None else encode(e.origin),
                )
                for e in events
            ],
        )
        for consumer, grant in consumers.items():
            db.executemany(
                "INSERT INTO pending VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET sequence = excluded.sequence",
                [
                    (consumer, event.slot, event.sequence, _previous(event))
                    for event in events
                    if event.seen_by(grant) is not None
                ],
            )

    def take(self, consumer: str, grant: Grant, limit: int) -> list[Event]:
        """The oldest events of a consumer's mailbox, each told against what it acknowledged.

        What the consumer may not see any more, since its scope was narrowed, is dropped.
        """
        while True:
            rows = self._file.read(
                f"SELECT {_EVENT}, pending.acknowledged FROM pending JOIN event USING (sequence)"  # noqa: S608 - constant
                " WHERE consumer = ? ORDER BY pending.sequence LIMIT ?",
                (consumer, limit),
            )
            events, hidden = [], []
            for *columns, acknowledged in rows:
                event = _event(columns)
                seen = event.seen_by(grant)
                if seen is None:
                    hidden.append(event)
                else:
                    events.append(seen.since(acknowledged))
            if hidden:
                self.acknowledge(consumer, hidden)
            if events or not hidden:
                return events

    def acknowledge(self, consumer: str, events: Iterable[Event]) -> None:
        """Takes delivered events out of a mailbox.

        Where a newer event of the same secret came meanwhile, that one stays and remembers what
        was just acknowledged.
        """
        with self._file.transaction() as db:
            for event in events:
                at = (consumer, event.slot, event.sequence)
                done = db.execute(
                    "DELETE FROM pending WHERE consumer = ? AND slot = ? AND sequence = ?", at
                )
                if done.rowcount == 0:
                    version = event.data.version if isinstance(event.data, SecretData) else None
                    db.execute(
                        "UPDATE pending SET acknowledged = ? WHERE consumer = ? AND slot = ?",
                        (version, consumer, event.slot),
                    )

    def pending(self) -> dict[str, dict[str, Pending]]:
        """Per consumer, what waits for it, by secret name (other events under their slot)."""
        waiting: dict[str, dict[str, Pending]] = {}
        for consumer, slot, sequence, acknowledged in self._file.read("SELECT * FROM pending"):
            name = slot.removeprefix("secret:")
            waiting.setdefault(consumer, {})[name] = Pending(acknowledged, sequence)
        return waiting

    def pending_count(self, consumer: str) -> int:
        """How many events wait in a mailbox."""
        rows = self._file.read("SELECT count(*) FROM pending WHERE consumer = ?", (consumer,))
        return int(rows[0][0])

    def forget_others(self, consumers: Iterable[str]) -> dict[str, int]:
        """Drops the mailboxes of all consumers but these; tells how many events each held."""
        kept = set(consumers)
        rows = self._file.read("SELECT consumer, count(*) FROM pending GROUP BY consumer")
        gone = {consumer: count for consumer, count in rows if consumer not in kept}
        with self._file.transaction() as db:
            for consumer in gone:
                db.execute("DELETE FROM pending WHERE consumer = ?", (consumer,))
        return gone

    def events_after(self, sequence: int, limit: int) -> list[Event]:
        """The events that follow a position, oldest first."""
        rows = self._file.read(
            f"SELECT {_EVENT} FROM event WHERE sequence > ? ORDER BY sequence LIMIT ?",  # noqa: S608 - constant
            (sequence, limit),
        )
        return [_event(row) for row in rows]

    def events_of(self, types: Sequence[str]) -> list[Event]:
        """The events of some types that the log holds, oldest first."""
        marks = ", ".join("?" * len(types))
        rows = self._file.read(
            f"SELECT {_EVENT} FROM event WHERE type IN ({marks}) ORDER BY sequence",  # noqa: S608 - marks
            tuple(types),
        )
        return [_event(row) for row in rows]

    def span(self) -> tuple[int, int]:
        """The sequence of the newest event that was pruned, and that of the newest of all.

        A subscriber whose position is at least the first can go on without a gap. Older events can
        still be there, because a mailbox needs them.
        """
        with self._file.held() as db:
            return int(meta(db, "pruned") or 0), last_sequence(db)

    def prune(self, max_events: int, older_than: str) -> int:
        """Bounds the event log; what a mailbox still needs stays.

        Args:
            max_events: How many events to keep at the most.
            older_than: Time (RFC 3339, UTC) before which events go.

        Returns:
            How many events went.
        """
        doomed = "FROM event WHERE sequence <= ? AND sequence NOT IN (SELECT sequence FROM pending)"
        with self._file.transaction() as db:
            last = last_sequence(db)
            # times follow sequences but for a clock that was set: what it calls old waits its turn
            young = db.execute(
                "SELECT sequence FROM event WHERE time >= ? ORDER BY sequence LIMIT 1",
                (older_than,),
            ).fetchone()
            limits = (max(last - max_events, last if young is None else young[0] - 1),)
            (newest,) = db.execute(f"SELECT max(sequence) {doomed}", limits).fetchone()
            if newest is None:
                return 0
            # never `RETURNING`: the rows of a busy minute would take tens of MiB
            gone = db.execute(f"DELETE {doomed}", limits).rowcount
            pruned = max(int(meta(db, "pruned") or 0), newest)
            set_meta(db, pruned=str(pruned))
        return gone


def _previous(event: Event) -> str | None:
    return event.data.previous_version if isinstance(event.data, SecretData) else None


def _event(row: Sequence) -> Event:  # type: ignore[type-arg] # sqlite3's rows
    sequence, time, type_, subject, data, audience, origin = row
    return Event(
        sequence,
        time,
        type_,
        subject,
        _decode_data[type_](data),
        _decode_audience(audience),
        None if origin is None else _decode_origin(origin),
    )
