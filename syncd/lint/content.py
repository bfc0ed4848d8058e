"""`syncd check`: whether contents have the format that the fields which use them need.

The fields are those of a live Aidbox where one is checked. Otherwise only certificates and keys are
judged, which say themselves what they are: an entry's scope names a resource, not the field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from syncd.config.extra import place_of
from syncd.core.content import format_of, is_mismatch, problems
from syncd.core.findings import finding
from syncd.mount.contents import formats_of, mismatches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from syncd.config.settings import Settings
    from syncd.core.content import Facts
    from syncd.core.findings import Finding
    from syncd.core.model import Entry, Scope


class Use(NamedTuple):
    """A field of Aidbox that refers to a secret: the secret's name, the resource, the field."""

    name: str
    resource: Scope
    field: str


def check_content(
    settings: Settings,
    entries: Mapping[str, Entry],
    facts: Mapping[str, Facts],
    uses: Iterable[Use],
    *,
    now: float,
    config: str,
) -> list[Finding]:
    """Judges the described contents.

    Args:
        settings: The configuration, which may say the format of files outside the vault config.
        entries: The entries of the vault config and of `watch.extra`, by name.
        facts: Descriptions of the contents that can be read, by name.
        uses: The fields of a live Aidbox; empty where none was read.
        now: Seconds since the epoch.
        config: The file of the configuration.
    """
    formats = formats_of(settings.watch)
    fields: dict[str, dict[str, Use]] = {}
    for use in uses:
        fields.setdefault(use.name, {}).setdefault(use.field, use)
    found: list[Finding] = []
    for name, item in facts.items():
        seen: dict[str, Finding] = {}
        used: list[Use | None] = [*fields.get(name, {}).values()]
        for user in used or [None]:
            expected = formats.get(name) if user is None else format_of(user.field)
            by = "" if user is None else f", which {user.field} of {user.resource} needs"
            for problem in problems(item, expected, now):
                suffix = by if problem.code == "secret-malformed" else ""
                message = f"{entries[name].path} {problem.message}{suffix}"
                place = place_of(settings, entries[name], config=config)
                seen.setdefault(problem.code, finding(problem.code, *place, message, problem.hint))
        found += seen.values()
    pairs = dict.fromkeys([*mismatches(facts, entries), *_pairs(facts, uses)])
    return found + [
        finding(
            "certificate-mismatch",
            *place_of(settings, entries[certificate], config=config),
            f"{entries[certificate].path} does not belong to the private key {entries[key].path}",
            "write a certificate and the private key that it was issued for",
        )
        for certificate, key in pairs
    ]


def _pairs(facts: Mapping[str, Facts], uses: Iterable[Use]) -> Iterator[tuple[str, str]]:
    """Certificate and key that one resource uses, and that do not match."""
    used: dict[Scope, dict[str, str]] = {}
    for use in uses:
        used.setdefault(use.resource, {})[use.field] = use.name
    for of in used.values():
        certificate, key = of.get("certificate", ""), of.get("private-key", "")
        ours, theirs = facts.get(certificate), facts.get(key)
        if ours is not None and theirs is not None and is_mismatch(ours, theirs):
            yield certificate, key
