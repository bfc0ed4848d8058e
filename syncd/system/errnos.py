"""What to do about an error of the operating system: a remedy for each error number.

An operation fails for reasons of three kinds: the path is wrong, this user lacks a permission, or
the machine or the file system fails. The first two have remedies that only the caller knows (which
setting holds the path, who needs which permission); the third has the same remedy everywhere, and a
message that blamed the path or the permission would be wrong (errno(3)).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from syncd.system.files import UnsuitableError

OTHERWISE: Final = "check the file system"
"""The remedy where nothing better is known."""

LOCKS: Final = "use a file system that supports locks, such as a local disk"
"""The remedy where a file cannot be locked, and not because another process holds the lock."""

SHORT: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EINTR, errno.EAGAIN)
)
"""Errors of a machine that is short of a resource: they say nothing of what was asked for."""

_PATH: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST)
)
_PERMISSION: Final = frozenset((errno.EACCES, errno.EPERM))

_REMOTE: Final = "check the server of that file system, and mount it again if it stays away"
_MACHINE: Final = {
    errno.EMFILE: "raise syncd's limit of open files (LimitNOFILE=, ulimit -n)",
    errno.ENFILE: "raise the machine's limit of open files (sysctl fs.file-max)",
    errno.ENOMEM: "free memory, or raise the memory limit of syncd",
    errno.ENOBUFS: "free memory, or raise the memory limit of syncd",
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "raise the disk quota of syncd's user",
    errno.EROFS: "mount the file system read-write, or use another directory",
    errno.EIO: "check the disk, or the server of that file system, and the kernel's log",
    errno.ESTALE: "mount the file system again",
    errno.ENOTCONN: "mount the file system again",
    errno.ENODEV: "mount the file system again",
    **dict.fromkeys(
        (
            errno.ECONNABORTED,
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.ENETDOWN,
            errno.ENETUNREACH,
            errno.EREMOTEIO,
            errno.ETIMEDOUT,
        ),
        _REMOTE,
    ),
    errno.ENOLCK: LOCKS,
    errno.EINTR: "try again",
    errno.EAGAIN: "try again",
    errno.EBUSY: "try again when no other program uses it",
    errno.ETXTBSY: "try again when no other program uses it",
}


def is_of_machine(error: OSError) -> bool:
    """Whether the machine or the file system fails, not the path or a permission."""
    return error.errno in _MACHINE and not isinstance(error, UnsuitableError)


def reason(error: OSError) -> str:
    """Why it failed, in the words of strerror(3), or of `read_file`: no text of other code."""
    if isinstance(error, UnsuitableError):
        return error.strerror or "not suitable"
    return os.strerror(error.errno) if error.errno else "unknown error"


def remedy(error: OSError, *, path: str, access: str, otherwise: str = OTHERWISE) -> str:
    """What to do about an error.

    Args:
        error: What an operation on a file or directory raised.
        path: What to do where the path is wrong, or what it leads to is.
        access: What to do where this user lacks a permission.
        otherwise: What to do about an error that is not known here.
    """
    if isinstance(error, UnsuitableError) or error.errno in _PATH:
        return path
    if error.errno in _PERMISSION:
        return access
    return _MACHINE.get(error.errno or 0, otherwise)
