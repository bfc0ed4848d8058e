"""A client of the running daemon's API, over its Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import urlencode

import h11
import msgspec

from syncd.core.errors import SyncdError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    T = TypeVar("T")

DEFAULT_SOCKET: Final = "/run/syncd/syncd.sock"

SILENCE: Final = 45.0
"""Seconds without a byte after which a stream counts as broken: three heartbeats."""

_CONNECT: Final = 5.0
_ANSWER: Final = 30.0
_OK: Final = 200
_SUCCESS: Final = range(200, 300)
_UNAVAILABLE: Final = 503
_CHUNK: Final = 64 << 10
_PAUSE: Final = 0.01
_REMEDY: Final = "start it with api.socket set, or give its socket by --socket or $SYNCD_SOCKET"
_REMEDIES: Final = {
    errno.ECONNREFUSED: "start it",
    errno.EACCES: "run as root, or as a member of the socket's group (api.socket_group)",
}


class UnreachableError(TemporaryError):
    """The daemon cannot be reached: it does not run, or listens elsewhere."""


class DeniedError(SyncdError):
    """The daemon refused the request, or its answer cannot be read."""


def socket_path(given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The daemon's socket: as given, else `$SYNCD_SOCKET`, else `/run/syncd/syncd.sock`."""
    return given or environ.get("SYNCD_SOCKET") or DEFAULT_SOCKET


def unreachable(path: str, error: OSError) -> UnreachableError:
    """Why nothing can connect to a socket, and what to do."""
    return UnreachableError(
        f"cannot reach the daemon at {path}: {error.strerror or error}",
        _REMEDIES.get(error.errno or 0, _REMEDY),
    )


class Client:
    """Requests to a daemon by its Unix socket, each on a connection of its own.

    Its HTTP is h11's: a whole client costs 7 MiB, which the memory limit of a sidecar has to have
    room for when `syncd status` runs in it.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open between two requests."""

    def get(
        self, path: str, type_: type[T], parameters: Mapping[str, str | list[str]] | None = None
    ) -> T:
        """Sends a GET request, and decodes the answer as `type_`.

        Raises:
            UnreachableError: The daemon cannot be reached.
            DeniedError: It refused, or answered what this version cannot read.
        """
        return self._ask("GET", _target(path, parameters or {}), type_)

    def post(
        self,
        path: str,
        type_: type[T],
        parameters: Mapping[str, str] | None = None,
        *,
        limit: float = _ANSWER,
    ) -> T:
        """Sends a POST request without a body; as `get`.

        The answer may take so many seconds.
        """
        return self._ask("POST", _target(path, parameters or {}), type_, limit)

    def _ask(self, method: str, target: str, type_: type[T], limit: float = _ANSWER) -> T:
        headers = {} if method == "GET" else {"content-length": "0"}
        with self._request(method, target, headers, limit) as (status, chunks):
            content = b"".join(chunks)
        self._check(status, content)
        try:
            return msgspec.json.decode(content, type=type_)
        except msgspec.MsgspecError:
            raise DeniedError(
                f"cannot read the answer of the daemon at {self._path}",
                "use the version of syncd that the daemon has",
            ) from None

    @contextmanager
    def stream(
        self, path: str, parameters: Mapping[str, str | list[str]], last_event_id: str | None
    ) -> Iterator[Iterator[str]]:
        """Opens an event stream; yields its lines, without their ends.

        Raises:
            UnreachableError: The daemon cannot be reached, or closed the connection.
            DeniedError: It refused.
        """
        headers = {"accept": "text/event-stream"}
        if last_event_id is not None:
            headers["last-event-id"] = last_event_id
        target = _target(path, parameters)
        with self._request("GET", target, headers, SILENCE) as (status, chunks):
            if status != _OK:
                self._check(status, b"".join(chunks))
            yield _lines(chunks)

    @contextmanager
    def _request(
        self, method: str, target: str, headers: Mapping[str, str], timeout: float
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Sends a request without a body; yields the status and the body as it arrives."""
        http = h11.Connection(h11.CLIENT)
        fields = {"host": "syncd", "connection": "close", **headers}
        request = http.send(h11.Request(method=method, target=target, headers=list(fields.items())))
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                _connect(connection, self._path)
            except OSError as error:
                raise unreachable(self._path, error) from None
            connection.settimeout(timeout)
            with suppress(BrokenPipeError):  # it may have refused already, and said why
                connection.sendall((request or b"") + (http.send(h11.EndOfMessage()) or b""))
            event = self._next(http, connection)
            while not isinstance(event, h11.Response):
                event = self._next(http, connection)
            yield event.status_code, self._body(http, connection)

    def _body(self, http: h11.Connection, connection: socket.socket) -> Iterator[bytes]:
        while isinstance(event := self._next(http, connection), h11.Data):
            yield bytes(event.data)

    def _next(self, http: h11.Connection, connection: socket.socket) -> h11.Event:
        """The next event; at the end of the answer `EndOfMessage`."""
        reason = "it closed the connection"
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(connection.recv(_CHUNK))
        except TimeoutError:
            reason = "no answer in time"
        except (OSError, h11.RemoteProtocolError):
            pass
        else:
            if isinstance(event, h11.Event) and not isinstance(event, h11.ConnectionClosed):
                return event
        raise UnreachableError(
            f"cannot reach the daemon at {self._path}: {reason}", "see its log"
        ) from None

    def _check(self, status: int, content: bytes) -> None:
        if status in _SUCCESS:
            return
        try:
            reason = msgspec.json.decode(content, type=dict[str, str])["error"]
        except (msgspec.MsgspecError, KeyError):
            reason = f"status {status}"
        problem = f"the daemon at {self._path} refused the request: {reason}"
        if status == _UNAVAILABLE:
            raise UnreachableError(problem)
        raise DeniedError(problem)


def _target(path: str, parameters: Mapping[str, str | list[str]]) -> str:
    return f"{path}?{urlencode(parameters, doseq=True)}" if parameters else path


def _connect(attempt: socket.socket, path: str) -> None:
    """Connects; waits while the socket's queue is full, for which `connect` itself does not wait.

    Raises:
        OSError: Nothing listens, or the queue did not get empty in time.
    """
    attempt.setblocking(False)
    deadline = time.monotonic() + _CONNECT
    while True:
        try:
            attempt.connect(path)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a stream, which only LF and CRLF end here.

    `str.splitlines` also splits at U+2028 and others, which JSON may hold.
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")
