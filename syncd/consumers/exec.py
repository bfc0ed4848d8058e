"""A command as a consumer: it gets events on standard input, and its exit code is the answer.

The input is one CloudEvent as JSON, or with `max_batch` above 1 an array of them: what a webhook
gets as its body. The exit codes are those of sysexits.h: 0 acknowledges, 75 (`EX_TEMPFAIL`) asks to
try again, and every other one refuses. How a command is run, and ended, is `syncd.system.command`.

Arguments may hold a token: messages name the program only.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final

from syncd.config.settings import COMMAND_PATH, grant_of
from syncd.consumers.consumer import Tested, UnusableError
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.system import errnos
from syncd.system.command import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.config.settings import Exec
    from syncd.core.events import Event, Stamp

_BY_HAND: Final = "run it by hand with an event on standard input, and correct it"


class ExecConsumer:
    """A consumer of kind `exec`."""

    def __init__(self, settings: Exec, stamp: Stamp) -> None:
        self.name = settings.name
        self.grant = grant_of(settings)
        self.max_batch = settings.max_batch
        self.max_in_flight = settings.max_in_flight
        self.address = settings.command[0]
        self._timeout = float(settings.timeout)
        self._stamp = stamp
        # nothing of syncd's own environment, which may name sockets and credentials
        environment = {
            "PATH": COMMAND_PATH,
            "LANG": "C.UTF-8",
            "SYNCD_CONSUMER": settings.name,
        }
        self._command = Command(settings.command, environment, self._timeout)

    def __repr__(self) -> str:
        return f"ExecConsumer({self.name!r}, {self.address!r})"

    async def deliver(self, events: Sequence[Event]) -> int | None:
        """Runs the command with the events; exit code 0 acknowledges them.

        Raises:
            TemporaryError: It exited with 75, took longer than the timeout, or the machine cannot
                start it now.
            UnusableError: There is no such program, or it may not be run.
            RefusedError: It exited with any other code.
        """
        payload = (
            self._stamp.encode(events[0])
            if self.max_batch == 1
            else self._stamp.encode_batch(events)
        )
        code = await self._run(payload)
        error = self._judge(code)
        if error is not None:
            raise error.answered(code)
        return code

    async def ping(self, ident: str, at: str) -> Tested:
        """Runs the command with an `io.syncd.ping` event; see `Testable`."""
        payload = self._stamp.encode_ping(self.name, ident, at)
        if self.max_batch > 1:
            payload = b"[" + payload + b"]"
        try:
            code = await self._run(payload)
        except SyncdError as error:
            return Tested(self.address, False, None, error)
        return Tested(self.address, False, code, self._judge(code))

    async def aclose(self) -> None:
        """Does nothing: a command that runs is ended with its delivery."""

    async def _run(self, payload: bytes) -> int | None:
        if self._command.is_stuck:
            raise TemporaryError(
                f"cannot run {self.address}: an earlier run was killed and has not ended",
                "check the mount that the program lies on, and what it uses",
            )
        try:
            return await self._command.run(payload)
        except OSError as error:
            raise _of_start(self.address, error) from None

    def _judge(self, code: int | None) -> SyncdError | None:
        """The error that an exit code stands for; None for an acknowledgement."""
        problem = f"cannot deliver to {self.address}"
        if code == 0:
            return None
        if code is None:
            return TemporaryError(f"{problem}: it did not exit within {self._timeout:g} s")
        if code == os.EX_TEMPFAIL:
            return TemporaryError(f"{problem}: it exited with {code} (EX_TEMPFAIL)")
        if code < 0:
            name = _signal_name(-code)
            return RefusedError(f"{problem}: it was ended by {name}", _BY_HAND)
        return RefusedError(f"{problem}: it exited with {code}", _BY_HAND)


def _of_start(program: str, error: OSError) -> SyncdError:
    problem = f"cannot run {program}: {errnos.reason(error)}"
    remedy = errnos.remedy(
        error,
        path="correct command, or the program's first line (#!)",
        access="let syncd's user execute it",
        otherwise="make it a program, or a script whose first line names its interpreter (#!)",
    )
    if errnos.is_of_machine(error):
        return TemporaryError(problem, remedy)
    return UnusableError(problem, remedy)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
