"""`syncd check`: where a change will be noticed by the rescan only.

inotify reports what this kernel does to a file. A directory that syncd's user may not read cannot
be watched, a user has a limited number of watches, and a file system with a server does not report
what other machines do.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from syncd.core.findings import finding
from syncd.mount.read import LIMIT
from syncd.mount.watch import Watcher
from syncd.mount.way import contains
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.config.settings import Settings
    from syncd.core.findings import Finding
    from syncd.core.mountinfo import Mount
    from syncd.mount.way import Watched

_REMOTE: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "glusterfs", "lustre", "afs", "gfs2")
)
"""Types of file systems that other machines may change, as `/proc/self/mountinfo` names them."""


def check_watching(
    settings: Settings, watched: Watched, real: Mapping[str, str], mounted: Iterable[Mount]
) -> list[Finding]:
    """Checks whether changes on the way to the secrets are reported by the kernel.

    Args:
        settings: The configuration.
        watched: What must be watched.
        real: The real paths of the secrets' files, by name.
        mounted: The mounts of this machine.
    """
    if settings.watch.mode == "poll":
        return []  # as configured
    watcher = Watcher(settings.watch.mode)
    try:
        blind = gather({"": partial(watcher.arm, watched)}, LIMIT).get("", {})
        degraded = watcher.degraded
    finally:
        watcher.close()
    every = f"the rescan, every {settings.watch.rescan_interval:g} s,"
    findings = [
        finding(
            "watch-rescan-only",
            directory,
            "",
            f"cannot be watched ({reason}): {every} alone notices changes in it",
            "let syncd's user read the directory",
        )
        for directory, reason in sorted(blind.items())
    ]
    if degraded is not None:
        problem, _, hint = degraded.partition("; ")
        message = f"inotify does not work ({problem}): {every} alone notices changes"
        findings.append(finding("watch-rescan-only", "watch", "mode", message, hint or _WAIT))
    for mount in _remote(real.values(), mounted):
        message = f"is on {mount.filesystem}: {every} alone notices what other machines change"
        findings.append(finding("watch-rescan-only", mount.point, "", message, _WAIT))
    return findings


_WAIT: Final = "lower watch.rescan_interval if that is too long"


def _remote(paths: Iterable[str], mounted: Iterable[Mount]) -> list[Mount]:
    """The mounts with a server that some of these paths lie in."""
    ordered = sorted(mounted, key=lambda mount: len(mount.point))
    nearest = {path: mount for path in paths for mount in ordered if contains(mount.point, path)}
    found = {
        mount.point: mount
        for mount in nearest.values()
        if mount.filesystem in _REMOTE or mount.filesystem.startswith("fuse.")
    }
    return [found[point] for point in sorted(found)]
