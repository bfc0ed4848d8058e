"""uvicorn's HTTP/1.1 protocol on the daemon's own sockets and event loop.

uvicorn's `Server` is not used: its main loop wakes ten times a second to check the clock and its
flags (uvicorn/server.py `main_loop`), takes over the signals, and ends with `sys.exit`. This module
has a protocol on listening sockets, limits, and a way to stop. A connection that does not finish
its request in time is closed: uvicorn itself has a timeout only between requests. A connection
above the limit is answered with 503 and closed at once, since it would take a descriptor that a
scan or a delivery needs; uvicorn itself waits for its request. Each user has a share of the
connections, so that no user can block another.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from email.utils import formatdate
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import anyio
import h11
import structlog

if "uvicorn" not in sys.modules:
    # its command line imports multiprocessing, and watchfiles if installed: 0.7 MiB of a sidecar's
    # memory for what is never called here
    _stub = ModuleType("uvicorn.main")
    vars(_stub).update(Server=None, main=None, run=None)
    sys.modules["uvicorn.main"] = _stub
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from syncd.api.sockets import BACKLOG
from syncd.telemetry.log import describe

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Hashable, MutableMapping

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]
    Share = Callable[[socket.socket], tuple[Hashable, int]]

REQUEST_TIMEOUT: Final = 5.0
"""Seconds in which a client must send a whole request."""

LARGEST_HEAD: Final = 16 << 10
"""Bytes of a request's line and header, at most; more is answered with 400."""

_AT_ONCE: Final = 64
"""Connections accepted in one turn of the event loop, so that other tasks get theirs."""

_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

KEEP_ALIVE: Final = 30
"""Seconds between two requests on one connection."""

log = structlog.get_logger()
# it logs clients' mistakes, by which a client could fill the log
logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)


class Connection(H11Protocol):
    """One client's connection; handlers find it in the ASGI scope as `state["connection"]`."""

    def __init__(self, config: uvicorn.Config, server_state: _State) -> None:
        super().__init__(config, server_state, {"connection": self})
        self._limit = server_state.limit
        self.lost = False
        self.on_lost: Callable[[], None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not accepted yet."""
        return self.transport.get_write_buffer_size()

    @property
    def is_broken(self) -> bool:
        """Whether the client has sent something that is not HTTP, perhaps after a valid request."""
        return self.conn.their_state is h11.ERROR

    def abort(self) -> None:
        """Closes at once; unsent bytes are dropped."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Starts the timeout of the first request, or refuses a connection above the limit."""
        super().connection_made(transport)
        if self._limit.take(self, transport.get_extra_info("socket")):
            self._await_request()
        else:
            transport.write(_FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Starts the timeout at the first byte of a request, and stops it at the last."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._await_request()
        else:
            self._stop_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notifies the response, if there is one."""
        self.lost = True
        self._limit.release(self)
        self._stop_timeout()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def _await_request(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(REQUEST_TIMEOUT, self.transport.abort)

    def _stop_timeout(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Limit:
    """The limits of simultaneous connections: in total, and for each owner."""

    def __init__(self, most: int, share: Share | None) -> None:
        self._most = most
        self._share = share
        self._owners: dict[Connection, Hashable] = {}
        self._taken: Counter[Hashable] = Counter()

    def take(self, connection: Connection, accepted: socket.socket) -> bool:
        """Counts a connection; returns False, without counting it, if that exceeds a limit."""
        owner, most = (None, self._most) if self._share is None else self._share(accepted)
        if len(self._owners) >= self._most or self._taken[owner] >= most:
            return False
        self._owners[connection] = owner
        self._taken[owner] += 1
        return True

    def release(self, connection: Connection) -> None:
        if connection in self._owners:
            owner = self._owners.pop(connection)
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]


class _State(ServerState):
    """uvicorn's shared state, with the date made on demand instead of by a timer."""

    def __init__(self, limit: _Limit) -> None:
        super().__init__()
        self.limit = limit
        self._date = (0, b"")

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """`Date` (RFC 9110 section 6.6.1)."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = (now, formatdate(now, usegmt=True).encode())
        return [(b"date", self._date[1])]

    @default_headers.setter
    def default_headers(self, _headers: list[tuple[bytes, bytes]]) -> None:
        """Ignores the empty list that uvicorn sets at the start."""


class Server:
    """Serves one application on one socket.

    Args:
        app: An ASGI application.
        most: Simultaneous connections; further ones are answered with 503 and closed.
        share: Returns the owner of a connection and the owner's limit; None for one limit only.
    """

    def __init__(self, app: App, most: int, share: Share | None = None) -> None:
        self._app = app
        self._config = uvicorn.Config(
            self._serve,
            loop="none",
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            workers=1,
            timeout_keep_alive=KEEP_ALIVE,
            h11_max_incomplete_event_size=LARGEST_HEAD,
        )
        self._config.load()
        self._state = _State(_Limit(most, share))
        self._listener: asyncio.Server | None = None
        self._running = 0
        self._idle = anyio.Event()

    async def start(self, listening: socket.socket) -> None:
        """Accepts connections on a listening socket, which the caller closes."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self._config, self._state), sock=listening.dup(), backlog=_AT_ONCE
        )
        listening.listen(BACKLOG)  # asyncio uses one number both for the queue and for each turn

    async def stop(self, grace: float) -> None:
        """Stops accepting, waits for requests to end, and then closes all connections.

        Args:
            grace: Seconds to wait.
        """
        if self._listener is not None:
            self._listener.close()
        connections: set[Any] = self._state.connections
        for connection in list(connections):
            connection.shutdown()
        self._idle = anyio.Event()
        if self._running:
            with anyio.move_on_after(grace):
                await self._idle.wait()
        for connection in list(connections):
            connection.abort()
        if self._running:
            with anyio.move_on_after(grace):
                await self._idle.wait()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._running += 1
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - a bug in one answer must not stop the daemon
            connection: Connection = scope["state"]["connection"]
            if not connection.is_broken:  # else the client broke its own connection
                log.error("api.failed", error=describe(error))
            connection.transport.close()
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
