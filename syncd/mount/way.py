"""The way to a file: every directory and symlink that its path passes through.

A path can change at each of its components: a directory is renamed, a link is swapped above the
secret's directory (git-sync, sops-nix) or in the middle of a chain, a file system is mounted. So a
path is followed one component at a time, as the kernel does it (path_resolution(7)), and each
directory on the way is noted with the name that was looked up in it.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import msgspec

DATA_LINK: Final = "..data"
"""The link of an AtomicWriter mount to its current generation."""

_MOST_LINKS: Final = 40
"""As many as the kernel follows (path_resolution(7), ELOOP)."""


class Watched(msgspec.Struct):
    """Directories to watch, each with the names that matter in it.

    Attributes:
        ways: Names that lead on: another directory, link or mount under such a name is a swap.
        files: Names of files that may be written in place.
    """

    ways: dict[str, frozenset[str]] = {}
    files: dict[str, frozenset[str]] = {}

    def add_way(self, directory: str, *names: str) -> None:
        """Adds names that lead on."""
        self.ways[directory] = self.ways.get(directory, frozenset()).union(names)

    def add_files(self, directory: str, names: frozenset[str]) -> None:
        """Adds names of files."""
        known = self.files.get(directory)
        self.files[directory] = names if known is None else known | names

    def directories(self) -> set[str]:
        """Every directory to watch."""
        return self.ways.keys() | self.files.keys()


def follow(path: str, watched: Watched) -> str:
    """Resolves an absolute path, and adds what it passes through to `watched`.

    A generation of an AtomicWriter mount is replaced as a whole and never changes, so nothing
    within one is added: its `..data` link is what matters. Never fails: a path that cannot be
    followed to its end is real up to there.

    Returns:
        The real path; what does not exist, or cannot be looked up, is appended as it is.
    """
    real, links = "", 0
    rest = path.split("/")
    rest.reverse()
    while rest:
        name = rest.pop()
        if name in ("", "."):
            continue
        if name == "..":
            real = real.rpartition("/")[0]
            continue
        if (name == DATA_LINK or not name.startswith("..")) and not in_generation(real):
            watched.add_way(real or "/", name)
        here = f"{real}/{name}"
        try:
            target = os.readlink(here)
        except OSError as error:
            real = here
            if error.errno == errno.EINVAL:  # not a link
                continue
            rest.reverse()
            return "/".join((here, *rest))
        links += 1
        if links > _MOST_LINKS:
            return here
        if target.startswith("/"):
            real = ""
        rest.extend(reversed(target.split("/")))
    return real or "/"


class RealPaths:
    """Real paths of many files, as `follow` finds them: a directory is followed once for all.

    For a moment only, in which no directory is expected to change.
    """

    def __init__(self) -> None:
        self._directories: dict[str, str] = {}

    def of(self, path: str) -> str:
        """The real path of an absolute one; never fails."""
        for _ in range(_MOST_LINKS):
            directory, _, name = path.rpartition("/")
            if name in ("", ".", ".."):
                return follow(path, Watched())
            real = self._directories.get(directory)
            if real is None:
                real = follow(directory, Watched()).rstrip("/")
                self._directories[directory] = real
            here = f"{real}/{name}"
            try:
                target = os.readlink(here)
            except OSError:  # not a link, or it cannot be looked up
                return here
            path = target if target.startswith("/") else f"{real}/{target}"
        return here


def in_generation(directory: str) -> bool:
    """Whether a real path lies in a generation of an AtomicWriter mount, going by the names."""
    return "/.." in directory


def contains(root: str, path: str) -> bool:
    """Whether a path is a directory or lies below it, going by the names."""
    return path == root or path.startswith(root.rstrip("/") + "/")
