"""Adoption: whose secret can be tried, and what an answer proves."""

from __future__ import annotations

import pytest

from syncd.core.adoption import (
    NOT_VERIFIABLE,
    Adoption,
    AdoptionState,
    accepts,
    adoption_of,
    client_of,
    mailbox_of,
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


def test_the_mailbox_is_nobody_elses() -> None:
    """A name of a consumer has no slash."""
    assert mailbox_of("aidbox") == "aidbox/verify"
