"""Mounts, as the kernel lists them, and those among them that never show a new secret.

A volume with `subPath`, and likewise a single file bound into a container, is bound to the inode
that was there at the start: files that a publisher later renames into place do not appear
(Kubernetes, "Secrets": a subPath volume mount does not receive updates). In an AtomicWriter volume
the bound inode lies in one generation, `..2026_11_23_20_40_28.123456789`, which is still part of
the mount's root.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_GENERATION = re.compile(r"/\.\.[0-9]{4}(?:_[0-9]{2}){5}\.[0-9]+(?:/|$)")
_LEAST_FIELDS = 6


class Mount(msgspec.Struct, frozen=True):
    """One mount.

    Attributes:
        root: Path inside its file system that is mounted.
        point: Where it is mounted.
        device: `major:minor`, as `st_dev` of its files.
        filesystem: Type of the file system, such as `tmpfs`.
    """

    root: str
    point: str
    device: str = ""
    filesystem: str = ""


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
        Mount(_text(fields[3]), _text(fields[4]), _text(fields[2]), _text(filesystem))
        for fields, filesystem in split
        if len(fields) >= _LEAST_FIELDS
    )


def _text(field: bytes) -> str:
    unescaped = _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), field)
    return unescaped.decode("utf-8", "surrogateescape")


def frozen_mount(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount that keeps a file as it was at the start, or None.

    Args:
        mounts: In the order of mounting: of two on one point the later one is on top.
        path: Real path of the file.
    """
    over = [mount for mount in mounts if _lies_in(path, mount.point)]
    if not over:
        return None
    nearest = max(reversed(over), key=lambda mount: len(mount.point))
    frozen = nearest.point == path or _GENERATION.search(nearest.root)
    return nearest if frozen else None


def _lies_in(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
