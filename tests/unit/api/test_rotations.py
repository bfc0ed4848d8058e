"""The history of rotations, from what the ledger and the consumers know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec import UNSET
from msgspec.structs import replace
from support.mail import NOW, TIME, Mail, change, version

from syncd.api.rotations import HistoryReport, history_report
from syncd.api.subscribers import View
from syncd.core.event_data import (
    DESTINATION_RECREATED,
    DESTINATION_STALE,
    SECRET_ADOPTED,
    SECRET_REJECTED,
    AdoptionData,
    DestinationData,
    ReplicaData,
)
from syncd.core.events import Event, Origin, Stamp
from syncd.core.model import Grant, Scope
from syncd.core.record import Record
from syncd.core.timing import rfc3339
from syncd.ledger.received import Arrival

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STAMP = Stamp("e", "/syncd/host")
APP, OTHER = Scope("Client", "app"), Scope("Client", "other")


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path), {"hook": Grant(), "aidbox": Grant(), "aidbox/verify": Grant()})
    yield mail
    mail.close()


def verified(name: str, number: int, *, adopted: bool) -> Event:
    reason = None if adopted else "it answered 401"
    replica = ReplicaData("http://a:1", adopted, 0.5 if adopted else None, reason)
    data = AdoptionData(name, APP, version(number), "aidbox", 0.5, (replica,))
    type_ = SECRET_ADOPTED if adopted else SECRET_REJECTED
    return Event(0, rfc3339(NOW + 9), type_, name, data, {name: (APP,)})


def report(
    mail: Mail,
    grant: Grant | None = None,
    names: list[str] | None = None,
    *,
    unwritten: dict[str, list[Record]] | None = None,
    consumer: str | None = None,
    most: int = 9,
) -> HistoryReport:
    grant = grant or Grant()
    return history_report(
        mail.ledger,
        View(grant),
        names,
        unwritten or {},
        stamp=STAMP,
        limited=grant.scopes is not None,
        consumer=consumer,
        most=most,
    )


def lines(found: HistoryReport) -> list[tuple[str, list[str], list[str]]]:
    return [
        (
            item.secret,
            list(item.pending),
            [f"{e.consumer} {e.outcome} {e.attempts} {e.status} {e.reason}" for e in item.entries],
        )
        for item in found.rotations
    ]


def fill(mail: Mail) -> None:
    """Two rotations of a secret, the first delivered and not adopted, and one of another."""
    ledger = mail.ledger
    first = ledger.append(change("a", 2, 1), mail.grants)
    failed = Record(1, NOW + 1, NOW + 3, 4, "retried", 503, "it answered 503")
    ledger.acknowledge("hook", [first], [failed, Record(1, NOW + 4, NOW + 4, 1, "delivered", 204)])
    ledger.append(verified("a", 2, adopted=False), {})
    ledger.append(change("a", 3, 2), mail.grants)
    ledger.append(verified("a", 3, adopted=True), {})
    ledger.append(change("b", 2, 1, OTHER), mail.grants)


def test_what_became_of_each(mail: Mail) -> None:
    """Attempts in order, the result of the verification, and who has yet to acknowledge it."""
    fill(mail)
    pending = Record(3, NOW + 5, NOW + 5, 1, "rejected", 400, "it answered 400")
    found = report(mail, unwritten={"hook": [pending]})
    assert lines(found) == [
        (
            "a",
            [],  # aidbox has a newer one to acknowledge
            [
                "hook retried 4 503 it answered 503",
                "hook delivered 1 204 None",
                "aidbox not_adopted 1 None http://a:1: it answered 401",
            ],
        ),
        (
            "a",
            ["aidbox", "hook"],
            ["hook rejected 1 400 it answered 400", "aidbox adopted 1 None None"],
        ),
        ("b", ["aidbox", "hook"], []),
    ]
    first = found.rotations[0]
    assert (first.event, first.detected_at, first.source) == ("e-1", TIME, UNSET)
    assert (first.previous_version, first.version) == (version(1), version(2))
    assert [(e.at, e.until) for e in first.entries[:2]] == [
        (rfc3339(NOW + 1), rfc3339(NOW + 3)),
        (rfc3339(NOW + 4), rfc3339(NOW + 4)),
    ]


def test_destinations(mail: Mail) -> None:
    """That one was recreated, or why it still uses the old secret."""
    first = mail.ledger.append(change("a", 2, 1), {})
    for id_, reason in (("one", None), ("two", "its senders do not start")):
        scope = Scope("AidboxTopicDestination", id_)
        data = DestinationData("a", scope, version(2), "aidbox", 1.0, reason, ())
        type_ = DESTINATION_STALE if reason else DESTINATION_RECREATED
        mail.ledger.append(Event(0, TIME, type_, "a", data, {"a": (APP,)}), {})
    assert first.sequence == 1
    assert lines(report(mail)) == [
        (
            "a",
            [],
            [
                "aidbox recreated 1 None None",
                "aidbox stale 1 None AidboxTopicDestination/two: its senders do not start",
            ],
        )
    ]


def test_what_was_asked_for(mail: Mail) -> None:
    """Some secrets, one consumer, the newest so many."""
    fill(mail)
    assert [item.event for item in report(mail, most=2).rotations] == ["e-3", "e-5"]
    assert [item.event for item in report(mail, names=["b"]).rotations] == ["e-5"]
    assert lines(report(mail, consumer="aidbox"))[0] == (
        *("a", [], ["aidbox not_adopted 1 None http://a:1: it answered 401"]),
    )
    assert report(mail, consumer="none").rotations == ()


def test_a_record_that_has_gone_on(mail: Mail) -> None:
    """What is newer takes the place of what was written of it."""
    fill(mail)
    failed = Record(3, NOW + 5, NOW + 5, 1, "retried", None, "away")
    mail.ledger.acknowledge("hook", (), [failed], delivered=False)
    later = replace(failed, attempts=3)
    (entry,) = report(mail, unwritten={"hook": [later]}, consumer="hook").rotations[1].entries
    assert entry.attempts == 3


def test_a_limited_caller(mail: Mail) -> None:
    """Its own secrets, what was delivered and adopted, and nothing that depends on others."""
    fill(mail)
    found = report(mail, Grant([APP]), names=["a"])
    assert lines(found) == [
        ("a", [], ["hook delivered 1 None None", "aidbox not_adopted 1 None None"]),
        ("a", ["aidbox", "hook"], ["aidbox adopted 1 None None"]),
    ]
    assert {item.event for item in found.rotations} == {None}
    assert report(mail, Grant([OTHER]), names=["a"]).rotations == ()


def test_at_a_relay(mail: Mail) -> None:
    """The installation that has the secret, and the id of the event there."""
    origin = Origin("k-7", "/syncd/other")
    event = replace(change("a", 2, 1), origin=origin)
    mail.ledger.receive([Arrival(event, 5)], mail.grants)
    (found,) = report(mail).rotations
    assert (found.event, found.source, found.pending) == ("k-7", "/syncd/other", ("aidbox", "hook"))


def test_without_rotations(mail: Mail) -> None:
    """Nothing happened yet."""
    assert report(mail).rotations == ()
