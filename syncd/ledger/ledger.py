"""The ledger: what syncd remembers, in one SQLite file.

It owns the inventory (last version per secret), the event log that subscribers resume from, and
the mailboxes: per consumer, the events that it has not acknowledged. It promises that

- a change and its events are committed together, before anything is delivered;
- a mailbox holds per secret the newest event only, with the version that its consumer last
  acknowledged, and keeps them in the order of their sequences;
- a secret that leaves a consumer's scope leaves its mailbox, too;
- a relay passes on each event once, however often and in any order it arrives (`receive`);
- an event id never comes to mean another event (`_begin`).

The tables are in `syncd.ledger.schema`. Methods block, may be called from any thread, and raise
`StateError` when the file cannot be used.
"""

from __future__ import annotations

import secrets
import sqlite3
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.core.errors import StateError
from syncd.core.events import events_of
from syncd.ledger import (
    absence,
    mailboxes,
    numbering,
    proof,
    pruning,
    received,
    records as attempts,
    standings,
    withdrawal,
)
from syncd.ledger.connection import LedgerConnection
from syncd.ledger.failures import is_full, state_error
from syncd.ledger.file import open_file
from syncd.ledger.intentions import Intentions
from syncd.ledger.reads import LedgerReader
from syncd.ledger.received import Receipt
from syncd.ledger.room import Room
from syncd.ledger.rows import (
    EVENT_COLUMNS,
    event_of,
    insert_events,
    last_sequence,
    meta,
    set_meta,
    state_events,
    store_inventory,
)
from syncd.ledger.schema import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from syncd.core.announcements import Standing
    from syncd.core.changes import Plan
    from syncd.core.events import Event
    from syncd.core.model import Grant, Known
    from syncd.core.record import Record
    from syncd.ledger.numbering import Base
    from syncd.ledger.received import Arrival
    from syncd.ledger.state_dir import StateDir

_MAIL: Final = (
    f"SELECT {EVENT_COLUMNS}, pending.acknowledged"  # noqa: S608 - constant
    " FROM pending JOIN event USING (sequence) WHERE consumer = ?"
)
_AT_ONCE: Final = 500
"""Slots in one statement: SQLite bounds its parameters."""

_STEP: Final = 50
"""Events that are deleted at once on a full volume: the pages that change go through the log."""

UNKNOWN_BOOT: Final = "unknown"
"""A `boot_id` that names no run of the machine: every unclean close counts as its crash."""


