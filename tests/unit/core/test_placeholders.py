"""Placeholders of template languages."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.waiting import DEADLINE

from syncd.core.placeholders import correction, holds_placeholder, placeholder_in, unfilled


@pytest.mark.parametrize(
    "text",
    [
        "a${X}",
        "${X:-y}",
        "${A:-${B}}",
        "{{ .Values.x }}",
        "{{{x}}}",
        "{{}}",
        "$(X)",
        "$HOME",
        "$A_1",
        "<IDENTITY_CLIENT_ID>",
        "https://<vault-name>.vault.azure.net",
        "<your tenant id>",
        "#{Client.Id}",
        "__CLIENT_ID__",
        "<%= id %>",
    ],
)
def test_placeholders(text: str) -> None:
    """Of shells, templates and Kubernetes."""
    assert holds_placeholder(text)
    assert placeholder_in(text) is not None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bearer ${X}", "${X}"),
        ("Bearer ${X:-canary}", "${X}"),
        ("${A:-${B}}", "${B}"),
        ("{{ default 'canary' .Values.x }}", "a placeholder"),
        ("pass$WORD", "a placeholder"),
        ("id=<IDENTITY_CLIENT_ID>", "<IDENTITY_CLIENT_ID>"),
        ("pass<wordX>", "a placeholder"),
        ("pass<WORDX>", "a placeholder"),
        ("5$", None),
    ],
)
def test_what_is_shown_of_one(text: str, shown: str | None) -> None:
    """The name that is to be filled in, and no default: that can be the secret itself."""
    assert placeholder_in(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("5$", "$1.50", "a{b}", "kv/a$b", "$1{x}", "$x", "${", "{{x}", "$()"),
        *("a<b>c", "1<2 and 3>2", "Ops <ops@example.org>", "<https://example.org>", "#{", "__a__"),
    ],
)
def test_what_only_resembles_one(text: str) -> None:
    """A dollar or a brace is a character like any other."""
    assert not holds_placeholder(text)


@pytest.mark.parametrize("start", ["{{", "${a", "${", "$(a", "$AA", "{{}", "<a", "#{a", "<%"])
def test_many_starts_of_placeholders(start: str) -> None:
    """They take no time by their square: the text of a manifest may be long."""
    program = (
        "import sys; from syncd.core.placeholders import holds_placeholder; "
        "assert not holds_placeholder(sys.argv[1] * 500_000 + 'a')"
    )
    subprocess.run([sys.executable, "-c", program, start], check=True, timeout=DEADLINE)


def test_what_to_do_about_one() -> None:
    """Of a value, and of a file that cannot be parsed because of one."""
    assert unfilled(7) is None
    assert unfilled("x") is None
    assert unfilled("${X}") == (
        "holds ${X}, which syncd does not replace",
        "write the value itself, or fill it in (envsubst, Helm) before syncd reads the file",
    )
    assert correction(b"{", "correct it") == "correct it"
    assert "fill in its placeholders" in correction(b"\xff{{ .Values.x }}", "correct it")
