"""A connection on asyncio's transport: what arrives, how it ends, and what it keeps in memory."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from support.waiting import DEADLINE, until

from syncd.net import wire
from syncd.net.wire import Wire, connect, connect_unix

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@asynccontextmanager
async def pair() -> AsyncGenerator[tuple[Wire, socket.socket]]:
    """A connection, and the other side of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, anyio.fail_after(DEADLINE):
        found = await connect(*listener.getsockname())
        assert isinstance(found, Wire)
        other, _ = listener.accept()
        with other:
            other.settimeout(DEADLINE)
            try:
                yield found, other
            finally:
                await found.aclose()


async def test_bytes_go_both_ways() -> None:
    """In order, and no more at a time than asked for."""
    async with pair() as (near, far):
        assert near.raw_socket.getpeername() == far.getsockname()
        await near.send(b"request")
        assert far.recv(100) == b"request"
        far.sendall(b"answer")
        assert await near.receive(3) == b"ans"
        assert await near.receive(100) == b"wer"


async def test_the_other_side_ends_it() -> None:
    """What had arrived can be taken; then it is at its end, again and again."""
    async with pair() as (near, far):
        far.sendall(b"last")
        far.shutdown(socket.SHUT_WR)
        assert await near.receive(100) == b"last"
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await near.receive(100)


async def test_it_fails() -> None:
    """The error has the system's as its cause, which tells why."""
    async with pair() as (near, far):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        with pytest.raises(anyio.BrokenResourceError) as failure:
            await near.receive(100)
        assert isinstance(failure.value.__cause__, ConnectionResetError)
        with pytest.raises(anyio.BrokenResourceError):
            await near.send(b"x")


async def test_a_wait_can_be_cancelled() -> None:
    """And nothing is lost by that."""
    async with pair() as (near, far):
        with anyio.move_on_after(0.01) as scope:
            await near.receive(100)
        assert scope.cancelled_caught
        far.sendall(b"late")
        assert await near.receive(100) == b"late"


async def test_what_is_not_taken_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends without an end fills the system's buffers, not the memory."""
    monkeypatch.setattr(wire, "_MOST", 1000)
    async with pair() as (near, far):
        far.setblocking(False)
        sent = 0

        def is_full() -> bool:
            nonlocal sent
            try:
                sent += far.send(b"x" * 65536)
            except BlockingIOError:
                return len(near._arrived) > 1000 and not near._transport.is_reading()
            return False

        await until(is_full)
        kept = len(near._arrived)
        assert kept < 1 << 20
        taken = 0
        while taken < sent:
            taken += len(await near.receive(65536))
        assert taken == sent


async def test_sending_waits_for_the_other_side() -> None:
    """Where it does not read, no more than asyncio's buffer is kept."""
    content = b"x" * (16 << 20)
    async with pair() as (near, far), anyio.create_task_group() as tasks:
        tasks.start_soon(near.send, content)
        await until(lambda: near._is_full)
        received = 0
        while received < len(content):
            received += len(await anyio.to_thread.run_sync(far.recv, 1 << 20))
    assert received == len(content)


async def test_another_thread_posts() -> None:
    """It gets no more done than the system takes at once, and does not wait for the rest."""
    content = b"x" * (16 << 20)
    async with pair() as (near, far):
        assert near.is_flushed
        sent = await anyio.to_thread.run_sync(near.post, content)
        assert 0 < sent < len(content)
        assert await anyio.to_thread.run_sync(near.post, content) == 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(near.send, content[sent:])
            received = 0
            while received < len(content):
                received += len(await anyio.to_thread.run_sync(far.recv, 1 << 20))
            assert received == len(content)


async def test_what_waits_to_be_sent_comes_first() -> None:
    """Another thread must not write into the middle of it."""
    async with pair() as (near, _far):
        near._transport.write(b"x" * (16 << 20))
        assert not near.is_flushed


async def test_nothing_is_posted_after_the_end() -> None:
    """The descriptor may be closed, and then be that of another file."""
    async with pair() as (near, _far):
        near.eof_received()
        assert near.post(b"x") == 0


async def test_a_unix_socket(tmp_path: Path) -> None:
    """As TCP."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        near = await connect_unix(str(tmp_path / "s"))
        far, _ = listener.accept()
        with far:
            far.sendall(b"x")
            assert await near.receive(100) == b"x"
            assert near.post(b"y") == 1
            assert far.recv(100) == b"y"
        await near.aclose()


async def test_no_address_accepts() -> None:
    """The number of the error is kept, also where a host has several addresses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError) as failure:  # noqa: PT011 - the number is looked at
        await connect("127.0.0.1", port)
    assert failure.value.errno == errno.ECONNREFUSED


async def test_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio joins their errors in a text without a number; anyio's stream has them all."""

    async def fail(*_: object, **__: object) -> None:
        raise OSError("Multiple exceptions: [Errno 111] …, [Errno 101] …")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fail, raising=False)
        monkeypatch.setattr(anyio, "connect_tcp", _record)
        assert await connect(*listener.getsockname()) == listener.getsockname()


async def _record(host: str, port: int) -> object:
    return host, port
