"""Mounts, as the kernel lists them, and those among them that do not follow a publisher.

A volume with `subPath`, and likewise a single file bound into a container, is bound to the inode
that was there at the start: files that a publisher later renames into place do not appear
(Kubernetes, "Secrets": a subPath volume mount does not receive updates). A file that is written in
place does, as Docker's `/etc/hosts`. In an AtomicWriter volume the bound inode lies in one
generation, `..2026_11_23_20_40_28.123456789`, which is still part of the mount's root. And a source
that was removed can get no new file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_GENERATION = re.compile(r"/\.\.[0-9]{4}(?:_[0-9]{2}){5}\.[0-9A-Za-z_]+(?:/|$)")
_REMOVED = "//deleted"  # fs/d_path.c: no path holds "//"
_LEAST_FIELDS = 6


class Mount(msgspec.Struct, frozen=True):
    """One mount.

    Attributes:
        root: Path inside its file system that is mounted.
        point: Where it is mounted.
        device: `major:minor`, as `st_dev` of its files.
        filesystem: Type of the file system, such as `tmpfs`.
        id: Of the mount, unique while it lasts.
        parent: The id of the mount that it is mounted on.
    """

    root: str
    point: str
    device: str = ""
    filesystem: str = ""
    id: int = 0
    parent: int = -1


def parse_mountinfo(text: bytes) -> tuple[Mount, ...]:
    """Parses `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)), in the order of mounting.

    Space, tab, newline and backslash in a path are written there as three octal digits; bytes
    that are not UTF-8 become surrogates, as in every path that Python gets from the kernel. Lines
    of another shape are left out.
    """
    # optional fields, of any number, stand before the separator " - "
    lines = (line.partition(b" - ") for line in text.split(b"\n"))
    split = ((left.split(b" "), right.partition(b" ")[0]) for left, _, right in lines)
    return tuple(
        Mount(
            _text(fields[3]),
            _text(fields[4]),
            _text(fields[2]),
            _text(filesystem),
            int(fields[0]),
            int(fields[1]),
        )
        for fields, filesystem in split
        if len(fields) >= _LEAST_FIELDS and fields[0].isdigit() and fields[1].isdigit()
    )


def _text(field: bytes) -> str:
    unescaped = _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), field)
    return unescaped.decode("utf-8", "surrogateescape")


class MountTree:
    """The mounts of a process, by what they are mounted on."""

    def __init__(self, mounts: Iterable[Mount]) -> None:
        listed = tuple(mounts)
        ids = {mount.id for mount in listed}
        self._tops = [mount for mount in listed if mount.parent not in ids]
        self._children: dict[int, list[Mount]] = {}
        for mount in listed:
            self._children.setdefault(mount.parent, []).append(mount)
        self._points = frozenset(mount.point for mount in listed)
        self._found: dict[str, Mount | None] = {}

    def mount_of(self, path: str) -> Mount | None:
        """The mount that a path leads to, or None where it is not listed.

        A mount that another one on a directory above it hides is listed, too. So the way goes as
        the kernel's: from the top to the first mount on the path, and from there on.

        Args:
            path: Real path of a file or directory.
        """
        # what nothing is mounted on is in the mount of its directory, which many files share
        place = path if path in self._points else path.rpartition("/")[0] or "/"
        if place not in self._found:
            self._found[place] = self._find(place)
        return self._found[place]

    def _find(self, path: str) -> Mount | None:
        found, candidates, passed = None, self._tops, set[int]()
        while on_path := [mount for mount in candidates if _lies_in(path, mount.point)]:
            # of two on one point, the later one is on top
            found = min(reversed(on_path), key=lambda mount: len(mount.point))
            passed.add(found.id)  # no listing, however broken, leads in a circle
            candidates = [
                mount
                for mount in self._children.get(found.id, ())
                if mount.id not in passed and _lies_in(mount.point, found.point)
            ]
        return found


class Frozen(msgspec.Struct, frozen=True):
    """A mount that does not follow a publisher.

    Attributes:
        mount: The mount.
        kind: Why: it is one `file`, its source lies in one `generation`, or the source was
            `removed`.
    """

    mount: Mount
    kind: Literal["file", "generation", "removed"]


def frozen_mount(mounts: MountTree, path: str) -> Frozen | None:
    """Why a file does not follow a publisher that renames new files into place, or None.

    Only what the mount table shows: whether new content will come, or comes by writing in place,
    which shows in a bind mount, too, is not known.

    Args:
        mounts: The mounts of this process.
        path: Real path of the file.
    """
    found = mounts.mount_of(path)
    if found is None:
        return None
    if found.root.endswith(_REMOVED):
        return Frozen(found, "removed")
    if _GENERATION.search(found.root):
        return Frozen(found, "generation")
    return Frozen(found, "file") if found.point == path else None


def _lies_in(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