class Ledger(Intentions):
    """An open ledger.

    Attributes:
        epoch: First half of every event id; a new one when sequences might repeat.
        rebuilt: Why an existing ledger was replaced by a new one, or None.
        fresh: True until the first baseline is recorded.
        withdrawals: Events that left a mailbox because its consumer may no longer see them.
        resumed: When the daemon was running last, before this opening (RFC 3339, UTC), or None.
    """

    def __init__(self, path: str, key_ids: Sequence[str], boot_id: str, room: Room) -> None:
        connection, self.rebuilt = open_file(path, key_ids)
        self._room = room
        self._file: LedgerConnection = LedgerConnection(path, connection, room)
        super().__init__(self._file)
        self.withdrawals = 0
        self._path = path
        self._capacity: received.Capacity | None = None
        self._unproven: dict[str, str] = {}
        try:
            self.epoch = self._begin(key_ids[0], boot_id)
            with self._file.held() as db:
                self.fresh = meta(db, "baseline") is None
            # That the ledger is open must be on the disk before the first sequence is given out:
            # in the log alone, a power cut would undo it together with the sequences.
            self._file.truncate_log()
        except BaseException:
            connection.close()
            raise

    @classmethod
    def open(cls, state: StateDir, boot_id: str) -> Ledger:
        """Opens or creates the ledger of a state directory.

        A damaged ledger, or one that belongs to another fingerprint key, is renamed and replaced
        by a new one; `rebuilt` has the reason. The `boot_id` names this run of the machine
        (`/proc/sys/kernel/random/boot_id`).

        Raises:
            StateError: It cannot be opened, or a newer syncd wrote it.
        """
        path = f"{state.path}/{FILE_NAME}"
        try:
            room = Room(state.path)
            ledger = cls._open(path, state.keys.key_ids, boot_id, room)
        except (OSError, sqlite3.Error) as error:
            raise state_error(f"open {path}", error, directory=state.path) from None
        room.keep()
        return ledger

    @classmethod
    def _open(cls, path: str, key_ids: Sequence[str], boot_id: str, room: Room) -> Ledger:
        """Opens it; on a full volume once more, in the room that was kept."""
        try:
            return cls(path, key_ids, boot_id, room)
        except (OSError, sqlite3.Error, StateError) as error:
            full = room.is_full if isinstance(error, StateError) else is_full(error)
            if not (full and room.release()):
                raise
        return cls(path, key_ids, boot_id, room)

    def _begin(self, key_id: str, boot_id: str) -> str:
        """Marks the ledger as open, and returns its epoch.

        The log is a WAL with `synchronous=NORMAL`
        (https://sqlite.org/wal.html#performance_considerations): a commit survives the end of the
        process at once, but a power cut only after the next checkpoint. Sequences that were
        committed and delivered could then be given out again for other events, and a consumer that
        drops duplicates would drop these. So there is a new epoch after every stop that may have
        lost commits, which is one without a clean close during another run of the machine.
        """
        with self._file.transaction() as db:
            self.resumed = absence.last_running(db)
            epoch, opened = meta(db, "epoch"), meta(db, "open_since_boot")
            same_boot = opened == boot_id and boot_id != UNKNOWN_BOOT
            closed_cleanly = opened == ""
            if not epoch or not (same_boot or closed_cleanly):
                epoch = secrets.token_hex(4)
                numbering.forget(db)
            set_meta(db, epoch=epoch, key_id=key_id, open_since_boot=boot_id)
        return epoch

    def use_key(self, key_id: str) -> None:
        """Records the name of the key that versions are made with from now on."""
        with self._file.transaction() as db:
            set_meta(db, key_id=key_id)

    def close(self) -> None:
        """Closes the file cleanly, so that the next opening keeps the epoch."""
        self._file.close()

    def reader(self) -> LedgerReader:
        """Opens a connection of its own for readers, who are then never in the way of writers."""
        return LedgerReader(self._path)

    def call_if_damaged(self, function: Callable[[StateError], object] | None) -> None:
        """Has a function called in the thread that finds the file damaged, with the error.

        The file is set aside at the next opening, and until then little of it can be used.
        """
        self._file.on_damage = function

    def checkpoint(self) -> None:
        """Moves what `record` committed from the log into the database, when the log is long."""
        self._file.checkpoint()

    def record(
        self,
        plan: Plan,
        known: Mapping[str, Known],
        vault_config_path: str,
        at: str,
        consumers: Mapping[str, Grant],
        *,
        since: str | None = None,
    ) -> list[Event]:
        """Commits a plan: inventory, events and mailboxes in one transaction.

        The first plan of a fresh ledger is the baseline and makes no events. The commit does not
        move a long log into the database, so that the delivery need not wait for that; call
        `checkpoint` afterwards.

        Args:
            plan: The result of a scan.
            known: The inventory before the plan.
            vault_config_path: Subject of a vault config event.
            at: Time of the scan (RFC 3339, UTC).
            consumers: Names of the mailboxes to fill, and what each consumer may see.
            since: When the daemon ran last, if a change may be as old as that; else None.

        Returns:
            The events, in order.
        """
        with self._file.transaction(checkpoint=False) as db:
            events: list[Event] = []
            if self.fresh:
                set_meta(db, baseline=at)
            else:
                events = events_of(plan, known, vault_config_path, at, last_sequence(db) + 1)
            store_inventory(db, plan, known)
            for name in plan.rescoped:
                scopes = plan.inventory[name].entry.scopes
                self.withdrawals += withdrawal.withdraw(db, name, scopes, consumers)
            self._append(db, events, consumers)
            if since is not None and events:
                absence.note(db, at, since)
        self.fresh = False
        return events

    def append(self, event: Event, consumers: Mapping[str, Grant]) -> Event:
        """Commits one more event, at the next sequence; `event.sequence` is ignored."""
        with self._file.transaction() as db:
            event = msgspec.structs.replace(event, sequence=last_sequence(db) + 1)
            self._append(db, [event], consumers)
        return event

    def announce(
        self,
        events: Iterable[Event],
        changed: Mapping[str, Standing | None],
        life: str | None,
        consumers: Mapping[str, Grant],
    ) -> list[Event]:
        """Commits events of a relay's own, at the next sequences; see `standings.store`."""
        with self._file.transaction() as db:
            standings.store(db, changed, life)
            placed = enumerate(events, last_sequence(db) + 1)
            events = [msgspec.structs.replace(event, sequence=at) for at, event in placed]
            self._append(db, events, consumers)
        return events

    def resend(self, consumer: str, grant: Grant, secret: str | None, at: str) -> tuple[str, ...]:
        """Puts the present state of secrets into one mailbox, as if nothing was acknowledged.

        Returns:
            The names of the secrets: those that the consumer may see, or the one; without those
            that were never there.
        """
        with self._file.transaction() as db:
            events = state_events(db, grant, secret, at, last_sequence(db) + 1)
            slots = [(consumer, event.slot) for event in events]
            db.executemany("DELETE FROM pending WHERE consumer = ? AND slot = ?", slots)
            self._append(db, events, {consumer: grant})
        return tuple(event.subject for event in events)

    def follow(self, stream: str, last: int) -> int:
        """Begins or continues to follow a stream, and returns where its past ends.

        What the first stream of a ledger holds already is the past, and is not passed on. A stream
        that takes the place of another one has no past.

        Args:
            stream: Identity of a stream; one that was deleted and made again has another.
            last: The stream's newest position.

        Returns:
            The last position of the past; 0 where there is none.
        """
        with self._file.transaction() as db:
            return received.follow(db, stream, last)

    def receive(
        self,
        arrivals: Iterable[Arrival],
        consumers: Mapping[str, Grant],
        most: int = received.MOST_SECRETS,
    ) -> Receipt:
        """Commits events of other installations, with new sequences.

        Duplicates are left out, and so are events that come late, older in the stream or where they
        were made, than what is known of the same secret. Where the stream dropped what lay between,
        `previous_version` becomes the version received last, so that a mailbox always knows what
        its consumer acknowledged.

        At most so many secrets are known, removed ones included: a new one takes the place of one
        that was removed, and where there is none, its event is refused.
        """
        receipt = Receipt()
        try:
            with self._file.transaction() as db:
                if self._capacity is None or self._capacity.most != most:
                    self._capacity = received.Capacity(db, most)
                for arrival in arrivals:
                    event = received.admit(db, arrival, self._capacity, receipt)
                    if event is not None:
                        sequence = last_sequence(db) + 1
                        receipt.events.append(msgspec.structs.replace(event, sequence=sequence))
                        self._append(db, receipt.events[-1:], consumers)
                self._capacity.tidy(db)
        except BaseException:
            self._capacity = None  # nothing of it was committed
            raise
        return receipt

    def _append(
        self, db: sqlite3.Connection, events: Sequence[Event], consumers: Mapping[str, Grant]
    ) -> None:
        insert_events(db, events)
        self.withdrawals += mailboxes.put(db, events, consumers)

    def take(self, consumer: str, grant: Grant, limit: int, after: int = 0) -> list[Event]:
        """The oldest events of a mailbox, each as a change from what its consumer acknowledged.

        Events that the consumer may no longer see, since its scope was narrowed, are dropped.

        Args:
            consumer: Name of the mailbox.
            grant: What the consumer may see.
            limit: Number of events at most; fewer are all that there are.
            after: Sequence behind which to begin.
        """
        events: list[Event] = []
        while len(events) < limit:
            missing = limit - len(events)
            rows = self._file.read(
                f"{_MAIL} AND pending.sequence > ? ORDER BY pending.sequence LIMIT ?",
                (consumer, after, missing),
            )
            events += self._seen(consumer, grant, rows)
            if len(rows) < missing:
                break
            after = rows[-1][0]
        return events

    def look_up(self, consumer: str, grant: Grant, slots: Sequence[str]) -> list[Event]:
        """The events in some slots of a mailbox (`Event.slot`), as `take` returns them."""
        events: list[Event] = []
        for start in range(0, len(slots), _AT_ONCE):
            some = slots[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            rows = self._file.read(f"{_MAIL} AND slot IN ({marks})", (consumer, *some))
            events += self._seen(consumer, grant, rows)
        return sorted(events, key=attrgetter("sequence"))

    def _seen(self, consumer: str, grant: Grant, rows: Sequence[tuple]) -> list[Event]:  # type: ignore[type-arg] # sqlite3's rows
        events, hidden = [], []
        for *columns, acknowledged in rows:
            event = event_of(columns)
            seen = event.seen_by(grant)
            if seen is None:
                hidden.append(event)
            else:
                events.append(seen.since(acknowledged))
        if hidden:
            self.acknowledge(consumer, hidden, delivered=False)
        return events

    def acknowledge(
        self,
        consumer: str,
        events: Iterable[Event],
        records: Sequence[Record] = (),
        *,
        delivered: bool = True,
    ) -> None:
        """Removes events from a mailbox, because they were delivered or may not be.

        With the same commit, `records` of attempts are written.
        """
        with self._file.transaction() as db:
            if records and not self._room.is_full:
                attempts.store(db, consumer, records)
            if delivered and consumer in self._unproven:
                proof.mark(db, consumer, self._unproven[consumer])
            for event in events:
                at = (consumer, event.slot, event.sequence)
                done = db.execute(
                    "DELETE FROM pending WHERE consumer = ? AND slot = ? AND sequence = ?", at
                )
                if done.rowcount == 0:
                    # A newer event took the place of this one during its delivery. It stays
                    # pending, as a change from the version that the consumer now knows.
                    version = None if event.succession is None else event.succession.version
                    db.execute(
                        "UPDATE pending SET acknowledged = ? WHERE consumer = ? AND slot = ?",
                        (version, consumer, event.slot),
                    )
        if delivered:
            self._unproven.pop(consumer, None)

    def proven(self, identities: Mapping[str, str]) -> set[str]:
        """The consumers that have acknowledged under their address; see `syncd.ledger.proof`."""
        with self._file.transaction() as db:
            found = proof.begin(db, identities)
        self._unproven = {name: value for name, value in identities.items() if name not in found}
        return found

    def forget_others(self, consumers: Iterable[str]) -> dict[str, int]:
        """Drops the mailboxes of all consumers but these; returns how many events each held."""
        with self._file.transaction() as db:
            return mailboxes.keep_only(db, frozenset(consumers))

    def number(self, grants: Iterable[Grant]) -> dict[str, Base]:
        """The numberings of limited grants, by `grant_key`; those of other grants end.

        Until the next call, pruning keeps them in step.
        """
        with self._file.transaction() as db:
            return numbering.begin(db, grants)

    @property
    def is_full(self) -> bool:
        """Whether the last commit found no room on the volume; pruning may make some."""
        return self._room.is_full

    def prune(self, max_events: int, older_than: str) -> int:
        """Bounds the event log; events that are pending in a mailbox stay.

        On a full volume this goes in small steps, and what it frees goes back to the volume.

        Args:
            max_events: Number of events to keep at most.
            older_than: Time (RFC 3339, UTC) before which events are deleted.

        Returns:
            How many events were deleted.
        """
        if not self._room.is_full:
            try:
                with self._file.transaction() as db:
                    return pruning.prune(db, max_events, older_than, most=-1)
            except StateError:
                if not self._room.is_full:
                    raise
        gone, step = 0, _STEP
        with self._file.in_last_room():
            while step:
                with self._file.transaction() as db:
                    step = pruning.prune(db, max_events, older_than, most=_STEP)
                gone += step
                self._file.give_back()
        return gone
