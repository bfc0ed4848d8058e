"""HTTP to vaults over requests: TLS as configured, and sockets that can be shut down from outside.

Traps of requests that this module avoids (requests 2.34, urllib3 2.8):

- `verify=True` trusts certifi's bundle instead of the system's CAs, and the environment can
  override it: TLS is one `SSLContext` of `syncd.net.tls`;
- `.netrc` would be taken as credentials: only proxies come from the environment;
- time limits are per socket operation, and a blocked read cannot be cancelled: every socket is
  registered, and shutting it down ends the request in progress (`Interruption`);
- an answer of any length is read whole: `LONGEST_ANSWER` bounds it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.reasons import CHECK_SERVER, causes, reason_of
from syncd.net.tls import RotatingContext

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from syncd.net.tls import Trust

LONGEST_ANSWER = 32 << 20
"""Bytes, unpacked; Vault takes no larger request itself (`max_request_size`)."""
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 15.0
REQUEST_LIMIT = 30.0
"""Seconds that one request may take from connecting to the last byte."""

_TIMEOUTS = (requests.Timeout, urllib3.exceptions.TimeoutError)
_INVALID_ADDRESS = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)


class _TooLongError(Exception):
    """An answer is longer than `LONGEST_ANSWER`."""


class Interruption:
    """Ends the requests of one provider: after `REQUEST_LIMIT`, or when another thread asks."""

    def __init__(self) -> None:
        self._interrupted = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    def interrupt(self) -> None:
        """Ends the request or pause in progress, and fails others until `resume`."""
        self._interrupted.set()
        self._shut()

    def resume(self) -> None:
        """Allows requests again."""
        self._interrupted.clear()

    def pause(self, seconds: float) -> bool:
        """Waits; returns whether it was interrupted."""
        return self._interrupted.wait(seconds)

    @contextlib.contextmanager
    def bounded(
        self, what: str, server: str, *, errors: tuple[type[Exception], ...], check: str
    ) -> Iterator[None]:
        """Bounds the one request that its block makes.

        Args:
            what: As for `explain`, and so is `server`.
            server: The server's address.
            errors: What a client raises whose socket is shut down.
            check: The remedy for an answer that is too long.

        Raises:
            TemporaryError: It was interrupted, or took longer than `REQUEST_LIMIT`.
            RefusedError: The answer is longer than `LONGEST_ANSWER`.
        """
        if self._interrupted.is_set():
            raise interrupted(what, server)
        # before the timer starts: what it ends must count as having reached the limit
        started = time.monotonic()
        limit = threading.Timer(REQUEST_LIMIT, self._shut)
        limit.daemon = True
        limit.start()
        try:
            yield
        except _TooLongError:
            problem = f"{server} answers with more than {LONGEST_ANSWER >> 20} MiB"
            raise RefusedError(f"cannot {what}: {problem}", check) from None
        except errors:
            if self._interrupted.is_set():
                raise interrupted(what, server) from None
            if time.monotonic() - started >= REQUEST_LIMIT:
                problem = f"did not finish within {REQUEST_LIMIT:.0f} s"
                raise unavailable(what, server, problem) from None
            raise
        finally:
            limit.cancel()

    def opened(self, sock: socket.socket) -> None:
        """Registers a socket."""
        with self._lock:
            self._sockets = {known for known in self._sockets if known.fileno() >= 0} | {sock}

    def _shut(self) -> None:
        """Shuts all sockets down (shutdown(2)), which ends every read and write."""
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._sockets.clear()


class RotatingSession:
    """A session for one server, made anew when a file of its TLS configuration changes. Blocks.

    It has no retries of its own.

    Args:
        address: URL of the server; decides about the proxies of the environment.
        trust: The configuration of TLS.
        interruption: Knows every socket that a session opens.
    """

    def __init__(self, address: str, trust: Trust, interruption: Interruption) -> None:
        self._address = address
        self._trust = trust
        self._interruption = interruption
        # the system's CAs take a megabyte of memory
        self._tls = RotatingContext(trust) if address.startswith("https:") else None
        self._context: ssl.SSLContext | None = None
        self._session: requests.Session | None = None

    def current(self) -> requests.Session:
        """The session; another one when a file has changed since, and the one before is closed.

        Raises:
            RefusedError: A file of the TLS configuration cannot be used.
        """
        try:
            context = self._tls.current() if self._tls else None
        except TemporaryError as error:
            # a provider reports a file that is missing as a person's task
            raise RefusedError(error.problem, error.remedy) from None
        if self._session is None or context is not self._context:
            self.close()
            self._session, self._context = self._make(context), context
        return self._session

    def close(self) -> None:
        """Closes its connections; `current` opens it again."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _make(self, context: ssl.SSLContext | None) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.proxies = get_environ_proxies(self._address)
        session.verify = not self._trust.skip_verify
        if self._trust.skip_verify:  # `syncd check` and the log of the daemon's start report it
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        session.mount("http://", _Adapter(self._interruption))
        if context is not None:
            name = self._trust.server_name
            session.mount(
                "https://", _Adapter(self._interruption, ssl_context=context, server_hostname=name)
            )
        return session


