"""Hints of real inotify: what makes one, where from, how urgent; and life without inotify."""

from __future__ import annotations

import errno
import os
import resource
import select
import subprocess
import sys
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

import anyio
import pytest
from inotify_simple import Event, INotify, flags
from support.waiting import DEADLINE, wait_until

from syncd.mount import watch
from syncd.mount.watch import Hint, Watcher
from syncd.mount.way import Watched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAMES = frozenset(("a", "b", "link", "config"))


def watched(*directories: object, ways: tuple[str, ...] = ("..data",)) -> Watched:
    """Files of some names in these directories, and some names that lead on."""
    made = Watched()
    for directory in directories:
        made.add_files(str(directory), NAMES)
        made.add_way(str(directory), *ways)
    return made


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    made = Watcher()
    yield made
    made.close()


async def arm(watcher: Watcher, directories: Watched) -> None:
    await anyio.to_thread.run_sync(watcher.arm, directories)


async def hint(watcher: Watcher) -> Hint:
    with anyio.fail_after(DEADLINE):
        return await watcher.next_hint()


def mode(watcher: Watcher) -> str:
    return watcher.mode


def hints_so_far(watcher: Watcher) -> list[Hint]:
    """All hints so far: they are in the queue when the system call that made them returns."""
    found = [watcher._kept, watcher._epoll and watcher._drain(watcher._epoll.poll(0))]
    watcher._kept = None
    return [hint for hint in found if hint is not None]


async def test_a_swap_is_urgent(watcher: Watcher, tmp_path: Path) -> None:
    """The rename of `..data` needs no settling; what the publisher does around it is no hint."""
    await arm(watcher, watched(tmp_path))
    (tmp_path / "..gen").mkdir()
    (tmp_path / "..data_tmp").symlink_to("..gen")
    assert hints_so_far(watcher) == []
    os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
    assert await hint(watcher) == Hint("inotify", True, frozenset({str(tmp_path)}), swap=True)
    (tmp_path / "..data").unlink()
    assert await hint(watcher) == Hint("inotify", True, frozenset({str(tmp_path)}))
    (tmp_path / "..data").symlink_to("..gen")
    assert await hint(watcher) == Hint("inotify", True, frozenset({str(tmp_path)}))


def test_what_a_scan_came_across_is_for_the_one_who_waits(watcher: Watcher, tmp_path: Path) -> None:
    """Who is woken for it only once."""
    watcher.arm(watched(tmp_path))
    (tmp_path / "a").touch()
    watcher.is_written(str(tmp_path / "a"))
    assert watcher._wake is not None
    assert select.select([watcher._wake], [], [], 0)[0]
    watcher.is_written(str(tmp_path / "a"))  # which takes nothing of it
    (tmp_path / "..data").symlink_to("..gen")
    assert watcher.wait() == Hint("inotify", True, frozenset({str(tmp_path)}))
    assert not select.select([watcher._wake], [], [], 0)[0]
    assert hints_so_far(watcher) == []


def test_a_thread_waits_until_there_is_something_to_watch(watcher: Watcher, tmp_path: Path) -> None:
    """Then for what happens, until the watcher is closed."""
    found: SimpleQueue[Hint | None] = SimpleQueue()

    def wait() -> None:
        found.put(None)
        while (hint := watcher.wait()) is not None:
            found.put(hint)
        found.put(None)

    Thread(target=wait, daemon=True).start()
    assert found.get(timeout=DEADLINE) is None
    watcher.arm(watched(tmp_path))
    (tmp_path / "..data").symlink_to("..gen")
    assert found.get(timeout=DEADLINE) == Hint("inotify", True, frozenset({str(tmp_path)}))
    wait_until(lambda: watcher._is_waited_for)
    with watcher._lock:  # so that all that it makes is one hint
        (tmp_path / "a").touch()
    assert found.get(timeout=DEADLINE) == Hint("inotify", False, frozenset({str(tmp_path)}))
    wait_until(lambda: watcher._is_waited_for)
    watcher.close()
    assert found.get(timeout=DEADLINE) is None
    assert watcher._epoll is None


