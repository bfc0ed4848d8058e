"""Scalars by the rules of Go's yaml.v3 (`resolve.go`)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from syncd.core.tree import Scalar
from syncd.core.yaml_text import parse_yaml
from syncd.provision.yaml_v3 import NotJsonError, json_value, resolve, timestamp


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("0644", 420),
        ("-0644", -420),
        ("0o17", 15),
        ("0O17", 15),
        ("0b101", 5),
        ("-0x1F", -31),
        ("+7", 7),
        ("1_000", 1000),
        ("0", 0),
        ("00", 0),
        ("08", 8),
        ("09.5", 9.5),
        ("9223372036854775808", 1 << 63),
        ("18446744073709551616", 18446744073709551616),
        ("-9223372036854775809", -9223372036854775808),
        ("1e3", 1000),
        ("1.0", 1),
        ("1.", 1),
        ("-.5", -0.5),
        (".5", 0.5),
        ("._5", "._5"),
        (".", "."),
        ("1e999", "1e999"),
        ("0x", "0x"),
        ("1:30", "1:30"),
        ("_1", "_1"),
        ("+", "+"),
        ("on", "on"),
        ("y", "y"),
        ("TRUE", True),
        ("False", False),
        ("Null", None),
        ("", None),
        ("'0644'", "0644"),
        ("!!str 1_0", "1_0"),
        ("|-\n  0644", "0644"),
        ("2026-01-02", "2026-01-02T00:00:00Z"),
        ("2026-1-2", "2026-01-02T00:00:00Z"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("2026-01-02t3:4:5.120-01:30", "2026-01-02T03:04:05.12-01:30"),
        ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05Z"),
        ("2026-01-02  03:04:05.5", "2026-01-02T03:04:05.5Z"),
        ("2024-02-29", "2024-02-29T00:00:00Z"),
        ("2026-02-29", "2026-02-29"),
        ("2026-13-01", "2026-13-01"),
        ("2026-01-00", "2026-01-00"),
        ("2026-01-02T24:00:00Z", "2026-01-02T24:00:00Z"),
        ("2026-01-02T03:04:05", "2026-01-02T03:04:05"),
        ("2026-01-02 03:04:05Z", "2026-01-02 03:04:05Z"),
        ("2026-01-02T03:04Z", "2026-01-02T03:04Z"),
        ("0000-02-29", "0000-02-29T00:00:00Z"),
    ],
)
def test_scalars_become_what_go_sends(written: str, expected: object) -> None:
    """Integers, floats, timestamps and words, each as it is in JSON."""
    (tree,) = parse_yaml(f"k: {written}".encode(), raw=True)
    found = json_value(tree)
    assert found == {"k": expected}
    assert type(found["k"]) is type(expected)


@pytest.mark.parametrize("written", [".inf", "-.INF", "+.Inf", ".nan"])
def test_what_json_cannot_express(written: str) -> None:
    """Go's encoder refuses it, too."""
    (tree,) = parse_yaml(f"k: [{written}]".encode(), raw=True)
    with pytest.raises(NotJsonError):
        json_value(tree)


@given(st.text(st.sampled_from("0123456789+-_.:eExXbBoOtTzZ infa")))
def test_every_text_has_a_value(text: str) -> None:
    """Nothing is raised, and the value is JSON or infinite."""
    scalar = Scalar(text)
    scalar.plain, scalar.value = True, text
    assert json.dumps(resolve(scalar))
    assert timestamp(text) is None or len(text) > 7
