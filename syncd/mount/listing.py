"""What the linter needs of a mount beyond the secrets that the vault config names.

Nothing here opens a secret: files are listed, links resolved, mounts looked up.
"""

from __future__ import annotations

import os
from heapq import nsmallest
from itertools import islice
from typing import TYPE_CHECKING, Final

from syncd.core.mountinfo import Mount, parse_mountinfo
from syncd.mount.way import RealPaths
from syncd.system.files import read_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_MOUNTINFO: Final = "/proc/self/mountinfo"
_LARGEST: Final = 16 << 20


def mounts() -> tuple[Mount, ...]:
    """The mounts that this process sees; none where they cannot be listed."""
    try:
        return parse_mountinfo(read_file(_MOUNTINFO, _LARGEST)[0])
    except OSError:
        return ()


def unclaimed_files(
    root: str, claimed: Iterable[str], *, elsewhere: Collection[str] = (), most: int, named: int
) -> tuple[list[str], int]:
    """Files under a root that are not claimed.

    The AtomicWriter's own names, which start with `..`, are skipped; what they hold is found
    through the visible links. Directories of other file systems are not entered. However many
    files there are, only those that are named are held in memory.

    Args:
        root: A directory.
        claimed: Paths of files that are used, by any of their names.
        elsewhere: Directories that are not entered: other roots.
        most: How many files and directories to look at, since a root may be as wide as `/`.
        named: How many paths to return.

    Returns:
        The first paths in order, as a vault config would name them, and how many there are in all.
    """
    known, paths = frozenset(claimed), RealPaths()
    real = set(map(paths.of, known))
    count = 0

    def unclaimed() -> Iterator[str]:
        nonlocal count
        for path, resolved in _files(root, elsewhere, most, paths):
            if path not in known and resolved not in real:
                count += 1
                yield path

    return nsmallest(named, unclaimed()), count


def _files(
    root: str, elsewhere: Collection[str], most: int, paths: RealPaths
) -> Iterator[tuple[str, str]]:
    """Files below a directory and their real paths, of so many items that are looked at.

    Links are followed at its top, where the AtomicWriter's are.
    """
    device = _device(root)
    pending = [root]
    while pending and most > 0:
        directory = pending.pop()
        real = paths.of(directory).rstrip("/")
        try:
            with os.scandir(directory) as listing:
                for item in islice(listing, most):
                    most -= 1
                    if item.name.startswith(".."):
                        continue
                    if not _is_directory(item, follow=directory == root):
                        linked = item.is_symlink()
                        yield item.path, paths.of(item.path) if linked else f"{real}/{item.name}"
                    elif item.path not in elsewhere and _device(item.path) == device:
                        pending.append(item.path)
        except OSError:
            continue


def _device(directory: str) -> int | None:
    try:
        return os.stat(directory).st_dev
    except OSError:  # removed since it was listed
        return None


def _is_directory(item: os.DirEntry[str], *, follow: bool) -> bool:
    try:
        return item.is_dir(follow_symlinks=follow)
    except OSError:  # a loop of links
        return False
