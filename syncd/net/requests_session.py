"""HTTP to vaults over requests: TLS as configured, and requests that nothing holds for ever.

Traps of requests that this module avoids (requests 2.34, urllib3 2.8):

- `verify=True` trusts certifi's bundle instead of the system's CAs, and the environment can
  override it: TLS is one `SSLContext` of `syncd.net.tls`;
- `.netrc` would be taken as credentials: only proxies come from the environment;
- time limits are per socket operation, and a blocked read cannot be cancelled: a request is made in
  a thread that its caller leaves alone after `REQUEST_LIMIT`, or when syncd stops (`Interruption`).
  The thread ends when the socket's own limits or the next chunk of the body allow it;
- an answer of any length is read whole: `LONGEST_ANSWER` bounds it;
- cookies, redirects and authentication cost as much time as the request itself, and vaults use none
  of them: `PlainSession` leaves them out.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.proxies import proxy_for
from syncd.net.reasons import CHECK_SERVER, causes, reason_of
from syncd.net.tls import RotatingContext
from syncd.system import threads

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from syncd.net.tls import Trust

T = TypeVar("T")

LONGEST_ANSWER = 32 << 20
"""Bytes, unpacked; Vault takes no larger request itself (`max_request_size`)."""
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 15.0
REQUEST_LIMIT = 30.0
"""Seconds that one request may take from connecting to the last byte."""
CONNECTIONS: Final = 4
"""Connections to one server that are kept open, and requests at a time."""
MOST_ABANDONED: Final = 16
"""Requests of one provider that may be left alone and still run; each holds a thread."""

_TIMEOUTS = (requests.Timeout, urllib3.exceptions.TimeoutError)
_INVALID_ADDRESS = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)


class _TooLongError(Exception):
    """An answer is longer than `LONGEST_ANSWER`."""


class _TooLateError(Exception):
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
            what: As for `explain`, and so is `server`.
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
        except _TooLateError:
            raise _too_late(what, server) from None
        except _TooLongError:
            problem = f"{server} answers with more than {LONGEST_ANSWER >> 20} MiB"
            raise RefusedError(f"cannot {what}: {problem}", check) from None


class RotatingSession:
    """A session for one server, made anew when a file of its TLS configuration changes. Blocks.

    It has no retries of its own.

    Args:
        address: URL of the server; decides about the proxies of the environment.
        trust: The configuration of TLS.
        kind: Makes the session.
    """

    def __init__(
        self, address: str, trust: Trust, kind: Callable[[], requests.Session] = requests.Session
    ) -> None:
        self._address = address
        self._trust = trust
        self._kind = kind
        # the system's CAs take a megabyte of memory
        self._tls = RotatingContext(trust) if urlsplit(address).scheme == "https" else None
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
        session = self._kind()
        session.trust_env = False
        session.proxies = get_environ_proxies(self._address)
        session.verify = not self._trust.skip_verify
        if self._trust.skip_verify:  # `syncd check` and the log of the daemon's start report it
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        session.mount("http://", _Adapter())
        if context is not None:
            name = self._trust.server_name
            session.mount("https://", _Adapter(ssl_context=context, server_hostname=name))
        return session


class PlainSession(requests.Session):
    """A session that sends what it is given: no cookies, no redirects, no authentication."""

    def request(  # type: ignore[override] # fewer options, by name
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
        timeout: tuple[float, float] | None = None,
        **_unused: object,
    ) -> requests.Response:
        """Sends a request and reads the whole answer, of any status.

        Args:
            method: HTTP verb in capitals.
            url: The whole URL, quoted.
            headers: Besides the session's own.
            data: The body.
            timeout: Seconds to connect, and for each read.
        """
        request = requests.PreparedRequest()
        request.method, request.url, request.body = method, url, data
        request.headers = CaseInsensitiveDict({**self.headers, **(headers or {})})
        if data is not None:
            request.headers["Content-Length"] = str(len(data))
        response = self.get_adapter(url).send(
            request, stream=True, timeout=timeout, verify=self.verify, proxies=self.proxies
        )
        _ = response.content  # releases the connection
        return response


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
    proxy = proxy_for(server, _TIMEOUTS)
    judged = proxy.judge(error, what, ca) if proxy else None
    if judged is not None:
        return judged
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


def _too_late(what: str, server: str) -> TemporaryError:
    return unavailable(what, server, f"did not finish within {REQUEST_LIMIT:.0f} s")


class _Body:
    """The raw answer of urllib3, which ends by an error when it is too long or takes too long."""

    def __init__(self, raw: Any, deadline: float) -> None:  # noqa: ANN401 - urllib3's
        self._raw = raw
        self._deadline = deadline

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:  # noqa: ANN401 - urllib3's
        length = 0
        for chunk in self._raw.stream(*args, **kwargs):
            length += len(chunk)
            if length > LONGEST_ANSWER:
                self._raw.close()
                raise _TooLongError
            if time.monotonic() > self._deadline:
                self._raw.close()
                raise _TooLateError
            yield chunk

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - urllib3's
        return getattr(self._raw, name)


class _Adapter(HTTPAdapter):
    """requests' adapter with syncd's TLS and bounded answers."""

    def __init__(self, **tls: Any) -> None:  # noqa: ANN401 - urllib3's
        self._tls = tls
        super().__init__(max_retries=0, pool_maxsize=CONNECTIONS)

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - requests'
        """Sends a request; the answer's body is bounded."""
        deadline = time.monotonic() + REQUEST_LIMIT
        response = super().send(*args, **kwargs)
        response.raw = _Body(response.raw, deadline)
        return response

    def init_poolmanager(
        self,
        connections: int,
        maxsize: int,
        block: bool = False,  # noqa: FBT001, FBT002 - requests' signature
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **kwargs, **self._tls)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401 - requests' signature
        return super().proxy_manager_for(proxy, **kwargs, **self._tls)

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
