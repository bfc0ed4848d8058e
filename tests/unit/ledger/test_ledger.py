"""The ledger: what survives, what is refused, and that coalescing never loses the end state."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from syncd.core.announcements import Standing
from syncd.core.changes import plan
from syncd.core.errors import StateError
from syncd.core.event_data import (
    SECRET_ADOPTED,
    SECRET_CHANGED,
    SECRET_CONVERGED,
    VAULT_CONFIG_CHANGED,
    AdoptionData,
    FleetData,
    SecretData,
    VaultConfigData,
)
from syncd.core.events import Event, Origin
from syncd.core.model import ChangeKind, Entry, Grant, Known, Observation, Scope, State
from syncd.ledger.ledger import UNKNOWN_BOOT, Ledger
from syncd.ledger.received import Arrival
from syncd.ledger.state_dir import StateDir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

ALL = Grant()
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Book:
    """A ledger with its inventory, fed by versions: `None` is missing."""

    def __init__(self, directory: str, consumers: Mapping[str, Grant] | None = None) -> None:
        self.directory = directory
        self.consumers = {"hook": ALL} if consumers is None else consumers
        self.scans = 0
        self.open("boot")

    def open(self, boot_id: str = "boot") -> None:
        self.state = StateDir.open(self.directory)
        try:
            self.ledger = Ledger.open(self.state, boot_id)
        except BaseException:
            self.state.close()
            raise
        self.inventory: Mapping[str, Known] = self.ledger.inventory()

    def close(self) -> None:
        self.ledger.close()
        self.state.close()

    def crash(self) -> None:
        """Goes away without saying so, as by kill -9."""
        self.ledger._file._connection.close()
        self.state.close()

    def record(self, **versions: str | None) -> list[Event]:
        self.scans += 1
        entries = {
            name: Entry(name, f"/m/{name}", (Scope("Client", name),))
            for name in {*self.inventory, *versions}
        }
        seen = {
            name: Observation(State.MISSING)
            if version is None
            else Observation(State.PRESENT, f"k1:{version}")
            for name, version in versions.items()
        }
        at = f"2026-11-23T20:00:{self.scans % 60:02}.000Z"
        planned = plan(self.inventory, entries, seen, at)
        events = self.ledger.record(planned, self.inventory, "/vc.json", at, self.consumers)
        self.inventory = planned.inventory
        return [event for event in events if isinstance(event.data, SecretData)]

    def take(self, consumer: str = "hook", limit: int = 100) -> list[Event]:
        events = self.ledger.take(consumer, self.consumers[consumer], limit)
        return [event for event in events if isinstance(event.data, SecretData)]

    def drain(self, consumer: str = "hook") -> None:
        while events := self.ledger.take(consumer, self.consumers[consumer], 100):
            self.ledger.acknowledge(consumer, events)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(str(tmp_path / "state"))
    yield made
    try:
        made.close()
    except OSError:
        made.ledger.close()


def brief(event: Event) -> tuple[str, str, str | None, str | None]:
    assert isinstance(event.data, SecretData)
    data = event.data
    return data.secret, data.change.value, data.previous_version, data.version


def is_fresh(book: Book) -> bool:
    return book.ledger.fresh


def rebuilt(book: Book) -> str | None:
    return book.ledger.rebuilt


# what is remembered


def test_the_first_plan_is_a_baseline_without_events(book: Book) -> None:
    """An empty ledger learns in silence; what comes later is told."""
    assert is_fresh(book)
    assert book.record(a="1", b="2") == []
    assert not is_fresh(book)
    assert book.take() == []
    assert [brief(e) for e in book.record(a="9", b="2")] == [("a", "modified", "k1:1", "k1:9")]


def test_everything_is_there_after_a_clean_restart_and_after_a_kill(book: Book) -> None:
    """Inventory, mailboxes, sequences and epoch survive both."""
    book.record(a="1")
    book.record(a="2")
    epoch, inventory = book.ledger.epoch, dict(book.inventory)
    waiting = [brief(event) for event in book.take()]
    for end in (book.close, book.crash):
        end()
        book.open()
        assert (book.ledger.epoch, book.ledger.fresh, book.ledger.rebuilt) == (epoch, False, None)
        assert book.inventory == inventory
        assert [brief(event) for event in book.take()] == waiting
    first = book.ledger.span()[1]
    assert [event.sequence for event in book.record(a="3")] == [first + 1]


@pytest.mark.parametrize("count", [1, 49, 50, 51, 123])
def test_any_number_of_changes_at_once(book: Book, count: int) -> None:
    """Each is in the log, in order, whether or not they fill the last statement."""
    names = [f"s{number:03}" for number in range(count)]
    book.record(**dict.fromkeys(names, "1"))
    last = book.ledger.span()[1]
    events = book.record(**dict.fromkeys(names, "2"))
    assert [event.subject for event in events] == names
    assert book.ledger.events_after(last, 2 * count) == events
    assert book.ledger.span()[1] == last + count


def test_who_may_see_an_event_and_where_it_comes_from_are_kept(book: Book) -> None:
    """As text, beside events that have neither; an older syncd wrote bytes."""
    book.record(a="1")
    (own,) = book.record(a="2")
    scopes = {"b": (Scope("Client", "b"),)}
    data = VaultConfigData(("b",), (), (), ())
    events = [
        Event(0, "t", VAULT_CONFIG_CHANGED, "/vc.json", data, scopes),
        Event(0, "t", own.type, "a", own.data),
        Event(0, "t", own.type, "a", own.data, None, Origin("e-1", "/syncd/other")),
    ]
    kept = book.ledger.announce(events, {}, None, book.consumers)
    assert [msgspec.structs.replace(event, sequence=0) for event in kept] == events
    assert book.ledger.events_after(own.sequence, 9) == kept
    with book.ledger._file.transaction() as db:
        types = "SELECT DISTINCT typeof(data), typeof(audience) FROM event"
        assert db.execute(types).fetchall() == [("text", "text")]
        db.execute("UPDATE event SET data = CAST(data AS BLOB), audience = CAST(audience AS BLOB)")
    assert book.ledger.events_after(own.sequence, 9) == kept


def test_append_gives_the_next_sequence(book: Book) -> None:
    """An event from elsewhere takes its place in the order."""
    book.record(a="1")
    (last,) = book.record(a="2")
    extra = Event(0, "t", last.type, "a", last.data)
    assert book.ledger.append(extra, book.consumers).sequence == last.sequence + 1
    assert len(book.take()) == 1


def test_what_was_announced_of_a_fleet_is_kept(book: Book) -> None:
    """Together with its events; what is forgotten goes, and a mailbox knows what it replaced."""

    def converged(version: str, previous: str | None) -> Event:
        nobody: Any = ((), (), (), (), None, None, None)
        data = FleetData("s", Scope("Client"), version, previous, 1, 1, 0, *nobody)
        return Event(0, "t", SECRET_CONVERGED, "s", data)

    assert book.ledger.standings() == ({}, None)
    one, two = Standing("k1:2", "key"), Standing("k1:3", "key", since=2.0)
    (event,) = book.ledger.announce(
        [converged("k1:2", "k1:1")], {"s": one, "t": two}, "life", book.consumers
    )
    assert (event.sequence, book.ledger.standings()) == (1, ({"s": one, "t": two}, "life"))
    book.ledger.announce([], {"t": None}, None, book.consumers)
    again = converged("k1:2", "k1:2")  # the end of a divergence, before the first was delivered
    book.ledger.announce([again], {}, "other", book.consumers)
    assert book.ledger.standings() == ({"s": one}, "other")
    (pending,) = book.ledger.take("hook", ALL, 9)
    assert isinstance(pending.data, FleetData)
    assert (pending.sequence, pending.data.previous_version) == (2, "k1:1")
    book.ledger.announce([converged("k1:3", "k1:2")], {}, "other", book.consumers)
    book.ledger.acknowledge("hook", [pending])
    (newest,) = book.ledger.take("hook", ALL, 9)
    assert isinstance(newest.data, FleetData)
    assert newest.data.previous_version == "k1:2"


# epochs


@pytest.mark.parametrize(
    ("end", "boot_id", "same"),
    [
        ("close", "boot", True),
        ("close", "next boot", True),
        ("crash", "boot", True),
        ("crash", "next boot", False),
    ],
)
def test_an_epoch_ends_with_a_machine_that_went_down_uncleanly(
    book: Book, end: str, boot_id: str, *, same: bool
) -> None:
    """Only a power cut can have rolled sequences back."""
    epoch = book.ledger.epoch
    book.record(a="1")
    getattr(book, end)()
    book.open(boot_id)
    assert (book.ledger.epoch == epoch) is same


def test_an_unknown_boot_id_counts_as_a_power_cut(tmp_path: Path) -> None:
    """Where nobody can tell runs of the machine apart, an unclean close renews the epoch."""
    book = Book(str(tmp_path / "state"))
    book.close()
    book.open(UNKNOWN_BOOT)
    epoch = book.ledger.epoch
    book.crash()
    book.open(UNKNOWN_BOOT)
    assert book.ledger.epoch != epoch
    book.close()


def test_a_power_cut_right_after_a_clean_start_renews_the_epoch(book: Book) -> None:
    """That the ledger is open is in the file itself before any sequence: the log can be lost."""
    book.record(a="1")
    book.record(a="2")
    epoch = book.ledger.epoch
    book.close()
    book.open()
    given = book.record(a="3")[0].sequence
    path = f"{book.directory}/ledger.sqlite3"
    shutil.copy(path, f"{path}.disk")
    book.crash()
    for suffix in ("-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.unlink(path + suffix)
    os.replace(f"{path}.disk", path)
    book.open("next boot")
    assert book.record(a="4")[0].sequence == given
    assert book.ledger.epoch != epoch


# damage


def damage(path: str, how: str) -> None:
    if how == "truncated":
        os.truncate(path, os.path.getsize(path) // 2)
    elif how == "emptied":
        os.truncate(path, 0)
    elif how == "garbage":
        with open(path, "wb") as file:
            file.write(os.urandom(20_000))
    else:
        connection = sqlite3.connect(path)
        connection.executescript("DROP TABLE pending; CREATE TABLE other (x)")
        connection.close()


@pytest.mark.parametrize("how", ["truncated", "emptied", "garbage", "schema"])
@pytest.mark.parametrize("clean", [False, True])
def test_a_damaged_ledger_is_set_aside_and_said(book: Book, how: str, *, clean: bool) -> None:
    """Whatever is wrong with the file: a new baseline, a new epoch, and the reason."""
    for number in range(300):
        book.record(**{f"secret-{number}": "1"})
    book.drain()
    epoch = book.ledger.epoch
    (book.close if clean else book.crash)()
    path = f"{book.directory}/ledger.sqlite3"
    for suffix in ("-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.unlink(path + suffix)
    damage(path, how)
    book.open()
    assert rebuilt(book) in ("damaged", "emptied")
    assert is_fresh(book)
    assert book.ledger.epoch != epoch
    assert os.path.exists(f"{path}.set-aside")
    book.record(a="1")
    assert [brief(e) for e in book.record(a="2")] == [("a", "modified", "k1:1", "k1:2")]
    book.close()
    book.open()
    assert rebuilt(book) is None
    assert book.inventory["a"].version == "k1:2"


def test_damage_that_shows_late_is_looked_for_at_the_next_start(book: Book) -> None:
    """A page that turns out bad is an error now, and a rebuilt ledger after a restart."""
    for number in range(300):
        book.record(**{f"secret-{number}": "1"})
    book.close()
    path = f"{book.directory}/ledger.sqlite3"
    connection = sqlite3.connect(path)
    (page,) = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'secret'"
    ).fetchone()
    connection.close()
    with open(path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    state = StateDir.open(book.directory)
    ledger = Ledger.open(state, "boot")
    assert ledger.rebuilt is None
    with pytest.raises(StateError, match="it is damaged"):
        ledger.inventory()
    ledger.close()
    state.close()
    book.open()
    assert book.ledger.rebuilt == "damaged"


def test_a_page_of_an_earlier_time_is_damage(book: Book) -> None:
    """It is well-formed, and the index in it lacks rows of the table: as after a write got lost."""
    path = f"{book.directory}/ledger.sqlite3"
    book.record(a="1")
    book.record(a="2")
    book.close()
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'pending_event'"
        ).fetchone()
    with open(path, "rb") as file:
        file.seek((page - 1) * 4096)
        earlier = file.read(4096)
    book.open()
    book.record(b="1")
    book.close()
    with open(path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(earlier)
    book.open()
    assert rebuilt(book) is None
    found: list[StateError] = []
    book.ledger.call_if_damaged(found.append)
    with pytest.raises(StateError, match="it is damaged"):
        book.drain()
    assert ["it is damaged" in str(error) for error in found] == [True]
    book.close()
    book.open()
    assert rebuilt(book) == "damaged"


def test_a_newer_ledger_is_refused(book: Book) -> None:
    """What a newer version wrote is left alone."""
    book.record(a="1")
    book.close()
    path = f"{book.directory}/ledger.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = os.stat(path).st_size
    with pytest.raises(StateError, match="newer syncd"):
        book.open()
    assert os.stat(path).st_size == before
    assert not os.path.exists(f"{path}.set-aside")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    book.open()


@pytest.mark.parametrize("how", ["lost", "replaced"])
def test_another_key_means_another_baseline(book: Book, how: str) -> None:
    """Versions under another key are not comparable: nothing is announced but the rebuild."""
    book.record(a="1")
    book.close()
    key = f"{book.directory}/fingerprint.key"
    os.unlink(key)
    if how == "replaced":
        with open(key, "wb") as file:
            file.write(b"x" * 32)
    book.open()
    assert book.ledger.rebuilt == "fingerprint key replaced"
    assert is_fresh(book)


def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    """Use after closing is a StateError like every other trouble, and names no statement."""
    book = Book(str(tmp_path / "state"))
    book.close()
    with pytest.raises(StateError, match="cannot use the ledger") as refusal:
        book.ledger.pending()
    assert "SELECT" not in str(refusal.value)


# mailboxes


def test_newer_events_replace_older_ones(book: Book) -> None:
    """A consumer that was away gets the newest state, told against what it acknowledged."""
    book.record(a="0", b="0")
    for version in "123":
        book.record(a=version, b="0")
    book.record(a=None, b="1")
    assert [brief(e) for e in book.take()] == [
        ("a", "removed", "k1:0", None),
        ("b", "modified", "k1:0", "k1:1"),
    ]


def test_an_acknowledgement_that_comes_late_is_remembered(book: Book) -> None:
    """What was delivered while something newer came is the newer one's previous version."""
    book.record(a="0")
    book.record(a="1")
    delivered = book.take()
    book.record(a="2")
    book.ledger.acknowledge("hook", delivered)
    assert [brief(e) for e in book.take()] == [("a", "modified", "k1:1", "k1:2")]
    assert book.ledger.pending_count("hook") == 1
    assert book.ledger.pending()["hook"]["a"].acknowledged_version == "k1:1"


