"""Connections of an HTTP client that are kept alive.

h11 has the protocol, anyio and asyncio the connections. There is nothing else that an HTTP client
does: no redirect, cookie, proxy, `.netrc`, decoding or log line.
"""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
import h11
from anyio.abc import ByteStream, SocketAttribute

from syncd.net.http1 import parse_plain_success
from syncd.net.wire import Wire, connect, connect_unix

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from syncd.net.http1 import Request
    from syncd.net.url import Url

    _Stream = ByteStream | Wire

KEEP_ALIVE: Final = 60.0
"""Seconds for which an idle connection is used again."""

_CHUNK: Final = 64 << 10


class Response:
    """The head of an answer, and the way to its body.

    Attributes:
        status: HTTP status.
        retry_after: The header of this name, or None.
    """

    def __init__(self, pool: Pool, link: _Link, head: h11.Response | tuple[int, bytes]) -> None:
        self._whole: bytes | None = None
        self.retry_after: str | None = None
        if isinstance(head, tuple):
            self.status, self._whole = head
        else:
            self.status = head.status_code
            found = (value for name, value in head.headers if name == b"retry-after")
            retry_after = next(found, None)
            self.retry_after = None if retry_after is None else retry_after.decode("latin-1")
        self._pool = pool
        self._link = link

    async def body(self) -> AsyncIterator[bytes]:
        """The parts of the body.

        Raises:
            OSError, anyio.BrokenResourceError, h11.RemoteProtocolError: The connection failed.
        """
        if self._whole is not None:
            yield self._whole
            return
        while isinstance(event := await self._link.receive(), h11.Data):
            yield bytes(event.data)

    def drop_arrived(self) -> bool:
        """Drops what has arrived of the body; returns whether that was all.

        Raises:
            h11.RemoteProtocolError: This is no HTTP.
        """
        if self._whole is not None:
            return True
        protocol = self._link.protocol
        while isinstance(event := protocol.next_event(), h11.Data):
            pass
        return isinstance(event, h11.EndOfMessage)

    async def aclose(self) -> None:
        """Gives the connection back, or closes it where the answer was not read to its end."""
        await self._pool._give_back(self._link, whole=self._whole is not None)  # noqa: SLF001 - of one module


def _raw_socket(stream: _Stream) -> Any:  # noqa: ANN401 - asyncio's or ssl's
    if isinstance(stream, Wire):
        return stream.raw_socket
    return stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - it is no Django


