"""What a scan says of a file that it cannot take: state, reason and finding."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from syncd.core.model import Observation, State

if TYPE_CHECKING:
    from syncd.core.model import Entry

GONE: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE))
"""Errors that say that nothing is there."""

MACHINE_SHORT: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN)
)
"""Errors of a machine that is short of something: no word about the file."""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def not_a_file(mode: int) -> Observation:
    """Something that is no regular file, by its `st_mode`."""
    kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
    return unreadable("secret-not-a-file", f"is {kind}, not a file")


def missing(entry: Entry, *, atomic: bool) -> Observation:
    """Nothing behind an entry; a plain link that leads nowhere is a mistake of its own."""
    if not atomic and os.path.islink(entry.path):
        return unreadable("secret-link-dangling", "is a symlink to nothing")
    return gone(f"there is no file {entry.path}")


def gone(problem: str) -> Observation:
    """A secret that is not there."""
    return Observation(State.MISSING, None, problem, code="secret-missing")


def unreadable(code: str, reason: str) -> Observation:
    """A secret that is there and cannot be taken."""
    return Observation(State.UNREADABLE, None, reason, code=code)


def failure(error: OSError, what: str) -> Observation:
    """What an error says of a file, or of all files of a mount."""
    if error.errno in MACHINE_SHORT:
        problem = f"{what} could not be read: {error.strerror}"
        return Observation(State.UNREADABLE, None, problem, settled=False)
    reasons = {
        errno.EXDEV: ("secret-outside-roots", "leads outside the watch roots"),
        errno.ELOOP: ("secret-link-loop", "is a loop of symlinks"),
        errno.EACCES: ("secret-unreadable", f"may not be read by uid {os.geteuid()}"),
        errno.ENXIO: ("secret-not-a-file", "is a socket or device, not a file"),
    }
    otherwise = ("secret-unreadable", f"cannot be read: {error.strerror}")
    code, reason = reasons.get(error.errno or 0, otherwise)
    return unreadable(code, reason if what == "the file" else f"{what} {reason}")
