"""`syncd check`: the files of the secrets, and the mount as a whole.

The rules about one file are in `syncd.mount.read`; here are those that need all of them: files that
no entry names, names that lead to one file, mounts that never update.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

from syncd.config.settings import credential_files
from syncd.core.findings import finding, json_path
from syncd.core.mountinfo import MountTree, frozen_mount
from syncd.mount.listing import mounts, unclaimed_files
from syncd.mount.read import LIMIT, Reader
from syncd.mount.roots import parents_of
from syncd.mount.way import Watched, follow
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.config.settings import Settings
    from syncd.core.findings import Finding
    from syncd.core.model import Entry
    from syncd.core.mountinfo import Mount
    from syncd.mount.roots import Parent
    from syncd.mount.snapshot import Snapshot

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
_PUBLISHED: Final = (
    "set filePermission to 0644 in the SecretProviderClass (in a Secret volume: defaultMode), and "
    "replace the pod; a CSI mount's files belong to root, whatever fsGroup says"
)
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
        elif code == "secret-unreadable" and _is_published(entry.path):
            hint = _PUBLISHED
        findings.append(_at(settings, name, code, message, hint))
    return findings + _about_content(settings, entries, snapshot)


def _is_published(path: str) -> bool:
    """Whether a file is one of an AtomicWriter mount, whose permissions are its publisher's.

    A `chmod` there would not last, and in a pod the mount is read-only.
    """
    directory = os.path.dirname(path)
    while not os.path.islink(f"{directory}/..data"):
        if directory in {"/", ""}:
            return False
        directory = os.path.dirname(directory)
    return True


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
    real = real_paths(entries)
    return [
        *_shared(settings, entries, real),
        *_frozen(settings, real, mounts()),
        *_unmapped(settings, entries),
    ]


def real_paths(entries: Mapping[str, Entry]) -> dict[str, str]:
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
