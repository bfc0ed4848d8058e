"""HTTP to consumers: credentials that rotate, answers bounded.

Connections are kept alive (`syncd.net.pool`), and closed when the certificates change. No foreign
exception leaves this module: see `syncd.net.reasons`.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio
from h11 import ProtocolError

from syncd.core.errors import TemporaryError
from syncd.net.pool import ConnectTimeoutError, Pool
from syncd.net.reasons import CHECK_SERVER, parse_retry_after, reason_of
from syncd.system.files import size_text
from syncd.system.threads import Turn

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from syncd.net.credentials import Credentials, Keyring
    from syncd.net.http1 import Request
    from syncd.net.pool import Reserved, Response
    from syncd.net.tls import RotatingContext
    from syncd.net.url import Url

CONNECT_TIMEOUT: Final = 5.0
"""Seconds within which a connection must be accepted; less if the timeout is less."""

_FAILURES: Final = (ProtocolError, OSError, anyio.BrokenResourceError, anyio.EndOfStream)
_TRY_AGAIN: Final = frozenset((408, 425, 429))
_OF_SERVER: Final = _TRY_AGAIN | {502, 503, 504}
_ASKS_TO_WAIT: Final = frozenset((429, 503))
_DRAIN_TIME: Final = 1.0
_DRAIN_SIZE: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Answer:
    """A response.

    Attributes:
        status: HTTP status.
        retry_after: Seconds that the server asked to wait, or None.
        body: Empty unless asked for.
    """

    status: int
    retry_after: float | None = None
    body: bytes = field(default=b"", repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the status is a 2xx (RFC 9110, section 15.3)."""
        return 200 <= self.status < 300  # noqa: PLR2004

    @property
    def is_temporary(self) -> bool:
        """Whether the server may accept the same request later: 408, 425, 429 or a 5xx."""
        return self.status in _TRY_AGAIN or self.status >= 500  # noqa: PLR2004

    @property
    def is_about_server(self) -> bool:
        """Whether a failure says nothing of what was sent: too busy, a gateway without a server."""
        return self.status in _OF_SERVER or (self.is_temporary and self.retry_after is not None)

    @property
    def wait(self) -> float | None:
        """Seconds that the server asked to wait: 0 if it did not say how long, None if not asked.

        429 and 503 ask to wait, with `Retry-After` or without (RFC 6585, section 4; RFC 9110,
        section 15.6.4).
        """
        asked = 0.0 if self.status in _ASKS_TO_WAIT else None
        return asked if self.retry_after is None else self.retry_after


