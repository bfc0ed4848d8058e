"""The linter's rules about resources, vault config and a running Aidbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from syncd.core.decode import did_you_mean
from syncd.core.findings import finding, json_path
from syncd.core.model import Scope
from syncd.core.timing import rfc3339
from syncd.lint.aidbox.references import DESTINATION, Reference, references_in, stored_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncd.core.findings import Finding
    from syncd.core.model import Entry

Resource = Mapping[str, object]

_CLOCK_ERROR: Final = 2.0
_NAME: Final = 128
_RECREATE: Final = "DELETE it and POST it again (a PUT returns 405), or restart Aidbox"


@dataclass(frozen=True, slots=True)
class Destination:
    """The `$status` of a running AidboxTopicDestination.

    Attributes:
        started: When its sender started, seconds since the epoch, or None if not reported.
        queued: Messages that are not delivered yet, or None if not reported.
    """

    started: float | None
    queued: int | None


@dataclass(frozen=True, slots=True)
class Live:
    """What was read of a running Aidbox.

    Attributes:
        url: Its base URL.
        resources: By type; without the types that could not be read.
        destinations: The status of each destination that refers to a secret, by id.
        started: When each replica started, seconds since the epoch, by URL.
    """

    url: str
    resources: Mapping[str, tuple[Resource, ...]]
    destinations: Mapping[str, Destination] = field(default_factory=dict)
    started: Mapping[str, float] = field(default_factory=dict)

    def each(self) -> Iterator[tuple[Scope, Resource]]:
        """Every resource, with its type and id."""
        for type_, resources in self.resources.items():
            for resource in resources:
                yield Scope(type_, str(resource.get("id", ""))), resource

    def place(self, of: Scope) -> str:
        """URL of a resource."""
        return f"{self.url}/fhir/{of.resource_type}/{of.id}"


def check_live(
    live: Live,
    entries: Mapping[str, Entry],
    vault_config: str,
    *,
    vault_config_changed: float | None,
    rotated: Mapping[str, float],
) -> list[Finding]:
    """Applies every rule.

    Args:
        live: What was read of Aidbox.
        entries: The vault config's, by name.
        vault_config: Path of the vault config.
        vault_config_changed: When it last changed, seconds since the epoch, or None.
        rotated: When each secret's content last changed, where that is known, by name.
    """
    found = [reference for of, resource in live.each() for reference in references_in(resource, of)]
    return [
        *_names(live, found, entries),
        *_unreferenced(live, found, entries, vault_config),
        *_stale_destinations(live, found, rotated),
        *_stored(live),
        *_restart(live, vault_config, vault_config_changed),
    ]


def _names(live: Live, found: list[Reference], entries: Mapping[str, Entry]) -> Iterator[Finding]:
    for reference in found:
        place, where = live.place(reference.resource), json_path(*reference.where)
        entry, name = entries.get(reference.name), _quoted(reference.name)
        if entry is None:
            message = f"refers to {name}, which is not in the vault config"
            hint = f"add it there and restart Aidbox{_other_names(reference, entries)}"
            yield finding("reference-unknown", place, where, message, hint)
        elif entry.scopes and not any(s.covers(reference.resource) for s in entry.scopes):
            allowed = ", ".join(map(str, entry.scopes))
            message = f"refers to {name}, which is for {allowed} only"
            hint = f"add an entry with another name and the scope {reference.resource}"
            yield finding("reference-out-of-scope", place, where, message, hint)


def _quoted(name: str) -> str:
    """A name from Aidbox, unless it may be a value that was written in place of a name."""
    return f"the secret {name}" if name.isprintable() and len(name) <= _NAME else "a secret"


def _other_names(reference: Reference, entries: Mapping[str, Entry]) -> str:
    fitting = [n for n, e in entries.items() if any(s.covers(reference.resource) for s in e.scopes)]
    if not fitting:
        return f": the vault config has no entry for {reference.resource}"
    return f", or correct the name: {did_you_mean(reference.name, fitting)}"


def _unreferenced(
    live: Live, found: list[Reference], entries: Mapping[str, Entry], vault_config: str
) -> Iterator[Finding]:
    used = {reference.name for reference in found}
    for name, entry in entries.items():
        types = {scope.resource_type for scope in entry.scopes}
        if name in used or not types or not types <= live.resources.keys():
            continue  # not all resources that could refer to it were read
        message = "is not used by any resource of Aidbox"
        hint = "refer to it from a resource, or remove the entry and the file"
        yield finding("entry-unreferenced", vault_config, json_path("secret", name), message, hint)


def _stale_destinations(
    live: Live, found: list[Reference], rotated: Mapping[str, float]
) -> Iterator[Finding]:
    for reference in found:
        if reference.resource.resource_type != DESTINATION or reference.name not in rotated:
            continue
        state = live.destinations.get(reference.resource.id or "")
        if state is None or state.started is None or rotated[reference.name] <= state.started:
            continue
        message = (
            f"uses an old value of the secret {reference.name}: it started at "
            f"{rfc3339(state.started)}, before the rotation at {rfc3339(rotated[reference.name])}"
        )
        queued = "unknown" if state.queued is None else state.queued
        hint = f"{_RECREATE}; messagesQueued is {queued}, and those messages can be lost"
        place, where = live.place(reference.resource), json_path(*reference.where)
        yield finding("destination-stale", place, where, message, hint)


def _stored(live: Live) -> Iterator[Finding]:
    for of, resource in live.each():
        for where in stored_secrets(resource, of.resource_type):
            message = "holds a secret in Aidbox's database"
            hint = "write it to a file, add an entry to the vault config, and refer to the entry"
            place = live.place(of)
            yield finding("secret-stored", place, json_path(*where), message, hint)


def _restart(live: Live, vault_config: str, changed: float | None) -> Iterator[Finding]:
    for url, started in live.started.items():
        if changed is not None and started < changed - _CLOCK_ERROR:
            message = (
                f"has been running since {rfc3339(started)}, but {vault_config} changed at "
                f"{rfc3339(changed)}"
            )
            hint = "restart Aidbox: it loads the vault config only when it starts"
            yield finding("aidbox-restart-needed", url, "", message, hint)
