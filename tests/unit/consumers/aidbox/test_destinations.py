"""Which destinations may be recreated, as what, and with which stand-in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.aidbox import reference

from syncd.consumers.aidbox.destinations import (
    body_of,
    is_current,
    is_outdated,
    obstacle,
    stand_in_of,
    started_at,
    unfinished,
)
from syncd.consumers.aidbox.resources import Sender
from syncd.core.model import Scope

ANY = (Scope("AidboxTopicDestination"),)
OWN = (Scope("AidboxTopicDestination", "d"),)


def destination(*parameters: Any, **more: Any) -> dict[str, Any]:
    known = {"resourceType": "AidboxTopicDestination", "id": "d", "kind": "webhook-at-least-once"}
    return {**known, "parameter": list(parameters), **more}


def text(name: str, value: str, key: str = "valueString") -> dict[str, str]:
    return {"name": name, key: value}


@pytest.mark.parametrize(
    "parameter",
    [
        {"name": "header", "_valueString": reference("a")},
        text("header", "User-Agent: Aidbox"),
        text("header", "Content-Type: application/json"),
        text("endpoint", "https://example.org/hook", "valueUrl"),
        text("bootstrapServers", "one:9092,two:9092"),
        text("kafkaTopic", "orders"),
        {"name": "timeout", "valueUnsignedInt": 30},
        {"name": "keyByResourceId", "valueBoolean": True},
        {"name": "whatever", "valueDecimal": 1.5},
    ],
)
def test_bodies_that_hold_no_secret(parameter: dict[str, Any]) -> None:
    """References, numbers, and what the vendor documents as plain text."""
    assert obstacle(destination(parameter)) is None


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        (text("header", "Authorization: hunter2"), "its parameter header may hold"),
        (text("header", "X-Anything: hunter2"), "its parameter header may hold"),
        (text("saslJaasConfig", "hunter2"), "its parameter saslJaasConfig may hold"),
        (text("password", "hunter2"), "its parameter password may hold"),
        (text("futureOption", "hunter2"), "its parameter futureOption may hold"),
        (text("endpoint", "https://u:hunter2@example.org", "valueUrl"), "its parameter endpoint"),
        (text("endpoint", "https://example.org/?t=hunter2", "valueUrl"), "its parameter endpoint"),
        (text("hunter 2", "x"), "its parameter one may hold"),
        ({"name": "x", "part": [text("endpoint", "x")]}, "its parameter x may hold"),
        ({"name": "x", "valueQuantity": {"value": 1}}, "its parameter x may hold"),
        ("hunter2", "its parameter one may hold"),
    ],
)
def test_bodies_that_may_hold_a_secret(parameter: Any, said: str) -> None:
    """Anything else, and its value is not repeated."""
    found = obstacle(destination(text("endpoint", "http://x"), parameter))
    assert found is not None
    assert said in found
    assert "hunter" not in found


@pytest.mark.parametrize("kind", ["bigquery-at-least-once", "clickhouse", "data-lakehouse-x"])
def test_kinds_that_export_everything_again(kind: str) -> None:
    """Not without being told to skip that."""
    assert "exports all data" in str(obstacle(destination(kind=kind)))
    skip = {"name": "skipInitialExport", "valueBoolean": True}
    assert obstacle(destination(skip, kind=kind)) is None


def test_no_parameters() -> None:
    """A resource is what a server sends."""
    assert obstacle(destination(parameter="x")) is None


def test_the_body() -> None:
    """All of the resource, without what the server adds; a stand-in has another id."""
    created = {"url": "https://aidbox.app/ex/createdAt", "valueInstant": "2026-01-01T00:00:00Z"}
    tenant = {"url": "https://aidbox.app/tenant-organization-id"}
    kept = {"profile": ["http://p"], "extension": [tenant, "x"]}
    added = {**kept, "extension": [created, tenant, "x"], "versionId": "7", "lastUpdated": "now"}
    resource = destination(text("header", "Accept: x"), content="id-only", meta=added)
    assert json.loads(body_of(resource)) == {**resource, "meta": kept}
    assert json.loads(body_of(resource, "d-syncd")) == {**resource, "meta": kept, "id": "d-syncd"}
    assert json.loads(body_of(destination(meta={}))) == destination(meta={})
    assert json.loads(body_of({"id": "d"})) == {"id": "d", "resourceType": "AidboxTopicDestination"}


@pytest.mark.parametrize(
    ("kind", "id_", "scopes", "found"),
    [
        ("webhook-at-least-once", "d", ANY, "d-syncd"),
        ("webhook-at-least-once", "d", OWN, None),  # its sender could not read the secret
        ("webhook-at-least-once", "d", (), None),
        ("kafka-best-effort", "d", ANY, None),  # its receivers expect no duplicates
        ("bigquery-at-least-once", "d", ANY, None),  # it would export everything
        ("webhook-at-least-once", "d" * 59, ANY, None),  # longer than an id
        ("webhook-at-least-once", "d" * 58, ANY, "d" * 58 + "-syncd"),
    ],
)
def test_stand_ins(kind: str, id_: str, scopes: tuple[Scope, ...], found: str | None) -> None:
    """Where duplicates are known and the vault config lets it use the secrets."""
    resource = destination({"name": "h", "_valueString": reference("a")}, kind=kind, id=id_)
    assert stand_in_of(resource, {"a": scopes}) == found


@pytest.mark.parametrize(
    ("sender", "current", "outdated"),
    [
        (Sender("r", started=100.0), True, False),
        (Sender("r", started=99.0), False, True),
        (Sender("r"), False, True),
        (Sender("r", is_alive=False), False, False),
    ],
)
def test_senders(sender: Sender, current: bool, outdated: bool) -> None:
    """Current since the rotation; a dead one is neither, since only a restart helps it."""
    assert is_current(sender, 100.0) is current
    assert is_outdated(sender, 100.0) is outdated


@pytest.mark.parametrize(
    ("senders", "kind", "said"),
    [
        ([Sender("r", queued=0)], "x", None),
        ([Sender("q", queued=0), Sender("r", queued=2)], "x", "messagesQueued is 2 at r"),
        ([Sender("r", queued=0, in_process=1)], "x", "messagesQueued is 1 at r"),
        ([Sender("r")], "x", "messagesQueued is unknown at r"),
        ([Sender("r")], "kafka-best-effort", None),
        ([Sender("r", is_alive=False), Sender("q", queued=0)], "x", None),
        ([Sender("r", is_alive=False)], "x", "no replica has a sender"),
        ([], "x", "no replica has a sender"),
    ],
)
def test_what_is_not_delivered(senders: list[Sender], kind: str, said: str | None) -> None:
    """At any replica; what is not known counts as not delivered."""
    found = unfinished({"kind": kind}, senders)
    assert (found is None) if said is None else (found is not None and said in found)


def test_the_time_of_a_start() -> None:
    """As events carry times, where there is one."""
    assert started_at(Sender("r", started=0.0)) == "1970-01-01T00:00:00.000Z"
    assert started_at(Sender("r")) is None
    assert started_at(None) is None
