"""A cluster leaves nothing behind, however the process that made it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.cluster.keeper import hierarchies
from support.sources import ROOT
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.cluster.cluster import Cluster

PROGRAM = """
import os, sys
from support.cluster.node import Node

with Node(sys.argv[1]) as node:
    node.start("vault")
    node.shell("until [ -s $0/vault.pid ]; do sleep 0.1; done".replace("$0", node.directory))
    print(node.directory, node.group, open(f"/proc/{node._init}/status").read().split()[1])
    print(node._init, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(cluster: Cluster, number: signal.Signals) -> None:
    """Neither a process, nor a control group, nor a directory; mounts end with the processes."""
    mounts = mounted()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, cluster.programs],
        env={**os.environ, "PYTHONPATH": f"{ROOT}/tests:{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        directory, group, _ = process.stdout.readline().split()
        init = process.stdout.readline().strip()
        assert os.path.isdir(directory)
        assert all(os.path.isdir(f"{top}/{group}") for top in hierarchies())
        process.send_signal(number)
        process.wait()
        wait_until(lambda: not os.path.exists(directory), directory)
    assert not os.path.exists(f"/proc/{init}")
    assert not any(os.path.exists(f"{top}/{group}") for top in hierarchies())
    assert mounted() == mounts


def mounted() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return sorted(line.split()[4] for line in file)