def test_a_limit_takes_the_oldest_first(book: Book) -> None:
    """Batches follow the sequence."""
    book.record(a="0", b="0", c="0")
    book.record(a="1", b="1", c="1")
    assert [e.subject for e in book.take(limit=2)] == ["a", "b"]


def test_a_grant_hides_secrets_and_names(tmp_path: Path) -> None:
    """A restricted consumer's mailbox holds what it may see, also of a vault config's change."""
    grants = {"all": ALL, "some": Grant([Scope("Client", "b")]), "none": Grant([])}
    book = Book(str(tmp_path / "state"), grants)
    book.record(a="0")
    book.record(a="1", b="1")
    names = {}
    for consumer, grant in grants.items():
        events = book.ledger.take(consumer, grant, 10)
        names[consumer] = [
            e.data.added if isinstance(e.data, VaultConfigData) else e.data.secret for e in events
        ]
    assert names == {"all": [("b",), "a", "b"], "some": [("b",), "b"], "none": []}
    book.close()


def test_types_of_events(tmp_path: Path) -> None:
    """A mailbox holds those that are wanted; others take none of them away."""
    changed, config = Grant(types=[SECRET_CHANGED]), Grant(types=[VAULT_CONFIG_CHANGED])
    book = Book(str(tmp_path / "state"), {"changed": changed, "config": config})
    book.record(a="0")
    book.record(a="1", b="1")
    book.record(a="2", b="1")
    assert [e.subject for e in book.ledger.take("changed", changed, 10)] == ["b", "a"]
    (event,) = book.ledger.take("config", config, 10)
    assert event.type == VAULT_CONFIG_CHANGED
    assert book.ledger.take("changed", config, 10) == []  # it was configured otherwise meanwhile
    _, last = book.ledger.span()
    assert book.ledger.resend("config", config, None, "2026-11-23T20:40:28.000Z") == ()
    assert book.ledger.span() == (0, last)
    book.close()


