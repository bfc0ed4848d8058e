"""`syncd check`: everything about configuration, vault config and mount that will surprise someone.

The rules about the vault config are in `syncd.core.vault_config`, those about one file in
`syncd.mount.read`; here they are put together, with what only the whole picture shows: files that
nobody names, names that lead to one file, mounts that never update. The check goes on after an
error wherever there is something left to look at, so that one run names every mistake.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
from typing import TYPE_CHECKING, Final

import anyio.to_thread
import structlog

from syncd.config.load import config_file, examine
from syncd.config.settings import credential_files
from syncd.core.errors import RefusedError, SyncdError
from syncd.core.findings import finding, json_path, key_path
from syncd.core.mountinfo import frozen_mount
from syncd.core.vault_config import lint_vault_config
from syncd.mount.listing import mounts, unclaimed_files
from syncd.mount.read import Reader, derive_roots
from syncd.net.inspection import inspect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.config.settings import Settings
    from syncd.core.findings import Finding
    from syncd.core.model import Entry
    from syncd.core.mountinfo import Mount
    from syncd.lint.aidbox.check import Target
    from syncd.mount.read import Snapshot
    from syncd.mount.vault_config_file import VaultConfigFile

NO_INPUT: Final = frozenset(
    (
        "aidbox-unreadable",
        "config-malformed",
        "config-unreadable",
        "manifest-malformed",
        "manifest-unreadable",
        "vault-config-malformed",
        "vault-config-unreadable",
    )
)
"""Codes that mean that an input could not be read at all."""

_LARGEST_VAULT_CONFIG: Final = 64 << 20
_MOST_FILES: Final = 100_000
_MOST_UNMAPPED: Final = 20
_REMEDIES: Final = {
    "secret-missing": "create it, or mend the path",
    "secret-link-dangling": "mend the symlink",
    "secret-link-loop": "mend the symlinks",
    "secret-not-a-file": "name a regular file",
    "secret-outside-roots": "move it, or add its directory to watch.roots",
    "secret-too-large": "name the right file, or raise watch.max_secret_size",
    "secret-unreadable": "let syncd's user read it and enter its directories",
    "secret-empty": "write the secret into it",
}

log = structlog.get_logger()


def run_checks(
    file: str | None, environ: Mapping[str, str] = os.environ, *, aidbox: Target | None = None
) -> list[Finding]:
    """Checks configuration, vault config and mount, and a live Aidbox if asked to.

    Args:
        file: Path of the configuration from the command line; see `syncd.config.load.load`.
        environ: The environment.
        aidbox: Which Aidbox to read, or None.

    Returns:
        Every finding: the configuration's, the vault config's, the manifests', the mount's,
        Aidbox's.

    Raises:
        ConfigurationError: There are no credentials to read Aidbox as.
    """
    # whoever watches only does not pay for it: the daemon imports this module, too
    from syncd.provision.factory import check_provision, plan_provision  # noqa: PLC0415

    settings, findings = examine(file, environ)
    if settings is None:
        return findings
    findings += _credentials(settings, config_file(file, environ) or "environment")
    path = settings.vault_config
    try:
        text = _read(path)
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        hint = "set vault_config or BOX_VAULT_CONFIG to the JSON file that Aidbox reads"
        found = [finding("vault-config-unreadable", path, "", message, hint)]
        return findings + found + plan_provision(settings.provision)[1]
    entries, found = lint_vault_config(text, path)
    found += check_provision(settings, entries)
    found += _grants(settings, entries, config_file(file, environ) or "environment")
    found += check_files(settings, entries) + check_mount(settings, entries)
    if aidbox is not None:
        from syncd.lint.aidbox.check import lint_aidbox  # noqa: PLC0415 - only where asked for

        found += lint_aidbox(settings, entries, aidbox)
    return findings + found


def exit_code(findings: Iterable[Finding], *, strict: bool) -> int:
    """The exit code of `syncd check`.

    Returns:
        0 when there is no error (with `strict`: nothing at all), 2 when an input could not be
        read at all, else 1.
    """
    findings = tuple(findings)
    if any(found.code in NO_INPUT for found in findings):
        return 2
    return int(any(strict or found.is_error for found in findings))


def as_text(findings: Iterable[Finding]) -> str:
    """One line per finding, and a line that sums them up."""
    findings = tuple(findings)
    errors, warnings = _count(findings)
    return "\n".join(
        [f"{found.severity}: {found}" for found in findings]
        + [f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"]
    )


def as_json(findings: Iterable[Finding]) -> str:
    """The findings and their numbers as one JSON object."""
    findings = tuple(findings)
    errors, warnings = _count(findings)
    document = {
        "findings": [
            {
                "code": found.code,
                "severity": found.severity,
                "source": found.source,
                "where": found.where,
                "message": found.message,
                "hint": found.hint,
            }
            for found in findings
        ],
        "summary": {"errors": errors, "warnings": warnings},
    }
    return json.dumps(document, indent=2)


def _count(findings: tuple[Finding, ...]) -> tuple[int, int]:
    errors = sum(found.is_error for found in findings)
    return errors, len(findings) - errors


def _read(path: str) -> bytes:
    """Reads a file, without waiting for whoever might write into a FIFO.

    Raises:
        OSError: It cannot be read, or is no regular file of a sane size.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "is not a file")
        if status.st_size > _LARGEST_VAULT_CONFIG:
            raise OSError(0, "is larger than 64 MiB")
        return file.read()


