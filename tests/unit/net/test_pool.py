"""Connections that are kept alive, with a server that does what servers do to them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import h11
import pytest

from syncd.net import pool as pools
from syncd.net.http1 import Request
from syncd.net.pool import ConnectTimeoutError, Pool
from syncd.net.url import Url
from syncd.net.wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers each request of a connection with the bytes that are next; None closes it."""

    def __init__(self, answers: Sequence[bytes | None]) -> None:
        self.answers = list(answers)
        self.read: list[bytes] = []
        self.connections = 0
        self.port = 0
        self.closed = asyncio.Event()
        self.served: list[asyncio.Task[None] | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.served.append(asyncio.current_task())
        while self.answers:
            if self.answers[0] is None:
                del self.answers[0]
                break
            data = await reader.read(1 << 20)
            if not data:
                break
            self.read.append(data)
            writer.write(self.answers.pop(0) or b"")
            await writer.drain()
        writer.close()
        self.closed.set()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def serving(*answers: bytes | None) -> AsyncIterator[Server]:
    server = Server(answers)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listener:
        server.port = listener.sockets[0].getsockname()[1]
        yield server
        await asyncio.gather(*filter(None, server.served))


def pool(keep: int = 1) -> Pool:
    return Pool(None, socket=None, keep=keep, connect_timeout=5)


def request(server: Server, content: bytes | None = b"body") -> Request:
    return Request("POST", Url.parse(f"http://127.0.0.1:{server.port}/x"), {"a": "b"}, content)


async def ask(connections: Pool, sent: Request) -> tuple[int, bytes]:
    response = await connections.request(sent)
    try:
        return response.status, b"".join([part async for part in response.body()])
    finally:
        await response.aclose()


async def test_head_and_body_arrive_together_and_the_connection_stays() -> None:
    """One write for a request, one connection for several."""
    async with serving(OK, OK) as server:
        connections = pool()
        for _ in range(2):
            assert await ask(connections, request(server)) == (200, b"ok")
        await connections.aclose()
        await server.closed.wait()
    assert server.connections == 1
    assert [data.endswith(b"\r\n\r\nbody") for data in server.read] == [True, True]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok",
    ],
)
async def test_ways_to_answer(answer: bytes) -> None:
    """Informational answers are passed over; a body ends by length, chunk or close."""
    async with serving(answer, None) as server:
        connections = pool()
        assert await ask(connections, request(server)) == (200, b"ok")
        await connections.aclose()


async def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    """A server that closes idle connections costs a new one, and no request."""
    async with serving(OK, None, OK) as server:
        connections = pool()
        await ask(connections, request(server))
        await server.closed.wait()
        assert await ask(connections, request(server)) == (200, b"ok")
        await connections.aclose()
    assert server.connections == 2


async def test_what_comes_unasked_is_no_answer() -> None:
    """A proxy says 408 before it closes an idle connection, and more so a server that is broken."""

    async with serving(OK, OK) as server:
        connections = pool()
        await ask(connections, request(server))
        (link,) = connections._idle
        assert isinstance(link._stream, Wire)
        link._stream._arrived += OK.replace(b"200", b"202")
        assert await ask(connections, request(server)) == (200, b"ok")
        await connections.aclose()
    assert server.connections == 2