def test_a_narrowed_scope_empties_the_mailbox(tmp_path: Path) -> None:
    """Thousands of events that may not be seen any more are dropped, not recursed into."""
    book = Book(str(tmp_path / "state"))
    names = [f"s{number}" for number in range(2000)]
    book.record(**dict.fromkeys(names, "0"))
    book.record(**dict.fromkeys(names, "1"))
    assert book.ledger.pending_count("hook") == 2000
    grant = Grant([Scope("Client", "s1999")])
    assert [e.subject for e in book.ledger.take("hook", grant, 500)] == ["s1999"]
    assert book.ledger.take("hook", Grant([]), 1) == []
    assert book.ledger.pending_count("hook") == 0
    book.close()


def test_mailboxes_of_forgotten_consumers_go(tmp_path: Path) -> None:
    """Who left the configuration leaves no mail behind, and it is told how much there was."""
    book = Book(str(tmp_path / "state"), {"old": ALL, "new": ALL})
    book.record(a="0")
    book.record(a="1")
    assert book.ledger.forget_others(["new"]) == {"old": 1}
    assert (book.ledger.pending_count("old"), book.ledger.pending_count("new")) == (0, 1)
    book.close()


# the event log


def test_pruning_keeps_what_mailboxes_need(book: Book) -> None:
    """By number and by age; an event that waits for a consumer stays."""
    book.record(a="0", b="0")
    book.record(a="0", b="1")
    for version in range(1, 50):
        book.record(a=str(version))
    assert book.ledger.prune(5, "2000") == 44
    assert [brief(e) for e in book.take()] == [
        ("b", "modified", "k1:0", "k1:1"),
        ("a", "modified", "k1:0", "k1:49"),
    ]
    assert book.ledger.prune(0, "3000") == 4
    assert len(book.take()) == 2


