"""A time limit that wakes the event loop only when it is over: timerfd_create(2).

To tell the event loop of a limit costs a wake-up. This costs a system call, from any thread. Python
has it since 3.13.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from typing import Final

_libc: Final = ctypes.PyDLL(None, use_errno=True)  # it keeps the interpreter: the calls are short


class _Timespec(ctypes.Structure):
    """`struct timespec`; `time_t` is a long on every 64-bit Linux."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    """`struct itimerspec` of timerfd_settime(2)."""

    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """One limit at a time; its descriptor is readable when it is over.

    Raises:
        OSError: There is no descriptor left, or the sandbox has no timers.
    """

    def __init__(self) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC
        self._descriptor = _checked(_libc.timerfd_create(time.CLOCK_MONOTONIC, flags))

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def set(self, seconds: float) -> None:
        """Begins a limit, in place of the one before; 0 ends it, also when it is over."""
        _checked(_libc.timerfd_settime(self._descriptor, 0, _after(seconds), None))

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._descriptor)


@functools.cache
def _after(seconds: float) -> object:
    whole = int(seconds)
    rest = int((seconds - whole) * 1e9)
    return ctypes.byref(_Itimerspec(_Timespec(), _Timespec(whole, rest)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
