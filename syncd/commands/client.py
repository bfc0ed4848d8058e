"""A client of the running daemon's API, over its Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self, TypeVar

import httpx2
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
_RETRIES: Final = 4
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
    """A connection to a daemon by its Unix socket; closed by `with`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._http = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=path, retries=_RETRIES),
            base_url="http://syncd",
            timeout=httpx2.Timeout(_ANSWER, connect=_CONNECT),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, type_: type[T]) -> T:
        """Sends a GET request, and decodes the answer as `type_`.

        Raises:
            UnreachableError: The daemon cannot be reached.
            DeniedError: It refused, or answered what this version cannot read.
        """
        with self._errors():
            answer = self._http.get(path)
        self._check(answer)
        try:
            return msgspec.json.decode(answer.content, type=type_)
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
        timeout = httpx2.Timeout(SILENCE, connect=_CONNECT)
        with (
            self._errors(),
            self._http.stream(
                "GET", path, params=parameters, headers=headers, timeout=timeout
            ) as answer,
        ):
            if answer.status_code != httpx2.codes.OK:
                answer.read()
                self._check(answer)
            yield _lines(answer.iter_bytes())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with socket.socket(socket.AF_UNIX) as attempt:
            # tried first, since httpx2's own error has no reason and leaves its socket open
            try:
                _connect(attempt, self._path)
            except OSError as error:
                raise unreachable(self._path, error) from None
        try:
            yield
        except httpx2.HTTPError as error:
            reason = "it closed the connection"
            if isinstance(error, httpx2.TimeoutException):
                reason = "no answer in time"
            raise UnreachableError(
                f"cannot reach the daemon at {self._path}: {reason}", "see its log"
            ) from None

    def _check(self, answer: httpx2.Response) -> None:
        if answer.status_code == httpx2.codes.OK:
            return
        try:
            reason = msgspec.json.decode(answer.content, type=dict[str, str])["error"]
        except (msgspec.MsgspecError, KeyError):
            reason = f"status {answer.status_code}"
        problem = f"the daemon at {self._path} refused the request: {reason}"
        if answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
            raise UnreachableError(problem)
        raise DeniedError(problem)


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

    httpx2's own also split at U+2028 and others, which JSON may hold.
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")