def _credentials(settings: Settings, source: str) -> list[Finding]:
    """Reads every file that holds a credential of syncd's own, as it will be read for use."""
    files = credential_files(settings)
    partners = {where: path for where, path in files if where.endswith(".client_key")}
    findings = []
    for where, path in files:
        section, _, option = where.rpartition(".")
        partner = partners.get(f"{section}.client_key") if option == "client_cert" else None
        try:
            inspect(option, path, partner)
        except SyncdError as error:
            refused = isinstance(error, RefusedError)
            code = "credential-malformed" if refused else "credential-unreadable"
            message, _, hint = str(error).rpartition("; ")
            findings.append(finding(code, source, where, message, hint))
    return findings


def _grants(settings: Settings, entries: Mapping[str, Entry], source: str) -> list[Finding]:
    """Credentials of units that no secret can give."""
    hint = "mend it, or add the secret to the vault config"
    return [
        finding(
            "grant-unknown",
            source,
            key_path("credentials", "grants", index, "secret"),
            f"{item.secret} is not in {settings.vault_config}",
            hint,
        )
        for index, item in enumerate(settings.credentials.grants)
        if item.secret not in entries
    ]


async def log_findings(settings: Settings, vault_config: VaultConfigFile) -> None:
    """Logs once what `check_mount` finds beyond the state of each secret."""
    entries = dict(vault_config.entries)
    for found in await anyio.to_thread.run_sync(check_mount, settings, entries):
        say = log.error if found.is_error else log.warning
        say("check.finding", code=found.code, finding=str(found))


def check_files(settings: Settings, entries: Mapping[str, Entry]) -> list[Finding]:
    """Looks at each entry's file as the daemon would, except that it does not wait for rest."""
    reader = Reader(
        secrets.token_bytes(32),  # whatever is read is hashed, compared with nothing, forgotten
        _roots(settings, entries),
        max_size=settings.watch.max_secret_size,
        settle=0.0,
        grace=0.0,
    )
    snapshot = reader.scan(entries, now=time.time(), monotonic=time.monotonic())
    findings = []
    for name, entry in entries.items():
        seen = snapshot.observations[name]
        if seen.problem is None:
            continue
        code = seen.code or "secret-unreadable"
        message = seen.problem if entry.path in seen.problem else f"{entry.path} {seen.problem}"
        findings.append(_at(settings, name, code, message, _REMEDIES[code]))
    return findings + _about_content(settings, entries, snapshot)


def _about_content(
    settings: Settings, entries: Mapping[str, Entry], snapshot: Snapshot
) -> list[Finding]:
    return [
        _at(settings, name, code, f"{entries[name].path} {message}", hint)
        for names, code, message, hint in (
            (
                [name for name in snapshot.empty if not snapshot.observations[name].problem],
                "secret-empty",
                "is empty",
                _REMEDIES["secret-empty"],
            ),
            (
                snapshot.newline_ended,
                "secret-newline",
                "ends in a newline",
                "write it without one: Aidbox does not say whether it trims",
            ),
            (
                snapshot.world_readable,
                "secret-world-readable",
                "may be read by every user of this machine",
                "chmod o-r",
            ),
        )
        for name in names
    ]


def check_mount(settings: Settings, entries: Mapping[str, Entry]) -> list[Finding]:
    """Looks at the mount as a whole: shared files, mounts that never update, unmapped files."""
    real = {name: os.path.realpath(entry.path) for name, entry in entries.items()}
    return [
        *_shared(settings, entries, real),
        *_frozen(settings, real, mounts()),
        *_unmapped(settings, entries),
    ]


def _shared(
    settings: Settings, entries: Mapping[str, Entry], real: Mapping[str, str]
) -> list[Finding]:
    """Names that lead to one file by different paths; equal paths are the vault config's affair."""
    first: dict[str, str] = {}
    findings = []
    for name, path in real.items():
        other = first.setdefault(path, name)
        if entries[name].path != entries[other].path:
            message = f"{entries[name].path} is the file of {json_path('secret', other)} too"
            hint = "keep one of them, unless each serves a scope of its own"
            findings.append(_at(settings, name, "path-shared", message, hint))
    return findings


def _frozen(
    settings: Settings,
    real: Mapping[str, str],
    mounted: tuple[Mount, ...],
) -> list[Finding]:
    hint = "mount the whole volume, without subPath, at a directory"
    findings = []
    if frozen_mount(mounted, os.path.realpath(settings.vault_config)):
        message = "is a bind mount (subPath) that shows no new version until a restart"
        findings.append(finding("mount-frozen", settings.vault_config, "", message, hint))
    for name, path in real.items():
        mount = frozen_mount(mounted, path)
        if mount is not None:
            message = f"{mount.point} is a bind mount (subPath) that will never update"
            findings.append(_at(settings, name, "mount-frozen", message, hint))
    return findings


def _unmapped(settings: Settings, entries: Mapping[str, Entry]) -> list[Finding]:
    own = [settings.vault_config, *(path for _, path in credential_files(settings))]
    claimed = [*own, *(entry.path for entry in entries.values())]
    paths = unclaimed_files(_roots(settings, entries), claimed, most=_MOST_FILES)
    hint = "add an entry to the vault config, or take the file away"
    findings = [
        finding("file-unmapped", path, "", "is named by no entry of the vault config", hint)
        for path in paths[:_MOST_UNMAPPED]
    ]
    if len(paths) > _MOST_UNMAPPED:
        more = len(paths) - _MOST_UNMAPPED
        message = f"so are {more} files more"
        findings.append(finding("file-unmapped", paths[_MOST_UNMAPPED], "", message, hint))
    return findings


def _roots(settings: Settings, entries: Mapping[str, Entry]) -> tuple[str, ...]:
    return settings.watch.roots or derive_roots(entries.values())


def _at(settings: Settings, name: str, code: str, message: str, hint: str) -> Finding:
    where = json_path("secret", name, "path")
    return finding(code, settings.vault_config, where, message, hint)
