"""HTTP to a vault without a proxy, over the standard library's http.client.

An exchange takes a quarter of the time that it takes with requests, and a pass makes one for each
secret. What is missing is what vaults do not use: cookies, redirects, retries, compression.
"""

from __future__ import annotations

import contextlib
import select
import time
import weakref
from email.message import Message
from http.client import HTTPConnection, HTTPSConnection, IncompleteRead
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from syncd import __version__
from syncd.net.interruption import Bounds

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from http.client import HTTPResponse

KEEP_ALIVE: Final = 60.0
"""Seconds for which an idle connection is used again."""
_CHUNK: Final = 64 << 10
_SUCCESS: Final = range(200, 400)


class Response(msgspec.Struct, frozen=True):
    """An answer, with the names of requests, as hvac's adapter expects them.

    Attributes:
        status_code: HTTP status.
        headers: Case does not matter.
        content: The whole body, which can be a secret.
    """

    status_code: int
    headers: Message
    content: bytes

    def __repr__(self) -> str:
        return f"Response({self.status_code})"

    @property
    def ok(self) -> bool:
        """Whether it is no error."""
        return self.status_code in _SUCCESS


class DirectSession:
    """Requests to one server, from any number of threads, over connections that are kept alive.

    Args:
        address: URL of the server.
        context: Its TLS; None without.
        server_name: The name expected in its certificate; None for the address's host.
        keep: How many idle connections are kept.
    """

    verify = False  # for hvac: the context has all of it
    cert = None
    proxies = None

    def __init__(
        self,
        address: str,
        context: ssl.SSLContext | None,
        *,
        server_name: str | None = None,
        keep: int,
    ) -> None:
        url = urlsplit(address)
        self._host, self._port = url.hostname or "", url.port
        self._context = context
        self._server_name = server_name or self._host
        self._keep = keep
        self._idle: list[_Link] = []
        self._closed = False
        weakref.finalize(self, _drop, self._idle, 0)  # as urllib3's pools

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        data: bytes | None = None,
        timeout: tuple[float, float],
        **_unused: object,
    ) -> Response:
        """Sends a request and reads the whole answer, of any status; as `requests.Session.request`.

        Args:
            method: HTTP verb in capitals.
            url: The whole URL, quoted.
            headers: Besides those that HTTP and syncd add.
            data: The body.
            timeout: Seconds until a new connection is accepted, and for each read and write on it.

        Raises:
            OSError, http.client.HTTPException: The connection failed, or this is no HTTP.
            TooLongError, TooLateError: See `syncd.net.interruption.Bounds`.
        """
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        bounds = Bounds()
        link = self._idle_link() or self._connect(timeout)
        try:
            with link.exchange(method, target, {**_HEADERS, **headers}, data) as response:
                content = _read(response, bounds)
        except BaseException:  # the rest of its answer would be taken for the next one
            link.close()
            raise
        self._give_back(link)
        return Response(response.status, response.headers, content)

    def close(self) -> None:
        """Closes idle connections now, and the others when their request ends."""
        self._closed = True
        _drop(self._idle, 0)

    def _idle_link(self) -> _Link | None:
        """The connection that was used last, if it can be used again."""
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return None
            if link.is_usable:
                return link
            link.close()

    def _connect(self, timeout: tuple[float, float]) -> _Link:
        if self._context is None:
            return _Link(_Plain(self._host, self._port, timeout))
        return _Link(_Secure(self._host, self._port, timeout, self._context, self._server_name))

    def _give_back(self, link: _Link) -> None:
        link.idle_since = time.monotonic()
        self._idle.append(link)
        _drop(self._idle, 0 if self._closed else self._keep)


def _drop(idle: list[_Link], keep: int) -> None:
    while len(idle) > keep:
        with contextlib.suppress(IndexError):  # another thread has taken it
            idle.pop(0).close()


class _Plain(HTTPConnection):
    """A connection with a limit of time for being accepted, and another one afterwards."""

    def __init__(self, host: str, port: int | None, timeout: tuple[float, float]) -> None:
        super().__init__(host, port, timeout=timeout[0])
        self._afterwards = timeout[1]

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._afterwards)


class _Secure(HTTPSConnection):
    """The same over TLS, to a server whose certificate may be for another name."""

    def __init__(
        self,
        host: str,
        port: int | None,
        timeout: tuple[float, float],
        context: ssl.SSLContext,
        server_name: str,
    ) -> None:
        super().__init__(host, port, timeout=timeout[0], context=context)
        self._afterwards = timeout[1]
        self._tls = context
        self._server_name = server_name

    def connect(self) -> None:
        HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._server_name)
        self.sock.settimeout(self._afterwards)


class _Link:
    """One connection."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self.idle_since = 0.0
        self.close = connection.close

    @property
    def is_usable(self) -> bool:
        """Whether it can carry another request: it is not old, and nothing came unasked, no end."""
        sock = self._connection.sock
        if sock is None or time.monotonic() - self.idle_since > KEEP_ALIVE:
            return False
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return not poll.poll(0)

    def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> HTTPResponse:
        """Sends a request; returns when the head of the answer is here."""
        # a server may answer before it has read everything, and close
        with contextlib.suppress(BrokenPipeError):
            self._connection.request(method, target, body, headers)
        return self._connection.getresponse()


def _read(response: HTTPResponse, bounds: Bounds) -> bytes:
    parts: list[bytes] = []
    while part := response.read1(_CHUNK):
        bounds.take(part)
        parts.append(part)
    if response.length:  # an end before it is no error of `read1`
        raise IncompleteRead(b"", response.length)
    response.read()  # `read1` leaves a response open whose length it has read
    return b"".join(parts)


_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": f"syncd/{__version__}"}
