"""What is known of the contents of files besides their versions: descriptions, never values.

A daemon keeps them for certificates and keys alone, so that other files cost a comparison each.
"""

from __future__ import annotations

import math
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from syncd.config.extra import extra_file
from syncd.core.content import (
    FORMAT_NAMES,
    Facts,
    describe,
    is_mismatch,
    is_pem,
    next_change,
    problems,
)
from syncd.telemetry.log import describe as describe_error

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from syncd.config.settings import Watch
    from syncd.core.content import Format
    from syncd.core.model import Entry

log = structlog.get_logger()


class Contents:
    """Descriptions by the secret's name; filled by scans, in their threads.

    Args:
        formats: What contents must be, where the configuration says so, by name.
        every: Whether to describe every content, not only PEM and those with a format.

    Attributes:
        facts: The descriptions.
        not_after: When certificates end, seconds since the epoch, by name; as of the last `judge`.
        problems: What is wrong with certificates and keys, one line by name; as `not_after`.
    """

    def __init__(
        self, formats: Mapping[str, Format] = MappingProxyType({}), *, every: bool = False
    ) -> None:
        self.facts: dict[str, Facts] = {}
        self.not_after: Mapping[str, float] = {}
        self.problems: Mapping[str, str] = {}
        self._formats = formats
        self._every = every
        self._seen = 0
        self._judged = 0
        self._judged_for: Mapping[str, Entry] | None = None
        self._judging = Lock()
        self._until = math.inf
        self._versions: dict[str, str] = {}

    def see(self, name: str, version: str, content: bytes) -> None:
        """Describes a content, unless it is the one before. Never fails: a scan must not."""
        if not (self._every or name in self._formats or is_pem(content)):
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
            entries: The vault config's entries, and the files outside of it.
            now: Seconds since the epoch.
        """
        with self._judging:
            self._judged, self._judged_for = self._seen, entries
            facts = {name: item for name, item in list(self.facts.items()) if name in entries}
            ends = {name: item.pem.not_after for name, item in facts.items() if item.pem}
            found = {
                name: next(problems(item, self._formats.get(name), now), None)
                for name, item in facts.items()
            }
            lines = {name: item.message for name, item in found.items() if item is not None}
            for certificate, key in mismatches(facts, {name: entries[name] for name in facts}):
                lines.setdefault(certificate, f"does not belong to the private key {key}")
            self.not_after = {name: end for name, end in ends.items() if end is not None}
            self.problems = lines
            self._until = min((next_change(item, now) for item in facts.values()), default=math.inf)


def formats_of(watch: Watch) -> dict[str, Format]:
    """The formats of files outside the vault config, by name, as far as they are configured."""
    files = map(extra_file, watch.extra)
    return {file.name or file.path: FORMAT_NAMES[file.format] for file in files if file.format}


def mismatches(facts: Mapping[str, Facts], entries: Mapping[str, Entry]) -> list[tuple[str, str]]:
    """Names of certificate and private key that are used together, and that do not match.

    Together are those of one resource, and outside the vault config those in one directory. Only
    one of each is judged: with more, which belong together is not known.
    """
    certificates: dict[Hashable, list[str]] = {}
    keys: dict[Hashable, list[str]] = {}
    for name, item in facts.items():
        if item.pem is None or item.pem.certificate == item.pem.private_key:
            continue
        found = certificates if item.pem.certificate else keys
        for place in _places(entries[name]):
            found.setdefault(place, []).append(name)
    pairs = [
        (certificates[place][0], keys[place][0])
        for place in certificates.keys() & keys.keys()
        if len(certificates[place]) == len(keys[place]) == 1
    ]
    return sorted(pair for pair in pairs if is_mismatch(facts[pair[0]], facts[pair[1]]))


def _places(entry: Entry) -> Iterable[Hashable]:
    """What a certificate and the key that belongs to it have in common."""
    if entry.extra:
        return [entry.path.rpartition("/")[0]]
    return [scope for scope in entry.scopes if scope.id is not None]
