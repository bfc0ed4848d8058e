"""Adoption: whose secret can be tried, and what an answer proves."""

from __future__ import annotations

import pytest

from syncd.core.adoption import (
    ATTEMPTS,
    LONGEST_PAUSE,
    NOT_VERIFIABLE,
    Adoption,
    AdoptionState,
    Trial,
    accepts,
    adoption_of,
    client_of,
    judge,
    mailbox_of,
    plan_attempts,
)
from syncd.core.model import Entry, Known, Scope, State

APP = Scope("Client", "app")


@pytest.mark.parametrize(
    ("scopes", "client"),
    [
        ((APP,), "app"),
        ((Scope("Client"),), None),
        ((Scope("TokenIntrospector", "app"),), None),
        ((APP, Scope("Client", "other")), None),
        ((), None),
    ],
)
def test_only_the_secret_of_one_client_can_be_tried(
    scopes: tuple[Scope, ...], client: str | None
) -> None:
    """The scope names whom to authenticate as."""
    assert client_of(scopes) == client


@pytest.mark.parametrize("status", [200, 204, 400, 403, 404, 405, 422])
def test_an_answer_to_known_credentials(status: int) -> None:
    """Whatever is said after authentication proves it, a denial by policy too."""
    assert accepts(status) is True


def test_unknown_credentials() -> None:
    """401 is the one answer that says so."""
    assert accepts(401) is False


@pytest.mark.parametrize("status", [100, 301, 302, 307, 408, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_proves_nothing(status: int) -> None:
    """Whoever gave it may not have looked at the credentials."""
    assert accepts(status) is None


def known(*scopes: Scope, version: str | None = "k1:02") -> Known:
    return Known(Entry("app", "/m/app", scopes), State.PRESENT, version, None, None)


def test_what_is_known_of_the_present_version() -> None:
    """What was found out about another version says nothing; another scope cannot be verified."""
    adopted = Adoption(AdoptionState.ADOPTED, "k1:02", 0.4)
    assert adoption_of(known(APP), {"app": adopted}) is adopted
    assert adoption_of(known(APP, version="k1:03"), {"app": adopted}) is None
    assert adoption_of(known(APP), {}) is None
    assert adoption_of(known(Scope("Client")), {"app": adopted}) is NOT_VERIFIABLE
    file = Known(Entry("app", "/m/app", (APP,), extra=True), State.PRESENT, "k1:02", None, None)
    assert adoption_of(file, {"app": adopted}) is None


def test_the_mailbox_is_nobody_elses() -> None:
    """A name of a consumer has no slash."""
    assert mailbox_of("aidbox") == "aidbox/verify"


@pytest.mark.parametrize("timeout", [0.05, 1.0, 60.0, 3600.0])
@pytest.mark.parametrize("attempts", [2, 5, ATTEMPTS])
def test_attempts_are_few_and_spread_out(timeout: float, attempts: int) -> None:
    """The last one is at the end, and pauses grow."""
    plan = plan_attempts(timeout, attempts)
    assert len(plan) == attempts <= 10
    assert plan[0] <= 0.1
    assert plan[-1] == timeout
    assert list(plan) == sorted(plan)


def refuse(trial: Trial, now: float, times: int) -> float:
    """Refuses at each time that an attempt is due; returns the last time."""
    for _ in range(times):
        now = max(now, trial.due)
        trial.refuse(now, "it answers 401")
    return now


def test_a_replica_that_always_answers() -> None:
    """It has its time and no more; afterwards attempts get rare."""
    trial = Trial.begin(1000.0, plan_attempts(60.0))
    now = refuse(trial, 0.0, 9)
    assert not trial.is_exhausted
    assert judge([trial], now) is AdoptionState.PENDING
    now = refuse(trial, now, 1)
    assert now == pytest.approx(1060.1)
    assert judge([trial], now) is AdoptionState.REJECTED
    pauses = []
    for _ in range(40):
        pauses.append(trial.due - now)
        now = refuse(trial, now, 1)
    assert pauses[:3] == pytest.approx([60.0, 120.0, 240.0])
    assert max(pauses) == pytest.approx(LONGEST_PAUSE)
    trial.accept(5000.0)
    assert judge([trial], now) is AdoptionState.ADOPTED


def test_time_without_an_answer_does_not_count() -> None:
    """A replica that starts for an hour, answers, and is away again, still has all of its time."""
    trial = Trial.begin(0.0, plan_attempts(60.0))
    now = 0.0
    while now < 3600.0:
        now = trial.due
        trial.miss(now, "connection refused")
        assert trial.due - now < 5.001
    assert judge([trial], now) is AdoptionState.UNREACHABLE
    start = now = refuse(trial, trial.due, 5)
    assert judge([trial], now) is AdoptionState.PENDING
    trial.miss(trial.due, "connection refused")
    assert judge([trial], trial.due) is AdoptionState.PENDING  # a moment is not an outage
    now = trial.silent_since + 60.0
    assert judge([trial], now) is AdoptionState.UNREACHABLE
    now = refuse(trial, now, 6)
    assert judge([trial], now) is AdoptionState.REJECTED
    assert now > start + 60.0
    assert trial.reason == "it answers 401"


def test_the_replicas_decide_together() -> None:
    """One that is not finished is waited for; one that refused outweighs one that is away."""
    adopted, refused, away, new = (Trial.begin(0.0, (0.1, 1.0)) for _ in range(4))
    adopted.accept(0.2)
    refuse(refused, 0.0, 2)
    away.miss(0.1, "connection refused")
    assert judge([], 9.0) is AdoptionState.PENDING
    new.refuse(0.1, "it answers 401")
    assert judge([adopted, refused, away, new], 9.0) is AdoptionState.PENDING
    assert judge([adopted, away], 9.0) is AdoptionState.UNREACHABLE
    assert judge([adopted, refused, away], 9.0) is AdoptionState.REJECTED
    assert judge([adopted], 9.0) is AdoptionState.ADOPTED
