"""Findings: what is wrong with configuration, files and mounts, and what to do about it.

A finding has a stable code, so that scripts may rely on it, a severity, a place and a hint.
`CODES` declares every code; docs/findings.md documents them.
"""

from __future__ import annotations

import enum
import json
import re
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from syncd.core.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_STEP = 200
"""Characters of a name that a path shows."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Severity(enum.StrEnum):
    """An `error` does not work; a `warning` works and is probably not intended.

    A `note` is something that could not be decided, and never a reason to fail.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


CODES: Mapping[str, Severity] = MappingProxyType(
    {
        # syncd's own configuration
        "address-unknown": Severity.WARNING,
        "config-unreadable": Severity.ERROR,
        "config-malformed": Severity.ERROR,
        "config-invalid": Severity.ERROR,
        "consumer-unreachable": Severity.ERROR,
        "command-exposed": Severity.ERROR,
        "command-unusable": Severity.ERROR,
        "credential-cleartext": Severity.WARNING,
        "credential-exposed": Severity.WARNING,
        "credential-unchecked": Severity.WARNING,
        "credential-malformed": Severity.ERROR,
        "credential-unreadable": Severity.ERROR,
        "extra-conflict": Severity.ERROR,
        "grant-unknown": Severity.ERROR,
        "group-foreign": Severity.ERROR,
        "kubernetes-unusable": Severity.ERROR,
        "listen-exposed": Severity.WARNING,
        "listen-unusable": Severity.ERROR,
        "replicas-unlisted": Severity.WARNING,
        "rollout-unknown": Severity.ERROR,
        "scope-unmatched": Severity.WARNING,
        "state-unusable": Severity.ERROR,
        "subscriber-unmapped": Severity.WARNING,
        "subscribers-unreachable": Severity.WARNING,
        "unit-unusable": Severity.ERROR,
        "user-unknown": Severity.ERROR,
        "value-uninterpolated": Severity.ERROR,
        # SecretProviderClass manifests
        "manifest-ignored": Severity.WARNING,
        "manifest-insecure": Severity.WARNING,
        "manifest-invalid": Severity.ERROR,
        "manifest-malformed": Severity.ERROR,
        "manifest-mints": Severity.WARNING,
        "manifest-permission": Severity.WARNING,
        "manifest-placeholder": Severity.WARNING,
        "manifest-unreadable": Severity.ERROR,
        "manifest-world-readable": Severity.WARNING,
        # provision entries, together with manifest and vault config
        "provision-invalid": Severity.ERROR,
        "provision-target-on-disk": Severity.WARNING,
        "provision-target-untrusted": Severity.ERROR,
        "provision-unproduced": Severity.ERROR,
        "provision-unused": Severity.WARNING,
        # a dry run of the vaults
        "provision-login-failed": Severity.ERROR,
        "provision-object-expired": Severity.WARNING,
        "provision-object-failed": Severity.ERROR,
        "provision-unexamined": Severity.WARNING,
        # the vault config
        "vault-config-unreadable": Severity.ERROR,
        "vault-config-malformed": Severity.ERROR,
        "vault-config-placeholder": Severity.WARNING,
        "vault-config-empty": Severity.WARNING,
        "key-duplicate": Severity.ERROR,
        "key-missing": Severity.ERROR,
        "key-unknown": Severity.WARNING,
        "name-duplicate": Severity.ERROR,
        "name-invalid": Severity.ERROR,
        "path-invalid": Severity.ERROR,
        "path-not-absolute": Severity.ERROR,
        "path-not-normalized": Severity.ERROR,
        "path-shared": Severity.WARNING,
        "resource-type-unknown": Severity.WARNING,
        "scope-id-unusual": Severity.WARNING,
        "scope-invalid": Severity.ERROR,
        "scope-list": Severity.WARNING,
        "type-wrong": Severity.ERROR,
        # the files of the secrets
        "certificate-expired": Severity.ERROR,
        "certificate-expiring": Severity.WARNING,
        "certificate-mismatch": Severity.ERROR,
        "secret-empty": Severity.WARNING,
        "secret-link-dangling": Severity.ERROR,
        "secret-link-loop": Severity.ERROR,
        "secret-malformed": Severity.ERROR,
        "secret-missing": Severity.ERROR,
        "secret-newline": Severity.WARNING,
        "secret-not-a-file": Severity.ERROR,
        "secret-outside-roots": Severity.ERROR,
        "secret-too-large": Severity.ERROR,
        "secret-unreadable": Severity.ERROR,
        "secret-world-readable": Severity.WARNING,
        # a live Aidbox
        "aidbox-unreadable": Severity.ERROR,
        "aidbox-restart-needed": Severity.WARNING,
        "aidbox-restart-unknown": Severity.NOTE,
        "aidbox-sender-race": Severity.WARNING,
        "aidbox-too-old": Severity.ERROR,
        "destination-dead": Severity.ERROR,
        "destination-stale": Severity.WARNING,
        "destination-unknown": Severity.NOTE,
        "entry-unreferenced": Severity.WARNING,
        "reference-out-of-scope": Severity.ERROR,
        "reference-unknown": Severity.ERROR,
        "secret-stored": Severity.WARNING,
        # the mount
        "file-unmapped": Severity.WARNING,
        "mount-frozen": Severity.WARNING,
        "mount-unreadable": Severity.ERROR,
        "resource-short": Severity.ERROR,
        "watch-rescan-only": Severity.WARNING,
    }
)
"""Every code and its severity."""


class Finding(msgspec.Struct, frozen=True):
    """One problem.

    Attributes:
        code: Stable kebab-case name of the kind of finding.
        severity: `error`, `warning` or `note`.
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
        return visible(f"{place}: {self.message}; {self.hint} [{self.code}]")

    @property
    def is_error(self) -> bool:
        """Whether this finding alone makes its source unusable."""
        return self.severity is Severity.ERROR


def finding(code: str, source: str, where: str, message: str, hint: str) -> Finding:
    """Makes a finding with the severity that `CODES` gives its code."""
    return Finding(code, CODES[code], source, where, message, hint)


def json_path(*steps: str | int) -> str:
    """Writes a JSON path (RFC 9535), quoting the names that need it.

    >>> json_path("secret", "client-secret", "path")
    "$.secret['client-secret'].path"
    """
    path = "$"
    for step in map(_shortened, steps):
        if isinstance(step, int):
            path += f"[{step}]"
        elif _IDENTIFIER.fullmatch(step):
            path += f".{step}"
        else:
            path += "['" + "".join(map(_quoted, step)) + "']"
    return path


def _shortened(step: str | int) -> str | int:
    if isinstance(step, str) and len(step) > LONGEST_STEP:
        return step[: LONGEST_STEP - 1] + "…"
    return step


def _quoted(character: str) -> str:
    """Escapes as section 2.7 requires, and line ends and invisible characters."""
    return "\\" + character if character in "'\\" else _visible(character)


def _visible(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def key_path(*steps: str | int) -> str:
    """Writes the path to a key as YAML users do, escaping line ends and invisible characters.

    >>> key_path("consumers", 0, "url")
    'consumers[0].url'
    """
    path = ""
    for step in map(_shortened, steps):
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += ("." if path else "") + "".join(map(_visible, step))
    return path
