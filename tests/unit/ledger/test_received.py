"""What a relay's ledger makes of events of other installations: once, in order, newest state."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from support.mail import TIME, Mail, change, version

from syncd.core.errors import StateError
from syncd.core.event_data import VAULT_CONFIG_CHANGED, SecretData, VaultConfigData
from syncd.core.events import Event, Origin
from syncd.core.model import Grant, Scope, State
from syncd.core.record import Record
from syncd.ledger import received
from syncd.ledger.ledger import Ledger
from syncd.ledger.received import Arrival
from syncd.ledger.state_dir import StateDir

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ALL = {"hook": Grant()}


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path / "state"))
    yield mail
    mail.close()


def arrival(
    position: int,
    now: int | None,
    before: int | None,
    *,
    name: str = "a",
    source: str = "/syncd/n1",
) -> Arrival:
    event = change(name, now, before)
    return Arrival(msgspec.structs.replace(event, origin=Origin(f"e-{position}", source)), position)


def told(events: Sequence[Event]) -> list[tuple[str, str | None, str | None]]:
    return [
        (event.origin.id, event.data.previous_version, event.data.version)
        for event in events
        if event.origin is not None and isinstance(event.data, SecretData)
    ]


def test_an_event_is_passed_on_as_it_came(mail: Mail) -> None:
    """With id, source and time of where it was made, under a sequence of our own."""
    sent = arrival(9, 2, 1)
    (taken,) = mail.ledger.receive([sent], ALL).events
    assert taken == msgspec.structs.replace(sent.event, sequence=1)
    assert mail.ledger.take("hook", Grant(), 9) == [taken]
    assert mail.ledger.events_after(0, 9) == [taken]


def test_what_comes_again_is_left_out(mail: Mail) -> None:
    """By its place in the stream, and by its id where it was published twice."""
    mail.ledger.receive([arrival(1, 2, 1), arrival(2, 3, 2)], ALL)
    again = Arrival(arrival(2, 3, 2).event, 7)
    assert mail.ledger.receive([arrival(1, 2, 1), arrival(2, 3, 2), again], ALL).events == []


def test_what_comes_late_does_not_undo_what_is_newer(mail: Mail) -> None:
    """A message lost on its way comes again after later ones."""
    mail.ledger.receive([arrival(2, 3, 2), arrival(3, 1, None, name="b")], ALL)
    assert mail.ledger.receive([arrival(1, 2, 1)], ALL).events == []
    (late,) = mail.ledger.receive([arrival(1, 5, 4, name="c")], ALL).events
    assert late.subject == "c"


def test_what_was_made_earlier_comes_late_wherever_it_is_stored(mail: Mail) -> None:
    """A server that was cut off stores it after its successor; another ledger counts anew."""
    mail.ledger.receive([arrival(2, 3, 2)], ALL)
    earlier = arrival(1, 2, 1).event
    assert mail.ledger.receive([Arrival(earlier, 9)], ALL).events == []
    anew = msgspec.structs.replace(earlier, origin=Origin("f-1", "/syncd/n1"))
    assert told(mail.ledger.receive([Arrival(anew, 10)], ALL).events) == [
        ("f-1", version(3), version(2))
    ]


def test_two_installations_may_use_one_name(mail: Mail) -> None:
    """Each has its own place in mailboxes and inventory."""
    mail.ledger.receive([arrival(1, 2, 1), arrival(2, 3, 2, source="/syncd/n2")], ALL)
    assert len(mail.ledger.take("hook", Grant(), 9)) == 2
    assert {key: known.version for key, known in mail.ledger.received().items()} == {
        "/syncd/n1 a": version(2),
        "/syncd/n2 a": version(3),
    }
    assert list(mail.ledger.pending()["hook"]) == ["/syncd/n1 a", "/syncd/n2 a"]


def test_a_consumer_that_was_away_gets_the_newest_against_what_it_has(mail: Mail) -> None:
    """Also where the stream dropped what lay between."""
    mail.ledger.receive([arrival(1, 2, 1)], ALL)
    mail.ledger.acknowledge("hook", mail.ledger.take("hook", Grant(), 9))
    mail.ledger.receive([arrival(5, 7, 6)], ALL)
    assert told(mail.ledger.take("hook", Grant(), 9)) == [("e-5", version(2), version(7))]
    mail.ledger.receive([arrival(6, None, 7)], ALL)
    assert told(mail.ledger.take("hook", Grant(), 9)) == [("e-6", version(2), None)]
    assert mail.ledger.received()["/syncd/n1 a"].state is State.MISSING


def test_changes_of_vault_configs_are_each_told_once(mail: Mail) -> None:
    """They do not supersede each other, and only who may see everything gets them."""
    data = VaultConfigData(("a",), (), (), ())
    events = [
        Event(
            0, "2026-11-23T20:40:28.333Z", VAULT_CONFIG_CHANGED, "/v", data, {}, Origin(id_, "/s")
        )
        for id_ in ("e-1", "e-2", "e-1")
    ]
    arrivals = [Arrival(event, n) for n, event in enumerate(events, 1)]
    some = {**ALL, "some": Grant([Scope("Client")])}
    assert len(mail.ledger.receive(arrivals, some).events) == 2
    assert (mail.ledger.pending_count("hook"), mail.ledger.pending_count("some")) == (2, 0)
    assert mail.ledger.received() == {}


def test_where_to_go_on(mail: Mail) -> None:
    """The past of the first stream is not told; a stream made anew is told from its beginning."""
    assert mail.ledger.follow("s one", 40) == 40
    mail.ledger.receive([arrival(44, 2, 1)], ALL)
    assert mail.ledger.follow("s one", 50) == 40
    assert mail.ledger.follow("s two", 3) == 0
    (event,) = mail.ledger.receive([Arrival(arrival(45, 3, 2).event, 1)], ALL).events
    assert told([event]) == [("e-45", version(2), version(3))]


INDEX = "CREATE INDEX event_time ON event (time)"
NO_RECORDS = "DROP TABLE attempt"
NO_EXTRA = "ALTER TABLE secret DROP COLUMN extra"
NO_ORIGIN = "ALTER TABLE event DROP COLUMN origin; DROP TABLE received"


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        (1, [NO_EXTRA, NO_RECORDS, INDEX, NO_ORIGIN]),
        (2, [NO_EXTRA, NO_RECORDS, INDEX]),
        (3, [NO_EXTRA, NO_RECORDS]),
        (4, [NO_EXTRA]),
    ],
)
def test_a_ledger_of_a_version_before_is_taken_over(
    tmp_path: Path, version: int, changes: list[str]
) -> None:
    """With its events, and who may see them, and mailboxes."""
    mail = Mail(str(tmp_path))
    mail.ledger.append(change("a", 2, 1), ALL)
    mail.close()
    audience = '{"a":[{"resource_type":"Client","id":"other"}]}'
    script = [f"UPDATE event SET audience = '{audience}'", *changes]
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as old:
        old.executescript("; ".join([*script, f"PRAGMA user_version = {version}"]))
    state = StateDir.open(str(tmp_path))
    ledger = Ledger.open(state, "boot")
    assert ledger.rebuilt is None
    (event,) = ledger.take("hook", Grant(), 9)
    assert (event.subject, event.origin) == ("a", None)
    assert event.audience == {"a": (Scope("Client", "other"),)}
    assert ledger.receive([arrival(1, 2, 1)], ALL).events
    ledger.acknowledge("hook", [event], [Record(1, 5.0, 5.0, 1, "delivered", 204)])
    assert ledger.attempts([1]) == {1: {"hook": [Record(1, 5.0, 5.0, 1, "delivered", 204)]}}
    ledger.close()
    state.close()


@settings(max_examples=60)
@given(st.data())
def test_in_whatever_order_and_however_often(data: st.DataObject) -> None:
    """The state that consumers end up with is the stream's, and no event is told twice."""
    stream = []
    current: dict[tuple[str, str], int | None] = {}
    for position in range(1, data.draw(st.integers(1, 15)) + 1):
        where = data.draw(st.sampled_from([("a", "/s/1"), ("a", "/s/2"), ("b", "/s/1")]))
        now = data.draw(st.none() | st.integers(1, 9))
        name, source = where
        stream.append(arrival(position, now, current.get(where), name=name, source=source))
        current[where] = now
    with tempfile.TemporaryDirectory() as directory, closing(Mail(directory)) as mail:
        ids: list[str] = []
        state: dict[tuple[str, str], str | None] = {}

        def deliver() -> None:
            events = mail.ledger.take("hook", Grant(), 2)
            for event in events:
                assert event.origin is not None
                assert isinstance(event.data, SecretData)
                ids.append(event.origin.id)
                assert event.data.previous_version == state.get(
                    (event.subject, event.origin.source), event.data.previous_version
                )
                state[event.subject, event.origin.source] = event.data.version
            mail.ledger.acknowledge("hook", events)

        for _ in range(data.draw(st.integers(0, 4))):
            mail.ledger.receive(data.draw(st.lists(st.sampled_from(stream), max_size=6)), ALL)
            if data.draw(st.booleans()):
                deliver()
        mail.ledger.receive(data.draw(st.permutations(stream)), ALL)
        while mail.ledger.pending_count("hook"):
            deliver()
        assert len(ids) == len(set(ids))
        assert state == {k: None if v is None else version(v) for k, v in current.items()}


