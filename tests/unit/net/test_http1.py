"""Connections that are kept alive, with a server that does what servers do to them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import h11
import pytest

from syncd.net import http1
from syncd.net.http1 import ConnectTimeoutError, Pool, Request
from syncd.net.url import Url

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


async def test_an_old_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway in between may have forgotten it without a word."""
    async with serving(OK, OK) as server:
        connections = pool()
        await ask(connections, request(server))
        monkeypatch.setattr(http1, "KEEP_ALIVE", 0.0)
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
    async with serving(OK, OK) as server:
        connections = pool()
        await (await connections.request(request(server))).aclose()
        assert await ask(connections, request(server)) == (200, b"ok")
        await connections.aclose()
    assert server.connections == 2


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

    monkeypatch.setattr(anyio, "connect_tcp", never)
    connections = Pool(None, socket=None, keep=1, connect_timeout=0.01)
    with pytest.raises(ConnectTimeoutError):
        await connections.request(Request("GET", Url.parse("http://192.0.2.1"), {}))
