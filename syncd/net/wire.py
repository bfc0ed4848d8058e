"""A connection without TLS, over TCP or a Unix socket, on asyncio's transport.

anyio's stream for one costs a fifth of an event: it takes two more steps of the event loop for a
request and its answer, and registers the socket anew for each answer.
"""

from __future__ import annotations

import asyncio
import os
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.abc import AsyncResource

if TYPE_CHECKING:
    from anyio.abc import SocketStream

_NEXT_ADDRESS: Final = 0.25
"""Seconds after which the next address of a host is tried as well (RFC 8305)."""

_CHUNK: Final = 8 << 10
"""Bytes that are read at once."""

_MOST: Final = 256 << 10
"""Bytes that may have arrived and not been taken; no more is read then."""


async def connect(host: str, port: int) -> Wire | SocketStream:
    """A connection; anyio's stream where all of several addresses failed, and then one accepts.

    Raises:
        OSError: No address accepts one.
    """
    loop = asyncio.get_running_loop()
    try:
        _, wire = await loop.create_connection(Wire, host, port, happy_eyeballs_delay=_NEXT_ADDRESS)
    except OSError as error:
        if error.errno:
            raise
        # asyncio makes a text of the errors of several addresses
        return await anyio.connect_tcp(host, port)
    return wire


async def connect_unix(path: str) -> Wire:
    """A connection to a Unix socket.

    Raises:
        OSError: It accepts none.
    """
    _, wire = await asyncio.get_running_loop().create_unix_connection(Wire, path)
    return wire


class Wire(asyncio.BufferedProtocol, AsyncResource):
    """The connection, for one task at a time; its methods are those of anyio's streams.

    `post` is for any thread, while no task uses the connection.

    Attributes:
        raw_socket: The socket.
    """

    raw_socket: Any

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._buffer = bytearray(_CHUNK)
        self._arrived = bytearray()
        self._has_ended = False
        self._failure: Exception | None = None
        self._news: asyncio.Future[None] | None = None
        self._is_full = False
        self._open = Lock()
        """Held while another thread writes, so that the descriptor is not closed under it."""

    async def send(self, data: bytes) -> None:
        """Sends; returns when the system has taken most of it.

        Raises:
            anyio.BrokenResourceError: The connection has failed.
        """
        self._transport.write(data)
        while self._is_full and self._failure is None and not self._has_ended:
            await self._wait()
        self._check()

    @property
    def is_flushed(self) -> bool:
        """Whether the system has taken everything that was sent."""
        return self._transport.get_write_buffer_size() == 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has arrived that was not taken, and no end."""
        return not self._arrived and not self._has_ended

    def post(self, data: bytes) -> int:
        """Sends what the system takes now, from any thread; returns how many bytes.

        What is left is for `send`. It is everything where the connection has failed or ended.
        """
        with self._open:
            if self._has_ended:
                return 0
            try:
                return os.write(self.raw_socket.fileno(), data)
            except OSError:
                return 0

    async def receive(self, most: int) -> bytes:
        """What has arrived, at least one byte.

        Raises:
            anyio.EndOfStream: The other side has ended the connection.
            anyio.BrokenResourceError: The connection has failed.
        """
        while not self._arrived:
            self._check()
            if self._has_ended:
                raise anyio.EndOfStream
            await self._wait()
        data = bytes(self._arrived[:most])
        del self._arrived[:most]
        if not self._transport.is_closing():
            self._transport.resume_reading()  # does nothing unless it was paused
        return data

    async def aclose(self) -> None:
        """Closes the connection at once."""
        self._transport.abort()

    def _check(self) -> None:
        if self._failure is not None:
            raise anyio.BrokenResourceError from self._failure

    async def _wait(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it; so are the others."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.raw_socket = transport.get_extra_info("socket")

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - as asyncio calls it
        """A small one: asyncio's own is 256 KiB, which are mapped and unmapped for each answer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Keeps what has arrived; stops reading where it is not taken."""
        self._arrived += memoryview(self._buffer)[:nbytes]
        if len(self._arrived) > _MOST:
            self._transport.pause_reading()
        self._tell()

    def eof_received(self) -> None:
        """Lets asyncio close the connection."""
        self._has_ended = True
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        """Keeps the reason."""
        with self._open:  # it is closed next
            self._has_ended, self._failure = True, exc
        self._tell()

    def pause_writing(self) -> None:
        """Holds `send` back."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Lets `send` go on."""
        self._is_full = False
        self._tell()
