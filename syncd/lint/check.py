"""`syncd check`: configuration, vault config and mount, checked together.

The rules about the vault config are in `syncd.core.vault_config`, those about files in
`syncd.lint.files`, those about who will run syncd in `syncd.lint.runner`. Here they are combined.
The check goes on after an error wherever something is left to look at, so that one run reports
every mistake.
"""

from __future__ import annotations

import importlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from syncd.config.extra import extra_entries, join
from syncd.config.load import config_file, examine_any, read_tree
from syncd.config.settings import Aidbox, RelaySettings
from syncd.core.content import Format
from syncd.core.decode import did_you_mean
from syncd.core.errors import ConfigurationError, SyncdError
from syncd.core.findings import finding, key_path
from syncd.core.vault_config import lint_vault_config
from syncd.lint.cluster import check_cluster, check_rights
from syncd.lint.commands import check_commands
from syncd.lint.consumers import check_addresses, check_connections
from syncd.lint.content import check_content
from syncd.lint.credentials import check_credentials
from syncd.lint.exposure import check_exposure
from syncd.lint.files import check_files, check_mount, real_paths
from syncd.lint.own_files import files_of_manifest, own_files, written_files
from syncd.lint.placeholders import check_placeholders
from syncd.lint.places import check_places
from syncd.lint.runner import check_loaded
from syncd.lint.scopes import check_scopes
from syncd.lint.watching import check_watching
from syncd.mount.contents import Contents, formats_of
from syncd.mount.listing import mounts
from syncd.mount.read import LIMIT, scan_once
from syncd.mount.vault_config_file import read_vault_config
from syncd.mount.way import follow
from syncd.system.accounts import overflow_uid
from syncd.system.errnos import reason
from syncd.system.identity import become
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from syncd.config.settings import Settings
    from syncd.core.content import Facts
    from syncd.core.findings import Finding
    from syncd.core.model import Entry
    from syncd.lint.aidbox.check import Target
    from syncd.lint.content import Use
    from syncd.lint.runner import Runner
    from syncd.mount.snapshot import Snapshot
    from syncd.mount.way import Watched

    _Loaded = Mapping[str, list[Finding]]

_UNFILLED: Final = "value-uninterpolated"
log = structlog.get_logger()


def run_checks(
    file: str | None,
    environ: Mapping[str, str] = os.environ,
    *,
    aidbox: Target | None = None,
    runner: Runner | None = None,
    connect: bool = False,
) -> list[Finding]:
    """Checks configuration, vault config and mount, and optionally a live Aidbox.

    The configuration is found from `file` and `environ` as by `syncd.config.load.load`. One with
    the section `relay` is that of a relay, which has no vault config.

    Args:
        file: The configuration.
        environ: The environment.
        aidbox: The Aidbox to read, or None.
        runner: Who will run syncd; this process then becomes that user, for good, and names of
            hosts are looked up. By default permissions are judged for this user, and nothing is
            looked up.
        connect: Whether to connect to the consumers, without sending anything.

    Raises:
        ConfigurationError: There are no credentials to read Aidbox with.
        SyncdError: This process cannot become the runner.
    """
    loaded = _become(runner, file, environ) if runner is not None else {}
    settings, findings = examine_any(file, environ)
    if settings is None:
        return findings
    is_whole = not findings
    source = config_file(file, environ) or "environment"
    if runner is not None and runner.is_known:
        findings += check_places(settings, source, runner.unit)
    findings += check_credentials(settings, source, loaded)
    findings += check_commands(settings, source)
    if runner is not None:
        findings += check_addresses(settings, source)
    if connect:
        findings += check_connections(settings, source)
        if not isinstance(settings, RelaySettings):
            findings += check_rights(settings, source, environ)
    findings += check_exposure(settings, source, environ) + _subscribers(settings, source)
    # of a configuration with mistakes, most sections are left out of the settings
    written = settings if is_whole else read_tree(file, environ)
    unfilled = check_placeholders(written, source, environ)
    if isinstance(settings, RelaySettings):
        findings += check_scopes(settings, None, source)
    else:
        findings += check_cluster(settings, source, environ)
        config = config_file(file, environ)
        own = own_files(settings, config) if is_whole else written_files(file, environ)
        findings += _check_mounted(settings, source, aidbox, own)
    return _without_consequences(findings, unfilled)


def _without_consequences(findings: list[Finding], unfilled: list[Finding]) -> list[Finding]:
    """All findings, but of a value with a placeholder only that: the rest follows from it."""
    said = {(item.source, item.where) for item in findings if item.code == _UNFILLED}
    places = said | {(item.source, item.where) for item in unfilled}
    kept = [
        item
        for item in findings
        if item.code == _UNFILLED or (item.source, item.where) not in places
    ]
    return kept + [item for item in unfilled if (item.source, item.where) not in said]


def _become(runner: Runner, file: str | None, environ: Mapping[str, str]) -> _Loaded:
    """Judges what only root can see, and becomes the runner."""
    for module in ("syncd.provision.trust", "syncd.lint.aidbox.check", "encodings.idna"):
        importlib.import_module(module)  # while they are within reach
    settings, _ = examine_any(file, environ) if _is_regular(file) else (None, [])
    source = config_file(file, environ) or "environment"
    loaded = {} if settings is None else check_loaded(settings, source, runner)
    if runner.identity is not None:
        try:
            become(runner.identity)
        except OSError as error:
            hint = "run it as root, without restrictions of its capabilities"
            raise SyncdError(
                f"cannot become {runner.identity.name}: {reason(error)}", hint
            ) from None
    return loaded


