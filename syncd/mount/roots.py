"""Roots: the directories that are scanned each on its own, and the boundary of all of them.

A root is decided by what is there: for each file it is the nearest directory above it with a
`..data` link, without crossing a mount point, and else the file's own directory. So a CSI mount
below a directory of plain files, or beside one, has its own generation, identity and grace period.

`watch.roots` is something else: the boundary that files of the vault config must lie in. It is
compared with real paths on both sides, since `/var/run` is `/run` on most systems. Files of
`watch.extra` have none: who writes the vault config does not choose them.

A mount that is away has no `..data` link. What was found before is remembered (`home_of`).
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from syncd.core.model import Entry
from syncd.mount.way import DATA_LINK, Watched, contains, follow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class Parent(msgspec.Struct, frozen=True, gc=False):
    """The entries whose files lie in one directory, as the vault config names it.

    Attributes:
        path: The directory.
        entries: The entries.
        names: The files' names.
    """

    path: str
    entries: tuple[Entry, ...]
    names: frozenset[str]


class Home(msgspec.Struct, frozen=True):
    """Where a directory of entries is scanned.

    Attributes:
        root: The root, as the directory's path names it.
        real: The root's real path, by which two names of one root are recognized.
        outside: Whether the directory lies outside the boundary.
    """

    root: str
    real: str
    outside: bool = False


class Root(msgspec.Struct):
    """What is remembered of a root between scans, to distinguish a removal from a remount.

    Attributes:
        path: The directory.
        identity: Device and inode, or None before the first scan.
        generation: Target of `..data`, or None where there is none.
        names: Names of the secrets that the last scan looked for.
        absent: Names of the secrets that count as removed.
        away_since: Since when the mount counts as away (monotonic clock, seconds), or None.
        candidates: New contents of plain files that wait for a second, identical observation.
        linked: The entries of the last scan, where the visible name of each was the AtomicWriter's
            link; else None.
        watched: What that scan said must be watched.
        scans: How many scans have begun.
    """

    path: str
    identity: tuple[int, int] | None = None
    generation: str | None = None
    names: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    away_since: float | None = None
    candidates: dict[str, Candidate] = {}
    linked: list[tuple[Parent, str]] | None = None
    watched: Watched = msgspec.field(default_factory=Watched)
    scans: int = 0


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """New content of a plain file, as it was seen first.

    Attributes:
        status: Device, inode, size, and time of the last modification in nanoseconds.
        version: The content's version.
        since: When it was seen first (monotonic clock, seconds).
    """

    status: tuple[int, ...]
    version: str
    since: float


def parents_of(entries: Iterable[Entry]) -> dict[str, Parent]:
    """Groups entries by the directories of their files."""
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.path.rpartition("/")[0] or "/", []).append(entry)
    return {
        path: Parent(path, tuple(members), frozenset(map(_file_name, members)))
        for path, members in grouped.items()
    }


def of_extra(parent: Parent) -> Parent | None:
    """The part of a parent that no boundary keeps out: files that the operator named."""
    kept = [entry for entry in parent.entries if entry.extra]
    return parents_of(kept).get(parent.path)


def _file_name(entry: Entry) -> str:
    name = entry.path.rpartition("/")[2]
    return entry.name if name == entry.name else name  # nearly always, and then it is there already


def home_of(
    parent: str, boundary: Iterable[str], points: frozenset[str], before: Home | None
) -> Home:
    """Finds the root that a directory of entries belongs to now. Blocks.

    Args:
        parent: The directory.
        boundary: `watch.roots`; empty for none.
        points: The mount points of this process.
        before: What was found before, or None.
    """
    real = follow(parent, Watched())
    root = _nearest(parent, real, points)
    if root is None:
        root = parent
        # a mount that is away keeps its secrets, unless another one now lies between
        if before is not None and contains(before.root, parent):
            barrier = _mount_point(real, points)
            if barrier is None or contains(barrier, follow(before.root, Watched())):
                root = before.root
    named = not boundary or any(contains(os.path.normpath(limit), parent) for limit in boundary)
    return Home(
        root,
        real if root == parent else follow(root, Watched()),
        outside=not (named or is_inside(parent, real, boundary)),
    )


def _nearest(parent: str, real: str, points: frozenset[str]) -> str | None:
    """The nearest directory with `..data`, itself or above, on the same mount."""
    directory = parent
    while True:
        if os.path.islink(f"{directory}/{DATA_LINK}"):
            return directory
        here = directory if parent == real else follow(directory, Watched())
        if here in points or directory == "/":
            return None
        directory = os.path.dirname(directory)


def _mount_point(real: str, points: frozenset[str]) -> str | None:
    over = [point for point in points if point != "/" and contains(point, real)]
    return max(over, key=len, default=None)


def is_inside(path: str, real: str, boundary: Iterable[str]) -> bool:
    """Whether a directory really lies in the boundary. Blocks.

    Args:
        path: The directory as it is named. A part of the boundary that contains it by its name is
            tried first, so that a dead one elsewhere in the boundary delays nothing.
        real: Its real path.
        boundary: Directories, as `watch.roots`.
    """
    ordered = sorted(boundary, key=lambda limit: not contains(os.path.normpath(limit), path))
    return any(contains(follow(limit, Watched()), real) for limit in ordered)


@contextmanager
def opened(path: str, boundary: Iterable[str]) -> Iterator[int]:
    """Pins a root's directory while the block runs, wherever its path leads by now. Blocks.

    Args:
        path: The directory.
        boundary: Where it must really lie; empty for anywhere.

    Returns:
        A descriptor (`O_PATH`).

    Raises:
        OSError: `EXDEV` where it lies outside, else as `open(2)`.
    """
    root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if boundary and not is_inside(path, os.readlink(f"/proc/self/fd/{root}"), boundary):
            # the path of a directory that was just deleted has a suffix
            deleted = os.fstat(root).st_nlink == 0
            raise OSError(errno.ENOENT if deleted else errno.EXDEV, "outside")
        yield root
    finally:
        os.close(root)


def group(
    parents: Mapping[str, Parent], homes: Mapping[str, Home]
) -> dict[str, list[tuple[Parent, str]]]:
    """The parents of each root, each with the root as that parent's path names it.

    One root that is reached by two names is one root.
    """
    named: dict[str, str] = {}
    grouped: dict[str, list[tuple[Parent, str]]] = {}
    for path in sorted(parents):
        home = homes[path]
        root = named.setdefault(home.real, home.root)
        grouped.setdefault(root, []).append((parents[path], home.root))
    return grouped
