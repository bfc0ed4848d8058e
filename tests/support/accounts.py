"""Other users of the machine: their processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.waiting import DEADLINE

_MODULES = "socket, http.client"
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
