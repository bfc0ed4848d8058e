"""SARIF: where a finding is, and that it stays the same finding."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from syncd.core.findings import finding
from syncd.lint.sarif import as_sarif

if TYPE_CHECKING:
    from pathlib import Path

    from syncd.core.findings import Finding


def run(*findings: Finding) -> dict[str, Any]:
    log = json.loads(as_sarif(findings))
    assert log["version"] == "2.1.0"
    (only,) = log["runs"]
    assert isinstance(only, dict)
    return only


def missing(source: str = "/etc/vc.json", where: str = "$.secret.a") -> Finding:
    return finding("secret-missing", source, where, "is not there", "create it")


def test_nothing_is_a_log_too() -> None:
    """A page that had findings learns that they are gone."""
    assert run()["results"] == []


def test_rules_and_results() -> None:
    """One rule per code, and every result points at its own."""
    empty = finding("secret-empty", "/etc/vc.json", "", "is empty", "write it")
    shown = run(missing(), empty, missing(where="$.secret.b"))
    rules = shown["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["secret-missing", "secret-empty"]
    assert [rule["defaultConfiguration"]["level"] for rule in rules] == ["error", "warning"]
    assert [result["ruleIndex"] for result in shown["results"]] == [0, 1, 0]
    assert shown["results"][0]["message"]["text"] == "$.secret.a is not there; create it"
    assert "logicalLocations" not in shown["results"][1]["locations"][0]


def test_a_finding_is_known_again() -> None:
    """By code and place, whatever else it says."""
    other = finding("secret-missing", "/etc/vc.json", "$.secret.a", "x", "y")
    prints = [r["partialFingerprints"] for r in run(missing(), other, missing("/else"))["results"]]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("/etc/a b.json", "file:///etc/a%20b.json"),
        ("http://127.0.0.1:8080/fhir/Client/x", "http://127.0.0.1:8080/fhir/Client/x"),
        ("environment", "environment"),
    ],
)
def test_places(source: str, uri: str) -> None:
    """URLs stay, files become URLs."""
    location = run(missing(source))["results"][0]["locations"][0]["physicalLocation"]
    assert location["artifactLocation"] == {"uri": uri}


def test_files_below_here_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a code-scanning page expects of a file in the repository."""
    monkeypatch.chdir(tmp_path)
    result = run(missing(str(tmp_path / "config" / "vc.json")))["results"][0]
    location = result["locations"][0]["physicalLocation"]
    assert location["artifactLocation"] == {"uri": "config/vc.json"}
