"""Small files, read whole and bounded; directories, made durable.

A configuration, a manifest, a credential and a key are read in one way: opened without waiting for
a FIFO's writer (unless the user gave a pipe on purpose), checked on the descriptor, and refused
above their limit. A file cut off at its limit would parse as a shorter one, and lose what is at its
end.
"""

from __future__ import annotations

import errno
import os
import stat


class UnsuitableError(OSError):
    """The file was opened but is not one to read: of another kind, or too large."""


def read_file(
    path: str, limit: int, *, stream: bool = False, directory: int | None = None
) -> tuple[bytes, os.stat_result]:
    """Reads a small regular file.

    Blocks: for worker threads, or before the event loop runs.

    Args:
        path: The file.
        limit: Bytes that it may have.
        stream: Whether it may also be a pipe or a character device (a terminal, `/dev/null`), which
            is then read to its end, however long that takes.
        directory: Descriptor of the directory in which `path` is a name; links are then not
            followed.

    Returns:
        The content, and the status as it was before reading.

    Raises:
        UnsuitableError: It is of another kind, or larger than the limit; `strerror` says which.
        OSError: It cannot be opened or read.
    """
    wait = 0 if stream else os.O_NONBLOCK
    flags = os.O_RDONLY | os.O_CLOEXEC | wait
    if directory is None:
        descriptor = os.open(path, flags)
    else:
        descriptor = os.open(path, flags | os.O_NOFOLLOW, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        is_stream = stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode)
        if not (stat.S_ISREG(status.st_mode) or (stream and is_stream)):
            raise UnsuitableError(errno.EINVAL, "not a regular file", path)
        if status.st_size <= limit:
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(limit + 1)
            # the size can have grown since, and is 0 in procfs and for a stream
            if len(content) <= limit:
                return content, status
        raise UnsuitableError(errno.EFBIG, f"larger than {size_text(limit)}", path)
    finally:
        os.close(descriptor)


def size_text(size: int) -> str:
    """A limit in bytes as a message shows it: `64 KiB`, `4 MiB`."""
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def ensure_directory(path: str, mode: int) -> bool:
    """Makes a directory, with its parents, where it does not exist; returns whether it did.

    `os.makedirs` would report a directory that cannot be looked at, on a dead mount for example,
    as a file that is in the way.

    Raises:
        OSError: It cannot be looked at or made, or something else is there.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        os.makedirs(path, mode, exist_ok=True)
        return True
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return False


def sync_directory(path: str) -> None:
    """Makes renames inside a directory survive a power cut (fsync(2)).

    Raises:
        OSError: The file system refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
