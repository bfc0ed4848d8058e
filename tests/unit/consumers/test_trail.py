"""Attempts on their way to the ledger."""

from __future__ import annotations

from msgspec.structs import replace
from support.mail import change

from syncd.consumers.trail import MOST, Trail
from syncd.core.record import Record

A = replace(change("a", 2, 1), sequence=1)
NEWER = replace(change("a", 3, 2), sequence=3)
B = replace(change("b", 2, 1), sequence=2)


def test_failures_alike_are_one_record() -> None:
    """Of one event, for one reason; another reason, or event, is another record."""
    trail = Trail()
    for now in (1.0, 2.0, 4.0):
        trail.failed([A, B], "retried", 503, "busy", now)
    trail.failed([A], "rejected", 400, "bad", 5.0)
    trail.failed([NEWER], "rejected", 400, "bad", 6.0)
    trail.delivered([B], 204, 7.0)
    trail.failed([B], "retried", 503, "busy", 8.0)  # sent again
    assert trail.pending() == (
        Record(1, 1.0, 4.0, 3, "retried", 503, "busy"),
        Record(2, 1.0, 4.0, 3, "retried", 503, "busy"),
        Record(1, 5.0, 5.0, 1, "rejected", 400, "bad"),
        Record(3, 6.0, 6.0, 1, "rejected", 400, "bad"),
        Record(2, 7.0, 7.0, 1, "delivered", 204),
        Record(2, 8.0, 8.0, 1, "retried", 503, "busy"),
    )


def test_a_record_goes_on_after_it_was_written() -> None:
    """It is written again, under the same name, and what the writer has does not change."""
    trail = Trail()
    trail.failed([A], "retried", None, "away", 1.0)
    (written,) = trail.take()
    assert trail.pending() == ()
    trail.failed([A], "retried", None, "away", 2.0)
    assert trail.pending() == (Record(1, 1.0, 2.0, 2, "retried", None, "away"),)
    assert written.attempts == 1
    # what could not be written does not take the place of what is newer
    trail.put_back([written, Record(2, 1.0, 1.0, 1, "delivered", 204)])
    assert [(item.sequence, item.attempts) for item in trail.take()] == [(1, 2), (2, 1)]
    trail.calm()
    trail.failed([A], "retried", None, "away", 3.0)
    assert trail.take() == (Record(1, 3.0, 3.0, 1, "retried", None, "away"),)


def test_an_event_that_fails_for_ever() -> None:
    """For a new reason each time: the last record takes all that follows."""
    trail = Trail()
    for number in range(3 * MOST):
        trail.failed([A], "retried", number, f"reason {number}", float(number))
    found = trail.take()
    assert len(found) == MOST
    assert sum(item.attempts for item in found) == 3 * MOST
    assert (found[-1].reason, found[-1].until) == (f"reason {3 * MOST - 1}", 3.0 * MOST - 1)


def test_two_records_at_one_time() -> None:
    """They are told apart although the clock did not move."""
    trail = Trail()
    trail.failed([A], "retried", None, "away", 1.0)
    trail.delivered([A], 204, 1.0)
    assert [item.outcome for item in trail.take()] == ["retried", "delivered"]
