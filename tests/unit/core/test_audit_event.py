"""The AuditEvent of a change, judged by an independent model of FHIR R4B, the same structure."""

from __future__ import annotations

from typing import Any

import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from hypothesis import given, strategies as st

from syncd.core.audit_event import (
    adoption_audit_event,
    audit_event,
    audit_event_id,
    destination_audit_event,
    fleet_audit_event,
    shared_audit_event_ids,
)
from syncd.core.event_data import AdoptionData, DestinationData, FleetData, SecretData
from syncd.core.model import ChangeKind, Scope

TIME = "2026-11-23T20:40:28.333Z"
APP = Scope("Client", "my-client")


def tell(data: SecretData) -> dict[str, Any]:
    return audit_event(data, event_id="5f0c2a91-42", source="/syncd/host", time=TIME)


def change(
    kind: ChangeKind, version: str | None, previous: str | None, *scopes: Scope
) -> SecretData:
    scope = scopes[0] if len(scopes) == 1 else list(scopes)
    return SecretData("client-secret", kind, "/m/client-secret", scope, version, previous)


@pytest.mark.parametrize(
    ("kind", "version", "previous", "action", "details"),
    [
        (ChangeKind.ADDED, "k1:02", None, "C", {"version": "k1:02"}),
        (
            ChangeKind.MODIFIED,
            "k1:02",
            "k1:01",
            "U",
            {"version": "k1:02", "previous_version": "k1:01"},
        ),
        (ChangeKind.REMOVED, None, "k1:01", "D", {"previous_version": "k1:01"}),
    ],
)
def test_each_kind_of_change(
    kind: ChangeKind,
    version: str | None,
    previous: str | None,
    action: str,
    details: dict[str, str],
) -> None:
    """It says what, whose, when and by whom, and the versions that there are."""
    resource = tell(change(kind, version, previous, APP))
    AuditEvent.model_validate(resource)
    assert resource["action"] == action
    assert resource["outcome"] == "0"
    assert resource["recorded"] == TIME
    assert resource["subtype"][0]["code"] == f"secret-{kind.value}"
    assert resource["agent"][0]["who"]["identifier"]["value"] == "/syncd/host"
    assert resource["agent"][0]["requestor"] is False
    secret, owner = resource["entity"]
    assert secret["name"] == "client-secret"
    assert {item["type"]: item["valueString"] for item in secret["detail"]} == details
    assert owner["name"] == "Client/my-client"
    assert owner["what"]["type"] == "Client"


def test_several_scopes() -> None:
    """The older list form of a scope names several resources."""
    resource = tell(change(ChangeKind.ADDED, "k1:1", None, APP, Scope("TokenIntrospector")))
    AuditEvent.model_validate(resource)
    assert [item["name"] for item in resource["entity"][1:]] == [
        "Client/my-client",
        "TokenIntrospector",
    ]


@pytest.mark.parametrize(("adopted", "outcome"), [(True, "0"), (False, "8")])
def test_the_outcome_of_a_verification(outcome: str, *, adopted: bool) -> None:
    """Aidbox accepts the value, or does not: which, of which Client and in which version."""
    data = AdoptionData("client-secret", APP, "k1:02", "aidbox", 1.5, ())
    resource = adoption_audit_event(
        data, adopted=adopted, event_id="5f0c2a91-43", source="/syncd/host", time=TIME
    )
    AuditEvent.model_validate(resource)
    assert resource["outcome"] == outcome
    assert resource["subtype"][0]["code"] == ("secret-adopted" if adopted else "secret-rejected")
    secret, owner = resource["entity"]
    assert secret["detail"] == [{"type": "version", "valueString": "k1:02"}]
    assert owner["name"] == "Client/my-client"


@pytest.mark.parametrize("scope", [APP, [APP]])
def test_a_rotation_of_a_fleet(scope: Scope | list[Scope]) -> None:
    """One resource for all installations: how many, and when the first and the last had it."""
    nobody: Any = ((), (), (), (), TIME, None, None)
    data = FleetData("client-secret", scope, "k1:02", "k1:01", 4, 4, 0, *nobody)
    resource = fleet_audit_event(data, event_id="5f0c2a91-44", source="/syncd/relay", time=TIME)
    AuditEvent.model_validate(resource)
    assert resource["subtype"][0]["code"] == "secret-converged"
    secret, owner = resource["entity"]
    assert {item["type"]: item["valueString"] for item in secret["detail"]} == {
        "version": "k1:02",
        "previous_version": "k1:01",
        "instances": "4",
        "first_at": "2026-11-23T20:40:28.333Z",
    }
    assert owner["name"] == "Client/my-client"


@pytest.mark.parametrize(("reason", "outcome"), [(None, "0"), ("messages wait", "8")])
def test_the_outcome_of_a_recreation(reason: str | None, outcome: str) -> None:
    """Which destination has the new value of which secret, or why it has not."""
    of = Scope("AidboxTopicDestination", "orders")
    data = DestinationData("kafka", of, "k1:02", "aidbox", 1.5, reason, ())
    resource = destination_audit_event(
        data, event_id="5f0c2a91-44", source="/syncd/host", time=TIME
    )
    AuditEvent.model_validate(resource)
    code = "destination-recreated" if reason is None else "destination-stale"
    assert resource["subtype"][0]["code"] == code
    assert (resource["outcome"], resource.get("outcomeDesc")) == (outcome, reason)
    assert [item["name"] for item in resource["entity"]] == [
        "kafka",
        "AidboxTopicDestination/orders",
    ]


def test_a_retry_is_the_same_resource() -> None:
    """Its id comes from the event's, and is one that FHIR allows."""
    first, second = (tell(change(ChangeKind.ADDED, "k1:1", None, APP)) for _ in range(2))
    assert first == second
    assert first["id"] == audit_event_id("5f0c2a91-42") == "syncd-5f0c2a91-42"
    assert len(audit_event_id("ffffffff-9223372036854775807")) <= 64


def test_installations_with_one_key_make_one_resource() -> None:
    """Whenever each of them sees a change, also around midnight; another change is another one."""

    def ids(time: str, *about: str | None, group: str | None = None) -> tuple[str, ...]:
        return shared_audit_event_ids(time, group, *(about or ("changed", "a", "k1:02", "k1:01")))

    late, early = ids("2026-11-23T23:59:59.000Z"), ids("2026-11-24T00:00:01.000Z")
    assert ids("2026-11-23T00:00:00.000Z") == late
    assert late[0] in early
    assert early[0] in late
    assert ids("2026-11-26T00:00:00.000Z")[0] not in late  # the value came back
    others = [
        ids("2026-11-23T12:00:00.000Z", "changed", "a", "k1:02", None),
        ids("2026-11-23T12:00:00.000Z", "changed", "b", "k1:02", "k1:01"),
        ids("2026-11-23T12:00:00.000Z", group="test"),
    ]
    assert not set(late) & {id_ for other in others for id_ in other}
    assert all(len(id_) <= 64 for id_ in late)


@given(st.from_regex(r"[^\x00-\x1f\x7f\s]{1,80}", fullmatch=True))
def test_any_name_makes_a_valid_resource(name: str) -> None:
    """Whatever a vault config calls a secret."""
    data = SecretData(name, ChangeKind.ADDED, "/m/x", APP, "k1:1", None)
    AuditEvent.model_validate(tell(data))
