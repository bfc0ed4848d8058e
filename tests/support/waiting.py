"""Waiting for a condition that nothing signals, with a deadline that only a failure reaches.

A test that waits for a duration instead fails on a busy machine, or is slow on a quiet one.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 60.0
"""Seconds; generous, since a passing test never waits so long, however busy the machine is."""

_INTERVAL = 0.01


def wait_until(
    condition: Callable[[], object],
    what: Callable[[], object] | str = "it did not happen",
    within: float = DEADLINE,
) -> None:
    """Waits in a thread until a condition holds.

    Args:
        condition: Checked often.
        what: The message of the failure, or a function that returns it.
        within: Seconds.

    Raises:
        AssertionError: The deadline passed.
    """
    deadline, pause = time.monotonic() + within, threading.Event()
    while not condition():
        late = time.monotonic() > deadline
        assert not late, f"after {within} s: {what() if callable(what) else what}"
        pause.wait(_INTERVAL)


async def until(condition: Callable[[], object]) -> None:
    """Waits in the event loop until a condition holds.

    Raises:
        TimeoutError: The deadline passed.
    """
    with anyio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110 - nothing signals it
            await anyio.sleep(_INTERVAL)
