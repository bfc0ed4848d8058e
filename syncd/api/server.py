"""uvicorn's HTTP/1.1 protocol on the daemon's own sockets and event loop.

uvicorn's `Server` is not used: its main loop wakes ten times a second to check the clock and its
flags (uvicorn/server.py `main_loop`), takes over the signals, and ends with `sys.exit`. This module
has a protocol on listening sockets, timeouts, and a way to stop; the limits are in
`syncd.api.admission`. A connection is closed that does not finish its request in time, or does not
take in time what was written to it: uvicorn itself has a timeout only between requests.

A write is passed to the kernel, and the next one waits until the kernel has taken all of it
(`set_write_buffer_limits`), so that a client that does not read costs one chunk of memory here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from syncd.api.admission import FULL, Gate
from syncd.api.sockets import BACKLOG
from syncd.telemetry.log import describe

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, MutableMapping

    from syncd.api.admission import Admission

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_TIMEOUT: Final = 5.0
"""Seconds in which a client must send a whole request."""

LARGEST_HEAD: Final = 16 << 10
"""Bytes of a request's line and header, at most; more is answered with 400."""

SEND_TIMEOUT: Final = 15.0
"""Seconds in which a client must take one write, unless the handler sets another time."""

_AT_ONCE: Final = 8
"""Connections accepted in one turn of the event loop, so that other tasks get theirs.

A connection is read three turns after it was accepted. It must not be closed for newer ones before
that, so this is far below the limit of any server.
"""

KEEP_ALIVE: Final = 30
"""Seconds between two requests on one connection."""

log = structlog.get_logger()
# it logs clients' mistakes, by which a client could fill the log
logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)


class Connection(H11Protocol):
    """One client's connection; handlers find it in the ASGI scope as `state["connection"]`.

    Attributes:
        on_lost: Called when the peer is gone.
        send_timeout: Seconds in which the client must take one write.
        since: When it connected or was last answered, on the event loop's clock.
    """

    def __init__(self, config: uvicorn.Config, server_state: _State) -> None:
        super().__init__(config, server_state, {"connection": self})
        self._admission = server_state.admission
        self.on_lost: Callable[[], None] | None = None
        self.send_timeout = SEND_TIMEOUT
        self.since = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        self._send_deadline: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> bool:
        """Whether the peer is gone, or the connection is being closed."""
        return self.transport.is_closing()

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not accepted yet."""
        return self.transport.get_write_buffer_size()

    @property
    def is_broken(self) -> bool:
        """Whether the client has sent something that is not HTTP, perhaps after a valid request."""
        return self.conn.their_state is h11.ERROR

    @property
    def idle(self) -> bool:
        """Whether no request of it is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def trust(self) -> None:
        """Lets writes wait in a buffer, as asyncio does it: faster, where memory is no concern."""
        self.transport.set_write_buffer_limits()

    def abort(self) -> None:
        """Closes at once; unsent bytes are dropped."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Starts the timeout of the first request, or refuses a connection above the limit."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        if self._admission.take(self, transport.get_extra_info("socket")):
            self._await_request()
        else:
            transport.write(FULL)
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
        self._admission.release(self)
        self._stop_timeout()
        self._stop_send_timeout()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def on_response_complete(self) -> None:
        """Counts the connection as idle from now on."""
        self.since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Starts the timeout of a write that the kernel has not taken."""
        super().pause_writing()
        if self._send_deadline is None:
            self._send_deadline = self.loop.call_later(self.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops that timeout: the client has taken everything."""
        super().resume_writing()
        self._stop_send_timeout()

    def _stop_send_timeout(self) -> None:
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    def _await_request(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(REQUEST_TIMEOUT, self.transport.abort)

    def _stop_timeout(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _State(ServerState):
    """uvicorn's shared state, with the date made on demand instead of by a timer."""

    def __init__(self, admission: Admission) -> None:
        super().__init__()
        self.admission = admission
        self._date = (0, b"")

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """`Date` (RFC 9110 section 6.6.1)."""
        now = int(time.time())
        if now != self._date[0]:
            # no locale is set in this process, so the names are the English ones that HTTP has
            text = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
            self._date = (now, text.encode())
        return [(b"date", self._date[1])]

    @default_headers.setter
    def default_headers(self, _headers: list[tuple[bytes, bytes]]) -> None:
        """Ignores the empty list that uvicorn sets at the start."""


class Server:
    """Serves one application on one socket.

    Args:
        app: An ASGI application.
        admission: Which connections it keeps.
    """

    def __init__(self, app: App, admission: Admission) -> None:
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
        self._state = _State(admission)
        self._listener: asyncio.Server | None = None
        self._running = 0
        self._idle = anyio.Event()

    async def start(self, listening: socket.socket) -> None:
        """Accepts connections on a listening socket, which the caller closes."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self._config, self._state),
            sock=Gate(listening, self._state.admission),
            backlog=_AT_ONCE,
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