def names(mail: Mail) -> list[str]:
    return sorted(known.entry.name for known in mail.ledger.received().values())


def test_more_secrets_than_there_is_room_for(mail: Mail) -> None:
    """They are refused and counted, whatever their number; those that are known go on."""
    known = [arrival(1, 1, None, name="a"), arrival(2, 1, None, name="b")]
    receipt = mail.ledger.receive(known, ALL, 2)
    assert (len(receipt.events), receipt.refused) == (2, 0)
    crowd = [arrival(number, 1, None, name=f"x{number}") for number in range(3, 50)]
    receipt = mail.ledger.receive([*crowd, arrival(60, 2, 1, name="a")], ALL, 2)
    assert told(receipt.events) == [("e-60", version(1), version(2))]
    assert (receipt.refused, receipt.forgotten) == (47, [])
    assert names(mail) == ["a", "b"]
    assert mail.ledger.pending_count("hook") == 2


def test_a_removed_secret_makes_room(mail: Mail) -> None:
    """The one that was removed first; it is known anew when it comes again."""
    first = [arrival(1, 1, None, name="a"), arrival(2, 1, None, name="b")]
    mail.ledger.receive([*first, arrival(3, None, 1, name="b"), arrival(4, None, 1)], ALL, 2)
    receipt = mail.ledger.receive([arrival(5, 1, None, name="c")], ALL, 2)
    assert (receipt.forgotten, receipt.refused) == (["/syncd/n1 b"], 0)
    assert names(mail) == ["a", "c"]
    receipt = mail.ledger.receive([arrival(6, 1, None, name="b")], ALL, 2)
    assert receipt.forgotten == ["/syncd/n1 a"]
    assert mail.ledger.receive([arrival(7, 1, None, name="d")], ALL, 2).refused == 1
    assert len(mail.ledger.receive([arrival(7, 1, None, name="d")], ALL, 3).events) == 1


