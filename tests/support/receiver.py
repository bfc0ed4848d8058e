"""A real HTTP receiver for tests: real sockets, scripted answers, everything received on record.

It runs in a thread of its own, so that tests of both colours and tests of other processes can use
it, and the code under test cannot be held up by it nor the other way round:

    with Receiver() as receiver:
        receiver.script(reply(503, retry_after="2"), hang, reset)   # then 204 for ever
        ...
        first, second = receiver.wait(2)
        first.verify(key)                   # by the standardwebhooks library
        (event,) = first.cloud_events()     # by the CloudEvents SDK
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import anyio.to_thread
import h11
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from standardwebhooks import Webhook as Signer
from support.waiting import DEADLINE

if TYPE_CHECKING:
    import ssl

    from cloudevents.core.base import BaseCloudEvent


@dataclass(frozen=True)
class Request:
    """What arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = field(repr=False)
    at: float
    connection: int
    client: str | None

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events as plain JSON, whatever the mode."""
        content = json.loads(self.body)
        return content if isinstance(content, list) else [content]

    @property
    def subjects(self) -> list[str]:
        return [event["subject"] for event in self.events]

    def cloud_events(self) -> list[BaseCloudEvent]:
        """The events as the CloudEvents SDK reads them; it refuses what is none."""
        kind = self.headers["content-type"]
        if kind == "application/cloudevents+json":
            return [from_structured_event(HTTPMessage(self.headers, self.body))]
        assert kind == "application/cloudevents-batch+json", kind
        headers = {"content-type": "application/cloudevents+json"}
        return [
            from_structured_event(HTTPMessage(headers, json.dumps(event).encode()))
            for event in self.events
        ]

    def verify(self, key: str) -> None:
        """Verifies the signature; the standardwebhooks library raises if it is wrong."""
        Signer(key).verify(self.body, self.headers)


Reply = Callable[["_Connection"], Awaitable[None]]
"""Plays one answer on a connection."""


def reply(
    status: int = 204,
    body: bytes = b"",
    *,
    before: Callable[[], Any] | None = None,
    after: Callable[[], Any] | None = None,
    **headers: str,
) -> Reply:
    """An answer; `before` and `after` are called before and after it is sent.

    Names of headers take `_` for `-`.
    """

    async def play(connection: _Connection) -> None:
        if before is not None:
            before()
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        if status != 204 and "content_length" not in headers:
            fields.append(("content-length", str(len(body))))
        connection.send(h11.Response(status_code=status, headers=fields))
        if body:
            connection.send(h11.Data(data=body))
        connection.send(h11.EndOfMessage())
        await connection.writer.drain()
        if after is not None:
            after()

    return play


async def hang(connection: _Connection) -> None:
    """No answer until `release`, then 204."""
    await connection.receiver.released.wait()
    await reply()(connection)


async def reset(connection: _Connection) -> None:
    """RST instead of an answer."""
    raw = connection.writer.get_extra_info("socket")
    if raw.family != socket.AF_UNIX:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.writer.transport.abort()


async def close(connection: _Connection) -> None:
    """An orderly end instead of an answer."""
    connection.writer.close()


async def close_in_mid_answer(connection: _Connection) -> None:
    """200 with half of the promised body."""
    connection.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
    await connection.writer.drain()
    connection.writer.close()


async def trickle(connection: _Connection) -> None:
    """200 at once, and a body that never ends."""
    connection.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    with suppress(ConnectionError):
        while not connection.receiver.released.is_set():
            connection.writer.write(b"x")
            await connection.writer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(connection.receiver.released.wait(), 0.05)


async def flood(connection: _Connection) -> None:
    """200 at once, and a body of 64 MiB; `receiver.flooded` tells how much of it was taken."""
    connection.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n")
    with suppress(ConnectionError):
        for _ in range(1024):
            connection.writer.write(b"x" * 65536)
            await connection.writer.drain()
            connection.receiver.flooded += 65536


async def garbage(connection: _Connection) -> None:
    """Something that is not HTTP."""
    connection.writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await connection.writer.drain()
    connection.writer.close()


class Receiver:
    """Listens from `__enter__` to `__exit__`, on one address throughout.

    Args:
        tls: The server's side of TLS.
        unix: Path of a Unix socket to listen on instead of a port of 127.0.0.1.
        host: Host name in `url`.
        default: The answer when the script is empty.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        unix: str | None = None,
        host: str = "127.0.0.1",
        default: Reply | None = None,
    ) -> None:
        self.tls = tls
        self.socket = unix
        self.host = host
        self.port = 0
        self.default = default or reply()
        self.requests: list[Request] = []
        self.connections = 0
        self.flooded = 0
        self.released: asyncio.Event
        self._script: deque[Reply] = deque()
        self._news = threading.Condition()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{self.host}:{self.port or 80}/secret-events"

    def script(self, *replies: Reply) -> None:
        """Answers to come, in order; then the default."""
        self._script.extend(replies)

    def wait(self, count: int = 1, *, within: float = DEADLINE) -> list[Request]:
        """Blocks until that many requests have arrived in all, and returns all that have."""
        with self._news:
            arrived = self._news.wait_for(lambda: len(self.requests) >= count, within)
            assert arrived, f"{len(self.requests)} of {count} requests arrived in {within} s"
            return list(self.requests)

    async def arrived(self, count: int = 1, *, within: float = DEADLINE) -> list[Request]:
        """`wait` for asynchronous tests."""
        return await anyio.to_thread.run_sync(lambda: self.wait(count, within=within))

    def release(self) -> None:
        """Lets everything that hangs go on."""
        self._loop.call_soon_threadsafe(self.released.set)

    def start(self) -> None:
        """Listens, again on the same address after a `stop`."""
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(DEADLINE)
        if self._problem is not None:
            raise self._problem

    def stop(self) -> None:
        """Closes the listener and every connection."""
        if self._thread is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(DEADLINE)
            self._thread = None

    def _run(self, started: threading.Event) -> None:
        try:
            asyncio.run(self._serve(started))
        except BaseException as error:  # noqa: BLE001 - it belongs to the test's thread
            self._problem = error
            started.set()

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self.released = asyncio.Event(), asyncio.Event()
        open_now: set[asyncio.Task[None]] = set()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            open_now.add(task)
            try:
                self.connections += 1
                await _Connection(self, self.connections, reader, writer).serve()
            except (OSError, h11.RemoteProtocolError, asyncio.CancelledError):
                pass  # the other side went away, or the test is over
            finally:
                open_now.discard(task)
                writer.transport.abort()

        if self.socket is None:
            server = await asyncio.start_server(
                accepted, "127.0.0.1", self.port, ssl=self.tls, reuse_address=True
            )
            self.port = server.sockets[0].getsockname()[1]
        else:
            server = await asyncio.start_unix_server(accepted, self.socket, ssl=self.tls)
        started.set()
        await self._stop.wait()
        server.close()
        for task in open_now:
            task.cancel()
        if open_now:
            await asyncio.wait(open_now)

    def _record(self, request: Request) -> Reply:
        with self._news:
            self.requests.append(request)
            self._news.notify_all()
        return self._script.popleft() if self._script else self.default


class _Connection:
    def __init__(
        self,
        receiver: Receiver,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.receiver = receiver
        self.writer = writer
        self._number = number
        self._reader = reader
        self._http = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        while (request := await self._request()) is not None:
            await self.receiver._record(request)(self)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                await self.writer.drain()
                return
            self._http.start_next_cycle()

    def send(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        self.writer.write(self._http.send(event) or b"")

    async def _request(self) -> Request | None:
        head: h11.Request | None = None
        body = b""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return Request(
                    head.method.decode(),
                    head.target.decode(),
                    {name.decode(): value.decode() for name, value in head.headers},
                    body,
                    time.monotonic(),
                    self._number,
                    self._client(),
                )
            else:
                return None

    def _client(self) -> str | None:
        """The subject of the client's certificate, if it showed one."""
        tls = self.writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert() if tls else None
        if not certificate:
            return None
        fields: dict[str, str] = {
            n: value for group in certificate["subject"] for n, value in group
        }
        return fields.get("commonName")
