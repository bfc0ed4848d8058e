"""Every answer that a file system can give to a scan, from a real one that gives it."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

import pytest
from support.fuse import LOOKUP, OPEN, OPERATIONS, FuseServer
from unit.mount.test_read import PRESENT, ROOT, Looker, brief, entries

from syncd.core.model import State
from syncd.mount.listing import unclaimed_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.fuse import Tree

pytestmark = ROOT
ABSENT = {errno.ENOENT, errno.ENOTDIR}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good"
    path.mkdir()
    (path / "g").write_bytes(b"good")
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad"
    path.mkdir()
    return path


@pytest.fixture
def server(bad: Path) -> Iterator[FuseServer]:
    tree: Tree = {
        "plain": b"1",
        "dir": {"nested": b"2"},
        "link": "dir/nested",
        "csi": {"..data": "..gen", "..gen": {"pw": b"3"}, "pw": "..data/pw"},
    }
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # the server is a thread of this process
    with FuseServer(bad, tree) as served:
        yield served
    sys.setswitchinterval(interval)


NAMES = ("plain", "dir/nested", "link", "csi/pw", "none")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_error_of_every_request_is_an_observation(
    server: FuseServer, good: Path, bad: Path, operation: str
) -> None:
    """None is an exception, none but absence removes anything, and no other root notices."""
    wanted = entries(bad, *NAMES) | entries(good, "g")
    looker = Looker()
    before = looker.scan(wanted).observations
    assert brief(before["csi/pw"]) == brief(before["plain"]) == PRESENT
    looker.monotonic += looker.settle
    for turn, number in enumerate(sorted(errno.errorcode)):
        server.errors[OPERATIONS[operation]] = number
        seen = looker.look(wanted).observations
        unclaimed_files(str(bad), [], most=10, named=10)
        server.release()
        assert seen["g"] == before["g"]
        if number not in ABSENT:
            removed = [
                name
                for name in NAMES
                if brief(seen[name]) == (State.MISSING, True) and name != "none"
            ]
            assert not removed, errno.errorcode[number]
        if turn % 8 == 0:  # a scan takes a while here, and these are 130
            assert looker.look(wanted).observations == before, errno.errorcode[number]
    assert looker.look(wanted).observations == before


def test_a_server_that_died(server: FuseServer, good: Path, bad: Path) -> None:
    """The whole root is unreadable, with the reason, and is tried again soon."""
    looker, wanted = Looker(), entries(bad, "plain") | entries(good, "g")
    looker.scan(wanted)
    server.die()
    seen = looker.scan(wanted)
    assert brief(seen.observations["g"]) == PRESENT
    found = seen.observations["plain"]
    assert (found.state, found.code) == (State.UNREADABLE, "mount-unreadable")
    assert "Transport endpoint is not connected" in (found.problem or "")
    assert seen.retry_in == 1.0
    surveyed, _ = looker.reader.survey(wanted)
    assert surveyed[str(bad)][1].failed == found.problem


@pytest.mark.parametrize("operation", [LOOKUP, OPEN])
def test_a_server_that_does_not_answer(
    server: FuseServer, good: Path, bad: Path, operation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan returns, with that root unreadable and the other one read."""
    looker, wanted = Looker(), entries(bad, "plain") | entries(good, "g")
    before = looker.scan(wanted).observations
    server.silent.add(operation)
    seen = looker.reader.scan(wanted, clock=lambda: looker.monotonic, limit=0.2)
    assert seen.observations["plain"].problem == f"the mount {bad} does not answer"
    assert seen.observations["g"].state is State.PRESENT
    assert server.asked.is_set()
    server.release()
    assert looker.scan(wanted).observations == before


def test_descriptors_are_closed_whatever_fails(server: FuseServer, bad: Path) -> None:
    """An error between opening and closing leaves nothing open."""
    looker, wanted = Looker(), entries(bad, *NAMES)
    looker.scan(wanted)
    before = len(os.listdir("/proc/self/fd"))
    for operation in OPERATIONS.values():
        server.errors[operation] = errno.EIO
        looker.scan(wanted)
        server.release()
    assert len(os.listdir("/proc/self/fd")) == before
