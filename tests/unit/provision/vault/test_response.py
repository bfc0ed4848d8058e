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


def test_the_whole_response_has_upstream_s_fields_in_upstream_s_order() -> None:
    """What is not in `api.Secret` is left out; `auth` and `wrap_info` only where set."""
    body = {
        "x": 1,
        "data": {"b": 1, "a": 2},
        "request_id": "r",
        "wrap_info": None,
        "auth": {"t": 1},
    }
    assert value(json.dumps(body), key="") == (
        b'{"request_id":"r","lease_id":null,"lease_duration":null,"renewable":null,'
        b'"data":{"a":2,"b":1},"warnings":null,"auth":{"t":1}}'
    )


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
