"""Secret files outside the vault config (`watch.extra`), beside the vault config's entries.

No resource of Aidbox refers to such a file: a TLS key, the credentials that a NATS destination
names by path, a licence, Aidbox's own certificate. It is watched, announced and judged as an entry
of the vault config is, in one inventory with these, so names and paths must differ. Aidbox's own
checks (references, adoption, caches) leave it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncd.config.settings import ExtraFile
from syncd.core.findings import finding, json_path, key_path
from syncd.core.model import Entry, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.config.settings import ScopeSettings, Settings, Watch
    from syncd.core.findings import Finding


def extra_file(item: ExtraFile | str) -> ExtraFile:
    """An item of `watch.extra`, which may be a path alone."""
    return ExtraFile(path=item) if isinstance(item, str) else item


def extra_entries(watch: Watch) -> dict[str, Entry]:
    """The entries of `watch.extra`, by name, in their order."""
    files = map(extra_file, watch.extra)
    entries = (Entry(f.name or f.path, f.path, _scopes(f.scope), extra=True) for f in files)
    return {entry.name: entry for entry in entries}


def _scopes(
    scope: ScopeSettings | tuple[ScopeSettings, ...] | None,
) -> tuple[Scope, ...]:
    if scope is None:
        return ()
    several = scope if isinstance(scope, tuple) else (scope,)
    return tuple(dict.fromkeys(Scope(item.resource_type, item.id) for item in several))


def of_vault_config(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries without those of `watch.extra`."""
    return {name: entry for name, entry in entries.items() if not entry.extra}


def join(
    entries: Mapping[str, Entry], extra: Mapping[str, Entry], vault_config: str
) -> tuple[Mapping[str, Entry], list[Finding]]:
    """Joins the entries of a vault config and of `watch.extra`.

    Args:
        entries: Those of the vault config, by name.
        extra: Those of `watch.extra`, by name, in their order.
        vault_config: Path of the vault config.

    Returns:
        All entries; of two with one name that of the vault config. And a finding for each name or
        path that both have.
    """
    if not extra:
        return entries, []
    return {**extra, **entries}, list(_conflicts(entries, extra, vault_config))


def _conflicts(
    entries: Mapping[str, Entry], extra: Mapping[str, Entry], vault_config: str
) -> Iterator[Finding]:
    paths = {entry.path: entry.name for entry in reversed([*entries.values()])}
    for index, (name, entry) in enumerate(extra.items()):
        place, other = key_path("watch", "extra", index), paths.get(entry.path)
        if other is not None:
            message = f"is also the file of {place}, which is for files outside the vault config"
            where, hint = json_path("secret", other, "path"), f"remove {place}"
        elif name in entries:
            message = f"is also the name of {place}, a file outside the vault config"
            where, hint = json_path("secret", name), f"give {place} another name"
        else:
            continue
        yield finding("extra-conflict", vault_config, where, message, hint)


def place_of(
    settings: Settings, entry: Entry, key: str = "path", config: str = "configuration"
) -> tuple[str, str]:
    """Where an entry is written: the file, and the place in it.

    Args:
        settings: The configuration.
        entry: The entry.
        key: What of it; a file of `watch.extra` that is a path alone has no keys.
        config: The file of the configuration.
    """
    if not entry.extra:
        return settings.vault_config, json_path("secret", entry.name, key)
    for index, item in enumerate(settings.watch.extra):
        if extra_file(item).path == entry.path:
            keys = () if isinstance(item, str) else (key,)
            return config, key_path("watch", "extra", index, *keys)
    return config, key_path("watch", "extra")
