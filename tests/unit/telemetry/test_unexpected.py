"""An exception that nobody expected is one line: a shortage with its remedy, or else a bug."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from syncd.core.errors import TemporaryError
from syncd.telemetry.unexpected import unexpected

NO_THREAD = """
import resource, threading
from syncd.telemetry.unexpected import unexpected

threading.stack_size(1 << 30)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    threading.Thread(target=print).start()
except RuntimeError as error:
    print(unexpected(ExceptionGroup("tasks", [ValueError("canary"), error])))
"""


def test_a_thread_that_cannot_be_started_is_no_bug() -> None:
    """The real exception of this Python, wherever in a group it is."""
    command = [sys.executable, "-c", NO_THREAD]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the limit of processes is reached: no thread can be started; ")
    assert "TasksMax=" in done.stdout


@pytest.mark.parametrize(
    ("shortage", "problem", "remedy"),
    [
        (MemoryError("canary"), "there is not enough memory", "free memory"),
        (OSError(errno.EMFILE, "canary"), "Too many open files", "LimitNOFILE="),
        (OSError(errno.ENOMEM, "canary"), "Cannot allocate memory", "free memory"),
    ],
)
def test_a_shortage_is_told_as_such(shortage: Exception, problem: str, remedy: str) -> None:
    """Also as the cause of another exception, and without its text."""
    outer = ValueError("canary")
    outer.__cause__ = shortage
    found = unexpected(outer)
    assert isinstance(found, TemporaryError)
    assert found.problem == problem
    assert remedy in str(found)
    assert "canary" not in str(found)


@pytest.mark.parametrize(
    "bug", [ValueError("canary"), OSError(errno.ENOENT, "canary"), RuntimeError("canary")]
)
def test_anything_else_is_a_bug(bug: Exception) -> None:
    """By class and place, without its text; a cycle of causes ends."""
    bug.__context__ = other = KeyError("canary")
    other.__context__ = bug
    assert str(unexpected(bug)).startswith(f"internal error: {type(bug).__name__} at ")
    assert str(unexpected(bug)).endswith("; please report it")
    assert "canary" not in str(unexpected(bug))
