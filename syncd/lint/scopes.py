"""`syncd check`: scopes of consumers and subscribers that let less through than was meant.

A scope is free text to the configuration, since Aidbox may learn new types. What no entry of the
vault config matches, though, delivers nothing, which is not noticed until a rotation is missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from syncd.config.extra import extra_file
from syncd.config.settings import RelaySettings
from syncd.core.decode import did_you_mean
from syncd.core.findings import finding, key_path
from syncd.core.model import Grant, Scope
from syncd.core.vault_config import RESOURCE_TYPES, is_fhir_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.config.settings import ScopeSettings, Settings
    from syncd.core.findings import Finding
    from syncd.core.model import Entry

    _Place = tuple[tuple[str | int, ...], str, ScopeSettings]
    _List = tuple[tuple[str | int, ...], str, tuple[ScopeSettings, ...] | None]

_HINT: Final = "correct the scope, or add an entry that it covers; without scope, all is delivered"


def check_scopes(
    settings: Settings | RelaySettings, entries: Mapping[str, Entry] | None, source: str
) -> list[Finding]:
    """The findings about every scope.

    Args:
        settings: The configuration.
        entries: The vault config's entries; None where they are not known, as for a relay.
        source: Where the configuration was read.
    """
    findings = [
        finding("scope-unmatched", source, key_path(*at), f"is empty: {who} gets nothing", _HINT)
        for at, who in _empty(settings)
    ]
    for at, scope in _scopes_of_files(settings):
        problem = _spelling(scope)
        if problem is not None:
            code, key, message, hint = problem
            findings.append(finding(code, source, key_path(*at, key), message, hint))
    for at, who, scope in _scopes(settings):
        problem = _spelling(scope)
        if problem is None and entries is not None:
            granted = Scope(scope.resource_type, scope.id)
            if not any(Grant([granted]).sees(entry.scopes) for entry in entries.values()):
                message = f"no entry of the vault config is for {granted}: {who} gets nothing by it"
                problem = "scope-unmatched", "", message, _HINT
        if problem is not None:
            code, key, message, hint = problem
            place = key_path(*at, key) if key else key_path(*at)
            findings.append(finding(code, source, place, message, hint))
    return findings


def _lists(settings: Settings | RelaySettings) -> Iterator[_List]:
    for index, consumer in enumerate(settings.consumers):
        yield ("consumers", index), consumer.name, consumer.scope
    for index, subscriber in enumerate(settings.api.subscribers):
        yield ("api", "subscribers", index), subscriber.name, subscriber.scope


def _scopes(settings: Settings | RelaySettings) -> Iterator[_Place]:
    for at, who, scopes in _lists(settings):
        for index, scope in enumerate(scopes or ()):
            yield (*at, "scope", index), who, scope


def _scopes_of_files(
    settings: Settings | RelaySettings,
) -> Iterator[tuple[tuple[str | int, ...], ScopeSettings]]:
    """The scopes of files outside the vault config."""
    if isinstance(settings, RelaySettings):
        return
    for index, item in enumerate(settings.watch.extra):
        scope, at = extra_file(item).scope, ("watch", "extra", index, "scope")
        if isinstance(scope, tuple):
            for number, one in enumerate(scope):
                yield (*at, number), one
        elif scope is not None:
            yield at, scope


def _empty(settings: Settings | RelaySettings) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The lists of scopes without an element: they grant nothing."""
    for at, who, scopes in _lists(settings):
        if scopes is not None and not scopes:
            yield (*at, "scope"), who


def _spelling(scope: ScopeSettings) -> tuple[str, str, str, str] | None:
    if scope.resource_type not in RESOURCE_TYPES:
        hint = did_you_mean(scope.resource_type, RESOURCE_TYPES)
        message = "is not a resource type that refers to secrets"
        return "resource-type-unknown", "resource_type", message, hint
    if scope.id is not None and not is_fhir_id(scope.id):
        hint = "write the id alone, without its type: letters, digits, - and ., 64 at most"
        return "scope-id-unusual", "id", "is not a FHIR id", hint
    return None
