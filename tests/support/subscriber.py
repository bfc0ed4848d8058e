"""Callers of the API on a Unix socket: requests, subscriptions, swarms of subscribers."""

from __future__ import annotations

import http.client
import json
import selectors
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from support.waiting import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("syncd", timeout=DEADLINE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(self._path)


def ask(path: str, target: str, method: str = "GET") -> tuple[int, Any]:
    """One request; the status and the decoded answer."""
    connection = UnixConnection(path)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        body = answer.read()
        plain = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(body) if plain else body.decode()
    finally:
        connection.close()


@dataclass(frozen=True)
class Received:
    """One event of a stream."""

    id: str
    type: str
    event: dict[str, Any]

    @property
    def sequence(self) -> int:
        return int(self.id.rpartition("-")[2])


def parse(lines: Iterator[str]) -> Iterator[Received]:
    """The events in a stream's lines, as WHATWG HTML section 9.2.6 reads them."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
        else:
            if "data" in fields:
                yield Received(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


class Subscription:
    """An open event stream; `with` closes it."""

    def __init__(
        self, path: str, query: str = "", last_event_id: str | None = None, *, ready: bool = True
    ) -> None:
        self._connection = UnixConnection(path)
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        self._connection.request("GET", f"/v1/events{query}", headers=headers)
        self.answer = self._connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        self.comments: list[str] = []
        self.position: str | None = None
        lines = self._lines()
        self._events = parse(lines)
        while ready and next(lines):
            pass  # the first block says that the stream is open, and from where

    def _lines(self) -> Iterator[str]:
        for line in self.answer:
            text = line.decode().removesuffix("\n")
            if text.startswith(":"):
                self.comments.append(text)
            if text.startswith("id: "):
                self.position = text.removeprefix("id: ")
            yield text

    def take(self, count: int) -> list[Received]:
        """The next events; fails after `DEADLINE` seconds of silence."""
        return [next(self._events) for _ in range(count)]

    def rest(self) -> list[Received]:
        """Everything until the stream ends."""
        return list(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self._connection.close()


class Swarm:
    """Many subscribers in one loop; each notes the sequences it gets."""

    def __init__(self, path: str, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self.sequences: list[list[int]] = [[] for _ in range(count)]
        self.bytes = 0
        self._rest = [b""] * count
        for number in range(count):
            one = socket.socket(socket.AF_UNIX)
            one.connect(path)
            one.sendall(b"GET /v1/events HTTP/1.1\r\nHost: syncd\r\n\r\n")
            one.setblocking(False)
            self._selector.register(one, selectors.EVENT_READ, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr] # they are sockets
        self._selector.close()

    def read(self, until: Callable[[], bool], within: float) -> float:
        """Reads until something is so; how long that took, seconds."""
        started = time.monotonic()
        while not until():
            took = time.monotonic() - started
            assert took < within, f"{min(map(len, self.sequences))} events at the slowest"
            for key, _ in self._selector.select(0.1):
                data = key.fileobj.recv(1 << 18)  # type: ignore[union-attr] # they are sockets
                assert data, f"subscriber {key.data} was disconnected"
                self._take(key.data, data)
        return time.monotonic() - started

    def _take(self, number: int, data: bytes) -> None:
        self.bytes += len(data)
        *lines, self._rest[number] = (self._rest[number] + data).split(b"\n")
        self.sequences[number] += [
            int(line.rpartition(b"-")[2]) for line in lines if line.startswith(b"id: ")
        ]


def resident(pid: int) -> float:
    """Resident memory of a process, MiB."""
    with open(f"/proc/{pid}/status") as file:
        fields: Mapping[str, str] = dict(line.split(":", 1) for line in file if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024
