"""Files whose opening is held, as by a stalled on-access scanner or a dead hard NFS mount.

    with HeldDirectory("/mnt/secrets") as held:
        held.wait()       # until a process is held
        held.release()

Opening a file of the directory does not return (fanotify(7), `FAN_OPEN_PERM`), in this process as
well. A process that is held can be killed. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import select
from typing import TYPE_CHECKING

from support.waiting import DEADLINE

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_CLASS_CONTENT, _CLOEXEC = 4, 1
_MARK_ADD = 1
_OPEN_PERM, _ON_CHILD = 0x10000, 0x08000000
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


class HeldDirectory:
    """Holds every process that opens a file of a directory, while the block runs."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        descriptor = _libc.fanotify_init(_CLASS_CONTENT | _CLOEXEC, os.O_RDONLY)
        mask = ctypes.c_uint64(_OPEN_PERM | _ON_CHILD)
        marked = _libc.fanotify_mark(
            descriptor, _MARK_ADD, mask, _AT_FDCWD, os.fsencode(self._path)
        )
        if descriptor < 0 or marked < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), self._path)
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def wait(self) -> None:
        """Waits until a process is held."""
        assert self._descriptor is not None
        ready, _, _ = select.select([self._descriptor], [], [], DEADLINE)
        assert ready, "no process opened a file"

    def release(self) -> None:
        """Lets every process go on."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
