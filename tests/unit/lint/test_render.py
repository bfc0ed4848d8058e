"""syncd.lint.render: what people and scripts get of the findings."""

from __future__ import annotations

import json

import pytest

from syncd.core.findings import Finding, finding
from syncd.lint.render import as_json, as_text, exit_code

ERROR = finding("secret-missing", "vc.json", "$.secret.a.path", "there is no file", "create it")
NOTE = finding("destination-unknown", "vc.json", "", "is unknown", "find out")
WARNING = finding("file-unmapped", "/s/x", "", "is named by no entry", "add one")


def test_text_is_a_line_for_each_finding_and_one_that_sums_up() -> None:
    """Severity, place, message, remedy and code; then the numbers."""
    assert as_text([ERROR, WARNING]).splitlines() == [
        "error: vc.json: $.secret.a.path: there is no file; create it [secret-missing]",
        "warning: /s/x: is named by no entry; add one [file-unmapped]",
        "1 error, 1 warning",
    ]
    assert as_text([]) == "0 errors, 0 warnings"
    assert as_text([NOTE]).endswith("[destination-unknown]\n0 errors, 0 warnings, 1 note")


def test_json_is_the_documented_object() -> None:
    """Every attribute of a finding, and a summary."""
    assert json.loads(as_json([ERROR, WARNING, WARNING])) == {
        "findings": [
            {
                "code": "secret-missing",
                "severity": "error",
                "source": "vc.json",
                "where": "$.secret.a.path",
                "message": "there is no file",
                "hint": "create it",
            },
            *[
                {
                    "code": "file-unmapped",
                    "severity": "warning",
                    "source": "/s/x",
                    "where": "",
                    "message": "is named by no entry",
                    "hint": "add one",
                }
            ]
            * 2,
        ],
        "summary": {"errors": 1, "warnings": 2, "notes": 0},
    }


@pytest.mark.parametrize(
    ("findings", "lenient", "strict"),
    [([], 0, 0), ([NOTE], 0, 0), ([WARNING], 0, 1), ([ERROR], 1, 1), ([WARNING, ERROR], 1, 1)],
)
def test_exit_code(findings: list[Finding], lenient: int, strict: int) -> None:
    """Errors fail, warnings only with --strict, and notes never."""
    assert exit_code(findings, strict=False) == lenient
    assert exit_code(findings, strict=True) == strict