class Connection:
    """A client of one server, or of several that share credentials.

    Args:
        keyring: The secrets.
        tls: The TLS configuration; None for plain connections, which load no certificate.
        timeout: Seconds that an exchange may take, from reading the credentials to the answer.
        url_option: The option that holds the URL, for messages.
        socket: Path of a Unix socket to connect to instead of the URL's host.
        parallel: How many connections are kept alive.
        check: What to do where the server cannot be reached, and why is not known.
    """

    def __init__(
        self,
        keyring: Keyring,
        tls: RotatingContext | None = None,
        *,
        timeout: float,
        url_option: str = "url",
        socket: str | None = None,
        parallel: int = 1,
        check: str = CHECK_SERVER,
    ) -> None:
        self._keyring = keyring
        self._tls = tls
        self._timeout = timeout
        self._connect_timeout = min(CONNECT_TIMEOUT, timeout)
        self._url_option = url_option
        self._socket = socket
        self._parallel = parallel
        self._check = check
        self._reading: Turn[tuple[Credentials, ssl.SSLContext | None]] = Turn()
        self._pool: Pool | None = None
        self._context: ssl.SSLContext | None = None

    async def exchange(
        self,
        failed: str,
        make: Callable[[Credentials], Request],
        *,
        reread: bool = False,
        body_limit: int = 0,
    ) -> Answer:
        """Makes one request.

        Args:
            failed: How an error's message begins, such as `cannot deliver to ADDRESS`.
            make: The request, from the credentials as they are now.
            reread: Read secrets again in any case, because they were not accepted.
            body_limit: Bytes that the answer may have; with 0 it is dropped.

        Raises:
            TemporaryError: There was no answer, or a credential file is missing.
            RefusedError: A credential file is malformed.
        """

        async def request() -> Response:
            credentials, context = await self._read_files(again=reread)
            pool = await self._pool_with(context)
            return await pool.request(make(credentials))

        return await self._complete(failed, request, body_limit)

    def reserve(self, url: Url) -> Reserved | None:
        """A connection for one request that another thread sends without credentials.

        None where a request needs some, and where no connection is idle that takes it as it is.
        """
        if self._keyring.secret_files or self._pool is None:
            return None
        return self._pool.reserve(url)

    async def answer(self, failed: str, reserved: Reserved) -> Answer:
        """The answer to a request that was sent on such a connection; raises as `exchange`."""
        return await self._complete(failed, reserved.answer)

    async def _complete(
        self, failed: str, request: Callable[[], Awaitable[Response]], body_limit: int = 0
    ) -> Answer:
        try:
            with anyio.move_on_after(self._timeout) as scope:
                response = await request()
                body = await _read(response, body_limit) if body_limit else b""
            if scope.cancelled_caught:
                raise TimeoutError  # noqa: TRY301 - as the system's, and cheaper than fail_after
        except TimeoutError:
            problem, remedy = f"no answer within {self._timeout:g} s", CHECK_SERVER
            if self._reading.is_taken:
                problem = "the file system of its credentials or certificates does not answer"
                remedy = "check the mount or the disk that they lie on"
        except ConnectTimeoutError:
            problem, remedy = f"no connection within {self._connect_timeout:g} s", CHECK_SERVER
        except _TooLargeError:
            problem = f"the answer is larger than {size_text(body_limit)}"
            remedy = f"check that {self._url_option} is the right address"
        except _FAILURES as error:
            reason = reason_of(error, address=self._url_option)
            problem, remedy = reason.problem, reason.remedy
        else:
            if not body_limit:
                await _discard(response)
            retry_after = parse_retry_after(response.retry_after, time.time())
            return Answer(response.status, retry_after, body)
        # outside of the handlers, so that it does not carry the foreign exception as its context
        raise TemporaryError(
            f"{failed}: {problem}", self._check if remedy == CHECK_SERVER else remedy
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    async def _read_files(self, *, again: bool) -> tuple[Credentials, ssl.SSLContext | None]:
        """Secrets and certificates, in one trip to a thread, or none if there is no file."""

        def read() -> tuple[Credentials, ssl.SSLContext | None]:
            return self._keyring.read(again=again), self._tls.current() if self._tls else None

        if not self._keyring.secret_files and (self._tls is None or self._tls.is_fixed):
            return read()
        return await self._reading.run(read, join=not again)

    async def _pool_with(self, context: ssl.SSLContext | None) -> Pool:
        """The connections; new ones when certificates changed, since they keep the old."""
        if self._pool is not None and context is not self._context:
            await self.aclose()
        if self._pool is None:
            self._context = context
            self._pool = Pool(
                context,
                socket=self._socket,
                keep=self._parallel,
                connect_timeout=self._connect_timeout,
            )
        return self._pool


class _TooLargeError(Exception):
    """An answer is larger than its limit."""


async def _read(response: Response, limit: int) -> bytes:
    body = bytearray()
    try:
        async for chunk in response.body():
            body += chunk
            if len(body) > limit:
                raise _TooLargeError
    finally:
        await response.aclose()
    return bytes(body)


async def _discard(response: Response) -> None:
    """Reads the rest of an answer, so that its connection can be used again."""
    try:
        with contextlib.suppress(*_FAILURES):
            if not response.drop_arrived():
                await _read_rest(response)
    finally:
        await response.aclose()


async def _read_rest(response: Response) -> None:
    size = 0
    with anyio.move_on_after(_DRAIN_TIME):
        async for chunk in response.body():
            size += len(chunk)
            if size > _DRAIN_SIZE:
                break
