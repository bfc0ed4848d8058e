"""What the documentation shows: its blocks, and its tutorials, run as written."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from support.waiting import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def document(path: str) -> str:
    """The text of a document, by its path in the repository."""
    with open(f"{REPOSITORY}/{path}") as file:
        return file.read()


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks: language and content."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def blocks_of(text: str, language: str) -> list[str]:
    """The content of the fenced blocks in one language; `sh KIND` says where commands are run."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(path: str, kind: str) -> list[str]:
    """A document's shell blocks of a kind (` ```sh KIND `), in order."""
    return blocks_of(document(path), f"sh {kind}")


def follow(tutorial: str, directory: Path, replaced: Mapping[str, str] | None = None) -> None:
    """One shell runs all commands of a tutorial in order.

    What the tutorial shows must be in their output, in order, and nothing may be left behind.

    Args:
        tutorial: Shell blocks, and blocks of what they print (`…`: and so on).
        directory: Where to run them; empty, and home meanwhile.
        replaced: What to write instead of what the page has, such as ports.
    """
    script, expected = "set -eu\n", []
    for before, after in (replaced or {}).items():
        assert before in tutorial
        tutorial = tutorial.replace(before, after)
    for language, content in blocks(tutorial):
        if language == "sh":
            script += content
        else:
            expected += content.splitlines()
    done = run(script, directory)
    assert done.returncode == 0, done.stdout + done.stderr
    position = 0
    for line in expected:
        wanted = line.removesuffix("…")
        position = done.stdout.find(wanted, position)
        assert position >= 0, f"{wanted!r} is not in the output:\n{done.stdout}"
    assert not os.listdir(directory)


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a shell in a process group of its own, of which nothing is left afterwards."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env={**os.environ, "PATH": path, "HOME": str(directory), "SYNCD_LOG_FORMAT": "json"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=DEADLINE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess([], process.returncode, output, errors)
