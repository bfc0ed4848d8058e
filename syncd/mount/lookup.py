"""Looking up what an open directory holds, with what does not exist told from what fails."""

from __future__ import annotations

import errno
import os

from syncd.mount.verdict import GONE
from syncd.mount.way import in_generation


def is_generated(descriptor: int) -> bool:
    """Whether a file that was reached by a link is an AtomicWriter's, whose modes it decides."""
    return in_generation(os.readlink(f"/proc/self/fd/{descriptor}"))


def link(directory: int, name: str) -> str | None:
    """The target of a symlink; None where there is none.

    Raises:
        OSError: The file system fails.
    """
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in GONE and error.errno != errno.EINVAL:
            raise
        return None


def exists(directory: int, name: str) -> bool:
    """Whether there is something of that name, if only a dangling symlink.

    Raises:
        OSError: The file system fails.
    """
    try:
        os.lstat(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    return True


def modified_ns(directory: int, name: str) -> int:
    """When a name itself was last modified, nanoseconds; 0 where it does not exist.

    Raises:
        OSError: The file system fails.
    """
    try:
        return os.lstat(name, dir_fd=directory).st_mtime_ns
    except FileNotFoundError:
        return 0


def is_empty(directory: str) -> bool:
    """Whether a directory holds nothing but names of the AtomicWriter."""
    try:
        with os.scandir(directory) as listing:
            return all(item.name.startswith("..") for item in listing)
    except OSError:
        return False  # it cannot be listed, but its files may exist
