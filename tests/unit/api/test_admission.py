"""Which connections are kept, which are refused, and which give way to newer ones."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from syncd.api.admission import FULL, RATE, RESERVED, Gate, Newest, Share, Shares

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Connection:
    """A connection that knows what was done to it."""

    def __init__(self, since: float = 0.0, *, idle: bool = True) -> None:
        self.since = since
        self.idle = idle
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket() as one:
        yield one


class Users:
    """Shares whose owner is set before each connection, with a clock that stands still."""

    def __init__(self, most: int, share: int) -> None:
        self.owner = "a"
        self.now = 1000.0
        self._share = share
        self.vain: dict[int, float] = {}
        self.shares = Shares(most, self._share_of, self._flood, lambda: self.now)
        self._peer = socket.socket()

    def _share_of(self, _accepted: socket.socket) -> Share:
        return Share(len(self.owner), self.owner, self._share, self.owner == "root")

    def _flood(self, uid: int, count: float) -> None:
        self.vain[uid] = self.vain.get(uid, 0) + count

    def connect(self, owner: str, connection: Connection | None = None) -> bool:
        self.owner = owner
        refused = self.shares.refuses(self._peer)
        taken = self.shares.take(connection or Connection(), self._peer)
        assert refused is not taken
        return taken


@pytest.fixture
def users() -> Iterator[Users]:
    made = Users(100, 3)
    yield made
    made._peer.close()


def test_a_user_has_a_share(users: Users) -> None:
    """One user's connections take nothing from another user, and come back when they close."""
    mine = [Connection() for _ in range(3)]
    assert all(users.connect("a", one) for one in mine)
    assert not users.connect("a")
    assert users.connect("b")
    users.now += 1
    users.shares.release(mine[0])
    users.shares.release(mine[0])
    users.shares.release(Connection())
    assert users.connect("a")
    assert not users.connect("a")


def test_the_rest_is_for_root(users: Users) -> None:
    """All other users together leave room for root, which is bounded by the total alone."""
    others = sum(users.connect(f"u{number}") for number in range(100))
    assert others == 100 - min(RESERVED, 50)
    assert sum(users.connect("root") for _ in range(100)) == 100 - others


def test_connecting_again_and_again(users: Users) -> None:
    """A user who closes as fast as it connects is refused for a while, root never."""
    for owner, wanted in (("a", 3), ("root", 50)):
        made = 0
        for _ in range(50):
            one = Connection()
            made += users.connect(owner, one)
            users.shares.release(one)
        assert made == wanted
    users.now += 2.5 / RATE
    for wanted_now in (True, True, False):
        one = Connection()
        assert users.connect("a", one) is wanted_now
        users.shares.release(one)


def test_the_newest_probe_is_served(peer: socket.socket) -> None:
    """At the limit the connection that has been idle longest is closed; a busy one at last."""
    newest = Newest(3)
    busy, older, younger = Connection(0, idle=False), Connection(1), Connection(2)
    for one in (busy, younger, older):
        assert not newest.refuses(peer)
        assert newest.take(one, peer)
    fourth = Connection(3, idle=False)
    assert newest.take(fourth, peer)
    assert (older.aborted, younger.aborted, busy.aborted) == (True, False, False)
    newest.release(older)
    assert newest.take(Connection(4, idle=False), peer)
    assert (younger.aborted, busy.aborted) == (True, False)
    assert newest.take(Connection(5), peer)
    assert (busy.aborted, fourth.aborted) == (True, False)


def test_a_crowd_gives_way_first() -> None:
    """Connections of the address that has the most are closed, not those of another address."""
    newest = Newest(4)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)),
            socket.create_connection(("127.0.0.1", port)),
            server.accept()[0] as lonely,
            server.accept()[0] as crowded,
        ):
            probe, crowd = Connection(0), [Connection(number) for number in (1, 2, 3)]
            newest.take(probe, lonely)
            for one in crowd:
                newest.take(one, crowded)
            newest.take(Connection(9), crowded)
            assert [probe.aborted, *(one.aborted for one in crowd)] == [False, True, False, False]


@contextmanager
def gate(path: Path, users: Users) -> Iterator[tuple[Gate, str]]:
    """A gate that other sockets connect to."""
    name = str(path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen(2000)
        listening.setblocking(False)
        with Gate(listening, users.shares) as made:
            assert not made.get_inheritable()
            made.setblocking(False)
            yield made, name


def connect(name: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.connect(name)
    return one


def test_a_gate_passes_what_is_admitted(tmp_path: Path, users: Users) -> None:
    """Callers that have gone are dropped, those above a limit get an answer, others get in."""
    with gate(tmp_path, users) as (door, name):
        with pytest.raises(BlockingIOError):
            door.accept()
        connect(name).close()
        with connect(name) as caller:
            accepted, _ = door.accept()
            with accepted:
                caller.sendall(b"x")
                assert accepted.recv(1) == b"x"
        for _ in range(3):
            users.connect("a")
        users.owner = "a"
        with connect(name) as refused:
            with pytest.raises(BlockingIOError):
                door.accept()
            refused.settimeout(1)
            assert refused.recv(1000) == FULL
            assert refused.recv(1) == b""


def test_a_request_that_ends_at_once_is_served(tmp_path: Path, users: Users) -> None:
    """A caller that has sent a request and then shut its side down still waits for the answer."""
    with gate(tmp_path, users) as (door, name), connect(name) as caller:
        caller.sendall(b"GET")
        caller.shutdown(socket.SHUT_WR)
        accepted, _ = door.accept()
        accepted.close()


def test_refusing_has_an_end(tmp_path: Path, users: Users) -> None:
    """After some hundred refusals it is the turn of others; the next turn goes on."""
    with gate(tmp_path, users) as (door, name):
        for _ in range(800):
            connect(name).close()
        with connect(name):
            with pytest.raises(BlockingIOError):
                door.accept()
            accepted, _ = door.accept()
            accepted.close()
            with pytest.raises(BlockingIOError):
                door.accept()
        assert users.vain == {len("a"): 288}  # from the second turn on: the queue did not get empty
        for _ in range(500):
            connect(name).close()
        with pytest.raises(BlockingIOError):
            door.accept()
        assert users.vain == {len("a"): 288}


def test_root_floods_nothing(tmp_path: Path, users: Users) -> None:
    """Connections in vain are counted by user, but not those of users who may do everything."""
    users.owner = "root"
    with gate(tmp_path, users) as (door, name):
        for _ in range(1000):
            connect(name).close()
        for _ in range(2):
            with pytest.raises(BlockingIOError):
                door.accept()
    assert users.vain == {}
