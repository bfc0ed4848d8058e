"""syncd.core.text: what others wrote, made safe to show."""

from __future__ import annotations

import doctest
import json

import pytest
from hypothesis import given, strategies as st
from support.hostile import HOSTILE, NOT_UTF8

from syncd.core import text
from syncd.core.text import encodable, escape_json, visible

anything = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name, é 😀", "plain name, é 😀"),
        (HOSTILE["escape"], r"\x1b[2J\x1b]0;PWNED\x07\x1b[8m"),
        (HOSTILE["line"], r"x\n0 errors, 0 warnings"),
        (HOSTILE["separators"], r"x\u2028y\u2029z\x85w\x0b\x0c\x1c"),
        (HOSTILE["bidi"], r"abc\u202etxt.exe\u2066"),
        (HOSTILE["astral"], r"a\U000e0041b"),
        (NOT_UTF8, r"caf\xe9\xff"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_what_is_shown(name: str, shown: str) -> None:
    """Escapes as Python writes them; a byte that is not UTF-8 is that byte."""
    assert visible(name) == shown


@given(anything)
def test_everything_becomes_visible(name: str) -> None:
    """One line of printable characters that can be encoded, and doing it twice changes nothing."""
    shown = visible(name)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert visible(shown) == shown
    assert (shown == name) == name.isprintable()


@given(anything)
def test_everything_becomes_encodable(name: str) -> None:
    """Only surrogates are escaped."""
    encoded = encodable(name).encode()
    if not any("\ud800" <= character <= "\udfff" for character in name):
        assert encoded.decode() == name


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_escaped_json_means_the_same(value: object) -> None:
    """Every decoder reads back what was encoded, and nothing in it is raw."""
    encoded = json.dumps(value, ensure_ascii=False).encode()
    escaped = escape_json(encoded)
    assert json.loads(escaped) == value
    assert escaped.decode().isprintable()


def test_json_of_several_lines_keeps_them() -> None:
    """Indented JSON can be escaped as well."""
    assert escape_json('{\n  "a": "\x7f😀"\n}'.encode()) == '{\n  "a": "\\u007f😀"\n}'.encode()


def test_the_examples_are_right() -> None:
    """Those of the docstrings."""
    assert doctest.testmod(text).failed == 0