@pytest.mark.parametrize(
    ("times", "older_than", "left"),
    [
        ("2026 2027 2028", "2027", ["2027", "2028"]),
        ("2026 2099 2028", "2030", ["2099", "2028"]),  # the clock was a life ahead, and set back
        ("2099 2026 2027", "2030", ["2099", "2026", "2027"]),
        ("2026 2026 2027", "2030", []),
    ],
)
def test_pruning_by_age_goes_by_the_order(
    book: Book, times: str, older_than: str, left: list[str]
) -> None:
    """An event goes with all that came before it, or not yet: the log has no holes."""
    book.record(a="0")
    (event,) = book.record(a="1")
    for time in times.split():
        book.ledger.append(msgspec.structs.replace(event, time=time), {})
    book.drain()
    book.ledger.prune(3, older_than)
    assert [e.time for e in book.ledger.events_after(0, 99)] == left


def test_a_long_log_waits_for_a_checkpoint(book: Book) -> None:
    """What a bulk pass wrote is moved into the database only when it is asked for."""
    many = {f"s{number}": "0" * 800 for number in range(4000)}
    book.record(**many)
    path, log = (f"{book.directory}/ledger.sqlite3{suffix}" for suffix in ("", "-wal"))
    book.ledger.checkpoint()
    before = os.path.getsize(path)
    book.record(**dict.fromkeys(many, "1" * 800))
    long = os.path.getsize(log)
    assert os.path.getsize(path) == before
    book.ledger.checkpoint()
    assert os.path.getsize(path) > before
    book.record(a="1")
    assert os.path.getsize(log) < long
    assert book.ledger.pending_count("hook") > len(many)


