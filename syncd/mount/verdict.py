"""Observations of files that a scan cannot read: state, reason and code of the finding."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from syncd.core.model import Observation, State

if TYPE_CHECKING:
    from syncd.core.model import Entry

GONE: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE))
"""Errors that mean that the file or directory does not exist."""

MACHINE_SHORT: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN)
)
"""Errors of a machine that is short of a resource, which say nothing about the file."""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def not_a_file(mode: int) -> Observation:
    """Something that is not a regular file, by its `st_mode`."""
    kind = next((name for test, name in _KINDS if test(mode)), "of an unknown kind")
    return unreadable("secret-not-a-file", f"is {kind}, not a file")


def missing(entry: Entry, *, atomic: bool) -> Observation:
    """A path without a file.

    Outside of AtomicWriter mounts a dangling symlink is a mistake and not a removal.
    """
    if not atomic and os.path.islink(entry.path):
        return unreadable("secret-link-dangling", "is a dangling symlink")
    return gone(f"there is no file {entry.path}")


def gone(problem: str) -> Observation:
    """A secret whose file does not exist."""
    return Observation(State.MISSING, None, problem, code="secret-missing")


def unreadable(code: str, reason: str) -> Observation:
    """A secret whose file exists and cannot be read."""
    return Observation(State.UNREADABLE, None, reason, code=code)


def failure(error: OSError, what: str) -> Observation:
    """The observation for an error at a file, or at the mount of all of its files."""
    if error.errno in MACHINE_SHORT:
        problem = f"{what} could not be read: {error.strerror}"
        return Observation(State.UNREADABLE, None, problem, settled=False)
    reasons = {
        errno.EXDEV: ("secret-outside-roots", "leads outside the watch roots"),
        errno.ELOOP: ("secret-link-loop", "is a loop of symlinks"),
        errno.EACCES: ("secret-unreadable", f"is not readable for uid {os.geteuid()}"),
        errno.ENXIO: ("secret-not-a-file", "is a socket or device, not a file"),
    }
    otherwise = ("secret-unreadable", f"cannot be read: {error.strerror}")
    code, reason = reasons.get(error.errno or 0, otherwise)
    return unreadable(code, reason if what == "the file" else f"{what} {reason}")
