"""`syncd wait`: returns as soon as all is there, and says at the timeout what is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support.waiting import DEADLINE, until
from support.world import World

from syncd.commands.wait import wait
from syncd.config.settings import Settings, Watch
from syncd.core.decode import Duration
from syncd.mount.read import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    before = len(os.listdir("/proc/self/fd"))
    yield tmp_path / "mount"
    assert len(os.listdir("/proc/self/fd")) <= before


def configure(root: Path, *names: str) -> Settings:
    world = World(root.parent)
    world.map(*names)
    return Settings(vault_config=world.vault_config, watch=Watch(settle=Duration(0.02)))


def make(root: Path) -> None:
    root.mkdir()


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, (1, 1))


async def test_what_is_there_is_not_waited_for(root: Path) -> None:
    """Even without any time, a complete mount is complete."""
    make(root)
    write(root / "a", b"x")
    assert await wait(configure(root, "a"), 0.0) == []


async def test_what_is_not_there_is_named_even_without_any_time(root: Path) -> None:
    """A timeout of nothing looks once; it does not pass for success."""
    (line,) = await wait(configure(root, "a"), 0.0)
    assert line.startswith(f"{root}/a: secret a is missing")


async def test_it_returns_when_the_last_file_appears(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From no mount at all to the last file; an empty or half-written file is not there yet."""
    settings = configure(root, "a", "b")
    result: list[list[str]] = []
    scanned, scan = 0, Reader.scan

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal scanned
        scanned += 1
        return scan(*arguments, **options)

    monkeypatch.setattr(Reader, "scan", counted)

    async def run() -> None:
        with anyio.fail_after(DEADLINE):
            result.append(await wait(settings, DEADLINE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        make(root)
        write(root / "a", b"x")
        write(root / "b", b"")
        before = scanned
        await until(lambda: scanned >= before + 2)  # one of them began after the write
        assert result == []
        write(root / "b", b"x")
    assert result == [[]]


async def test_every_missing_entry_is_one_line(root: Path) -> None:
    """Missing, empty and unreadable ones each have their own."""
    make(root)
    write(root / "good", b"x")
    write(root / "empty", b"")
    make(root / "dir")
    lines = await wait(configure(root, "good", "none", "empty", "dir"), 0.1)
    assert len(lines) == 3
    assert [line.split(":")[0] for line in lines] == [
        f"{root}/{n}" for n in ("none", "empty", "dir")
    ]


async def test_a_vault_config_that_cannot_be_used_is_what_is_missing(root: Path) -> None:
    """Its problem is the line; a correction in time ends the wait."""
    make(root)
    write(root / "a", b"x")
    settings = configure(root, "a")
    path = Path(settings.vault_config)
    good = read(path)
    write(path, b"{")
    (line,) = await wait(settings, 0.05)
    assert "vault-config.json" in line
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            with anyio.fail_after(DEADLINE):
                assert await wait(settings, DEADLINE) == []

        tasks.start_soon(run)
        await anyio.to_thread.run_sync(write, path, good)


async def test_what_is_missing_is_reported_at_once_and_on_changes(root: Path) -> None:
    """Before anything is over: a pod that waits has the reason in its log."""
    make(root)
    settings = configure(root, "a", "b")
    lines: list[str] = []
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            with anyio.fail_after(DEADLINE):
                assert await wait(settings, DEADLINE, report=lines.append) == []

        tasks.start_soon(run)
        await until(lambda: len(lines) == 2)
        assert [line.split(": secret ")[0] for line in lines] == [
            f"waiting: {root}/{name}" for name in "ab"
        ]
        await anyio.to_thread.run_sync(write, root / "a", b"x")
        await until(lambda: lines[-1] == "waiting: still missing: 1")
        await anyio.to_thread.run_sync(make, root / "b")
        await until(lambda: "secret b is unreadable" in lines[-1])
        await anyio.to_thread.run_sync(os.rmdir, root / "b")
        await anyio.to_thread.run_sync(write, root / "b", b"x")
    assert not [line for line in lines if not line.startswith("waiting: ")]


async def test_many_missing_secrets_are_summed_up(root: Path) -> None:
    """The log of an init container is not flooded."""
    make(root)
    lines: list[str] = []
    missing = await wait(configure(root, *map(str, range(30))), 0.1, report=lines.append)
    assert len(missing) == 30
    assert len(lines) == 21
    assert lines[-1] == "waiting: and 10 more secrets"


async def test_only_chosen_secrets_are_waited_for(root: Path) -> None:
    """One missing entry does not keep the others' program down; an unknown name is reported."""
    make(root)
    write(root / "client-secret", b"x")
    settings = configure(root, "client-secret", "never")
    assert await wait(settings, 0.0, only=["client-secret"]) == []
    (line,) = await wait(settings, 0.0, only=["clent-secret"])
    assert line.endswith("there is no secret clent-secret; did you mean client-secret?")