def test_a_position_among_pruned_events_is_outside_the_span(book: Book) -> None:
    """An old event that a mailbox still needs does not make the gap after it look whole."""
    book.record(a="0", b="0")
    (kept,) = book.record(b="1")
    assert book.ledger.span() == (0, 1)
    for version in range(1, 10):
        book.record(a=str(version))
    book.ledger.prune(3, "2000")
    first, last = book.ledger.span()
    assert kept.sequence < first
    assert [e.sequence for e in book.ledger.events_after(first, 99)] == [
        *range(first + 1, last + 1)
    ]
    book.close()
    book.open()
    assert book.ledger.span() == (first, last)
    book.drain()
    book.ledger.prune(0, "2000")
    assert book.ledger.span() == (last, last)


# coalescing, against a model

NAMES = ("a", "b", "c")
GRANTS = {
    "all": ALL,
    "some": Grant([Scope("Client", "a"), Scope("Client", "b")]),
    "one": Grant([Scope("Client", "c")]),
}
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("record"),
            st.dictionaries(st.sampled_from(NAMES), st.sampled_from([None, "1", "2", "3"])),
        ),
        st.tuples(st.just("take"), st.sampled_from(sorted(GRANTS)), st.integers(1, 3)),
        st.tuples(st.just("acknowledge"), st.sampled_from(sorted(GRANTS))),
        st.tuples(st.just("prune"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["close", "crash"])),
    ),
    max_size=30,
)


