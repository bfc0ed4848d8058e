"""What is known of the contents of files besides their versions: descriptions, never values.

A daemon keeps them for certificates and keys alone, so that other files cost a comparison each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from syncd.core.content import Facts, describe, is_mismatch, is_pem, problems
from syncd.telemetry.log import describe as describe_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.core.model import Known, Scope

log = structlog.get_logger()


class Contents:
    """Descriptions by the secret's name; filled by scans, in their threads.

    Args:
        every: Whether to describe every content, not only PEM.

    Attributes:
        facts: The descriptions.
    """

    def __init__(self, *, every: bool = False) -> None:
        self.facts: dict[str, Facts] = {}
        self._every = every
        self._versions: dict[str, str] = {}

    def see(self, name: str, version: str, content: bytes) -> None:
        """Describes a content, unless it is the one before. Never fails: a scan must not."""
        if not (self._every or is_pem(content)):
            if name in self.facts:
                self._forget(name)
        elif self._versions.get(name) != version:
            try:
                self.facts[name] = describe(content)
            except Exception as error:  # noqa: BLE001 - a lack of descriptors for an import, or a bug
                self._forget(name)
                log.warning("secret.not_examined", secret=name, error=describe_error(error))
            else:
                self._versions[name] = version

    def _forget(self, name: str) -> None:
        self.facts.pop(name, None)
        self._versions.pop(name, None)

    def not_after(self, inventory: Mapping[str, Known]) -> dict[str, float]:
        """When the certificates of an inventory end, seconds since the epoch, by name."""
        return {
            name: facts.pem.not_after
            for name, facts in list(self.facts.items())
            if name in inventory and facts.pem is not None and facts.pem.not_after is not None
        }

    def problems(self, inventory: Mapping[str, Known], now: float) -> dict[str, str]:
        """What is wrong with certificates and keys, one line by name; `now` since the epoch."""
        facts = {name: item for name, item in list(self.facts.items()) if name in inventory}
        found = {name: next(problems(item, None, now), None) for name, item in facts.items()}
        lines = {name: item.message for name, item in found.items() if item is not None}
        scopes = {name: inventory[name].entry.scopes for name in facts}
        for certificate, key in mismatches(facts, scopes):
            lines.setdefault(certificate, f"does not belong to the private key {key}")
        return lines


def mismatches(
    facts: Mapping[str, Facts], scopes: Mapping[str, Iterable[Scope]]
) -> list[tuple[str, str]]:
    """Names of certificate and private key that one resource uses, and that do not match.

    Only a resource with one of each is judged: with more, which belong together is not known.
    """
    certificates: dict[Scope, list[str]] = {}
    keys: dict[Scope, list[str]] = {}
    for name, item in facts.items():
        if item.pem is None or item.pem.certificate == item.pem.private_key:
            continue
        for scope in scopes.get(name, ()):
            if scope.id is not None:
                found = certificates if item.pem.certificate else keys
                found.setdefault(scope, []).append(name)
    pairs = [
        (certificates[scope][0], keys[scope][0])
        for scope in certificates.keys() & keys.keys()
        if len(certificates[scope]) == len(keys[scope]) == 1
    ]
    return sorted(pair for pair in pairs if is_mismatch(facts[pair[0]], facts[pair[1]]))
