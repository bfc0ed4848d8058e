"""`syncd check`: configuration, vault config and mount, checked together.

The rules about the vault config are in `syncd.core.vault_config`, those about one file in
`syncd.mount.read`. Here they are combined, with the rules that need all of it: files that no entry
names, names that lead to one file, mounts that never update. The check goes on after an error
wherever something is left to look at, so that one run reports every mistake.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from syncd.config.load import config_file, examine
from syncd.config.settings import credential_files
from syncd.core.decode import did_you_mean
from syncd.core.errors import ConfigurationError, RefusedError, SyncdError
from syncd.core.findings import finding, json_path, key_path
from syncd.core.mountinfo import MountTree, frozen_mount
from syncd.core.vault_config import lint_vault_config
from syncd.lint.content import check_content
from syncd.lint.exposure import check_exposure
from syncd.lint.watching import check_watching
from syncd.mount.contents import Contents
from syncd.mount.listing import mounts, unclaimed_files
from syncd.mount.read import LIMIT, Reader, scan_once
from syncd.mount.roots import parents_of
from syncd.mount.vault_config_file import read_vault_config
from syncd.mount.way import Watched, follow
from syncd.net.inspection import inspect
from syncd.system.accounts import overflow_uid
from syncd.system.threads import gather, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from syncd.config.settings import Settings
    from syncd.core.content import Facts
    from syncd.core.findings import Finding
    from syncd.core.model import Entry
    from syncd.core.mountinfo import Mount
    from syncd.lint.aidbox.check import Target
    from syncd.lint.content import Use
    from syncd.mount.roots import Parent
    from syncd.mount.snapshot import Snapshot
    from syncd.mount.vault_config_file import VaultConfigFile

_MOST_FILES: Final = 100_000
_MOST_UNMAPPED: Final = 20
_REMEDIES: Final = {
    "secret-missing": "create the file, or correct the path",
    "secret-link-dangling": "correct the symlink",
    "secret-link-loop": "correct the symlinks",
    "secret-not-a-file": "set path to a regular file",
    "secret-outside-roots": "move the file, or add its directory to watch.roots",
    "secret-too-large": "correct the path, or raise watch.max_secret_size",
    "secret-unreadable": "let syncd's user read the file and enter its directories",
    "mount-unreadable": "check the server or disk of this file system, and mount it again",
    "resource-short": "raise the limit of open files or memory, and check again",
    "path-invalid": "correct the path",
    "secret-empty": "write the secret into the file",
    "secret-newline": ("write the secret without it: whether Aidbox removes one is not documented"),
    "secret-world-readable": "remove the permission with chmod o-r",
}
_WHOLE: Final = "mount the whole volume at a directory, without subPath"
_FROZEN: Final = {
    "file": (
        "{point} is a mount of a single file: a file renamed into its place does not show here",
        "mount the directory that holds it, unless the file is always written in place",
    ),
    "generation": (
        "{point} is a mount of one generation of a volume, and does not show later ones",
        _WHOLE,
    ),
    "removed": (
        "the source of the mount {point} was removed, so it shows no new file",
        f"restart the container, or mount it again; {_WHOLE}",
    ),
}

log = structlog.get_logger()


def run_checks(
    file: str | None, environ: Mapping[str, str] = os.environ, *, aidbox: Target | None = None
) -> list[Finding]:
    """Checks configuration, vault config and mount, and optionally a live Aidbox.

    The configuration is found from `file` and `environ` as by `syncd.config.load.load`.

    Raises:
        ConfigurationError: There are no credentials to read Aidbox with.
    """
    # The daemon imports this module, and one that provisions nothing should not load the providers.
    from syncd.provision.plan import check_provision, plan_provision  # noqa: PLC0415

    settings, findings = examine(file, environ)
    if settings is None:
        return findings
    source = config_file(file, environ) or "environment"
    findings += _credentials(settings, source) + check_exposure(settings, source, environ)
    findings += _subscribers(settings, source)
    path = settings.vault_config
    try:
        text = _read_vault_config(path)
    except ConfigurationError as error:
        return [*findings, *error.findings, *plan_provision(settings.provision)[1]]
    entries, found = lint_vault_config(text, path)
    found += check_provision(settings, entries)
    found += _grants(settings, entries, source)
    contents = Contents(every=True)
    snapshot = scan_once(entries, settings.watch, settle=0.0, contents=contents)
    facts = _described(contents, snapshot)
    snapshot.newline_ended = [
        name
        for name in snapshot.newline_ended
        if name not in facts or not facts[name].may_end_in_newline
    ]
    found += check_files(settings, entries, snapshot)
    found += check_watching(settings, _way(snapshot, path), _real_paths(entries), mounts())
    found += check_mount(settings, entries)
    uses: Sequence[Use] = ()
    if aidbox is not None:
        from syncd.lint.aidbox.check import lint_aidbox  # noqa: PLC0415 - as above

        live, uses = lint_aidbox(settings, entries, aidbox)
        found += live
    return [*findings, *found, *check_content(entries, facts, uses, path, time.time())]


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


def _credentials(settings: Settings, source: str) -> list[Finding]:
    """Reads every file that holds one of syncd's credentials, as it will be read for use."""
    files = credential_files(settings)
    partners = {where: path for where, path in files if where.endswith(".client_key")}

    def examine_one(where: str, path: str) -> Finding | None:
        section, _, option = where.rpartition(".")
        partner = partners.get(f"{section}.client_key") if option == "client_cert" else None
        try:
            inspect(option, path, partner)
        except SyncdError as error:
            refused = isinstance(error, RefusedError)
            code = "credential-malformed" if refused else "credential-unreadable"
            hint = error.remedy or f"correct the file or {where}"
            return finding(code, source, where, error.problem, hint)
        return None

    found = gather({where: partial(examine_one, where, path) for where, path in files}, LIMIT)
    silent = [
        finding(
            "credential-unreadable",
            source,
            where,
            f"cannot read {path}: its file system does not answer",
            "check the mount that the file lies on",
        )
        for where, path in files
        if where not in found
    ]
    return [*filter(None, found.values()), *silent]


