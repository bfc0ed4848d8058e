"""Notices that a file was replaced, by its status at each use: device, inode, size and times.

A `..data` swap changes the inode. A file that changes twice within one tick of the file system's
clock (4 ms on many kernels) keeps its times, so a status taken shortly after a change proves
nothing: what was read then is read once more at the next use.
"""

from __future__ import annotations

import os
import time
from typing import Final

from syncd.core.errors import TemporaryError
from syncd.system.errnos import reason, remedy

_UNSETTLED: Final = 100_000_000  # nanoseconds after a change within which another can go unnoticed

Signature = tuple[int, ...]


def signature(status: os.stat_result) -> Signature:
    """The part of a file's status that a replacement or a write changes."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(status: os.stat_result) -> bool:
    """Whether every later change will show in the signature."""
    return abs(time.time_ns() - status.st_ctime_ns) >= _UNSETTLED


def stat_file(option: str, path: str) -> os.stat_result:
    """The status of a file, for messages named by the option that holds its path.

    Raises:
        TemporaryError: It is missing.
    """
    try:
        return os.stat(path)
    except OSError as error:
        raise unreadable(option, path, error) from None


def unreadable(option: str, path: str, error: OSError) -> TemporaryError:
    """The error for a file that is missing or cannot be read; a mount may still deliver it."""
    access = "make it readable for syncd's user"
    return TemporaryError(
        f"cannot read {option} {path}: {reason(error)}",
        remedy(error, path=f"create it, or correct {option}", access=access),
    )
