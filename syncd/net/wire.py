"""A TCP connection without TLS, on asyncio's transport.

anyio's stream for one costs a fifth of an event: it takes two more steps of the event loop for a
request and its answer, and registers the socket anew for each answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.abc import AsyncResource

if TYPE_CHECKING:
    from anyio.abc import SocketStream

_NEXT_ADDRESS: Final = 0.25
"""Seconds after which the next address of a host is tried as well (RFC 8305)."""

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


class Wire(asyncio.Protocol, AsyncResource):
    """The connection, for one task at a time; its methods are those of anyio's streams.

    Attributes:
        raw_socket: The socket.
    """

    raw_socket: Any

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._arrived = bytearray()
        self._has_ended = False
        self._failure: Exception | None = None
        self._news: asyncio.Future[None] | None = None
        self._is_full = False

    async def send(self, data: bytes) -> None:
        """Sends; returns when the system has taken most of it.

        Raises:
            anyio.BrokenResourceError: The connection has failed.
        """
        self._transport.write(data)
        while self._is_full and self._failure is None and not self._has_ended:
            await self._wait()
        self._check()

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

    def data_received(self, data: bytes) -> None:
        """Keeps it; stops reading where it is not taken."""
        self._arrived += data
        if len(self._arrived) > _MOST:
            self._transport.pause_reading()
        self._tell()

    def eof_received(self) -> None:
        """Lets asyncio close the connection."""
        self._has_ended = True
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        """Keeps the reason."""
        self._has_ended, self._failure = True, exc
        self._tell()

    def pause_writing(self) -> None:
        """Holds `send` back."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Lets `send` go on."""
        self._is_full = False
        self._tell()
