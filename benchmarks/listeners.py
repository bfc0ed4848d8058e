"""The receivers: a webhook receiver, event streams, lines on a Unix socket.

Each notes the moment at which something has arrived whole. They are written on bare sockets, so
that what is measured is the sender.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from typing import Final

from benchmarks.processes import DEADLINE

_ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"


class Arrivals:
    """Moments of arrival, to be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._times: list[float] = []

    def note(self, count: int = 1) -> None:
        """Something arrived just now."""
        now = time.perf_counter()
        with self._changed:
            self._times += [now] * count
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
            if not self._changed.wait_for(lambda: len(self._times) >= count, DEADLINE):
                raise TimeoutError(f"{len(self._times)} of {count} arrived")
            return self._times[count - 1]


class Webhook(Arrivals):
    """Answers every POST on a port of its own by 204."""

    def __init__(self) -> None:
        super().__init__()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/events"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = b""
        with connection, contextlib.suppress(OSError):
            while chunk := connection.recv(1 << 16):
                buffer += chunk
                while (size := _request_size(buffer)) is not None and len(buffer) >= size:
                    self.note(_events(buffer[:size]))
                    connection.sendall(_ANSWER)
                    buffer = buffer[size:]


def _request_size(buffer: bytes) -> int | None:
    """Bytes of the request that the buffer begins with, once its header is whole."""
    head, end, _ = buffer.partition(b"\r\n\r\n")
    if not end:
        return None
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(head) + 4 + int(line[15:])
    return len(head) + 4


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
