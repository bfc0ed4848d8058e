"""syncd.core.findings: codes, severities and places."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from syncd.core.findings import CODES, LONGEST_STEP, Severity, finding, json_path, key_path
from syncd.core.tree import parse_json

ROOT = Path(__file__).parents[3]


class TestFinding:
    def test_reads_as_one_line_with_place_remedy_and_code(self) -> None:
        """A finding says where, what, what to do, and by which code to look it up."""
        found = finding("path-not-absolute", "vc.json", "$.secret.a", "is not absolute", "fix it")
        assert str(found) == "vc.json: $.secret.a: is not absolute; fix it [path-not-absolute]"

    def test_about_the_whole_source_has_no_place(self) -> None:
        """Without a place, the source alone is named."""
        found = finding("config-unreadable", "f.yaml", "", "cannot be read", "fix it")
        assert str(found) == "f.yaml: cannot be read; fix it [config-unreadable]"

    def test_has_the_severity_of_its_code(self) -> None:
        """Severity follows from the code; only errors make a source unusable."""
        error = finding("name-invalid", "f", "", "m", "h")
        warning = finding("scope-list", "f", "", "m", "h")
        assert (error.severity, error.is_error) == (Severity.ERROR, True)
        assert (warning.severity, warning.is_error) == (Severity.WARNING, False)

    def test_has_a_declared_code(self) -> None:
        """A code that nobody declared is a mistake of ours, seen at once."""
        with pytest.raises(KeyError):
            finding("no-such-code", "f", "", "m", "h")


class TestJsonPath:
    @pytest.mark.parametrize(
        ("steps", "path"),
        [
            ((), "$"),
            (("secret", "a_1", 0), "$.secret.a_1[0]"),
            (("client-secret",), "$['client-secret']"),
            (("",), "$['']"),
            (("1a",), "$['1a']"),
            (("a\n",), r"$['a\n']"),
            (("it's",), r"$['it\'s']"),
            (("a\\b",), r"$['a\\b']"),
            (("é \x00\x7f",), r"$['é \u0000\u007f']"),
            (("\u202e😀",), r"$['\u202e😀']"),
        ],
    )
    def test_quotes_as_rfc_9535_says(self, steps: tuple[str | int, ...], path: str) -> None:
        """Names that are no identifier are quoted; what cannot be seen is escaped."""
        assert json_path(*steps) == path

    @settings(max_examples=100)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=LONGEST_STEP))
    def test_names_every_member_in_one_line_and_unmistakably(self, name: str) -> None:
        """A path stays in one line, and a reader of JSON strings gets the name back."""
        path = json_path(name)
        assert path.isprintable()
        if path.startswith("$["):
            quoted = path[3:-2].replace('"', '\\"').replace("\\'", "'")
            assert parse_json(f'"{quoted}"'.encode()) == name
        else:
            assert path == f"$.{name}"


def test_key_path_reads_as_yaml_users_write() -> None:
    """Keys are joined by dots, indices stand in brackets."""
    assert key_path("consumers", 0, "headers", "X-Env") == "consumers[0].headers.X-Env"
    assert key_path() == ""
    assert key_path("api", "a\n\u202e\x1f") == r"api.a\n\u202e\u001f"


class TestCatalogue:
    def test_docs_list_exactly_the_codes_with_their_severity(self) -> None:
        """docs/findings.md has one row per declared code, saying its severity."""
        text = (ROOT / "docs" / "findings.md").read_text()
        rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
        assert sorted(rows) == sorted((code, str(severity)) for code, severity in CODES.items())
        assert len(rows) == len(dict(rows))

    def test_agrees_with_the_source(self) -> None:
        """Every declared code is in use, and nothing that looks like a code is undeclared."""
        modules = [path for path in (ROOT / "syncd").rglob("*.py") if path.name != "findings.py"]
        words = {
            node.value
            for path in modules
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert set(CODES) - words == set()
        assert {word for word in words if _LIKE_A_CODE.fullmatch(word)} - set(CODES) == set()


_LIKE_A_CODE = re.compile(
    "(config|credential|manifest|name|path|scope|secret)-[a-z-]+|vault-config-[a-z]+"
)


def test_long_names_are_shortened() -> None:
    """A name of a megabyte makes no line of a megabyte."""
    name = "n" * LONGEST_STEP
    assert json_path("secret", name) == f"$.secret.{name}"
    assert key_path("secret", name) == f"secret.{name}"
    shown = json_path("secret", name * 1000)
    assert shown.endswith("n…']")
    assert len(shown) < LONGEST_STEP + 20
    assert key_path(name * 1000).endswith("n…")


def test_a_finding_is_one_line() -> None:
    """Whatever the name of a file is."""
    found = finding("file-unmapped", "/a\nb\udce9", "", "is unused", "remove it")
    assert str(found) == r"/a\nb\xe9: is unused; remove it [file-unmapped]"
