"""Roots: the directories that secrets must lie in, and what to watch for a path to appear."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.config.settings import Watch
    from syncd.core.model import Entry

DATA_LINK: Final = "..data"
"""The link of an AtomicWriter mount to its current generation."""


def roots_of(watch: Watch, entries: Mapping[str, Entry]) -> tuple[str, ...]:
    """The configured roots, or where none are, the mounts that the entries' files lie in."""
    return watch.roots or mounts_of(parents_of(entries.values()))


def parents_of(entries: Iterable[Entry]) -> frozenset[str]:
    """The directories of the entries' files."""
    return frozenset([entry.path.rpartition("/")[0] or "/" for entry in entries])


def mounts_of(parents: Iterable[str], known: Iterable[str] = ()) -> tuple[str, ...]:
    """The mounts that directories lie in now.

    For each directory that is the nearest one, itself or above, with a `..data` link; without such
    a link it is the directory. A mount inside another one is left out.

    Args:
        parents: The directories.
        known: Mounts found before. One that still contains a directory stays, because a mount that
            is away has no `..data` link.
    """
    found = {_nearest_mount(parent) or parent for parent in parents}
    found.update(root for root in known if any(contains(root, parent) for parent in parents))
    return tuple(sorted(r for r in found if not any(contains(o, r) for o in found if o != r)))


def _nearest_mount(directory: str) -> str | None:
    while True:
        if os.path.islink(f"{directory}/{DATA_LINK}"):
            return directory
        if directory in ("/", ""):
            return None
        directory = os.path.dirname(directory)


def contains(root: str, path: str) -> bool:
    """Whether a path is a directory or lies below it, going by the names."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def watch_path(watch: dict[str, frozenset[str] | None], path: str) -> None:
    """Adds what must be watched for a path to appear, change or go: its nearest existing parent.

    A swap of `..data` there matters as well, since the name can be a link through it.
    """
    parent, name = os.path.split(path)
    while name and not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    names = watch.get(parent, frozenset())
    if name and names is not None:
        watch[parent] = names | {name, DATA_LINK}
