"""A loop in Go: inotify, hashing, and a POST that names the secret. It needs Go to build."""

from __future__ import annotations

import os
import shutil
import subprocess

_SOURCE = os.path.dirname(os.path.abspath(__file__))


def build(directory: str) -> str | None:
    """Builds it into a directory; returns the program, or None where there is no Go."""
    go = shutil.which("go")
    if go is None:
        return None
    program = f"{directory}/go_loop"
    command = [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "."]
    subprocess.run(command, cwd=_SOURCE, env={**os.environ, "CGO_ENABLED": "0"}, check=True)
    return program
