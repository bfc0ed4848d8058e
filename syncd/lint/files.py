"""`syncd check`: the files of the secrets, and the mount as a whole.

The rules about one file are in `syncd.mount.read`; here are those that need all of them: files that
no entry names, names that lead to one file, mounts that never update.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

from syncd.config.extra import of_vault_config, place_of
from syncd.core.findings import finding, json_path
from syncd.core.mountinfo import MountTree, frozen_mount
from syncd.mount.listing import mounts, unclaimed_files
from syncd.mount.read import LIMIT, Reader
from syncd.mount.roots import parents_of
from syncd.mount.way import RealPaths
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from syncd.config.settings import Settings
    from syncd.core.findings import Finding
    from syncd.core.model import Entry
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
    settings: Settings,
    entries: Mapping[str, Entry],
    snapshot: Snapshot,
    config: str = "configuration",
) -> list[Finding]:
    """Judges each entry's file, read as the daemon would, but without waiting for its rest.

    Args:
        settings: The configuration.
        entries: The entries of the vault config and of `watch.extra`, by name.
        snapshot: What a scan saw.
        config: The file of the configuration.
    """
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
        place = place_of(settings, entry, config=config)
        findings.append(finding(code, *place, message, hint))
    return findings + _about_content(settings, entries, snapshot, config)


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
    settings: Settings, entries: Mapping[str, Entry], snapshot: Snapshot, config: str
) -> list[Finding]:
    empty = [name for name in snapshot.empty if not snapshot.observations[name].problem]
    readable = "is readable for every user of this machine"
    return [
        finding(
            code,
            *place_of(settings, entries[name], config=config),
            f"{entries[name].path} {message}",
            _REMEDIES[code],
        )
        for names, code, message in (
            (empty, "secret-empty", "is empty"),
            (snapshot.newline_ended, "secret-newline", "ends in a newline"),
            (snapshot.world_readable, "secret-world-readable", readable),
        )
        for name in names
    ]


def check_mount(
    settings: Settings,
    entries: Mapping[str, Entry],
    own: Collection[str],
    config: str = "configuration",
) -> list[Finding]:
    """Checks the mount as a whole: shared files, mounts that never update, unmapped files.

    Args:
        settings: The configuration.
        entries: The entries of the vault config and of `watch.extra`, by name.
        own: The files that syncd itself uses.
        config: The file of the configuration.
    """
    real = real_paths(entries)
    return [
        *_shared(settings, entries, real, config),
        *_frozen(settings, entries, real, config),
        *_unmapped(settings, entries, own),
    ]


def real_paths(entries: Mapping[str, Entry]) -> dict[str, str]:
    """The real path of each entry's file, as far as the file systems answer."""

    def resolve(parent: Parent) -> dict[str, str]:
        paths = RealPaths()
        return {entry.name: paths.of(entry.path) for entry in parent.entries}

    parents = parents_of(entries.values())
    resolved = gather({path: partial(resolve, found) for path, found in parents.items()}, LIMIT)
    return {name: path for paths in resolved.values() for name, path in paths.items()}


def _shared(
    settings: Settings, entries: Mapping[str, Entry], real: Mapping[str, str], config: str
) -> list[Finding]:
    """Names that lead to one file by different paths; `lint_vault_config` finds equal paths."""
    first: dict[str, str] = {}
    findings = []
    for name, path in real.items():
        other = first.setdefault(path, name)
        if entries[name].path != entries[other].path:
            _, at = place_of(settings, entries[other], config=config)
            if not entries[other].extra:
                at = json_path("secret", other)
            message = f"{entries[name].path} is also the file of {at}"
            hint = "keep one of them, unless each has its own scope"
            place = place_of(settings, entries[name], config=config)
            findings.append(finding("path-shared", *place, message, hint))
    return findings


def _frozen(
    settings: Settings, entries: Mapping[str, Entry], real: Mapping[str, str], config: str
) -> list[Finding]:
    """Files that do not follow a publisher; claims what the mount table shows, and no more."""
    tree = MountTree(mounts())
    findings = []
    for name, path in (("", os.path.realpath(settings.vault_config)), *real.items()):
        found = frozen_mount(tree, path)
        if found is None:
            continue
        message, hint = _FROZEN[found.kind]
        message = message.format(point=found.mount.point)
        place = (settings.vault_config, "")
        if name:
            place = place_of(settings, entries[name], config=config)
        findings.append(finding("mount-frozen", *place, message, hint))
    return findings


def _unmapped(
    settings: Settings, entries: Mapping[str, Entry], own: Collection[str]
) -> list[Finding]:
    claimed = [*own, *(entry.path for entry in entries.values())]
    roots = settings.watch.roots
    if not roots:
        # beside a file of watch.extra there may be anything
        reader = Reader(b"", settings.watch, settle=0, grace=0)
        located, _ = reader.locate(of_vault_config(entries))
        roots = tuple(located)
    search = partial(
        unclaimed_files,
        claimed=claimed,
        elsewhere=frozenset((*roots, *own)),  # such as the state directory
        most=_MOST_FILES,
        named=_MOST_UNMAPPED + 1,
    )
    listed = gather({root: partial(search, root) for root in roots}, LIMIT).values()
    paths = sorted({path for found, _ in listed for path in found})
    hint = (
        "add an entry to the vault config, or to watch.extra if Aidbox uses the file without one, "
        "or remove the file"
    )
    findings = [
        finding("file-unmapped", path, "", "is named by no entry of the vault config", hint)
        for path in paths[:_MOST_UNMAPPED]
    ]
    if len(paths) > _MOST_UNMAPPED:
        more = sum(count for _, count in listed) - _MOST_UNMAPPED
        message = f"and {more} more files are named by no entry of the vault config"
        findings.append(finding("file-unmapped", paths[_MOST_UNMAPPED], "", message, hint))
    return findings
