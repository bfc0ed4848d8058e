"""What becomes of a server's answer: the bytes that upstream's CSI provider would write."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from syncd.core.errors import RefusedError
from syncd.provision.vault.objects import VaultObject
from syncd.provision.vault.response import (
    ResponseError,
    is_gone,
    parse_response,
    to_file,
)


def wanted(key: str = "k", encoding: str = "utf-8") -> VaultObject:
    return VaultObject("f", "p", "", key, "GET", None, 0o600, encoding)


def value(body: str, key: str = "k", encoding: str = "utf-8") -> bytes:
    return to_file(parse_response(body.encode()), wanted(key, encoding)).content


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"text"', b"text"),
        ('" \\u00fc\\n"', " ü\n".encode()),
        ('""', b""),
        ("1", b"1"),
        ("1.50", b"1.50"),
        ("1E5", b"1E5"),
        ("-0", b"-0"),
        ("123456789012345678901234567890", b"123456789012345678901234567890"),
        ("1e999", b"1e999"),
        ("true", b"true"),
        ("null", b"null"),
        ('{"b": 1, "a": [1.0, "x"]}', b'{"a":[1.0,"x"],"b":1}'),
        ('["<&>\\u2028"]', b'["\\u003c\\u0026\\u003e\\u2028"]'),
    ],
)
def test_values_are_written_as_go_does(written: str, expected: bytes) -> None:
    """Strings verbatim, all else as compact JSON: sorted keys, numbers as received."""
    assert value(f'{{"data": {{"k": {written}}}}}') == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"data": {"k": "inner"}, "k": "outer", "metadata": {}}, b"inner"),  # KV v2
        ({"k": "outer"}, b"outer"),  # KV v1 and others
        ({"data": "text", "k": "outer"}, b"outer"),
        ({"data": None, "k": "outer"}, b"outer"),
        ({"data": [], "k": "outer"}, b"outer"),
    ],
)
def test_the_root_is_the_inner_data_if_that_is_a_map(data: dict[str, Any], expected: bytes) -> None:
    """KV v1, KV v2 and others alike, without asking which it is."""
    assert value(json.dumps({"data": data})) == expected


# The shape that HashiCorp Vault sends and api.Secret (v1.23) writes; OpenBao has no mount_type.
SENT = {
    "x": 1,
    "mount_type": "kv",
    "data": {"b": 1.50, "a": "<"},
    "request_id": "r",
    "wrap_info": None,
    "auth": None,
}


def test_the_whole_response_has_upstream_s_fields_in_upstream_s_order() -> None:
    """Zero values where nothing was sent; what is not in `api.Secret` is left out."""
    assert value(json.dumps(SENT), key="") == (
        b'{"request_id":"r","lease_id":"","lease_duration":0,"renewable":false,'
        b'"data":{"a":"\\u003c","b":1.5},"warnings":null,"mount_type":"kv"}'
    )


AUTH = (
    b'"client_token":"t","accessor":"","policies":["a"],"token_policies":null,'
    b'"identity_policies":[],"metadata":{"a":"1","b":""},"orphan":true,"entity_id":"",'
    b'"lease_duration":60,"renewable":false,"mfa_requirement":'
)
METHOD = {"type": "totp", "id": "m", "uses_passcode": True, "other": 1}


@pytest.mark.parametrize(
    ("field", "sent", "expected"),
    [
        ("warnings", ["w", None], b'"warnings":["w",""]'),
        ("warnings", [], b'"warnings":[]'),
        ("lease_duration", -5, b'"lease_duration":-5'),
        ("mount_type", "", b'"warnings":null}'),
        (
            "auth",
            {
                "metadata": {"b": None, "a": "1"},
                "client_token": "t",
                "policies": ["a"],
                "identity_policies": [],
                "orphan": True,
                "lease_duration": 60,
                "x": 1,
            },
            b'"auth":{' + AUTH + b"null}",
        ),
        (
            "auth",
            {"mfa_requirement": {"mfa_constraints": {"c": {"any": [METHOD]}, "b": None}}},
            (
                b'"mfa_requirement":{"mfa_constraints":{"b":null,"c":{"any":'
                b'[{"type":"totp","id":"m","uses_passcode":true}]}}}'
            ),
        ),
        (
            "wrap_info",
            {"token": "t", "ttl": 60, "creation_time": "2026-01-02T03:04:05.120+00:00"},
            (
                b'"wrap_info":{"token":"t","accessor":"","ttl":60,'
                b'"creation_time":"2026-01-02T03:04:05.12Z","creation_path":"","wrapped_accessor":""}'
            ),
        ),
        ("wrap_info", {}, b'"creation_time":"0001-01-01T00:00:00Z"'),
    ],
)
def test_structures_within_the_whole_response(field: str, sent: object, expected: bytes) -> None:
    """Each as Go's encoder writes the decoded structure."""
    assert expected in value(json.dumps(SENT | {"mount_type": None, field: sent}), key="")


