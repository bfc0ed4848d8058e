"""Commands of the operator's: input, environment, signals, and how they end; real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import anyio
import pytest
from support.accounts import needs_root
from support.fuse import LOOKUP, FuseServer
from support.waiting import DEADLINE, until

from syncd.system.command import Command

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def shell(script: str, limit: float = DEADLINE) -> Command:
    return Command(["sh", "-c", script], ENVIRONMENT, limit)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


async def pid_in(file: Path) -> int:
    found: list[str] = []

    def look() -> bool:
        found[:] = [file.read_text()] if file.exists() else []
        return bool(found) and found[0].endswith("\n")

    await until(look)
    return int(found[0])


async def test_what_it_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input, a session of its own, and nothing of syncd: variables, descriptors, signals."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    script = f"""if True:
        import json, os, signal, sys
        status = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
        json.dump(dict(
            input=sys.stdin.read(), environment=dict(os.environ), directory=os.getcwd(),
            leads=os.getpid() == os.getsid(0) == os.getpgid(0),
            descriptors=sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
            blocked=int(status["SigBlk"], 16), pipe=signal.getsignal(signal.SIGPIPE),
        ), open({str(tmp_path / "seen")!r}, "w"))
        """
    inherited, other = os.pipe()
    os.set_inheritable(inherited, True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1))
    try:
        command = Command([sys.executable, "-I", "-c", script], ENVIRONMENT, DEADLINE)
        assert await command.run(b'{"id": "1"}') == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(inherited)
        os.close(other)
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen.pop("environment").items() >= ENVIRONMENT.items()
    assert "NOTIFY_SOCKET" not in (tmp_path / "seen").read_text()
    assert "CREDENTIALS_DIRECTORY" not in (tmp_path / "seen").read_text()
    assert seen == {
        "input": '{"id": "1"}',
        "directory": "/",
        "leads": True,
        "descriptors": [0, 1, 2],
        "blocked": 0,
        "pipe": signal.SIG_IGN,  # Python itself ignores it
    }


async def test_what_it_returns() -> None:
    """The exit code, or the signal that ended it; each run begins anew."""
    command = shell("exit $(cat)")
    assert [await command.run(code) for code in (b"0", b"75", b"3")] == [0, 75, 3]
    assert await shell("kill -KILL $$").run(b"") == -signal.SIGKILL


@pytest.mark.parametrize("words", [["/nowhere/at/all"], ["no-such-program"], ["/etc/passwd"]])
async def test_what_cannot_be_started(words: list[str]) -> None:
    """No program there, and a file that is none."""
    with pytest.raises(OSError):  # noqa: PT011 - any
        await Command(words, ENVIRONMENT, DEADLINE).run(b"")


async def test_what_it_does_not_read_and_what_it_prints() -> None:
    """A large input that nobody reads, and a large output, hold up nothing."""
    assert (
        await shell("exec 0<&-; head -c 200000000 /dev/zero; echo >&2").run(b"x" * (1 << 22)) == 0
    )


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "])
async def test_a_command_that_hangs(tmp_path: Path, trap: str) -> None:
    """The whole group ends with it, also where SIGTERM is ignored."""
    file = tmp_path / "child"
    # the limit begins before the shell does, on a machine of any speed
    ready = f"sh -c '{trap}echo $$ > {file}; exec sleep 1000' & wait"
    command = shell(f"{trap}{ready}; wait; wait", limit=0.5)
    code: int | None = 0
    while not file.exists() or not file.read_text():
        code = await command.run(b"")
    assert code is None
    child = await pid_in(file)
    await until(lambda: not is_alive(child))
    assert not command.is_stuck


async def test_a_command_that_forks_and_leaves(tmp_path: Path) -> None:
    """What it leaves in its group ends with it, and does not hold up its answer."""
    file = tmp_path / "child"
    assert await shell(f"sleep 1000 & echo $! > {file}").run(b"") == 0
    child = await pid_in(file)
    await until(lambda: not is_alive(child))


async def test_a_command_in_a_session_of_its_own(tmp_path: Path) -> None:
    """It is out of reach, and holds up nothing."""
    file = tmp_path / "child"
    script = f"setsid sh -c 'echo $$ > {file}; exec sleep 1000' & while ! [ -s {file} ]; do :; done"
    assert await shell(script).run(b"") == 0
    child = await pid_in(file)
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


async def test_a_cancellation(tmp_path: Path) -> None:
    """It ends the command and all of its group."""
    file = tmp_path / "child"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shell(f"sleep 1000 & echo $! > {file}; wait").run, b"")
        child = await pid_in(file)
        tasks.cancel_scope.cancel()
    await until(lambda: not is_alive(child))


@needs_root
async def test_a_program_on_a_mount_that_hangs(tmp_path: Path) -> None:
    """The event loop goes on meanwhile, and no second run is begun where the first one hangs."""
    answered = threading.Event()
    with FuseServer(tmp_path, {"program": b"#!/bin/sh\n"}) as server:
        server.silent.add(LOOKUP)
        command = Command([f"{tmp_path}/program"], ENVIRONMENT, 0.2)
        async with anyio.create_task_group() as tasks:

            async def beat() -> None:
                await until(server.asked.is_set)
                answered.set()

            tasks.start_soon(beat)
            assert await command.run(b"") is None
        assert answered.is_set()
        assert command.is_stuck
        server.release()
        await until(lambda: not command.is_stuck)
