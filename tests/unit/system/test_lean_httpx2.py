"""What a webhook does not load."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
import syncd.daemon.daemon, syncd.daemon.engine
print("importlib.metadata" in sys.modules, "httpcore2" in sys.modules)
import importlib.metadata
print(importlib.metadata.version("httpx2")[0].isdigit())
"""


def test_httpx2_is_loaded_whole_but_for_its_version() -> None:
    """Its transport is there before the first request; whoever asks for versions gets them."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["False True", "True"], done.stderr