@pytest.mark.parametrize(
    ("field", "sent", "path"),
    [
        ("lease_id", 5, "lease_id"),
        ("lease_duration", 1.5, "lease_duration"),
        ("lease_duration", "CANARY", "lease_duration"),
        ("renewable", "true", "renewable"),
        ("warnings", "CANARY", "warnings"),
        ("auth", {"metadata": ["CANARY"]}, "auth.metadata"),
        ("wrap_info", {"creation_time": "CANARY"}, "wrap_info.creation_time"),
        ("auth", [], "auth"),
    ],
)
def test_a_field_of_another_type_is_refused(field: str, sent: object, path: str) -> None:
    """Go's decoder refuses it, too; the message names the field."""
    says = f"cannot read f: {path} of the response is not as Vault sends it; check secretPath"
    with pytest.raises(RefusedError, match=says) as caught:
        value(json.dumps(SENT | {field: sent}), key="")
    assert "CANARY" not in str(caught.value)


def test_a_body_without_any_field_of_a_response_is_its_data() -> None:
    """As `api.ParseSecret` has it, for `sys/seal-status` and the like."""
    assert value('{"sealed": false}', key="sealed") == b"false"
    assert b'"data":{"sealed":false}' in value('{"sealed": false}', key="")
    with pytest.raises(RefusedError, match="the response has no data"):
        value('{"errors": [], "sealed": false}', key="sealed")


@pytest.mark.parametrize(
    ("body", "key", "encoding", "says"),
    [
        ({}, "k", "utf-8", "the response has no data; check secretPath"),
        ({"data": None}, "", "utf-8", "the response has no data"),
        ({"data": {"x": 1}}, "k", "utf-8", "there is no key 'k' at p; write the key"),
        ({"data": {"k": "\ud800CANARY"}}, "k", "utf-8", "the value is not valid Unicode"),
        ({"data": {"k": "CANARY"}}, "k", "base64", "the value is not base64; correct"),
        ({"data": {"k": "Q0FOQVJZ Q0FO"}}, "k", "base64", "the value is not base64"),
        ({"data": {"k": "CANARY"}}, "k", "hex", "the value is not hex"),
        ({"data": {"k": "ab cd"}}, "k", "hex", "the value is not hex"),
    ],
)
def test_what_does_not_fit_is_refused_without_being_shown(
    body: dict[str, Any], key: str, encoding: str, says: str
) -> None:
    """Names the object and the remedy."""
    with pytest.raises(RefusedError, match=f"cannot read f: {says}") as caught:
        value(json.dumps(body), key, encoding)
    assert "CANARY" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b"null", b"{", b"\xff", b'{"a": NaN}', b'{"a":' * 100_000]
)
def test_what_is_no_json_object_is_no_response(body: bytes) -> None:
    """Said without quoting it."""
    with pytest.raises(ResponseError, match=r"is not (JSON|a JSON object)"):
        parse_response(body)


def test_fields_of_the_wrong_type_count_as_absent() -> None:
    """A lease that makes no sense is no lease."""
    response = parse_response(b'{"lease_id": 5, "lease_duration": "1h", "renewable": "true"}')
    assert response.text("lease_id") == ""
    assert response.seconds("lease_duration") == 0.0
    assert response.flag("renewable") is False
    assert (response.text("data", "x"), response.seconds("a"), response.flag("a")) == ("", 0, False)
    assert response.data is None
    assert "5" not in repr(response.tree.get("x"))


@pytest.mark.parametrize(
    ("body", "gone"),
    [
        ('{"data": {"data": null, "metadata": {"version": 2, "deletion_time": "t"}}}', True),
        ('{"errors": []}', False),
        ('{"data": {"metadata": null}}', False),
    ],
)
def test_a_deleted_version_is_told_by_its_metadata(body: str, gone: bool) -> None:
    """OpenBao 2.7: 404 with `data.metadata`; a path that never was has only `errors`."""
    assert is_gone(parse_response(body.encode())) is gone


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc<&"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
def test_what_is_written_reads_back_the_same(tree: Any) -> None:
    """Whatever a secret holds, its file means the same."""
    content = value(json.dumps({"data": {"k": tree}}))
    assert (content.decode() if isinstance(tree, str) else json.loads(content)) == tree
    assert b"<" not in content or isinstance(tree, str)


@pytest.mark.parametrize("written", ["1e999", "9" * 400, "-1e999"])
def test_seconds_beyond_every_number(written: str) -> None:
    """They are no duration, which could not be rounded or waited for."""
    assert (
        parse_response(f'{{"lease_duration": {written}}}'.encode()).seconds("lease_duration") == 0
    )
