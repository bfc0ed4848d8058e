"""Observations of files that a scan cannot read: state, reason and code of the finding."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from syncd.core.model import Observation, State

if TYPE_CHECKING:
    from syncd.core.model import Entry

GONE: Final = frozenset((errno.ENOENT, errno.ENOTDIR))
"""Errors that mean that the file or directory does not exist."""

MACHINE_SHORT: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN)
)
"""Errors of a machine that is short of a resource, which say nothing about the file."""

RECOVERABLE: Final = frozenset(
    (
        errno.ESTALE,
        errno.EIO,
        errno.ENOTCONN,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
        errno.EREMOTEIO,
        errno.ENODEV,
    )
)
"""Errors of a file system without its server or disk, which gives no hint when it is back."""

_KINDS: Final = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO"}


def not_a_file(mode: int) -> Observation:
    """Something that can be opened and is not a regular file, by its `st_mode`."""
    kind = _KINDS.get(stat.S_IFMT(mode), "a device")
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


def silent(mount: str) -> Observation:
    """A secret on a mount that does not answer."""
    return unreadable("mount-unreadable", f"the mount {mount} does not answer")


def failure(error: OSError, mount: str | None = None) -> Observation:
    """The observation for an error at a file, or at the mount of all of its files."""
    reasons = {
        errno.EXDEV: ("secret-outside-roots", "leads outside the watch roots"),
        errno.ELOOP: ("secret-link-loop", "is a loop of symlinks"),
        errno.EACCES: ("secret-unreadable", f"is not readable for uid {os.geteuid()}"),
        errno.EPERM: ("secret-unreadable", f"is not readable for uid {os.geteuid()}"),
        errno.ENXIO: ("secret-not-a-file", "is a socket or device, not a file"),
    }
    kind = "resource-short" if error.errno in MACHINE_SHORT else "mount-unreadable"
    if error.errno == errno.ENAMETOOLONG:
        kind = "path-invalid"
    otherwise = (kind, f"cannot be read: {error.strerror}")
    code, reason = reasons.get(error.errno or 0, otherwise)
    problem = reason if mount is None else f"the mount {mount} {reason}"
    settled = error.errno not in MACHINE_SHORT
    return Observation(State.UNREADABLE, None, problem, settled, code)