class _Link:
    """One connection."""

    def __init__(self, stream: _Stream, place: tuple[object, ...]) -> None:
        self.place = place
        self.idle_since = 0.0
        self.protocol = h11.Connection(our_role=h11.CLIENT)
        self._stream = stream
        self._poll = select.poll()
        self._poll.register(_raw_socket(stream), select.POLLIN)

    @property
    def is_usable(self) -> bool:
        """Whether it can carry another request: it is not old, and nothing came unasked, no end."""
        if isinstance(self._stream, Wire) and not self._stream.is_quiet:
            return False
        return time.monotonic() - self.idle_since < KEEP_ALIVE and not self._poll.poll(0)

    @property
    def can_be_posted(self) -> bool:
        """Whether another thread may send on it."""
        return isinstance(self._stream, Wire) and self._stream.is_flushed

    def post(self, data: bytes) -> int:
        """As that of `Wire`."""
        assert isinstance(self._stream, Wire)
        return self._stream.post(data)

    async def send(self, data: bytes) -> None:
        # a server may answer before it has read everything, and close
        with contextlib.suppress(anyio.BrokenResourceError):
            await self._stream.send(data)

    async def receive(self) -> object:
        """The next event of the protocol."""
        while (event := self.protocol.next_event()) is h11.NEED_DATA:
            self.protocol.receive_data(await self.read())
        return event

    async def read(self) -> bytes:
        """What arrives next; empty at the end."""
        try:
            return await self._stream.receive(_CHUNK)
        except anyio.EndOfStream:
            return b""

    async def receive_head(self) -> h11.Response:
        while not isinstance(head := await self.receive(), h11.Response):
            if not isinstance(head, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection ended")
        return head

    async def aclose(self) -> None:
        with (
            anyio.CancelScope(shield=True),
            contextlib.suppress(OSError, anyio.BrokenResourceError),
        ):
            await anyio.aclose_forcefully(self._stream)


class Reserved:
    """An idle connection for one request, which another thread sends."""

    def __init__(self, pool: Pool, link: _Link) -> None:
        self._pool = pool
        self._link = link
        self._sent: tuple[Request, bytes] | None = None

    def post(self, request: Request) -> bool:
        """Sends it without waiting, from any thread; returns whether anything was sent."""
        data = request.encode_plainly()
        if data is None or not self._link.is_usable:
            return False
        count = self._link.post(data)
        if count:
            self._sent = request, data[count:]
        return count > 0

    async def answer(self) -> Response:
        """The answer to the request that was posted; raises as `Pool.request`."""
        assert self._sent is not None
        request, rest = self._sent
        return await self._pool._exchange(self._link, request, rest)  # noqa: SLF001 - of one module

    def give_back(self) -> None:
        """Gives the connection back, on which nothing was sent."""
        self._pool._idle.append(self._link)  # noqa: SLF001 - of one module


class Pool:
    """Connections to one server, or to several, all under one TLS configuration.

    Args:
        context: For `https`; None where no URL has it.
        socket: Path of a Unix socket to connect to instead of the URL's host.
        keep: How many idle connections are kept.
        connect_timeout: Seconds within which a connection must be accepted.
    """

    def __init__(
        self,
        context: ssl.SSLContext | None,
        *,
        socket: str | None,
        keep: int,
        connect_timeout: float,
    ) -> None:
        if context is not None:
            context.set_alpn_protocols(["http/1.1"])
        self._context = context
        self._socket = socket
        self._keep = keep
        self._connect_timeout = connect_timeout
        self._idle: list[_Link] = []
        self._closed = False

    async def request(self, request: Request) -> Response:
        """Sends a request; returns when the head of the answer is here.

        Raises:
            ConnectTimeoutError: No connection in time.
            OSError, anyio.BrokenResourceError, anyio.EndOfStream, h11.ProtocolError: The
                connection failed, or this is no HTTP.
        """
        place = _place(request.url, request.address)
        link = await self._idle_link(place) or await self._connect(request, place)
        return await self._exchange(link, request, request.encode_plainly())

    async def _exchange(self, link: _Link, request: Request, plain: bytes | None) -> Response:
        """Sends a request, plainly where that is possible or was begun; returns its answer."""
        try:
            if plain is None:
                await link.send(request.encode(link.protocol))
            else:
                if plain:
                    await link.send(plain)
                answer = await link.read()
                success = parse_plain_success(answer)
                if success is not None:
                    return Response(self, link, success)
                request.encode(link.protocol)  # has been sent
                link.protocol.receive_data(answer)
            return Response(self, link, await link.receive_head())
        except BaseException:
            await link.aclose()
            raise

    def reserve(self, url: Url) -> Reserved | None:
        """Keeps the connection that was used last for a request to come, if there is one."""
        if not self._idle or not self._idle[-1].can_be_posted:
            return None
        if self._idle[-1].place != _place(url):
            return None
        return Reserved(self, self._idle.pop())

    async def aclose(self) -> None:
        """Closes idle connections now, and the others when they are given back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().aclose()

    async def _idle_link(self, place: tuple[object, ...]) -> _Link | None:
        """The connection that was used last, if it can be used again."""
        for link in reversed(self._idle):
            if link.place == place:
                self._idle.remove(link)
                if link.is_usable:
                    return link
                await link.aclose()
        return None

    async def _connect(self, request: Request, place: tuple[object, ...]) -> _Link:
        url = request.url
        try:
            with anyio.fail_after(self._connect_timeout):
                host, path = request.address or url.host, self._socket
                if url.scheme == "http":
                    plain = await (connect_unix(path) if path else connect(host, url.port))
                    return _Link(plain, place)
                opened = await (
                    anyio.connect_unix(path) if path else anyio.connect_tcp(host, url.port)
                )
                stream = await self._secure(opened, url.host)
        except TimeoutError:
            raise ConnectTimeoutError from None
        return _Link(stream, place)

    async def _secure(self, stream: ByteStream, host: str) -> ByteStream:
        from anyio.streams.tls import TLSStream  # noqa: PLC0415 - ssl costs memory

        try:
            return await TLSStream.wrap(
                stream, hostname=host, ssl_context=self._context, standard_compatible=False
            )
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise

    async def _give_back(self, link: _Link, *, whole: bool) -> None:
        try:
            if not whole:
                link.protocol.start_next_cycle()
        except h11.LocalProtocolError:
            await link.aclose()  # more is to come, or the server closes it
            return
        link.idle_since = time.monotonic()
        self._idle.append(link)
        while len(self._idle) > (0 if self._closed else self._keep):
            await self._idle.pop(0).aclose()


def _place(url: Url, address: str | None = None) -> tuple[object, ...]:
    """What connections are told apart by."""
    return url.scheme, url.host, url.port, address


class ConnectTimeoutError(Exception):
    """A server did not accept a connection in time."""