def test_a_watcher_that_is_closed_has_no_hint_to_wait_for(watcher: Watcher) -> None:
    """Whether it ever watched something or not."""
    watcher.close()
    assert watcher.wait() is None


async def test_a_swap_with_something_else_is_no_mere_swap(watcher: Watcher, tmp_path: Path) -> None:
    """The way to the files may have changed, too."""
    await arm(watcher, watched(tmp_path, ways=("..data", "link")))
    for name, target in (("..data", "..gen"), ("link", "/elsewhere")):
        (tmp_path / "..data_tmp").symlink_to(target)
        os.replace(tmp_path / "..data_tmp", tmp_path / name)
    assert await hint(watcher) == Hint("inotify", True, frozenset({str(tmp_path)}))


async def test_a_file_in_a_directory_is_a_hint_that_can_wait(
    watcher: Watcher, tmp_path: Path
) -> None:
    """Creation, writing, renaming, chmod and deletion all say so."""
    await arm(watcher, watched(tmp_path))
    path = tmp_path / "a"
    for act in (
        path.touch,
        lambda: path.write_bytes(b"x"),
        lambda: path.chmod(0o600),
        lambda: path.rename(tmp_path / "b"),
        (tmp_path / "b").unlink,
    ):
        act()
        assert await hint(watcher) == Hint("inotify", False, frozenset({str(tmp_path)}))


async def test_only_names_that_matter_make_hints(watcher: Watcher, tmp_path: Path) -> None:
    """In the parent of a root, the root's own name counts, and nothing else."""
    await arm(watcher, Watched(ways={str(tmp_path): frozenset({"root"})}))
    (tmp_path / "other").touch()
    (tmp_path / "other").write_bytes(b"x")
    assert hints_so_far(watcher) == []
    (tmp_path / "root").mkdir()
    assert await hint(watcher) == Hint("inotify", True, frozenset({str(tmp_path)}))


async def test_a_directory_that_comes_back_is_watched_anew(
    watcher: Watcher, tmp_path: Path
) -> None:
    """Deletion is urgent; arming again watches the new directory of the same name."""
    root = tmp_path / "root"
    root.mkdir()
    wanted = watched(root)
    wanted.add_way(str(tmp_path), "root")
    await arm(watcher, wanted)
    root.rmdir()
    assert (await hint(watcher)).urgent
    root.mkdir()
    await arm(watcher, wanted)
    hints_so_far(watcher)
    (root / "a").touch()
    assert await hint(watcher) == Hint("inotify", False, frozenset({str(root)}))


async def test_what_is_not_watched_any_more_makes_no_hint(watcher: Watcher, tmp_path: Path) -> None:
    """Directories that are left out of the next arming fall silent."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    await arm(watcher, watched(tmp_path / "old"))
    (tmp_path / "old" / "pending").touch()
    await anyio.to_thread.run_sync(watcher.arm, watched(tmp_path / "new"))
    (tmp_path / "old" / "a").touch()
    hints = hints_so_far(watcher)
    assert all(str(tmp_path / "old") not in seen.directories for seen in hints)


async def test_one_directory_by_two_paths_tells_of_both(watcher: Watcher, tmp_path: Path) -> None:
    """A symlink to a watched directory shares its watch and loses neither names nor place."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    await arm(watcher, Watched(files={str(link): NAMES, str(real): frozenset({"config"})}))
    (real / "a").touch()
    assert await hint(watcher) == Hint("inotify", False, frozenset({str(link)}))
    (real / "config").touch()
    assert (await hint(watcher)).directories == {str(link), str(real)}


async def is_written(watcher: Watcher, path: Path) -> bool:
    return await anyio.to_thread.run_sync(watcher.is_written, str(path))


