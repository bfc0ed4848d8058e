"""uvicorn's HTTP/1.1 protocol on sockets of ours, in the daemon's own event loop.

uvicorn's `Server` is left out: its main loop ticks ten times a second to look at the clock and at
flags (uvicorn/server.py `main_loop`), takes over the signals, and leaves by `sys.exit`. What is
left of it is a protocol on listening sockets, limits, and a way to stop. A connection that
does not finish its request in time is closed: uvicorn itself has a timeout only between requests.
One too many is answered by 503 and closed as it comes, for it would take a descriptor that a scan
or a delivery needs; uvicorn itself waits for its request. Nobody's connections crowd out another
user's: each has a share.
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
    # its command line would bring multiprocessing, and watchfiles where that is installed: a
    # fiftieth of a sidecar's memory for what is never called here
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
"""Seconds that a client has to send a whole request."""

LARGEST_HEAD: Final = 16 << 10
"""Bytes of a request's line and header at the most; more is answered by 400."""

_AT_ONCE: Final = 64
"""Connections accepted in one turn of the event loop: a crowd must let others have theirs."""

_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

KEEP_ALIVE: Final = 30
"""Seconds between two requests on one connection."""

log = structlog.get_logger()
# what it has to say is about a client's mistakes, and would let a client fill the log
logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)


class Connection(H11Protocol):
    """One client's connection; handlers find it in the ASGI scope as `state["connection"]`."""

    def __init__(self, config: uvicorn.Config, server_state: _State) -> None:
        super().__init__(config, server_state, {"connection": self})
        self._room = server_state.room
        self.lost = False
        self.on_lost: Callable[[], None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self.transport.get_write_buffer_size()

    @property
    def is_broken(self) -> bool:
        """Whether the client has sent what is not HTTP, perhaps after a request that was."""
        return self.conn.their_state is h11.ERROR

    def abort(self) -> None:
        """Closes at once; what is unsent is dropped."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Starts the clock of the first request, if there is room for one more."""
        super().connection_made(transport)
        if self._room.take(self, transport.get_extra_info("socket")):
            self._await_request()
        else:
            transport.write(_FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Starts the clock with the first byte of a request, and stops it with the last."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._await_request()
        else:
            self._stop_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the response, if one is under way."""
        self.lost = True
        self._room.give_back(self)
        self._stop_clock()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def _await_request(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(REQUEST_TIMEOUT, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Room:
    """Who takes how much of the connections that there may be at a time."""

    def __init__(self, most: int, share: Share | None) -> None:
        self._most = most
        self._share = share
        self._owners: dict[Connection, Hashable] = {}
        self._taken: Counter[Hashable] = Counter()

    def take(self, connection: Connection, accepted: socket.socket) -> bool:
        """Whether there is room for a connection; if so, it is taken."""
        owner, most = (None, self._most) if self._share is None else self._share(accepted)
        if len(self._owners) >= self._most or self._taken[owner] >= most:
            return False
        self._owners[connection] = owner
        self._taken[owner] += 1
        return True

    def give_back(self, connection: Connection) -> None:
        """Ends what was taken, if it was."""
        if connection in self._owners:
            owner = self._owners.pop(connection)
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]


class _State(ServerState):
    """uvicorn's shared state, with the date told when asked for instead of by a timer."""

    def __init__(self, room: _Room) -> None:
        super().__init__()
        self.room = room
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
        """Uvicorn sets it to nothing when it makes the state."""


class Server:
    """Serves one application on one socket.

    Args:
        app: An ASGI application.
        most: Connections at a time; more of them are answered by 503 and closed.
        share: Whose a connection is, and how many at a time they may have; None for no shares.
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
        self._state = _State(_Room(most, share))
        self._listener: asyncio.Server | None = None
        self._running = 0
        self._idle = anyio.Event()

    async def start(self, listening: socket.socket) -> None:
        """Accepts connections on a listening socket, which stays its owner's to close."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self._config, self._state), sock=listening.dup(), backlog=_AT_ONCE
        )
        listening.listen(BACKLOG)  # asyncio takes one number for the queue and for each turn

    async def stop(self, grace: float) -> None:
        """Accepts no more, lets requests end, and then closes what is left.

        Args:
            grace: Seconds that requests have to end.
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
        """Runs the application; what it did not expect is logged by class and place."""
        self._running += 1
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - a bug in one answer must not stop the daemon
            connection: Connection = scope["state"]["connection"]
            if not connection.is_broken:  # else a client has spoilt its own answer
                log.error("api.failed", error=describe(error))
            connection.transport.close()
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
