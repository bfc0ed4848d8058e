"""A command of the operator's, run once: its input is in a file, its output is dropped.

The command is the leader of a session, and so of a process group, of its own. When its time is over
the whole group gets SIGTERM, and SIGKILL `GRACE` seconds later. When the command has ended, what it
left running in its group is killed as well, lest a command that forks with every event fills the
machine; a process that makes a session of its own (setsid(2)) is out of reach.

The input is a memory file (memfd_create(2)) and not a pipe: nothing has to write while the command
reads, and a command that does not read is none the worse. The output goes to `/dev/null`: a command
that reads a secret may print it, so there is nothing to bound, to keep or to log.

Starting and waiting are done in a thread that can be abandoned (`syncd.system.threads`), because a
program on a dead mount never starts, and a process in the kernel may never end.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Final

import anyio

from syncd.system.threads import Call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GRACE: Final = 1.0
"""Seconds that a command has between SIGTERM and SIGKILL, and to end after that."""


class Command:
    """A command that is run again and again.

    Args:
        words: The program, by path or as a name that is looked up in PATH, and its arguments.
        environment: All of its variables.
        limit: Seconds that it may take.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], limit: float) -> None:
        self._words = list(words)
        self._environment = dict(environment)
        self._limit = limit
        self._abandoned: list[Call[int]] = []

    @property
    def is_stuck(self) -> bool:
        """Whether a run has not ended although it was killed: more would gather there."""
        self._abandoned = [call for call in self._abandoned if not call.done]
        return bool(self._abandoned)

    async def run(self, payload: bytes) -> int | None:
        """Runs it to its end; a cancellation ends it, too.

        Args:
            payload: Its standard input.

        Returns:
            Its exit code; the negative number of the signal that ended it; None after the limit.

        Raises:
            OSError: It cannot be started.
        """
        running = _Running()
        call = Call(running.run, self._words, payload, self._environment)
        try:
            return call.result() if await call.wait(self._limit) else None
        finally:
            if not call.done:
                await self._end(running, call)

    async def _end(self, running: _Running, call: Call[int]) -> None:
        with anyio.CancelScope(shield=True):
            running.end(signal.SIGTERM)
            if await call.wait(GRACE):
                return
            running.end(signal.SIGKILL)
            if not await call.wait(GRACE):
                self._abandoned.append(call)


class _Running:
    """A command from before its start until it was waited for."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._group: int | None = None
        self._ended = False

    def run(self, words: list[str], payload: bytes, environment: dict[str, str]) -> int:
        """Starts the command, and waits for its end. Blocks.

        Raises:
            OSError: It cannot be started.
        """
        # a thread inherits what was blocked when the process began, and so would the command
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with open(os.memfd_create("syncd-event"), "w+b") as file:
            file.write(payload)
            file.seek(0)
            process = subprocess.Popen(  # noqa: S603 - the operator's own command
                words,
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        with self._lock:
            self._group = process.pid
            if self._ended:  # while it was being started
                self._signal(signal.SIGKILL)
        # not reaped yet, so that its number still means its group
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._signal(signal.SIGKILL)
            self._group = None
            return process.wait()

    def end(self, number: signal.Signals) -> None:
        """Sends a signal to the command and all that belongs to it."""
        with self._lock:
            self._ended = True
            self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        if self._group is not None:
            # none is left; or what is left changed its user, and is not ours to end
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)