async def test_an_old_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway in between may have forgotten it without a word."""
    async with serving(OK, OK) as server:
        connections = pool()
        await ask(connections, request(server))
        monkeypatch.setattr(pools, "KEEP_ALIVE", 0.0)
        await ask(connections, request(server))
        await connections.aclose()
    assert server.connections == 2


async def test_idle_connections_are_bounded() -> None:
    """What is more than that is closed as soon as it is idle."""
    async with serving(OK, OK, OK) as server:
        connections = pool(keep=1)
        responses = [await connections.request(request(server)) for _ in range(2)]
        assert server.connections == 2
        for response in responses:
            assert [part async for part in response.body()] == [b"ok"]
            await response.aclose()
        await ask(connections, request(server))
        await connections.aclose()
    assert server.connections == 2


async def test_an_answer_that_is_not_read_to_its_end_ends_its_connection() -> None:
    """Its rest would be taken for the next answer."""
    async with serving(OK.replace(b"2\r\n", b"3\r\n"), OK) as server:
        connections = pool()
        await (await connections.request(request(server))).aclose()
        assert await ask(connections, request(server)) == (200, b"ok")
        await connections.aclose()
    assert server.connections == 2


async def test_a_request_that_another_thread_sends() -> None:
    """Over the connection that was used last, which then is used again; with any answer."""
    chunked = b"HTTP/1.1 202 Ok\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n0\r\n\r\n"
    async with serving(OK, OK, chunked, OK) as server:
        connections = pool()
        sent = request(server)
        assert connections.reserve(sent.url) is None
        await ask(connections, sent)
        for expected in ((200, b"ok"), (202, b"o")):
            reserved = connections.reserve(sent.url)
            assert reserved is not None
            assert connections.reserve(sent.url) is None
            assert await anyio.to_thread.run_sync(reserved.post, sent)
            response = await reserved.answer()
            body = b"".join([part async for part in response.body()])
            await response.aclose()
            assert (response.status, body) == expected
        other = Url.parse(f"http://localhost:{server.port}")
        assert connections.reserve(other) is None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Wire, "is_flushed", False)
            assert connections.reserve(sent.url) is None
        kept = connections.reserve(sent.url)
        assert kept is not None
        kept.give_back()
        assert await ask(connections, sent) == (200, b"ok")
        await connections.aclose()
    assert server.connections == 1
    assert len(server.read) == 4
    assert len(set(server.read)) == 1


async def test_what_is_left_of_a_request_follows() -> None:
    """The system takes a part of a large one at once."""
    content = b"x" * (16 << 20)
    read: list[int] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
            read.append(len(await reader.readexactly(length)))
            writer.write(OK)
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(count, "127.0.0.1", 0)
    async with listener:
        server = Server(())
        server.port = listener.sockets[0].getsockname()[1]
        connections = pool()
        await ask(connections, request(server))
        reserved = connections.reserve(request(server).url)
        assert reserved is not None
        assert reserved.post(request(server, content))
        response = await reserved.answer()
        await response.aclose()
        await connections.aclose()
    assert read == [4, len(content)]


async def test_nothing_is_posted_where_that_is_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that h11 must judge, a connection that is old, one that the server has closed."""
    async with serving(OK, None) as server:
        connections = pool()
        await ask(connections, request(server))
        reserved = connections.reserve(request(server).url)
        assert reserved is not None
        assert not reserved.post(request(server, None))
        with monkeypatch.context() as patch:
            patch.setattr(pools, "KEEP_ALIVE", 0.0)
            assert not reserved.post(request(server))
        await server.closed.wait()
        assert not reserved.post(request(server))
        reserved.give_back()
        await connections.aclose()
    assert len(server.read) == 1


async def test_an_answer_before_all_is_read() -> None:
    """A server that refuses a large body by its head is heard."""
    refusal = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal)
        await writer.drain()
        while await reader.read(1 << 20):
            pass
        writer.close()
        await writer.wait_closed()
        closed.set()

    closed = asyncio.Event()
    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with listener:
        server = Server(())
        server.port = listener.sockets[0].getsockname()[1]
        connections = pool()
        assert await ask(connections, request(server, b"x" * (8 << 20))) == (413, b"")
        await connections.aclose()
        await closed.wait()


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-le"])
async def test_no_answer(answer: bytes) -> None:
    """An end or nonsense instead of an answer is an error of the protocol."""
    async with serving(answer, None) as server:
        with pytest.raises(h11.RemoteProtocolError):
            await ask(pool(), request(server))


async def test_a_header_that_is_none() -> None:
    """A credential with a line end is not sent."""
    async with serving() as server:
        bad = Request("POST", request(server).url, {"authorization": "Basic a\r\nb: c"}, b"")
        with pytest.raises(h11.LocalProtocolError):
            await pool().request(bad)
    assert server.read == []


async def test_no_connection_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of connecting, not that of the answer."""

    async def never(*_: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(pools, "connect", never)
    connections = Pool(None, socket=None, keep=1, connect_timeout=0.01)
    with pytest.raises(ConnectTimeoutError):
        await connections.request(Request("GET", Url.parse("http://192.0.2.1"), {}))