def test_room_is_counted_anew_after_an_error(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was rolled back takes no room."""

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError

    with monkeypatch.context() as patch:
        patch.setattr(mail.ledger, "_append", fail)
        for _ in range(3):
            with pytest.raises(StateError):
                mail.ledger.receive([arrival(1, 1, None)], ALL, 1)
    assert len(mail.ledger.receive([arrival(1, 1, None)], ALL, 1).events) == 1


def test_other_events_are_forgotten(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of changes of vault configs only the latest are remembered, those that can come again."""
    monkeypatch.setattr(received, "MOST_OTHERS", 10)
    data = VaultConfigData(("a",), (), (), ())

    def other(position: int) -> Arrival:
        origin = Origin(f"e-{position}", "/syncd/n1")
        return Arrival(Event(0, TIME, VAULT_CONFIG_CHANGED, "/v", data, None, origin), position)

    mail.ledger.receive([arrival(1, 1, None)], ALL)
    for position in range(2, 100):
        assert len(mail.ledger.receive([other(position)], ALL).events) == 1
        assert mail.ledger.receive([other(position)], ALL).events == []
    with mail.ledger._file.held() as db:
        (count,) = db.execute("SELECT count(*) FROM received WHERE data IS NULL").fetchone()
    assert 10 <= count <= 20
    assert mail.ledger.receive([other(95)], ALL).events == []
    assert names(mail) == ["a"]
