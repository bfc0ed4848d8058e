"""Scopes that grant nothing, and placeholders that nobody filled in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from syncd.config.settings import ExtraFile, Nats, ScopeSettings, Settings, Watch
from syncd.core.model import Entry, Scope
from syncd.lint.placeholders import check_placeholders
from syncd.lint.scopes import check_scopes

ENTRIES = {
    "one": Entry("one", "/one", (Scope("Client", "a"),)),
    "all": Entry("all", "/all", (Scope("TokenIntrospector"),)),
}


def settings(**hook: Any) -> Settings:
    consumer = {"kind": "webhook", "name": "hook", "url": "http://127.0.0.1:1", **hook}
    return msgspec.convert({"vault_config": "/v", "consumers": [consumer]}, Settings)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ([{"resource_type": "Client"}], []),
        ([{"resource_type": "Client", "id": "a"}], []),
        ([{"resource_type": "TokenIntrospector"}], []),
        # a grant for one covers no secret for all of the type
        ([{"resource_type": "TokenIntrospector", "id": "x"}], ["scope-unmatched [0]"]),
        ([{"resource_type": "Client", "id": "b"}], ["scope-unmatched [0]"]),
        ([{"resource_type": "IdentityProvider"}], ["scope-unmatched [0]"]),
        ([{"resource_type": "Clinet"}], ["resource-type-unknown [0].resource_type"]),
        ([{"resource_type": "Client", "id": "Client/a"}], ["scope-id-unusual [0].id"]),
        ([], ["scope-unmatched "]),
        (None, []),
    ],
)
def test_a_scope_that_no_entry_lies_in(scope: object, expected: list[str]) -> None:
    """It is reported where it is written, a misspelt type with the one that was meant."""
    found = check_scopes(settings(scope=scope), ENTRIES, "c")
    shown = [f"{item.code} {item.where.removeprefix('consumers[0].scope')}" for item in found]
    assert shown == expected
    assert ("did you mean Client?" in str(found)) == ("Clinet" in str(scope))


def test_the_scopes_of_subscribers() -> None:
    """As those of consumers."""
    subscriber = {"name": "s", "uid": 1, "scope": [{"resource_type": "Client", "id": "b"}]}
    given = {"vault_config": "/v", "api": {"subscribers": [subscriber]}}
    (found,) = check_scopes(msgspec.convert(given, Settings), ENTRIES, "c")
    assert found.where == "api.subscribers[0].scope[0]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("${EHR_TOKEN}", "${EHR_TOKEN}"),
        ("Bearer ${X:-canary}", "${X}"),
        ("{{ .Values.x }}", "a placeholder"),
        ("$(POD_NAME)", "a placeholder"),
        ("$HOSTNAME", "a placeholder"),
    ],
)
def test_a_placeholder_in_any_value(text: str, shown: str) -> None:
    """syncd replaces none of them."""
    (found,) = check_placeholders(settings(headers={"X-A": text}), "c")
    assert found.where == "consumers[0].headers.X-A"
    assert found.message == f"holds {shown}, which syncd does not replace"
    assert "canary" not in str(found)  # a default can be the secret itself


@pytest.mark.parametrize("text", ["5$", "$1.50", "a{b}", "100%", "$x"])
def test_text_with_a_dollar_is_text(text: str) -> None:
    """Only what looks like a placeholder is one."""
    assert check_placeholders(settings(headers={"X-A": text}), "c") == []


def test_a_placeholder_in_the_environment() -> None:
    """It is reported where it can be corrected."""
    url = "http://127.0.0.1/${TENANT}"
    environ = {"SYNCD_WEBHOOK_URL": url, "OTHER": "x"}
    (found,) = check_placeholders(settings(url=url), "c", environ)
    assert (found.source, found.where) == ("environment", "SYNCD_WEBHOOK_URL")
    (found,) = check_placeholders(settings(url=url), "c", {})
    assert (found.source, found.where) == ("c", "consumers[0].url")


def test_the_places_of_a_subject() -> None:
    """They are the subject's own; other placeholders in it are mistakes."""
    bus = Nats(name="bus", urls=("nats://a",), subject="a.<instance>.<resource_type>.${TENANT}")
    (found,) = check_placeholders(Settings(vault_config="/v", consumers=(bus,)), "c")
    assert found.message.startswith("holds ${TENANT}")
    plain = msgspec.structs.replace(bus, subject="a.<instance>.<resource_id>")
    assert check_placeholders(Settings(vault_config="/v", consumers=(plain,)), "c") == []


def test_the_scope_of_a_file_outside_the_vault_config() -> None:
    """Nobody sees the file by a scope with a spelling mistake."""
    wrong = ScopeSettings(resource_type="Cleint")
    files = (ExtraFile(path="/a", scope=wrong), ExtraFile(path="/b", scope=(wrong,)), "/c")
    watched = Settings(vault_config="/v", watch=Watch(extra=files))
    found = [(item.code, item.where) for item in check_scopes(watched, {}, "c")]
    assert found == [
        ("resource-type-unknown", "watch.extra[0].scope.resource_type"),
        ("resource-type-unknown", "watch.extra[1].scope[0].resource_type"),
    ]
