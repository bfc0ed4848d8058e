"""docs/security.md: what it claims is shown by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
THREATS = (ROOT / "docs" / "security.md").read_text()
NAMED = set(re.findall(r"`(test_\w+)`", THREATS))


def test_every_test_that_is_named_exists() -> None:
    """A renamed or deleted test is missed here, and so is a slip of the pen."""
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {
        name
        for text in sources
        for name in re.findall(r"^\s*(?:async )?def (test_\w+)", text, re.MULTILINE)
    }
    assert len(NAMED) > 30
    assert sorted(NAMED - defined) == []


def test_every_test_of_faults_is_named() -> None:
    """What is tested against is in the threat model; these are about other things."""
    others = {
        "test_a_mount_that_does_not_return",
        "test_replaced_by_another_file_system",
        "test_started_on_a_read_only_mount",
        "test_the_search_finds_it",
    }
    faults = [path.read_text() for path in (ROOT / "tests" / "faults").glob("test_*.py")]
    found = [re.findall(r"^def (test_\w+)", text, re.MULTILINE) for text in faults]
    defined = {name for names in found for name in names}
    assert sorted(defined - NAMED - others) == []


def test_every_row_names_a_test() -> None:
    """Each thing that an attacker cannot do is shown by a test."""
    tables = re.findall(r"^\| cannot .+\n\|[- |]+\n((?:\|.+\n)+)", THREATS, re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 12
    assert [row for row in rows if "`test_" not in row.split(" | ")[-1]] == []


def test_links_lead_somewhere() -> None:
    """Both documents lead to each other."""
    assert "(../SECURITY.md)" in THREATS
    assert "(docs/security.md)" in (ROOT / "SECURITY.md").read_text()


def test_the_base_image_is_pinned() -> None:
    """Both stages are built on one image, by digest: a tag can be moved."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE=(\S+)$", dockerfile, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:[\d.]+-slim-bookworm@sha256:[0-9a-f]{64}", base)
    froms = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert froms == ["${BASE}", "${BASE}"]
