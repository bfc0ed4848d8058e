"""Room on the volume that the ledger is on: a short log, and a reserve to empty it into.

SQLite's log holds what was committed until a checkpoint moves it into the database. Both are on one
volume, and the checkpoint needs room for what the database grows by. A log that has taken the last
of the room can never be emptied: nothing can be committed, nor deleted, since that is a commit,
too. So

- the log is short in comparison with the volume;
- a file of no use keeps room for the growth that is in the log. It is removed when the volume is
  full, so that the log can be emptied, and then made again.

The reserve is kept from run to run, since opening a database takes room as well.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = 4096
"""Bytes of a page (SQLite's default)."""

FILE_NAME: Final = "reserve"
"""Name of the reserve inside the state directory."""

_LONGEST_LOG: Final = 1000
_SHORTEST_LOG: Final = 8
_LARGEST: Final = 4 << 20
_UNLIMITED: Final = 1 << 40  # a tmpfs without a size
_SHARE_OF_LOG: Final = 32
_SHARE_OF_RESERVE: Final = 8


class Room:
    """The room on the volume of a state directory. Blocks; for one thread at a time.

    Attributes:
        log_pages: Pages that the log may have before it is emptied.
        is_full: Whether the last commit found no room.
    """

    def __init__(self, directory: str) -> None:
        volume = os.statvfs(directory)
        size = volume.f_blocks * volume.f_frsize or _UNLIMITED
        self.is_full = False
        self.log_pages = max(_SHORTEST_LOG, min(_LONGEST_LOG, size // _SHARE_OF_LOG // PAGE))
        self._path = f"{directory}/{FILE_NAME}"
        self._usual = min(_LARGEST, size // _SHARE_OF_RESERVE)
        self._size = 0
        self._lent = 0

    def keep(self) -> None:
        """Makes the reserve where there is none, as far as there is room for it."""
        with contextlib.suppress(OSError):
            self._allocate(self._usual)

    def keep_for(self, growth: int) -> None:
        """Makes the reserve as large as what the database will grow by.

        Args:
            growth: Bytes.

        Raises:
            OSError: There is no room for it.
        """
        if not self._lent and growth > max(self._usual, self._size):
            self._allocate(growth)

    def shrink(self) -> None:
        """Makes the reserve as large as usual: the log was emptied."""
        if self._size > self._usual:
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._usual)
                self._size = self._usual

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Gives the room of the reserve away while the block runs."""
        self._lent += 1
        self.release()
        try:
            yield
        finally:
            self._lent -= 1
            if not self._lent:
                self.keep()

    def release(self) -> bool:
        """Removes the reserve; returns whether there was one."""
        self._size = 0
        try:
            os.unlink(self._path)
        except OSError:
            return False
        return True

    def _allocate(self, size: int) -> None:
        descriptor = os.open(
            self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            if size:
                os.posix_fallocate(descriptor, 0, size)
            self._size = size
        except OSError:
            os.ftruncate(descriptor, self._size)
            raise
        finally:
            os.close(descriptor)
