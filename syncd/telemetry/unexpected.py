"""What an unexpected exception is reported as: one line, without its text.

The text can quote a secret. What the machine was short of is no bug, and has a remedy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from syncd.core.errors import SyncdError, TemporaryError
from syncd.system.errnos import SHORT, reason, remedy
from syncd.telemetry.log import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_THREAD: Final = "can't start new thread"
"""The text of CPython's RuntimeError (`Modules/_threadmodule.c`), which has no class of its own."""


def unexpected(error: BaseException) -> SyncdError:
    """The error to report in place of an unexpected one: temporary where the machine is short."""
    for found in _causes(error):
        if isinstance(found, RuntimeError) and found.args == (_NO_THREAD,):
            return TemporaryError(
                "the limit of processes is reached: no thread can be started",
                "raise it (TasksMax= of the unit, podPidsLimit of the kubelet, ulimit -u)",
            )
        if isinstance(found, MemoryError):
            problem = "there is not enough memory"
            return TemporaryError(problem, "free memory, or raise the memory limit of syncd")
        if isinstance(found, OSError) and found.errno in SHORT:
            return TemporaryError(reason(found), remedy(found, path="", access=""))
    return SyncdError(f"internal error: {describe(error)}", "please report it")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, and what it comes from: causes, contexts, members of a group."""
    left, seen = [error], set()
    while left:
        found = left.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, BaseExceptionGroup):
            left.extend(found.exceptions)
        left.extend(item for item in (found.__cause__, found.__context__) if item is not None)
