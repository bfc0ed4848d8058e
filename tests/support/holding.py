"""Holding a process still: SIGSTOP returns before its threads have stopped, so one may answer."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from support.waiting import wait_until


def hold(pid: int) -> None:
    """Stops a process; returns when all of its threads are stopped. SIGCONT lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _states(pid) == {"T"}, f"process {pid} does not stop")


def _states(pid: int) -> set[str]:
    """proc_pid_stat(5): the state follows the name, which may hold anything."""
    stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}
