"""The thread that looks at a root itself after a swap: what it takes, and what it leaves."""

from __future__ import annotations

import os
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from support.waiting import DEADLINE, until, wait_until

from syncd.mount import attendant, lane as lanes
from syncd.mount.attendant import Attendant
from syncd.mount.lane import Errand, Follower, Lane, Pass
from syncd.mount.read import Members
from syncd.mount.roots import Root
from syncd.mount.snapshot import Snapshot
from syncd.mount.watch import Watcher
from syncd.mount.way import DATA_LINK, Watched
from syncd.system import threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from syncd.mount.watch import Hint

NEVER = 3600.0


def swap(root: Path) -> None:
    """As an AtomicWriter does."""
    (root / "..data_tmp").symlink_to("..gen")
    os.replace(root / "..data_tmp", root / DATA_LINK)


class Desk:
    """An attendant over two roots, whose looks are noted, and held where they are to be."""

    def __init__(self, directory: Path) -> None:
        self.watcher = Watcher()
        self.looked: list[str] = []
        self.turns: list[tuple[str, str | None]] = []
        self.landed: list[tuple[Lane, Errand]] = []
        self.hints: list[Hint] = []
        self.held: dict[str, threading.Event] = {}
        self.lanes = [self._lane(directory / name) for name in ("one", "two")]
        self.attendant = Attendant(
            self.watcher,
            work=self._work,
            notify=self.hints.append,
            landed=lambda lane, errand: self.landed.append((lane, errand)),
        )
        self.attendant.followers = tuple(self.lanes)

    def _lane(self, root: Path) -> Lane:
        root.mkdir()
        swap(root)
        members = Members(Root(str(root), generation="..gen"), [])
        lane = Lane(members, {}, NEVER, NEVER)
        lane.schedule.retry = None
        lane.watched = Watched(ways={str(root): frozenset({DATA_LINK})})
        return lane

    def _work(self, lane: Lane, _errand: Errand) -> Pass:
        self.looked.append(lane.path)
        if lane.path in self.held:
            self.held[lane.path].wait(DEADLINE)
        return Pass(Snapshot(), None, False, 0.0, 0.0)

    async def _follow(self, lane: Lane) -> None:
        while True:
            self.turns.append((lane.path, await lane.schedule.next()))

    @asynccontextmanager
    async def attending(self) -> AsyncIterator[tuple[Lane, Lane]]:
        """Attends, while both lanes wait for a turn."""
        async with anyio.create_task_group() as tasks:
            for lane in self.lanes:
                await anyio.to_thread.run_sync(self.watcher.arm, lane.watched, lane.path)
                tasks.start_soon(self._follow, lane)
            tasks.start_soon(self.attendant.run)
            await until(lambda: all(lane.schedule.is_open for lane in self.lanes))
            yield self.lanes[0], self.lanes[1]
            tasks.cancel_scope.cancel()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    yield made
    for event in made.held.values():
        event.set()
    made.watcher.close()


def path(lane: Lane) -> Path:
    return Path(lane.path)


async def test_a_swap_is_looked_at_at_once(desk: Desk) -> None:
    """The event loop hears when that is done, and until it has followed there is no other look."""
    async with desk.attending() as (one, _):
        swap(path(one))
        await until(lambda: desk.landed)
        ((lane, errand),) = desk.landed
        assert lane is one
        assert errand.future.result(0).recorded is None
        swap(path(one))
        await until(lambda: desk.hints)
        assert desk.looked == [one.path]
        assert one.adopt() is errand
        assert one.adopt() is None
        swap(path(one))
        await until(lambda: len(desk.landed) == 2)


async def test_everything_else_is_left_to_the_event_loop(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is more than a swap, concerns another follower too, is large, or must wait."""
    async with desk.attending() as (one, two):

        async def is_left() -> None:
            swap(path(one))
            await until(lambda: desk.hints)
            desk.hints.clear()

        (path(one) / DATA_LINK).unlink()
        await until(lambda: desk.hints)
        desk.hints.clear()
        other = Follower(NEVER, NEVER)
        other.watched = one.watched
        desk.attendant.followers = (one, two, other)
        await is_left()
        desk.attendant.followers = (other, two)
        await is_left()
        desk.attendant.followers = (one, two)
        monkeypatch.setattr(lanes, "_SMALL", -1)
        await is_left()
        monkeypatch.undo()
        one.members.root.generation = None
        await is_left()
        one.members.root.generation = "..gen"
        one.schedule.retry = NEVER
        await is_left()
        one.schedule.retry = None
        assert desk.looked == []
        swap(path(one))
        await until(lambda: desk.looked)


async def test_a_root_that_does_not_answer_holds_up_no_other(desk: Desk) -> None:
    """Another thread waits for the hints, and the lane's task is told to follow."""
    async with desk.attending() as (one, two):
        held = desk.held[one.path] = threading.Event()
        swap(path(one))
        await until(lambda: desk.turns)
        assert desk.turns == [(one.path, None)]
        errand = one.adopt()
        assert errand is not None
        assert not errand.future.done()
        swap(path(two))
        await until(lambda: desk.landed)
        assert desk.looked == [one.path, two.path]
        held.set()
        assert errand.future.result(DEADLINE).recorded is None
        await until(lambda: len(desk.landed) == 2)
        two.adopt()
        swap(path(two))
        await until(lambda: len(desk.landed) == 3)


async def test_without_a_thread_the_relief_comes_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no thread left now."""
    tried: list[object] = []
    start = threads.start

    def refuse(*arguments: object) -> object:
        tried.append(arguments)
        if len(tried) == 1:
            raise RuntimeError("can't start new thread")
        return start(*arguments)  # type: ignore[arg-type]

    async with desk.attending() as (one, two):
        monkeypatch.setattr(attendant, "_TRY_AGAIN", 0.01)
        monkeypatch.setattr(attendant, "start", refuse)
        desk.held[one.path] = threading.Event()
        swap(path(one))
        await until(lambda: len(tried) == 2)
        swap(path(two))
        await until(lambda: desk.landed)
        assert desk.looked == [one.path, two.path]


async def test_without_a_timer_nothing_is_taken(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root that does not answer would go unnoticed."""

    def refuse() -> None:
        raise OSError

    monkeypatch.setattr(attendant, "Alarm", refuse)
    async with desk.attending() as (one, _):
        swap(path(one))
        await until(lambda: desk.hints)
        assert desk.looked == []


async def test_the_end_is_the_end(desk: Desk) -> None:
    """No errand is begun, and the thread ends with the watcher."""
    async with desk.attending() as (one, _):
        pass
    swap(path(one))
    await until(lambda: desk.hints)
    assert desk.looked == []
    desk.watcher.close()
    wait_until(lambda: desk.watcher._epoll is None)


async def test_a_failure_ends_the_daemon(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the thread, changes would go unnoticed."""

    def fail() -> None:
        raise OSError("broken")

    monkeypatch.setattr(desk.watcher, "wait", fail)
    with anyio.fail_after(DEADLINE), pytest.raises(ExceptionGroup) as raised:
        await desk.attendant.run()
    assert "broken" in str(raised.value.exceptions[0])


async def test_what_a_look_raises_is_the_lanes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread goes on."""
    monkeypatch.setattr(desk.attendant, "_work", lambda *_: 1 / 0)
    async with desk.attending() as (one, _):
        swap(path(one))
        await until(lambda: desk.landed)
        with pytest.raises(ZeroDivisionError):
            desk.landed[0][1].future.result(0)
        one.adopt()
        swap(path(one))
        await until(lambda: len(desk.landed) == 2)
