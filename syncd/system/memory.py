"""Less resident memory: glibc's allocator and Python's garbage collector, tuned for a sidecar."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_M_ARENA_MAX = -8  # malloc.h


def share_one_arena() -> None:
    """Keeps glibc from giving each worker thread a heap of its own: they seldom run at once."""
    with contextlib.suppress(AttributeError, OSError):  # glibc only: mallopt(3)
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def release_memory() -> None:
    """Returns to the kernel what starting up needed: a few hundred KiB.

    The objects that are left live as long as the process, so the collector skips them from now on.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError, OSError):  # glibc only: malloc_trim(3)
        ctypes.CDLL(None).malloc_trim(0)


_uncollected = 0


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keeps the garbage collector off while the block runs; for use in one thread only.

    For work that makes tens of thousands of objects which stay or are in no cycle: imports, which
    take a tenth longer with it, and scans. Blocks may overlap.
    """
    global _uncollected  # noqa: PLW0603 - the collector is the process's, too
    _uncollected += 1
    gc.disable()
    try:
        yield
    finally:
        _uncollected -= 1
        if not _uncollected:
            gc.enable()
