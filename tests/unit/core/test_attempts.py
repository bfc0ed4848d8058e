"""syncd.core.attempts: what is reported, and when the next attempt is due."""

from __future__ import annotations

from random import Random

import pytest

from syncd.core.attempts import Attempts
from syncd.core.errors import RefusedError, StateError, SyncdError, TemporaryError
from syncd.core.health import Health
from syncd.core.timing import Backoff


def test_warnings_get_rarer_while_a_failure_lasts() -> None:
    """Of ten failures the first, second, fourth and eighth are news."""
    attempts, rng = Attempts(), Random(1)
    news = [number for number in range(1, 11) if attempts.retry("down", rng).is_news]
    assert news == [1, 2, 4, 8]
    assert attempts.failures == 10
    assert not attempts.is_refused


def test_an_error_is_news_once_for_each_reason() -> None:
    """A second reason is reported although the first one was."""
    attempts, rng = Attempts(), Random(1)
    news = [attempts.refuse(reason, rng).is_news for reason in ("a", "a", "b", "a", "b")]
    assert news == [True, False, True, False, False]
    assert attempts.is_refused


@pytest.mark.parametrize(
    ("error", "needs_a_person"),
    [
        (TemporaryError("down"), False),
        (StateError("full"), False),
        (RefusedError("no", "ask"), True),
        (SyncdError("a bug"), True),
    ],
)
def test_an_error_decides_whether_it_may_heal(error: SyncdError, needs_a_person: bool) -> None:
    """A bug needs a person as much as a refusal."""
    attempts = Attempts()
    attempts.fail(error, Random(1))
    assert (attempts.last_error, attempts.is_refused) == (str(error), needs_a_person)


def test_a_refusal_waits_by_the_backoff_or_at_its_cap() -> None:
    """A rejection is tried again at the cap from the first failure on."""
    rng = Random(1)
    assert Attempts(Backoff(1.0, 60.0)).refuse("no", rng).delay <= 1.0
    assert Attempts(Backoff(1.0, 60.0)).refuse("no", rng, at_cap=True).delay >= 30.0


def test_the_other_side_decides_how_long_to_wait_at_least() -> None:
    """`Retry-After` is honoured beyond the cap."""
    assert Attempts().retry("busy", Random(1), at_least=90.0).delay == 90.0


def test_a_success_forgets_the_failures() -> None:
    """After a success the same reason is news again."""
    attempts, rng = Attempts(), Random(1)
    attempts.refuse("no", rng)
    attempts.schedule(10.0, 2.5)
    assert attempts.health == Health(None, "no", 1, "1970-01-01T00:00:12.500Z")
    assert attempts.succeed(20.0) == 1
    attempts.next_attempt_at = None
    assert attempts.health == Health("1970-01-01T00:00:20.000Z", None, 0, None)
    assert attempts.refuse("no", rng).is_news
