"""What is known of the contents of files besides their versions: descriptions, never values.

A daemon keeps them for certificates and keys alone, so that other files cost a comparison each.
"""

from __future__ import annotations

import math
from threading import Lock
from typing import TYPE_CHECKING

import structlog

from syncd.core.content import Facts, describe, is_mismatch, is_pem, next_change, problems
from syncd.telemetry.log import describe as describe_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.core.model import Entry, Scope

log = structlog.get_logger()


class Contents:
    """Descriptions by the secret's name; filled by scans, in their threads.

    Args:
        every: Whether to describe every content, not only PEM.

    Attributes:
        facts: The descriptions.
        not_after: When certificates end, seconds since the epoch, by name; as of the last `judge`.
        problems: What is wrong with certificates and keys, one line by name; as `not_after`.
    """

    def __init__(self, *, every: bool = False) -> None:
        self.facts: dict[str, Facts] = {}
        self.not_after: Mapping[str, float] = {}
        self.problems: Mapping[str, str] = {}
        self._every = every
        self._seen = 0
        self._judged = 0
        self._judged_for: Mapping[str, Entry] | None = None
        self._judging = Lock()
        self._until = math.inf
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
                self._seen += 1

    def _forget(self, name: str) -> None:
        self.facts.pop(name, None)
        self._versions.pop(name, None)
        self._seen += 1

    def is_due(self, entries: Mapping[str, Entry], now: float) -> bool:
        """Whether `judge` would find something else, `now` in seconds since the epoch."""
        is_new = self._judged_for is not entries or self._judged != self._seen
        return is_new or now >= self._until

    def judge(self, entries: Mapping[str, Entry], now: float) -> None:
        """Sets `not_after` and `problems`. Slow with many certificates: call it in a thread.

        Args:
            entries: The vault config's entries.
            now: Seconds since the epoch.
        """
        with self._judging:
            self._judged, self._judged_for = self._seen, entries
            facts = {name: item for name, item in list(self.facts.items()) if name in entries}
            ends = {name: item.pem.not_after for name, item in facts.items() if item.pem}
            found = {name: next(problems(item, None, now), None) for name, item in facts.items()}
            lines = {name: item.message for name, item in found.items() if item is not None}
            scopes = {name: entries[name].scopes for name in facts}
            for certificate, key in mismatches(facts, scopes):
                lines.setdefault(certificate, f"does not belong to the private key {key}")
            self.not_after = {name: end for name, end in ends.items() if end is not None}
            self.problems = lines
            self._until = min((next_change(item, now) for item in facts.values()), default=math.inf)


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