async def test_who_writes_is_known_until_it_closes(watcher: Watcher, tmp_path: Path) -> None:
    """A file that is being written in steps is listed, under every path of its directory."""
    await arm(watcher, watched(tmp_path))
    with (tmp_path / "a").open("wb", buffering=0) as file:
        for _ in range(3):
            file.write(b"x")
            await hint(watcher)
            assert await is_written(watcher, tmp_path / "a")
    await hint(watcher)
    assert not await is_written(watcher, tmp_path / "a")


async def test_what_waits_in_the_queue_counts(watcher: Watcher, tmp_path: Path) -> None:
    """Whoever asks whether a file is being written hears of the last write; its hint stays."""
    await arm(watcher, watched(tmp_path))
    (tmp_path / "link").symlink_to("a")
    await hint(watcher)

    with (tmp_path / "a").open("wb", buffering=0) as file:
        file.write(b"x")
        assert await is_written(watcher, tmp_path / "a")
        assert await is_written(watcher, tmp_path / "link")
        assert not await is_written(watcher, tmp_path / "b")
    assert not await is_written(watcher, tmp_path / "a")
    (tmp_path / "..data").symlink_to("nowhere")
    assert not await is_written(watcher, tmp_path / "a")
    assert await hint(watcher) == Hint("inotify", True, frozenset({str(tmp_path)}))


async def test_a_writer_that_never_closes_is_forgotten(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """truncate(2) makes IN_MODIFY and no closing: the file must not wait for ever."""
    (tmp_path / "a").write_bytes(b"xx")
    await arm(watcher, watched(tmp_path))
    os.truncate(tmp_path / "a", 1)
    await hint(watcher)
    assert await is_written(watcher, tmp_path / "a")
    monkeypatch.setattr(watch, "WRITER_LIMIT", 0.0)
    assert not await is_written(watcher, tmp_path / "a")


async def test_a_writer_is_forgotten_with_its_directory(watcher: Watcher, tmp_path: Path) -> None:
    """What was being written in a directory that is gone says nothing about the next one."""
    root = tmp_path / "root"
    root.mkdir()
    await arm(watcher, watched(root))
    with (root / "a").open("wb", buffering=0) as file:
        file.write(b"x")
        await hint(watcher)
        root.rename(tmp_path / "away")
        await hint(watcher)
        assert not await is_written(watcher, root / "a")


def queue_limit() -> int:
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        return int(file.read())


async def test_a_real_overflow_points_anywhere(watcher: Watcher, tmp_path: Path) -> None:
    """More events than the queue holds make one urgent hint that excludes no place."""
    limit = queue_limit()
    if limit > 100_000:
        pytest.skip("the queue is too long to fill here")
    paths = (tmp_path / "a", tmp_path / "b")
    for path in paths:
        path.touch()
    await arm(watcher, watched(tmp_path))

    def flood() -> None:
        for number in range(limit + 100):  # in turn, since equal events become one
            os.utime(paths[number % 2])

    await anyio.to_thread.run_sync(flood)
    seen = await hint(watcher)
    assert seen == Hint("overflow", True, frozenset())
    (tmp_path / "link").touch()
    while not (seen := await hint(watcher)).directories:
        pass  # somebody else on this machine mounted something
    assert seen.directories == {str(tmp_path)}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSYS, errno.EPERM])
