"""Commands that may read secrets are protected as the daemon is: no core dump, no reading along."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.daemon import environment
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
"""Without a capability: the kernel lets it read the memory of an equal process, if that allows."""


def reads_memory(pid: int) -> bool:
    """Whether another process of the same user may."""
    script = f"open('/proc/{pid}/mem', 'rb')"
    done = subprocess.run(
        [*PLAIN, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "PermissionError" in done.stderr or not done.returncode, done.stderr
    return not done.returncode


def core_limit(pid: int) -> list[str]:
    with open(f"/proc/{pid}/limits") as limits:
        (line,) = (line for line in limits if line.startswith("Max core file size"))
    return line.split()[4:6]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may drop the bounding set")
@pytest.mark.parametrize("command", ["wait", "check", "status", "events"])
def test_a_command_protects_its_memory(world: World, command: str) -> None:
    """Each is stopped where it waits for others, and looked at from outside."""
    with ExitStack() as stack:
        arguments, reached = stopped(world, command, stack)
        process = subprocess.Popen(
            ["prlimit", "--core=unlimited", "--", *PLAIN, *arguments],
            env=environment({}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            wait_until(lambda: reached(process.pid) or process.poll() is not None)
            assert process.poll() is None, process.communicate()[1]
            assert core_limit(process.pid) == ["0", "0"]
            assert not reads_memory(process.pid)
        finally:
            process.kill()
            process.communicate(timeout=DEADLINE)


def stopped(
    world: World, command: str, stack: ExitStack
) -> tuple[list[str], Callable[[int], bool]]:
    """A command line that does not end by itself, and whether its process has got that far."""
    if command in ("status", "events"):
        path = f"{world.directory}/s.sock"
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(path)
        listening.listen()
        line = [sys.executable, "-m", "syncd", command, "--socket", path]
        return line, lambda pid: holds(pid, "socket:")
    world.write_plain("a", secret("1"))
    world.map("a", "missing")
    if command == "wait":
        world.configure()
        line = [sys.executable, "-m", "syncd", "wait", "-c", world.config, "--timeout", "1h"]
        return line, lambda pid: holds(pid, "anon_inode:inotify")
    os.mkfifo(world.config)

    def opens(_pid: int) -> bool:
        """It opens its configuration: only then is there a reader, which waits for what comes."""
        try:
            writer = os.open(world.config, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        stack.callback(os.close, writer)
        return True

    return [sys.executable, "-m", "syncd", "check", "-c", world.config], opens


def holds(pid: int, what: str) -> bool:
    """Whether a process has a descriptor of this kind."""
    directory = f"/proc/{pid}/fd"
    try:
        links = [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]
    except OSError:
        return False
    return any(link.startswith(what) for link in links)
