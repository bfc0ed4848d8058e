"""Asking the kernel whether a file is open for writing.

A read lease is refused while any process of this machine has the file open for writing (fcntl(2),
`F_SETLEASE`: EAGAIN). Only the file's owner, or a process with CAP_LEASE, may ask, and not every
file system or sandbox answers: nothing is known then. Writers on other machines are never seen.
"""

from __future__ import annotations

import errno
import fcntl
import signal


def is_open_for_writing(descriptor: int) -> bool:
    """Whether a file is known to be open for writing.

    The lease ends at once. In the moment in between, a process that opens the file for writing is
    held by the kernel, and this process would get a signal: SIGURG, which is ignored by default,
    in place of SIGIO, which ends a process.

    Args:
        descriptor: Of the file, opened for reading only.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False
