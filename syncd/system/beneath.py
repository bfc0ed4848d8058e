"""Opening a file that must lie beneath a directory, even if its symlinks are swapped meanwhile.

`openat2(2)` with `RESOLVE_BENEATH` makes the kernel refuse every path that leaves the directory
(Linux 5.6). Where it is not available (gVisor, an old seccomp profile), the file is first pinned by
an `O_PATH` descriptor, which reads nothing; its real path is read from `/proc/self/fd`, and only
that pinned file is then opened for reading. In both cases a link that is swapped at that moment can
make the opening fail, but not escape. A bare name that is not a symlink (`O_NOFOLLOW`) cannot leave
its directory and needs neither.
"""

from __future__ import annotations

import ctypes
import errno
import os

_SYS_OPENAT2 = 437  # the same on every architecture: include/uapi/asm-generic/unistd.h
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PLAIN = _READ | os.O_NOFOLLOW
_PIN = os.O_PATH | os.O_CLOEXEC
_NO_NAMES = frozenset(("", ".", ".."))
_ATTEMPTS = 100
"""While anything on the machine is renamed or mounted, the kernel cannot tell whether a `..` leads
outside, and fails with EAGAIN: openat2(2) advises to try again."""


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_HOW_SIZE = ctypes.c_size_t(ctypes.sizeof(_OpenHow))
_how = {
    flags: ctypes.byref(_OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS))
    for flags in (_READ, _PIN | os.O_DIRECTORY)
}


def open_file(directory: int, path: str) -> int:
    """Opens a file for reading, without blocking on a FIFO.

    Args:
        directory: Descriptor of the directory that the file must lie beneath.
        path: Relative path; its symlinks may not be absolute nor leave the directory.

    Raises:
        OSError: `EXDEV` when the path leads outside, else as `open(2)`.
    """
    if "/" not in path and path not in _NO_NAMES:
        # the usual case, in half of the time: a name in the directory itself that is not a symlink
        try:
            return os.open(path, _PLAIN, dir_fd=directory)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
    return _open(directory, path, _READ)


def open_directory(directory: int, path: str) -> int:
    """Pins a directory beneath another one; the descriptor serves as `directory` here."""
    return _open(directory, path, _PIN | os.O_DIRECTORY)


def _openat2(directory: int, path: str, flags: int) -> int:
    name, number = os.fsencode(path), errno.EAGAIN
    for _ in range(_ATTEMPTS):
        descriptor: int = _libc.syscall(_SYS_OPENAT2, directory, name, _how[flags], _HOW_SIZE)
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number != errno.EAGAIN:
            break
    raise OSError(number, os.strerror(number))


def _open_by_pinning(directory: int, path: str, flags: int) -> int:
    base = os.readlink(f"/proc/self/fd/{directory}")
    pinned = os.open(path, _PIN, dir_fd=directory)
    try:
        real = os.readlink(f"/proc/self/fd/{pinned}")
        if not real.startswith(base.rstrip("/") + "/"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return os.open(f"/proc/self/fd/{pinned}", flags)
    finally:
        os.close(pinned)


def _is_supported() -> bool:
    root = os.open("/", _PIN | os.O_DIRECTORY)
    try:
        os.close(_openat2(root, ".", _PIN | os.O_DIRECTORY))
    except OSError:
        return False
    finally:
        os.close(root)
    return True


_open = _openat2 if _is_supported() else _open_by_pinning
