"""The receivers: a webhook receiver, event streams, lines on a Unix socket.

Each notes the moment at which something has arrived whole. They are written on bare sockets, so
that what is measured is the sender.
"""

from __future__ import annotations

import contextlib
import re
import select
import selectors
import socket
import threading
import time
from typing import Final

from benchmarks.processes import DEADLINE

_LENGTH: Final = re.compile(rb"\ncontent-length: *([0-9]+)", re.IGNORECASE)
_ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"


class Arrivals:
    """Moments of arrival, to be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._times: list[float] = []
        self._wanted = 0

    def note(self, count: int = 1) -> None:
        """Something arrived just now."""
        now = time.perf_counter()
        with self._changed:
            self._times += [now] * count
            if len(self._times) >= self._wanted:  # else a waiting thread would run for nothing
                self._changed.notify_all()

    def clear(self) -> None:
        """Forgets what has arrived."""
        with self._changed:
            self._times.clear()

    def wait(self, count: int = 1) -> float:
        """The moment at which the n-th arrived (`time.perf_counter`).

        Raises:
            TimeoutError: It did not.
        """
        with self._changed:
            self._wanted = count
            if not self._changed.wait_for(lambda: len(self._times) >= count, DEADLINE):
                raise TimeoutError(f"{len(self._times)} of {count} arrived")
            return self._times[count - 1]


class Webhook(Arrivals):
    """Answers every POST on a port of its own by 204, all connections in one thread.

    A thread for each would have them take turns at the interpreter, and the sender wait for that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/events"
        self._closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hangs up, and takes no more connections."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(DEADLINE)

    def _serve(self) -> None:
        connections: dict[int, socket.socket] = {}
        listener, poll = self._listener.fileno(), select.epoll()
        poll.register(listener, select.EPOLLIN)
        while not self._closed:
            for number, _ in poll.poll():
                if number == listener:
                    with contextlib.suppress(OSError):
                        connection, _ = self._listener.accept()
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        connections[connection.fileno()] = connection
                        poll.register(connection, select.EPOLLIN)
                elif not self._answer(connections[number]):
                    # a child between fork and exec has it open, too: closing is not enough
                    poll.unregister(number)
                    connections.pop(number).close()
        for connection in connections.values():
            connection.close()
        poll.close()
        self._listener.close()

    def _answer(self, connection: socket.socket) -> bool:
        """Answers what has arrived; whether the connection goes on."""
        with contextlib.suppress(OSError):
            buffer = connection.recv(1 << 16)
            while buffer:
                while (size := _request_size(buffer)) is None or len(buffer) < size:
                    chunk = connection.recv(1 << 16)
                    if not chunk:
                        return False
                    buffer += chunk
                self.note(_events(buffer[:size]))
                connection.sendall(_ANSWER)
                buffer = buffer[size:]
                if not buffer:
                    return True
        return False


def _request_size(buffer: bytes) -> int | None:
    """Bytes of the request that the buffer begins with, once its header is whole."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(buffer, 0, end)
    return end + 4 + (int(length[1]) if length else 0)


def _events(request: bytes) -> int:
    return max(1, request.count(b'"specversion":'))


class Line(Arrivals):
    """Reads from a Unix socket and counts a mark: lines of a peer, events of a stream.

    Args:
        path: The socket.
        request: What to send first.
        mark: The bytes that are counted.
    """

    def __init__(self, path: str, request: bytes = b"", mark: bytes = b"\n") -> None:
        super().__init__()
        self._mark = mark
        self._socket = connect(path)
        if request:
            self._socket.sendall(request)
            _await_stream(self._socket)
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        """Hangs up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self) -> None:
        tail = b""
        with contextlib.suppress(OSError):
            while chunk := self._socket.recv(1 << 17):
                tail += chunk
                if count := tail.count(self._mark):
                    self.note(count)
                tail = tail[-(len(self._mark) - 1) :] if len(self._mark) > 1 else b""


EVENTS: Final = b"GET /v1/events HTTP/1.1\r\nHost: syncd\r\n\r\n"
MARK: Final = b"\ndata: "


def subscriber(path: str) -> Line:
    """A subscriber of a daemon, with its stream open."""
    return Line(path, EVENTS, MARK)


class Crowd:
    """Many subscribers of one daemon, read by one thread.

    Args:
        path: The daemon's socket.
        count: How many.
    """

    def __init__(self, path: str, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._tails: dict[socket.socket, bytes] = {}
        for _ in range(count):
            connection = connect(path)
            connection.sendall(EVENTS)
            self._tails[connection] = b""
        for connection in self._tails:
            _await_stream(connection)
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)

    def wait(self, each: int) -> float:
        """Reads until every subscriber has so many events; the moment (`time.perf_counter`).

        Raises:
            TimeoutError: They do not come.
        """
        left, deadline = each * len(self._tails), time.monotonic() + DEADLINE
        while left > 0:
            ready = self._selector.select(1)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} events did not arrive")
            for key, _ in ready:
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                text = self._tails[connection] + connection.recv(1 << 17)
                left -= text.count(MARK)
                self._tails[connection] = text[-(len(MARK) - 1) :]
        return time.perf_counter()

    def close(self) -> None:
        """Hangs up."""
        self._selector.close()
        for connection in self._tails:
            connection.close()


def connect(path: str) -> socket.socket:
    """A connection to a Unix socket, as soon as it is listened on."""
    deadline = time.monotonic() + DEADLINE
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return connection


def _await_stream(connection: socket.socket) -> None:
    """Waits for the first block of a stream (`retry:`), after which no event is missed."""
    connection.settimeout(DEADLINE)
    text = b""
    while b"retry:" not in text:
        chunk = connection.recv(1 << 12)
        if not chunk:
            raise ConnectionError(f"no event stream: {text[:200]!r}")
        text += chunk
    connection.settimeout(None)
