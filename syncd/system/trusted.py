"""Opening a directory that only syncd's user and root can change, on a path they control.

A user who can write a directory can replace what is in it between two calls by path: a link in the
place of a new file sends a chown(2) to any file of the machine. So everything that is written below
such a directory goes through the descriptor that is opened here, and only if

- each symlink on the path belongs to root or to syncd's user (as `fs.protected_symlinks` demands it
  in sticky directories, proc_sys_fs(5)), so that no other user chooses where the path leads;
- the directory belongs to one of them, and neither its group nor other users may write to it. An
  access control list counts: its mask is shown as the group's permissions (acl(5)).

The directories on the way may belong to others: what they can put in place of the last one does
not pass these checks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_LINKS: Final = 40
"""Symlinks on one path: the kernel's own limit (path_resolution(7))."""

_ACCESS_LIST: Final = "system.posix_acl_access"
_ACL_VERSION: Final = struct.pack("<I", 2)  # include/uapi/linux/posix_acl_xattr.h
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID: Final = 0xFFFFFFFF


class UntrustedError(OSError):
    """Another user could change the directory (`EPERM`), or where its path leads (`ELOOP`).

    `strerror` says who.
    """


def open_trusted(path: str, prepare: Callable[[int], None] | None = None) -> int:
    """Opens a directory to work in by its descriptor.

    Args:
        path: Absolute path of the directory.
        prepare: Makes the directory, and those on its way, where it does not exist: called with its
            descriptor, when it is syncd's alone. What it raises passes through, and the directory
            is removed again.

    Raises:
        UntrustedError: Another user could change it, or where its path leads.
        OSError: It cannot be opened or made, or is not a directory.
    """
    at = os.open("/", _STEP)
    links = 0
    pending = _steps(path)
    try:
        while pending:
            name = pending.pop()
            if prepare is not None:
                _make(at, name, None if pending else prepare)
            step = os.open(name, _STEP, dir_fd=at)
            try:
                status = os.fstat(step)
                if not stat.S_ISLNK(status.st_mode):
                    at, step = step, at  # closes the one that was left
                    continue
                target = os.readlink("", dir_fd=step)
            finally:
                os.close(step)
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if not _is_own(status):
                problem = f"{name} on the way to it is a link of uid {status.st_uid}"
                raise UntrustedError(errno.ELOOP, problem, path)
            if target.startswith("/"):
                os.close(at)
                at = os.open("/", _STEP)
            pending += _steps(target)
        descriptor = os.open(".", _OPEN, dir_fd=at)
    finally:
        os.close(at)
    reason = untrusted(os.fstat(descriptor))
    if reason is not None:
        os.close(descriptor)
        raise UntrustedError(errno.EPERM, reason, path)
    return descriptor


def untrusted(status: os.stat_result) -> str | None:
    """Why a directory can be changed by another user, as the end of a sentence, or None."""
    if not _is_own(status):
        return f"it belongs to uid {status.st_uid}, who can replace what is in it"
    return writable_by_others(status)


def writable_by_others(status: os.stat_result) -> str | None:
    """Why others than the owner may write a directory, as the end of a sentence, or None."""
    if status.st_mode & stat.S_IWOTH:
        return "every user can replace what is in it"
    if status.st_mode & stat.S_IWGRP:
        return f"gid {status.st_gid} can replace what is in it"
    return None


def grant_entry(descriptor: int, uid: int, mode: int) -> None:
    """Sets a directory's mode, and lets one more user list and enter it, but not change it.

    Args:
        descriptor: The directory, which belongs to syncd's user.
        uid: The user.
        mode: Permission bits of owner, group and others.

    Raises:
        OSError: `EOPNOTSUPP` where the file system has no access control lists, for example.
    """
    entries = (
        (_USER_OBJ, mode >> 6 & 7, _NO_ID),
        (_USER, 5, uid),
        (_GROUP_OBJ, mode >> 3 & 7, _NO_ID),
        (_MASK, mode >> 3 & 7 | 5, _NO_ID),
        (_OTHER, mode & 7, _NO_ID),
    )
    packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(descriptor, _ACCESS_LIST, _ACL_VERSION + packed)


def _steps(path: str) -> list[str]:
    """The components, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _make(at: int, name: str, prepare: Callable[[int], None] | None) -> None:
    """Makes a directory where there is nothing, and prepares it if it is the last one."""
    try:
        os.mkdir(name, 0o755 if prepare is None else 0o700, dir_fd=at)
    except FileExistsError:
        return
    if prepare is None:
        return
    try:
        descriptor = os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=at)
        try:
            prepare(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        # half prepared, it would be taken for a directory that a person made on purpose
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=at)
        raise


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())
