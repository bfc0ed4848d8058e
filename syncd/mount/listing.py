"""What the linter needs of a mount beyond the secrets that the vault config names.

Nothing here opens a secret: files are listed, links resolved, mounts looked up.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Final

from syncd.core.mountinfo import Mount, parse_mountinfo
from syncd.mount.way import Watched, follow
from syncd.system.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MOUNTINFO: Final = "/proc/self/mountinfo"
_LARGEST: Final = 16 << 20


def mounts() -> tuple[Mount, ...]:
    """The mounts that this process sees; none where they cannot be listed."""
    try:
        return parse_mountinfo(read_file(_MOUNTINFO, _LARGEST)[0])
    except OSError:
        return ()


def unclaimed_files(roots: Iterable[str], claimed: Iterable[str], *, most: int) -> list[str]:
    """Files under the roots that are not claimed.

    The AtomicWriter's own names, which start with `..`, are skipped; what they hold is found
    through the visible links. Directories of other file systems are not entered.

    Args:
        roots: Directories.
        claimed: Paths of files that are used, by any of their names.
        most: How many files of a root to look at, since a root may be as wide as `/`.

    Returns:
        Paths as a vault config would name them, sorted.
    """
    known = frozenset(claimed)
    unclaimed = {path for root in roots for path in islice(_files(root), most) if path not in known}
    if unclaimed:
        real = {follow(path, Watched()) for path in known}
        unclaimed = {path for path in unclaimed if follow(path, Watched()) not in real}
    return sorted(unclaimed)


def _files(root: str) -> Iterator[str]:
    """Files below a directory; links are followed at its top, where the AtomicWriter's are."""
    device = _device(root)
    pending = [root]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(directory) as listing:
                items = list(listing)
        except OSError:
            continue
        for item in items:
            if item.name.startswith(".."):
                continue
            if not _is_directory(item, follow=directory == root):
                yield item.path
            elif _device(item.path) == device:
                pending.append(item.path)


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
