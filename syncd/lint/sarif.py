"""Findings as SARIF 2.1.0, for code scanning.

OASIS, Static Analysis Results Interchange Format 2.1.0: section 3.27 (result), 3.49
(reportingDescriptor), 3.29 (physicalLocation), 3.33 (logicalLocation).
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from syncd import __version__
from syncd.core.text import encodable, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.core.findings import Finding

_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def as_sarif(findings: Sequence[Finding]) -> str:
    """The findings as one SARIF log."""
    rules = {found.code: found for found in findings}
    index = {code: number for number, code in enumerate(rules)}
    driver = {
        "name": "syncd",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [_rule(found) for found in rules.values()],
    }
    run = {
        "tool": {"driver": driver},
        "results": [_result(found, index[found.code]) for found in findings],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _rule(found: Finding) -> dict[str, Any]:
    return {
        "id": found.code,
        "shortDescription": {"text": found.code.replace("-", " ")},
        "defaultConfiguration": {"level": found.severity.value},
    }


def _result(found: Finding, index: int) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(found.source)},
            "region": {"startLine": 1},  # the JSON path says where; code scanning needs a line
        }
    }
    if found.where:
        location["logicalLocations"] = [{"fullyQualifiedName": visible(found.where)}]
    key = encodable(f"{found.code}\0{found.source}\0{found.where}")
    place = f"{found.where} " if found.where else ""
    return {
        "ruleId": found.code,
        "ruleIndex": index,
        "level": found.severity.value,
        "message": {"text": visible(f"{place}{found.message}; {found.hint}")},
        "locations": [location],
        "partialFingerprints": {"finding/v1": hashlib.sha256(key.encode()).hexdigest()},
    }


def _uri(source: str) -> str:
    """A URL as it is; a file relative to the working directory if it lies below."""
    if "://" in source and not source.startswith("/"):
        return encodable(source)
    # the bytes of the name, whether or not they are UTF-8 (RFC 8089, section 4)
    path = quote(os.fsencode(source.removeprefix(os.getcwd().rstrip("/") + "/")))
    return f"file://{path}" if path.startswith("/") else path