def _is_regular(file: str | None) -> bool:
    """Whether a configuration can be read twice; a pipe cannot."""
    return file is None or os.path.isfile(file)


def _check_mounted(
    settings: Settings, source: str, aidbox: Target | None, own: set[str]
) -> list[Finding]:
    # The daemon imports this module, and one that provisions nothing should not load the providers.
    from syncd.provision.plan import check_provision, plan_provision  # noqa: PLC0415
    from syncd.provision.trust import check_trust  # noqa: PLC0415

    plans, planned = plan_provision(settings.provision)
    trusted = [item for plan in plans for item in check_trust(plan)]
    path = settings.vault_config
    try:
        text = _read_vault_config(path)
    except ConfigurationError as error:
        return [*trusted, *check_scopes(settings, None, source), *error.findings, *planned]
    mapped, found = lint_vault_config(text, path)
    entries, conflicts = join(mapped, extra_entries(settings.watch), path)
    found = trusted + found + conflicts + check_scopes(settings, entries, source)
    found += planned + check_provision(settings, entries, plans)
    found += _unknown(settings, entries, source)
    contents = Contents(every=True)
    snapshot = scan_once(entries, settings.watch, settle=0.0, contents=contents)
    facts = _described(contents, snapshot)
    _acquit(snapshot, settings, entries, facts)
    found += check_files(settings, entries, snapshot, source)
    found += check_watching(settings, _way(snapshot, path), real_paths(entries), mounts())
    own = own.union(*(files_of_manifest(plan.text) for plan in plans))
    if aidbox is not None:
        own |= {*map(os.path.abspath, filter(None, (aidbox.client_secret_file, aidbox.ca_file)))}
    found += check_mount(settings, entries, own, source)
    uses: Sequence[Use] = ()
    if aidbox is not None:
        from syncd.lint.aidbox.check import lint_aidbox  # noqa: PLC0415 - as above

        live, uses = lint_aidbox(settings, mapped, aidbox)
        found += live
    content = check_content(settings, entries, facts, uses, now=time.time(), config=source)
    return [*found, *content]


def _acquit(
    snapshot: Snapshot,
    settings: Settings,
    entries: Mapping[str, Entry],
    facts: Mapping[str, Facts],
) -> None:
    """Drops what is right for a content: a newline after PEM, a certificate that all may read.

    Of a file outside the vault config, a newline is wrong only if it is said to be one value.
    """
    formats = formats_of(settings.watch)
    snapshot.newline_ended = [
        name
        for name in snapshot.newline_ended
        if (name not in facts or not facts[name].may_end_in_newline)
        and (not entries[name].extra or formats.get(name) is Format.VALUE)
    ]
    snapshot.world_readable = [
        name for name in snapshot.world_readable if name not in facts or not facts[name].is_public
    ]


def _described(contents: Contents, snapshot: Snapshot) -> dict[str, Facts]:
    """The descriptions of files that can be read and are not empty."""
    readable = {
        name
        for name, seen in snapshot.observations.items()
        if seen.problem is None and seen.version is not None and name not in snapshot.empty
    }
    return {name: facts for name, facts in contents.facts.items() if name in readable}


def _read_vault_config(path: str) -> bytes:
    read = gather({path: partial(read_vault_config, path)}, LIMIT)
    if path not in read:
        message, hint = "its file system does not answer", "check the mount that the file lies on"
        raise ConfigurationError([finding("vault-config-unreadable", path, "", message, hint)])
    return read[path][0]


def _subscribers(settings: Settings | RelaySettings, source: str) -> list[Finding]:
    """Entries without a socket, and for the uid of unmapped users.

    The daemon may run in another namespace than this.
    """
    findings = []
    if settings.api.subscribers and not settings.api.socket:
        message = "is set, but api.socket is not: no subscriber can connect"
        hint = "set api.socket, unless a socket unit of systemd passes one"
        findings.append(
            finding("subscribers-unreachable", source, "api.subscribers", message, hint)
        )
    overflow = overflow_uid()
    message = (
        f"{overflow} is the uid of every user that is not mapped into a user namespace, and is "
        "denied access in one"
    )
    hint = "run the subscriber as a user of its own, and write its uid"
    return findings + [
        finding(
            "subscriber-unmapped",
            source,
            key_path("api", "subscribers", index, "uid"),
            message,
            hint,
        )
        for index, item in enumerate(settings.api.subscribers)
        if item.uid == overflow
    ]


def _unknown(settings: Settings, entries: Mapping[str, Entry], source: str) -> list[Finding]:
    """Names of secrets in the configuration that no entry has."""
    places: list[tuple[str, str, str]] = [
        ("grant-unknown", key_path("credentials", "grants", index, "secret"), item.secret)
        for index, item in enumerate(settings.credentials.grants)
    ]
    places += [
        ("rollout-unknown", key_path("consumers", index, "rollout", "secrets", place), name)
        for index, item in enumerate(settings.consumers)
        if isinstance(item, Aidbox) and item.rollout is not None
        for place, name in enumerate(item.rollout.secrets)
    ]
    return [
        finding(
            code,
            source,
            where,
            f"{name} is not in {settings.vault_config}",
            did_you_mean(name, entries, "correct the name, or add it to the vault config"),
        )
        for code, where, name in places
        if name not in entries
    ]


def _way(snapshot: Snapshot, vault_config: str) -> Watched:
    """What must be watched for a secret or the vault config to change."""
    watched = snapshot.watched
    gather({"": partial(follow, vault_config, watched)}, LIMIT)
    return watched
