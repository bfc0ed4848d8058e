"""The transport below nats-py's client: nothing that the server said is lost when it hangs up.

A server that refuses or ends a login sends `-ERR '<reason>'` and closes. Where something that was
sent to it is still unread, the kernel turns that close into a reset, and then the reason competes
with an error (tcp(7), RFC 2525 section 2.17). It can lose in three ways, each closed here:

- a write fails first: asyncio then drops the socket with what it has received
  (asyncio/selector_events.py, `_fatal_error`). So what is left is read before the loss is reported;
- the reason and the error arrive together: `asyncio.StreamReader` raises the error and keeps what
  it has. So what was received is handed out first;
- the client gets the error from its writer, and never parses the reason. So the reason can be asked
  for (`last_words`).
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Final

from nats.aio.transport import TcpTransport

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from urllib.parse import ParseResult

_REASON: Final = re.compile(rb"^-ERR\s+'([^'\r\n]*)'", re.MULTILINE | re.IGNORECASE)
_CHUNK: Final = 64 << 10
_MOST: Final = 256
"""Chunks that are read of a lost connection: a server that sends for ever must not keep us."""


class LastWordsTransport(TcpTransport):
    """One connection to one server, over TCP or TLS."""

    _io_reader: _Reader | None

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        """Connects over TCP."""
        loop = asyncio.get_running_loop()
        reader = _Reader(limit=buffer_size, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        assert uri.hostname is not None
        assert uri.port is not None
        opening = loop.create_connection(lambda: protocol, uri.hostname, uri.port)
        transport, _ = await asyncio.wait_for(opening, connect_timeout)
        _read_rest_before_loss(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,
        connect_timeout: float,
    ) -> None:
        """Continues over TLS."""
        assert self._io_writer is not None
        loop, plain = asyncio.get_running_loop(), self._io_writer.transport
        reader = _Reader(limit=buffer_size, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        name = uri if isinstance(uri, str) else uri.hostname
        starting = loop.start_tls(plain, protocol, ssl_context, server_hostname=name)
        transport = await asyncio.wait_for(starting, connect_timeout)
        assert transport is not None
        _read_rest_before_loss(plain)
        self._io_reader = reader
        self._io_writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection is over TLS."""
        writer = self._io_writer
        return writer is not None and writer.get_extra_info("sslcontext") is not None

    async def drain(self) -> None:
        """Waits until there is room for more.

        Raises:
            OSError: The connection is lost; with its reason, where asyncio knows it.
        """
        try:
            await super().drain()  # type: ignore[no-untyped-call] # the library's
        except ConnectionResetError:
            # asyncio says no more than that where it learned the reason while it waited
            reason = None if self._io_reader is None else self._io_reader.loss
            if reason is None:
                raise
            raise reason from None

    def last_words(self) -> str | None:
        """The reason that the server gave and that was not read yet, or None."""
        return None if self._io_reader is None else self._io_reader.last_words()


class _Reader(asyncio.StreamReader):
    """Hands out what was received before it raises the error of the connection."""

    _buffer: bytearray
    _lost: Exception | None = None

    def set_exception(self, exc: Exception) -> None:
        if self._buffer:
            self._lost = exc
            self.feed_eof()
        else:
            super().set_exception(exc)

    async def read(self, n: int = -1) -> bytes:
        self._raise_when_empty()
        return await super().read(n)

    async def readline(self) -> bytes:
        self._raise_when_empty()
        return await super().readline()

    def at_eof(self) -> bool:
        return self._lost is None and super().at_eof()

    @property
    def loss(self) -> BaseException | None:
        """Why the connection was lost, if it was and asyncio knows why."""
        return self._lost or self.exception()

    def last_words(self) -> str | None:
        reasons = _REASON.findall(bytes(self._buffer))
        return reasons[-1].decode(errors="replace") if reasons else None

    def _raise_when_empty(self) -> None:
        if self._lost is not None and not self._buffer:
            raise self._lost


def _read_rest_before_loss(transport: asyncio.BaseTransport) -> None:
    """Makes a transport's protocol receive what the kernel still has before it loses it."""
    protocol: asyncio.BaseProtocol | None = transport.get_protocol()
    if protocol is None:  # it is lost already
        return
    lost = protocol.connection_lost

    def connection_lost(exc: Exception | None) -> None:
        if exc is not None:
            for part in _rest(transport.get_extra_info("socket").fileno()):
                _receive(protocol, part)
        lost(exc)

    protocol.connection_lost = connection_lost  # type: ignore[method-assign]


def _receive(protocol: asyncio.BaseProtocol, part: bytes) -> None:
    if isinstance(protocol, asyncio.Protocol):
        protocol.data_received(part)
        return
    assert isinstance(protocol, asyncio.BufferedProtocol)
    while part:
        buffer = memoryview(protocol.get_buffer(len(part)))
        size = min(len(buffer), len(part))
        buffer[:size] = part[:size]
        protocol.buffer_updated(size)
        part = part[size:]


def _rest(descriptor: int) -> Iterator[bytes]:
    """What a socket that does not block has received; its error was reported by the write."""
    for _ in range(_MOST):
        try:
            part = os.read(descriptor, _CHUNK)
        except OSError:
            return
        if not part:
            return
        yield part
