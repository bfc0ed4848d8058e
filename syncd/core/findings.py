"""Findings: what syncd tells a person about their configuration, files and mounts.

A finding has a stable code, so that scripts may rely on it, a severity, a place and a hint. The
codes are listed in docs/findings.md.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Severity(enum.StrEnum):
    """How bad a finding is: an `error` does not work, a `warning` will surprise someone."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or will be.

    Attributes:
        code: Stable kebab-case name of the kind of finding.
        severity: `error` or `warning`.
        source: The file or object that the finding is about.
        where: JSON path (RFC 9535) or key path inside the source; empty for the whole of it.
        message: What is wrong, without any secret value.
        hint: What to do about it.
    """

    code: str
    severity: Severity
    source: str
    where: str
    message: str
    hint: str

    def __str__(self) -> str:
        place = f"{self.source}: {self.where}" if self.where else self.source
        return f"{place}: {self.message}; {self.hint} [{self.code}]"

    @property
    def is_error(self) -> bool:
        """Whether this finding alone makes its source unusable."""
        return self.severity is Severity.ERROR


def json_path(*steps: str | int) -> str:
    """Writes a JSON path (RFC 9535), quoting the names that need it.

    >>> json_path("secret", "client-secret", "path")
    "$.secret['client-secret'].path"
    """
    path = "$"
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _IDENTIFIER.match(step):
            path += f".{step}"
        else:
            escaped = step.replace("\\", "\\\\").replace("'", "\\'")
            path += "['" + escaped.encode("unicode_escape").decode().replace("\\\\", "\\") + "']"
    return path