def explain(
    error: BaseException,
    *,
    what: str,
    server: str,
    address: str,
    ca: str = "ca_file",
    server_name: str | None = None,
) -> TemporaryError | RefusedError:
    """The error to raise for a request without an answer.

    Args:
        error: What requests, urllib3, the socket or an SDK raised.
        what: What the request was for, as it shall stand in a message: `read client-secret`.
        server: The server's address.
        address: The option that holds the address, for remedies.
        ca: The option that names CAs to trust.
        server_name: The option that names the server in its certificate, where there is one.
    """
    if any(isinstance(cause, _INVALID_ADDRESS) for cause in causes(error)):
        return RefusedError(f"cannot {what}: invalid address ({server})", f"correct {address}")
    reason = reason_of(error, address=address, ca=ca, server_name=server_name, timeouts=_TIMEOUTS)
    # only a person can change a certificate, or whom to trust
    kind = RefusedError if reason.is_certificate else TemporaryError
    return kind(f"cannot {what}: {reason.problem} ({server})", reason.remedy)


def unavailable(what: str, server: str, problem: str) -> TemporaryError:
    """The error for a server that answers without doing its part, or not in time.

    Args:
        what: As for `explain`, and so is `server`.
        server: The server's address.
        problem: What the server does, such as `does not finish`.
    """
    return TemporaryError(f"cannot {what}: the server at {server} {problem}", CHECK_SERVER)


def interrupted(what: str, server: str) -> TemporaryError:
    """The error for a request that syncd itself ended; arguments as for `explain`."""
    problem = f"cannot {what}: no answer before syncd stopped waiting ({server})"
    return TemporaryError(problem, CHECK_SERVER)


class _Adapter(HTTPAdapter):
    """requests' adapter with syncd's TLS, sockets that can be shut down, and bounded answers."""

    def __init__(self, interruption: Interruption, **tls: Any) -> None:  # noqa: ANN401 - urllib3's
        self._pool_classes = _pool_classes(interruption.opened)
        self._tls = tls
        super().__init__(max_retries=0)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: FBT001, FBT002 - requests' signature
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> requests.Response:
        """Sends a request, and reads the answer unless it is streamed."""
        response = super().send(request, stream, *args, **kwargs)
        if not stream:
            content = bytearray()
            for chunk in response.iter_content(1 << 16):
                content += chunk
                if len(content) > LONGEST_ANSWER:
                    response.close()
                    raise _TooLongError
            response._content = bytes(content)  # noqa: SLF001 - where requests puts it itself
        return response

    def init_poolmanager(
        self,
        connections: int,
        maxsize: int,
        block: bool = False,  # noqa: FBT001, FBT002 - requests' signature
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **kwargs, **self._tls)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401 - requests' signature
        manager = super().proxy_manager_for(proxy, **kwargs, **self._tls)
        manager.pool_classes_by_scheme = self._pool_classes
        return manager

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: Any,  # noqa: ANN401 - requests' signature
        cert: Any = None,  # noqa: ANN401
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # noqa: ANN401
        """Does nothing: requests would add certifi's bundle to the context."""


def _pool_classes(opened: Callable[[socket.socket], None]) -> dict[str, type[HTTPConnectionPool]]:
    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
