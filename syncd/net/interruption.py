"""Requests that nothing holds for ever: bounds of time and length, and an end when syncd stops.

Time limits of an HTTP client are per operation of a socket, and a blocked read cannot be cancelled.
So a request is made in a thread that its caller leaves alone after `REQUEST_LIMIT`, or when syncd
stops. The thread ends when the socket's own limits or the next part of the body allow it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.reasons import CHECK_SERVER
from syncd.system import threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

T = TypeVar("T")

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 15.0
LONGEST_ANSWER: Final = 32 << 20
"""Bytes, unpacked; Vault takes no larger request itself (`max_request_size`)."""
REQUEST_LIMIT = 30.0
"""Seconds that one request may take from connecting to the last byte."""
MOST_ABANDONED: Final = 16
"""Requests of one provider that may be left alone and still run; each holds a thread."""


class Bounds:
    """The bounds of one answer, checked with each part of its body."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + REQUEST_LIMIT
        self._length = 0

    def take(self, part: bytes) -> None:
        """Counts a part.

        Raises:
            TooLongError: The answer is longer than `LONGEST_ANSWER`.
            TooLateError: The request takes longer than `REQUEST_LIMIT`.
        """
        self._length += len(part)
        if self._length > LONGEST_ANSWER:
            raise TooLongError
        if time.monotonic() > self._deadline:
            raise TooLateError


class TooLongError(Exception):
    """An answer is longer than `LONGEST_ANSWER`."""


class TooLateError(Exception):
    """A body takes longer than `REQUEST_LIMIT`."""


class Interruption:
    """Bounds the requests of one provider, and ends the waiting for them. For any thread."""

    def __init__(self) -> None:
        self._interrupted = threading.Event()
        self._lock = threading.Lock()
        self._waiting: set[threading.Event] = set()
        self._abandoned: list[Future[Any]] = []

    def interrupt(self) -> None:
        """Ends the requests and pauses in progress, and fails others until `resume`."""
        self._interrupted.set()
        with self._lock:
            for waiting in self._waiting:
                waiting.set()

    def resume(self) -> None:
        """Allows requests again."""
        self._interrupted.clear()

    def pause(self, seconds: float) -> bool:
        """Waits; returns whether it was interrupted."""
        return self._interrupted.wait(seconds)

    def call(self, request: Callable[[], T], *, what: str, server: str, check: str) -> T:
        """Makes a request in another thread, and waits for its end, at most `REQUEST_LIMIT`.

        A request that does not end goes on alone and its result is dropped, so it must change
        nothing here.

        Args:
            request: Makes the request and reads the whole answer.
            what: Its purpose, for messages: `read client-secret`.
            server: The server's address.
            check: The remedy for an answer that is too long.

        Returns:
            What `request` returned; raises what it raised.

        Raises:
            TemporaryError: It was interrupted, took longer than `REQUEST_LIMIT`, or too many
                earlier requests have not ended yet.
            RefusedError: The answer is longer than `LONGEST_ANSWER`.
        """
        ended = threading.Event()
        with self._lock:
            self._abandoned = [future for future in self._abandoned if not future.done()]
            if len(self._abandoned) >= MOST_ABANDONED:
                raise unavailable(what, server, "does not end earlier requests")
            self._waiting.add(ended)
        try:
            if self._interrupted.is_set():
                raise interrupted(what, server)
            future = threads.start(request)
            future.add_done_callback(lambda _future: ended.set())
            ended.wait(REQUEST_LIMIT)
        finally:
            with self._lock:
                self._waiting.discard(ended)
        if not future.done():
            with self._lock:
                self._abandoned.append(future)
            if self._interrupted.is_set():
                raise interrupted(what, server)
            raise _too_late(what, server)
        try:
            return future.result()
        except TooLateError:
            raise _too_late(what, server) from None
        except TooLongError:
            problem = f"{server} answers with more than {LONGEST_ANSWER >> 20} MiB"
            raise RefusedError(f"cannot {what}: {problem}", check) from None


def unavailable(what: str, server: str, problem: str) -> TemporaryError:
    """The error for a server that answers without doing its part, or not in time.

    Args:
        what: What the request was for, as it shall stand in a message: `read client-secret`.
        server: The server's address.
        problem: What the server does, such as `does not finish`.
    """
    return TemporaryError(f"cannot {what}: the server at {server} {problem}", CHECK_SERVER)


def interrupted(what: str, server: str) -> TemporaryError:
    """The error for a request that syncd itself ended; arguments as for `unavailable`."""
    problem = f"cannot {what}: no answer before syncd stopped waiting ({server})"
    return TemporaryError(problem, CHECK_SERVER)


def _too_late(what: str, server: str) -> TemporaryError:
    return unavailable(what, server, f"did not finish within {REQUEST_LIMIT:.0f} s")