class Model:
    """What a consumer has been told and has acknowledged."""

    def __init__(self, baseline: Mapping[str, str | None]) -> None:
        self.acknowledged = dict(baseline)
        self.last_sequence = dict.fromkeys(NAMES, 0)
        self.in_flight: list[Event] = []

    def takes(self, events: list[Event]) -> None:
        self.in_flight = events
        assert [e.sequence for e in events] == sorted({e.sequence for e in events})
        for event in events:
            assert isinstance(event.data, SecretData)
            name, data = event.subject, event.data
            assert event.sequence >= self.last_sequence[name]
            self.last_sequence[name] = event.sequence
            assert data.previous_version == self.acknowledged[name]
            if data.version is None:
                assert data.change is ChangeKind.REMOVED
            elif data.previous_version is None:
                assert data.change is ChangeKind.ADDED
            else:
                assert data.change is ChangeKind.MODIFIED

    def acknowledges(self) -> list[Event]:
        events, self.in_flight = self.in_flight, []
        for event in events:
            assert isinstance(event.data, SecretData)
            self.acknowledged[event.subject] = event.data.version
        return events


class Play:
    """The ledger, the truth, and a model of every consumer."""

    def __init__(self, directory: str) -> None:
        self.book = Book(directory, GRANTS)
        self.truth: dict[str, str | None] = dict.fromkeys(NAMES)
        self.book.record(**self.truth)
        self.models = {consumer: Model(dict.fromkeys(NAMES)) for consumer in GRANTS}

    def record(self, versions: Mapping[str, str | None]) -> None:
        self.truth |= versions
        self.book.record(**self.truth)

    def take(self, consumer: str, limit: int) -> None:
        self.models[consumer].takes(self.book.take(consumer, limit))

    def acknowledge(self, consumer: str) -> None:
        self.book.ledger.acknowledge(consumer, self.models[consumer].acknowledges())

    def prune(self, most: int) -> None:
        self.book.ledger.prune(most, "2000")

    def close(self) -> None:
        self.restart(self.book.close)

    def crash(self) -> None:
        self.restart(self.book.crash)

    def restart(self, end: Callable[[], None]) -> None:
        end()
        self.book.open()
        for model in self.models.values():
            model.in_flight = []

    def finish(self) -> None:
        for consumer, model in self.models.items():
            while events := self.book.take(consumer, 2):
                model.takes(events)
                self.acknowledge(consumer)
            for name, version in self.truth.items():
                if GRANTS[consumer].sees([Scope("Client", name)]):
                    assert model.acknowledged[name] == (version and f"k1:{version}")
        self.book.close()


