"""Attempts in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.mail import Mail, change

from syncd.core.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from syncd.core.events import Event


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path))
    yield mail
    mail.close()


def delivered(sequence: int, at: float = 1.0) -> Record:
    return Record(sequence, at, at, 1, "delivered", 204)


def put(mail: Mail, *names: str) -> list[Event]:
    return [mail.ledger.append(change(name, 2, 1), mail.grants) for name in names]


def test_written_again(mail: Mail) -> None:
    """A record that has gone on takes its own place; without an event nothing is proven."""
    mail.ledger.proven({"hook": "address"})
    first = Record(1, 1.0, 1.0, 1, "retried", 503, "busy")
    mail.ledger.acknowledge("hook", (), [first], delivered=False)
    later = Record(1, 1.0, 9.0, 4, "retried", 503, "busy")
    mail.ledger.acknowledge("hook", (), [later, delivered(1, 9.5)], delivered=False)
    assert mail.ledger.attempts([1, 2]) == {1: {"hook": [later, delivered(1, 9.5)]}}
    assert mail.ledger.proven({"hook": "address"}) == set()


def test_they_leave_with_their_event(mail: Mail) -> None:
    """One that is pending stays in the log, and so do its attempts."""
    events = put(mail, "a", "b", "c")
    failed = Record(1, 1.0, 1.0, 1, "retried", None, "away")
    mail.ledger.acknowledge("hook", events[1:], [failed, delivered(2), delivered(3)])
    assert mail.ledger.prune(1, "") == 1
    assert mail.ledger.attempts([1, 2, 3]) == {1: {"hook": [failed]}, 3: {"hook": [delivered(3)]}}


def test_changes_and_what_came_of_them(mail: Mail) -> None:
    """The newest ones, oldest first, of all secrets or of some."""
    put(mail, "a", "b", "a", "c")
    ledger = mail.ledger
    assert [event.sequence for event in ledger.changes(None, 3)] == [2, 3, 4]
    assert [event.sequence for event in ledger.changes(["a", "none"], 9)] == [1, 3]
    assert ledger.changes([], 9) == []
    assert ledger.outcomes(["a"], 0) == []


def test_a_full_volume_keeps_no_attempts(mail: Mail) -> None:
    """An acknowledgement, which gives room back, comes first."""
    (event,) = put(mail, "a")
    mail.ledger._room.is_full = True
    mail.ledger.acknowledge("hook", [event], [delivered(1)])
    assert mail.ledger.attempts([1]) == {}
    assert mail.ledger.pending_count("hook") == 0