def _subscribers(settings: Settings, source: str) -> list[Finding]:
    """Entries for the uid of unmapped users: the daemon may run in another namespace than this."""
    overflow = overflow_uid()
    message = (
        f"{overflow} is the uid of every user that is not mapped into a user namespace, and is "
        "denied access in one"
    )
    hint = "run the subscriber as a user of its own, and write its uid"
    return [
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


def _grants(settings: Settings, entries: Mapping[str, Entry], source: str) -> list[Finding]:
    return [
        finding(
            "grant-unknown",
            source,
            key_path("credentials", "grants", index, "secret"),
            f"{item.secret} is not in {settings.vault_config}",
            did_you_mean(item.secret, entries, "correct the name, or add it to the vault config"),
        )
        for index, item in enumerate(settings.credentials.grants)
        if item.secret not in entries
    ]


async def log_findings(settings: Settings, vault_config: VaultConfigFile) -> None:
    """Logs what `check_mount` finds; for the start of a daemon, which it must never end."""
    try:
        findings = await run(check_mount, settings, vault_config.entries)
    except Exception as error:  # noqa: BLE001 - a mistake of the linter, too
        log.error("check.failed", error=type(error).__name__, hint="run syncd check")
        return
    for found in findings:
        report = log.error if found.is_error else log.warning
        report("check.finding", code=found.code, finding=str(found))


def check_files(
    settings: Settings, entries: Mapping[str, Entry], snapshot: Snapshot
) -> list[Finding]:
    """Judges each entry's file, read as the daemon would, but without waiting for its rest."""
    findings = []
    for name, entry in entries.items():
        seen = snapshot.observations[name]
        if seen.problem is None:
            continue
        code = seen.code or "secret-unreadable"
        names_place = seen.problem.startswith(("there is no file ", "the mount "))
        message = seen.problem if names_place else f"{entry.path} {seen.problem}"
        hint = _REMEDIES[code]
        if code == "secret-outside-roots" and not settings.watch.roots:
            # the roots are derived from the paths, and setting any replaces all of them
            hint = "move the file, or set watch.roots to every directory that holds secrets"
        findings.append(_at(settings, name, code, message, hint))
    return findings + _about_content(settings, entries, snapshot)


def _way(snapshot: Snapshot, vault_config: str) -> Watched:
    """What must be watched for a secret or the vault config to change."""
    watched = snapshot.watched
    gather({"": partial(follow, vault_config, watched)}, LIMIT)
    return watched


def _about_content(
    settings: Settings, entries: Mapping[str, Entry], snapshot: Snapshot
) -> list[Finding]:
    empty = [name for name in snapshot.empty if not snapshot.observations[name].problem]
    readable = "is readable for every user of this machine"
    return [
        _at(settings, name, code, f"{entries[name].path} {message}", _REMEDIES[code])
        for names, code, message in (
            (empty, "secret-empty", "is empty"),
            (snapshot.newline_ended, "secret-newline", "ends in a newline"),
            (snapshot.world_readable, "secret-world-readable", readable),
        )
        for name in names
    ]


def check_mount(settings: Settings, entries: Mapping[str, Entry]) -> list[Finding]:
    """Checks the mount as a whole: shared files, mounts that never update, unmapped files."""
    real = _real_paths(entries)
    return [
        *_shared(settings, entries, real),
        *_frozen(settings, real, mounts()),
        *_unmapped(settings, entries),
    ]


def _real_paths(entries: Mapping[str, Entry]) -> dict[str, str]:
    """The real path of each entry's file, as far as the file systems answer."""

    def resolve(parent: Parent) -> dict[str, str]:
        return {entry.name: follow(entry.path, Watched()) for entry in parent.entries}

    parents = parents_of(entries.values())
    resolved = gather({path: partial(resolve, found) for path, found in parents.items()}, LIMIT)
    return {name: path for paths in resolved.values() for name, path in paths.items()}


def _shared(
    settings: Settings, entries: Mapping[str, Entry], real: Mapping[str, str]
) -> list[Finding]:
    """Names that lead to one file by different paths; `lint_vault_config` finds equal paths."""
    first: dict[str, str] = {}
    findings = []
    for name, path in real.items():
        other = first.setdefault(path, name)
        if entries[name].path != entries[other].path:
            message = f"{entries[name].path} is also the file of {json_path('secret', other)}"
            hint = "keep one of them, unless each has its own scope"
            findings.append(_at(settings, name, "path-shared", message, hint))
    return findings


def _frozen(
    settings: Settings, real: Mapping[str, str], mounted: tuple[Mount, ...]
) -> list[Finding]:
    """Files that do not follow a publisher; claims what the mount table shows, and no more."""
    tree = MountTree(mounted)
    findings = []
    for name, path in (("", os.path.realpath(settings.vault_config)), *real.items()):
        found = frozen_mount(tree, path)
        if found is None:
            continue
        message, hint = _FROZEN[found.kind]
        message = message.format(point=found.mount.point)
        if name:
            findings.append(_at(settings, name, "mount-frozen", message, hint))
        else:
            findings.append(finding("mount-frozen", settings.vault_config, "", message, hint))
    return findings


def _unmapped(settings: Settings, entries: Mapping[str, Entry]) -> list[Finding]:
    own = [settings.vault_config, *(path for _, path in credential_files(settings))]
    claimed = [*own, *(entry.path for entry in entries.values())]
    roots = settings.watch.roots
    if not roots:
        located, _ = Reader(b"", settings.watch, settle=0, grace=0).locate(entries)
        roots = tuple(located)
    search = partial(
        unclaimed_files,
        claimed=claimed,
        elsewhere=frozenset(roots),
        most=_MOST_FILES,
        named=_MOST_UNMAPPED + 1,
    )
    listed = gather({root: partial(search, root) for root in roots}, LIMIT).values()
    paths = sorted({path for found, _ in listed for path in found})
    hint = "add an entry to the vault config, or remove the file"
    findings = [
        finding("file-unmapped", path, "", "is named by no entry of the vault config", hint)
        for path in paths[:_MOST_UNMAPPED]
    ]
    if len(paths) > _MOST_UNMAPPED:
        more = sum(count for _, count in listed) - _MOST_UNMAPPED
        message = f"and {more} more files are named by no entry of the vault config"
        findings.append(finding("file-unmapped", paths[_MOST_UNMAPPED], "", message, hint))
    return findings


def _at(settings: Settings, name: str, code: str, message: str, hint: str) -> Finding:
    where = json_path("secret", name, "path")
    return finding(code, settings.vault_config, where, message, hint)