@settings(max_examples=60)
@given(steps=STEPS)
def test_whatever_happens_each_consumer_ends_at_the_newest_state(
    steps: list[tuple[object, ...]],
) -> None:
    """In order per secret, told against what was acknowledged last, and nothing is left out."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        play = Play(f"{directory}/state")
        for what, *arguments in steps:
            getattr(play, str(what))(*arguments)
        play.finish()


CLIENTS, PROVIDERS = Scope("Client"), Scope("IdentityProvider")


class Scoped:
    """A ledger whose one secret has a scope that can move."""

    def __init__(self, directory: str, grants: Mapping[str, Grant]) -> None:
        self.state = StateDir.open(directory)
        self.ledger = Ledger.open(self.state, "boot")
        self.grants = grants
        self.known: Mapping[str, Known] = {}

    def record(self, version: int, *scopes: Scope) -> list[Event]:
        entries = {"a": Entry("a", "/a", scopes), "b": Entry("b", "/b", (CLIENTS,))}
        seen = {name: Observation(State.PRESENT, f"k1:{version:02x}") for name in entries}
        planned = plan(self.known, entries, seen, "2026-01-01T00:00:00.000Z")
        events = self.ledger.record(
            planned, self.known, "/vault-config", "2026-01-01T00:00:00.000Z", self.grants
        )
        self.known = planned.inventory
        return events

    def waiting(self, consumer: str) -> list[tuple[str, object]]:
        events = self.ledger.take(consumer, self.grants[consumer], 10)
        return [(event.subject, getattr(event.data, "version", None)) for event in events]

    def close(self) -> None:
        self.ledger.close()
        self.state.close()


@pytest.fixture
def scoped(tmp_path: Path) -> Iterator[Scoped]:
    grants = {"clients": Grant([CLIENTS]), "providers": Grant([PROVIDERS]), "all": ALL}
    made = Scoped(str(tmp_path), grants)
    made.record(1, CLIENTS)
    yield made
    made.close()


@pytest.mark.parametrize("version", [2, 3], ids=["rescoped alone", "rescoped and rotated"])
def test_a_secret_that_leaves_the_scope_of_a_consumer(scoped: Scoped, version: int) -> None:
    """Its older event is not delivered any longer; that it has gone is, and all else."""
    scoped.record(2, CLIENTS)
    assert scoped.waiting("clients") == [("a", "k1:02"), ("b", "k1:02")]
    scoped.record(version, PROVIDERS)
    expected = [("b", f"k1:{version:02x}"), ("/vault-config", None)]
    assert sorted(scoped.waiting("clients")) == sorted(expected)
    assert ("a", f"k1:{version:02x}") in scoped.waiting("all")
    assert scoped.ledger.pending_count("clients") == 2


def test_a_secret_that_stays_in_the_scope_of_a_consumer(scoped: Scoped) -> None:
    """A scope that becomes narrower, or one more, within the consumer's takes nothing away."""
    scoped.record(2, CLIENTS)
    scoped.record(2, Scope("Client", "app"), PROVIDERS)
    assert ("a", "k1:02") in scoped.waiting("clients")


def test_an_adoption_leaves_with_its_secret(scoped: Scoped) -> None:
    """Everything that is pending of the secret goes."""
    data = AdoptionData("a", CLIENTS, "k1:01", "aidbox", 1.0, ())
    scoped.ledger.append(Event(0, "t", SECRET_ADOPTED, "a", data), scoped.grants)
    assert scoped.waiting("clients") == [("a", "k1:01")]
    scoped.record(1, PROVIDERS)
    assert scoped.waiting("clients") == [("/vault-config", None)]


def test_a_relayed_secret_that_leaves_the_scope(scoped: Scoped) -> None:
    """A relay learns the new scope with the next change, which takes the place of the older."""
    for position, scope in ((1, CLIENTS), (2, PROVIDERS)):
        data = SecretData("a", ChangeKind.ADDED, "/a", scope, f"k1:{position:02x}", None)
        origin = Origin(f"z-{position}", "/there")
        event = Event(0, "t", SECRET_CHANGED, "a", data, None, origin)
        scoped.ledger.receive([Arrival(event, position)], scoped.grants)
    assert scoped.waiting("clients") == []
    assert scoped.waiting("providers") == [("a", "k1:02")]


def test_a_ledger_that_is_full(book: Book) -> None:
    """It says so, empties its log, and has room again when it is pruned."""
    with book.ledger._file.held() as db:
        db.execute("PRAGMA max_page_count = 60")
    secrets = [f"s{number}" for number in range(20)]

    def fill() -> None:
        for turn in range(1000):
            book.record(**dict.fromkeys(secrets, str(turn)))

    with pytest.raises(StateError, match="the disk is full; free disk space"):
        fill()
    states = [book.ledger.is_full]
    assert os.path.getsize(f"{book.directory}/ledger.sqlite3-wal") == 0
    full = os.path.getsize(f"{book.directory}/ledger.sqlite3")
    assert book.ledger.prune(5, "") > 100
    assert os.path.getsize(f"{book.directory}/ledger.sqlite3") < full / 2
    book.record(**dict.fromkeys(secrets, "new"))
    states.append(book.ledger.is_full)
    assert states == [True, False]
    first, last = book.ledger.span()
    assert first < last
