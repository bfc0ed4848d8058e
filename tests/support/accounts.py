"""Other users of the machine: their processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

_MODULES = "socket, http.client, syncd.ledger.state_dir"
"""Imported before the user changes."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


_BECOME = """
import os, sys
uid = int(sys.argv.pop(1))
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
"""


def as_user(uid: int, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code as another user, who may not be able to read this Python."""
    return subprocess.run(
        [sys.executable, "-c", f"import {_MODULES}{_BECOME}{code}", str(uid), *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that other users can enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
