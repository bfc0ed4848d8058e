"""Asks a running daemon over its Unix socket."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self, TypeVar

import httpx2
import msgspec

from syncd.core.errors import SyncdError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    T = TypeVar("T")

DEFAULT_SOCKET: Final = "/run/syncd/syncd.sock"

SILENCE: Final = 45.0
"""Seconds without a byte after which a stream is taken for dead: three heartbeats."""

_CONNECT: Final = 5.0
_ANSWER: Final = 30.0


class UnreachableError(TemporaryError):
    """The daemon cannot be asked: it does not run, or not there."""


class DeniedError(SyncdError):
    """The daemon does not answer this question to this user, or at all."""


def socket_path(given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The daemon's socket: as given, else `$SYNCD_SOCKET`, else `/run/syncd/syncd.sock`."""
    return given or environ.get("SYNCD_SOCKET") or DEFAULT_SOCKET


class Client:
    """A connection to a daemon; closed by `with`.

    Args:
        path: Of the Unix socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._http = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=path),
            base_url="http://syncd",
            timeout=httpx2.Timeout(_ANSWER, connect=_CONNECT),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, type_: type[T]) -> T:
        """Asks once.

        Args:
            path: Such as `/v1/status`.
            type_: What is answered.

        Raises:
            UnreachableError: The daemon cannot be asked.
            DeniedError: It does not answer, or in a way that this version does not understand.
        """
        with self._errors():
            answer = self._http.get(path)
        self._check(answer)
        try:
            return msgspec.json.decode(answer.content, type=type_)
        except msgspec.MsgspecError:
            raise DeniedError(
                f"cannot read the answer of {self._path}; use the syncd of the daemon's version"
            ) from None

    @contextmanager
    def stream(
        self, path: str, parameters: Mapping[str, str | list[str]], last_event_id: str | None
    ) -> Iterator[Iterator[str]]:
        """Opens an event stream; the lines of it, without their ends.

        Raises:
            UnreachableError: The daemon cannot be asked, or went away.
            DeniedError: It does not answer this.
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
            yield answer.iter_lines()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with socket.socket(socket.AF_UNIX) as attempt:
            # httpx2's own error has no reason in it, and leaves its socket open
            try:
                attempt.settimeout(_CONNECT)
                attempt.connect(self._path)
            except OSError as error:
                raise UnreachableError(
                    f"cannot ask the daemon at {self._path}: {error.strerror or error}; start it "
                    "with api.socket, or name its socket by --socket or $SYNCD_SOCKET"
                ) from None
        try:
            yield
        except httpx2.HTTPError as error:
            kind = (
                "no answer in time" if isinstance(error, httpx2.TimeoutException) else "it hung up"
            )
            raise UnreachableError(
                f"cannot ask the daemon at {self._path}: {kind}; see its log"
            ) from None

    def _check(self, answer: httpx2.Response) -> None:
        if answer.status_code == httpx2.codes.OK:
            return
        try:
            reason = msgspec.json.decode(answer.content, type=dict[str, str])["error"]
        except (msgspec.MsgspecError, KeyError):
            reason = f"it answered {answer.status_code}"
        message = f"cannot ask the daemon at {self._path}: {reason}"
        if answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
            raise UnreachableError(message)
        raise DeniedError(message)
