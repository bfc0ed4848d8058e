"""References wherever they stand, and secrets that are stored."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st
from support.aidbox import reference

from syncd.consumers.aidbox.references import references_in, stored_secrets
from syncd.core.findings import json_path
from syncd.core.model import Scope

OF = Scope("Client", "x")


def test_wherever_they_stand() -> None:
    """In objects and lists, known fields and others; what only looks like one is none."""
    resource: dict[str, Any] = {
        "_secret": reference("a"),
        "deep": [{"x": {"_y": reference("b")}}],
        "url": "http://health-samurai.io/fhir/secret-reference",
        "extension": [
            {"url": "http://health-samurai.io/fhir/secret-reference", "valueString": 1},
            {"url": "http://else", "valueString": "c"},
        ],
    }
    found = {item.name: json_path(*item.where) for item in references_in(resource, OF)}
    assert found == {
        "a": "$._secret.extension[1].valueString",
        "b": "$.deep[0].x._y.extension[1].valueString",
    }


@pytest.mark.parametrize(
    ("type_", "resource", "places"),
    [
        ("Client", {"secret": "canary"}, ["$.secret"]),
        ("Client", {"secret": "", "_secret": reference("a")}, []),
        ("Client", {"secret": None}, []),
        ("User", {"secret": "canary"}, []),
        (
            "IdentityProvider",
            {"client": {"secret": "x", "private-key": "x", "certificate": "x", "id": "x"}},
            ["$.client.secret", "$.client['private-key']"],
        ),
        (
            "TokenIntrospector",
            {
                "jwt": {"secret": "x", "keys": [{"pub": "x"}, {"k": "x"}, "odd"]},
                "introspection_endpoint": {"authorization": "x", "url": "x"},
            },
            ["$.jwt.secret", "$.jwt.keys[1].k", "$.introspection_endpoint.authorization"],
        ),
        (
            "AidboxTopicDestination",
            {
                "parameter": [
                    {"name": "endpoint", "valueString": "x"},
                    {"name": "saslJaasConfig", "valueString": "x"},
                    {"name": "header", "valueString": "User-Agent: Aidbox"},
                    {"name": "header", "valueString": "X-Api-Key: x"},
                    {"name": "header", "valueString": "authorization: x"},
                    {"name": "header", "_valueString": reference("a")},
                    {"name": "awsSecretAccessKey", "valueString": ""},
                    "odd",
                ]
            },
            [f"$.parameter[{number}].valueString" for number in (1, 3, 4)],
        ),
        ("AidboxTopicDestination", {"parameter": "odd"}, []),
    ],
)
def test_stored_secrets(type_: str, resource: dict[str, Any], places: list[str]) -> None:
    """In the fields that Aidbox documents references for, as far as they are confidential."""
    assert [json_path(*where) for where in stored_secrets(resource, type_)] == places


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@given(JSON, st.lists(st.sampled_from(["a", "b", 0, 1]), max_size=5))
def test_any_tree(tree: object, path: list[str | int]) -> None:
    """Whatever surrounds a reference, it is found, and nothing breaks."""
    wrapped: object = {"_x": reference("planted"), "noise": tree}
    for step in path:
        wrapped = [tree, wrapped] if isinstance(step, int) else {step: wrapped, "z": tree}
    (found,) = references_in({"top": wrapped}, OF)
    assert found.name == "planted"
    for type_ in ("Client", "IdentityProvider", "TokenIntrospector", "AidboxTopicDestination"):
        list(stored_secrets({"client": tree, "jwt": tree, "parameter": tree}, type_))


def test_a_resource_that_is_nested_deeply() -> None:
    """A decoder may take more levels than the interpreter has frames."""
    tree: Any = reference("a")
    for _ in range(10_000):
        tree = [tree]
    assert len(list(references_in({"x": tree}, OF))) == 1
    assert not list(stored_secrets({"secret": tree}, "Client"))
