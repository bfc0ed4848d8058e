"""Processes that are measured: how much memory, processor time and wake-ups they take."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

_FOREIGN: Final = ("SYNCD_", "BOX_", "BAO_", "PYTHON")  # no bytecode: not what an install has
_REPOSITORY: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEADLINE: Final = 60.0
"""Seconds that anything may take before the run is given up."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used since it began.

    Attributes:
        seconds: Processor time of all its threads.
        wakeups: How often one of its threads went from waiting to running.
    """

    seconds: float
    wakeups: int


class Process:
    """A running program; as a context manager it ends with the block.

    Args:
        command: What to run.
        log: File for what it says.
        environment: More variables.
        group: Whether it starts others, a shell's pipeline, that must end with it.

    Attributes:
        started: When it was started (`time.perf_counter`).
    """

    def __init__(
        self,
        command: Sequence[str],
        log: str,
        environment: Mapping[str, str] | None = None,
        *,
        group: bool = False,
    ) -> None:
        own = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        self._log = log
        self._group = group
        self.started = time.perf_counter()
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**own, **(environment or {})},
                cwd=_REPOSITORY,
                start_new_session=group,
            )

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def alive(self) -> None:
        """Makes sure that it has not ended.

        Raises:
            RuntimeError: It has.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._process.args!r} ended: {self.said()[-800:]}")

    def said(self) -> str:
        """What it has written so far."""
        with open(self._log, errors="replace") as file:
            return file.read()

    def wait_for_text(self, text: str) -> None:
        """Waits until it has written something.

        Raises:
            RuntimeError: It ended, or time is up.
        """
        deadline = time.monotonic() + DEADLINE
        while text not in self.said():
            self.alive()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._process.args!r} does not say {text!r}")
            time.sleep(0.01)

    def wait(self) -> int:
        """Waits for its end; the exit code."""
        return self._process.wait(DEADLINE)

    def usage(self) -> Usage:
        """Processor time and wake-ups so far (proc(5): `schedstat`, `status`)."""
        seconds, wakeups = 0.0, 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile
                with open(f"/proc/{self.pid}/task/{task}/schedstat") as file:
                    seconds += int(file.read().split()[0]) / 1e9
                with open(f"/proc/{self.pid}/task/{task}/status") as file:
                    found = re.search(
                        r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.MULTILINE
                    )
                wakeups += int(found[1]) if found else 0
        return Usage(seconds, wakeups)

    def memory(self) -> tuple[float, float]:
        """Resident and proportional size, MiB (proc(5): `smaps_rollup`)."""
        with open(f"/proc/{self.pid}/smaps_rollup") as file:
            text = file.read()
        sizes = {key: int(size) / 1024 for key, size in re.findall(r"(\w+): +(\d+) kB", text)}
        return sizes["Rss"], sizes["Pss"]

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None or self._group:
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if self._group else os.kill)(self.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
                if not self._group:
                    return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Syncd(Process):
    """A daemon that has notified systemd of its readiness.

    Args:
        directory: Where its configuration, state and log go.
        vault_config: The vault config's path.
        settings: The rest of the configuration.

    Attributes:
        started_in: Seconds from the start of the process to its readiness.
    """

    python = sys.executable
    """The interpreter of the installation that is measured."""

    def __init__(self, directory: str, vault_config: str, **settings: Any) -> None:
        os.makedirs(directory, exist_ok=True)
        config = f"{directory}/syncd.yaml"
        content = {"vault_config": vault_config, "state_dir": f"{directory}/state", **settings}
        with open(config, "w") as file:
            json.dump(content, file)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            path = f"{directory}/notify.sock"
            notify.bind(path)
            notify.settimeout(0.5)
            started = time.perf_counter()
            super().__init__(
                [self.python, "-Pm", "syncd", "run", "-c", config],
                f"{directory}/log",
                {"NOTIFY_SOCKET": path, "SYNCD_LOG_FORMAT": "json"},
            )
            try:
                self._await_ready(notify)
            except BaseException:
                self.stop()
                raise
            self.started_in = time.perf_counter() - started
            os.unlink(path)

    def _await_ready(self, notify: socket.socket) -> None:
        deadline = time.monotonic() + DEADLINE
        while True:
            self.alive()
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096):
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"syncd does not get ready: {self.said()[-800:]}")


def started_once(directory: str, vault_config: str, **settings: Any) -> Process:
    """Starts `syncd run --once`."""
    os.makedirs(directory, exist_ok=True)
    config = f"{directory}/syncd.yaml"
    content = {"vault_config": vault_config, "state_dir": f"{directory}/state", **settings}
    with open(config, "w") as file:
        json.dump(content, file)
    command = [Syncd.python, "-Pm", "syncd", "run", "--once", "-c", config]
    return Process(command, f"{directory}/log")
