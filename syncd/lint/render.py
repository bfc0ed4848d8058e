"""The findings of `syncd check` as text and JSON, and the exit code that they amount to.

SARIF is in `syncd.lint.sarif`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from msgspec.structs import asdict

from syncd.core.findings import Severity
from syncd.core.text import encodable, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.core.findings import Finding
    from syncd.lint.vaults import WouldWrite

NO_INPUT: Final = frozenset(
    (
        "aidbox-unreadable",
        "config-malformed",
        "config-unreadable",
        "manifest-malformed",
        "manifest-unreadable",
        "vault-config-malformed",
        "vault-config-unreadable",
    )
)
"""Codes that mean that an input could not be read at all."""


def exit_code(findings: Sequence[Finding], *, strict: bool) -> int:
    """The exit code of `syncd check`.

    Returns:
        0 when there is no error (with `strict`: no warning either), 2 when an input could not be
        read at all, else 1.
    """
    if any(found.code in NO_INPUT for found in findings):
        return 2
    failing = (Severity.ERROR, Severity.WARNING) if strict else (Severity.ERROR,)
    return int(any(found.severity in failing for found in findings))


def as_text(
    findings: Sequence[Finding],
    judged_for: str | None = None,
    files: Sequence[WouldWrite] | None = None,
) -> str:
    """One line per finding, and a line with the number of each severity.

    `judged_for` is the user that permissions were judged for, if another one; `files` is what a dry
    run would have written, a line for each.
    """
    counts = _count(findings)
    if not counts[Severity.NOTE]:
        del counts[Severity.NOTE]
    summary = ", ".join(f"{n} {severity}{'s' * (n != 1)}" for severity, n in counts.items())
    judged = f", judged for {judged_for}" if judged_for else ""
    lines = [visible(str(file)) for file in files or ()]
    return "\n".join(
        [*lines, *(f"{found.severity}: {found}" for found in findings), f"{summary}{judged}"]
    )


def as_json(
    findings: Sequence[Finding],
    judged_for: str | None = None,
    files: Sequence[WouldWrite] | None = None,
) -> str:
    """The findings, and the number of each severity, as one JSON object; see `as_text`."""
    document: dict[str, object] = {
        "findings": [
            {key: encodable(text) for key, text in asdict(found).items()} for found in findings
        ],
        "summary": {f"{severity}s": n for severity, n in _count(findings).items()},
        **({"judged_for": judged_for} if judged_for else {}),
    }
    if files is not None:
        document["would_write"] = [
            {key: encodable(text) for key, text in asdict(file).items()} for file in files
        ]
    return json.dumps(document, indent=2)


def _count(findings: Sequence[Finding]) -> dict[Severity, int]:
    counts = dict.fromkeys(Severity, 0)
    for found in findings:
        counts[found.severity] += 1
    return counts
