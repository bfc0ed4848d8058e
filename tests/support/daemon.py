"""A process of the real daemon, and its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from support.waiting import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

CANARY = b"CANARY-" + b"5ecre7"
"""Part of every value that tests plant; no output may hold it."""


class DaemonProcess:
    """A `syncd` process and its log.

    As a context manager it waits until the process is ready, stops it at the end, and checks the
    exit code and that no planted value was logged.

    Attributes:
        log: The log events so far.
        output: All lines so far.
        over: Whether the process has closed its output, which is to say ended.
    """

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        *,
        ready: bool,
        wrapper: Sequence[str] = (),
    ) -> None:
        self._command = [*wrapper, sys.executable, "-m", "syncd", *arguments]
        self._environment = environment
        self._await_ready = ready
        self._condition = threading.Condition()
        self.over = False
        self.killed = False
        self.log: list[dict[str, Any]] = []
        self.output: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        self.killed, self.over = False, False
        self.process = subprocess.Popen(
            self._command,
            env=environment({"SYNCD_LOG_LEVEL": "debug", **self._environment}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        if self._await_ready:
            self.wait_for("daemon.ready")
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._condition:
                self.output.append(line)
                if line.startswith("{"):
                    self.log.append(json.loads(line))
                self._condition.notify_all()
        with self._condition:
            self.over = True
            self._condition.notify_all()

    def wait_for(self, event: str, count: int = 1, /, **fields: Any) -> dict[str, Any]:
        """Waits for the n-th log event of that name with these fields."""
        deadline = time.monotonic() + DEADLINE
        with self._condition:
            while True:
                found = self.logged(event, **fields)
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if left <= 0 or self.over or not self._condition.wait(left):
                    printed = "".join(self.output[-30:])
                    raise AssertionError(f"no {event} {fields} in the log:\n{printed}")

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The log events of that name with these fields, so far."""
        return [
            item
            for item in self.log
            if item.get("event") == event and all(item.get(k) == v for k, v in fields.items())
        ]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """Sends SIGTERM, waits for the end, and returns the exit code."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        code = self.process.wait(DEADLINE)
        self._finish()
        return code

    def kill(self) -> None:
        """Sends SIGKILL; harmless after the end."""
        self.killed = True
        if self.process is not None:
            self.process.kill()
            self.process.wait(DEADLINE)
            self._finish()

    def wait_for_end(self) -> int:
        """Waits until the process has ended without this object's doing."""
        assert self.process is not None
        return self.process.wait(DEADLINE)

    def _finish(self) -> None:
        deadline = time.monotonic() + DEADLINE
        with self._condition:
            while not self.over:
                assert self._condition.wait(deadline - time.monotonic())
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is not None and not self.killed:
            code = self.stop()
            if kind is None:
                assert code == 0, "".join(self.output[-30:])
        assert CANARY.decode() not in "".join(self.output), "a value reached the log"


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a syncd process: this one's without any that configures syncd."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SYNCD_", "BOX_", "AIDBOX_"))}
    return {**own, "SYNCD_LOG_FORMAT": "json", "PYTHONWARNINGS": "error", **more}