async def test_without_inotify_it_polls_and_comes_back(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An instance that cannot be had is a reason to poll; the next arming tries again."""

    def fail(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(watch, "INotify", fail)
        await arm(watcher, watched(tmp_path))
    assert mode(watcher) == "poll"
    assert os.strerror(number) in (watcher.degraded or "")
    await arm(watcher, watched(tmp_path))
    assert (mode(watcher), watcher.degraded) == ("inotify", None)
    (tmp_path / "a").touch()
    assert (await hint(watcher)).directories


async def test_without_descriptors_it_polls_and_comes_back(
    watcher: Watcher, tmp_path: Path
) -> None:
    """Under a real limit of open files nothing breaks, leaks or stays broken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))
    before = len(os.listdir("/proc/self/fd"))
    for spare in range(3):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare, hard))
        try:
            watcher.arm(watched(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for blocked in (0, 1, 2):
        fresh = Watcher()
        free = highest + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        fillers = []
        try:
            while True:
                fillers.append(os.open("/", os.O_PATH))
        except OSError:
            for _ in range(blocked):
                os.close(fillers.pop())
            fresh.arm(watched(tmp_path))
            assert mode(fresh) == "poll"
            assert "Too many open files" in (fresh.degraded or "")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
        fresh.arm(watched(tmp_path))
        assert mode(fresh) == "inotify"
        fresh.close()
    watcher.close()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_too_few_watches_is_said_and_left_again(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC on one directory degrades; the others still make hints."""
    (tmp_path / "sub").mkdir()
    real = INotify.add_watch

    def add_watch(self: object, path: str, mask: int) -> object:
        if path.endswith("sub"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, path, mask)

    wanted = watched(tmp_path, tmp_path / "sub")
    with monkeypatch.context() as patched:
        patched.setattr(INotify, "add_watch", add_watch)
        await arm(watcher, wanted)
        assert mode(watcher) == "poll"
        assert "max_user_watches" in (watcher.degraded or "")
        (tmp_path / "a").touch()
        assert (await hint(watcher)).directories
    await arm(watcher, wanted)
    assert mode(watcher) == "inotify"


async def test_a_failing_registration_is_no_crash(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """epoll has limits of its own (max_user_watches of epoll): then it polls."""

    class Full:
        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            pass

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(select, "epoll", Full)
    watcher.arm(watched(tmp_path))
    assert mode(watcher) == "poll"
    watcher.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_poll_mode_uses_no_inotify(tmp_path: Path) -> None:
    """Where polling is configured, files make no hints and nothing counts as degraded."""
    watcher = Watcher("poll")
    try:
        await arm(watcher, watched(tmp_path))
        (tmp_path / "a").touch()
        assert hints_so_far(watcher) == []
        assert (mode(watcher), watcher.degraded) == ("poll", None)
    finally:
        watcher.close()


def test_events_of_unknown_watches_are_nobodys(watcher: Watcher) -> None:
    """What is left in the queue of a watch that was removed makes no hint and no writer."""
    watcher.arm(Watched())

    class Queue:
        def read(self, timeout: int) -> list[Event]:
            return [Event(99, flags.MODIFY, 0, "a"), Event(99, flags.IGNORED, 0, "")]

        def fileno(self) -> int:
            return -1

    real, watcher._inotify = watcher._inotify, Queue()
    try:
        assert watcher._drain([(-1, 1)]) is None
    finally:
        watcher._inotify = real
    assert not watcher._modified


MOUNTS = """
import subprocess, sys
sys.path.insert(0, sys.argv[2])
import anyio
from syncd.mount.watch import Watcher
from syncd.mount.way import Watched
root = sys.argv[1]
watched = Watched(files={root: frozenset(("a",))})

async def main():
    for mode in ("auto", "poll"):
        for way in ("next_hint", "wait"):
            watcher = Watcher(mode)
            watcher.arm(watched)
            for command in (["mount", "-t", "tmpfs", "none", root], ["umount", root]):
                await anyio.to_thread.run_sync(subprocess.check_call, command)
                with anyio.fail_after(60):
                    if way == "wait":
                        hint = await anyio.to_thread.run_sync(watcher.wait)
                    else:
                        hint = await watcher.next_hint()
                print(mode, way, command[0], hint.urgent, sorted(hint.directories))
                watcher._drain(watcher._epoll.poll(0))
                watcher.arm(watched)
            watcher.close()

anyio.run(main)
"""


@ROOT
def test_a_mount_and_an_unmount_are_urgent_hints(tmp_path: Path) -> None:
    """A real tmpfs on top of a watched directory is noticed, even where inotify is not used."""
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", MOUNTS, str(tmp_path), os.getcwd()],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{mode} {way} {command} True []"
        for mode in ("auto", "poll")
        for way in ("next_hint", "wait")
        for command in ("mount", "umount")
    ]
