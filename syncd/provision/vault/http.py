"""One connection to a Vault or OpenBao server: requests, time limits, retries, errors.

Traps of hvac that this module avoids (hvac 2.4); for those of requests see
`syncd.net.requests_session`:

- it follows redirects and sends its token to the other host: redirects are not followed;
- its client takes what is None from the `VAULT_*` environment, and `read` turns a 404 into None:
  the adapter is called directly, with the session's own TLS. The client is not even imported: its
  classes for every API of Vault's take half the time (`syncd.system.lean_import.import_hvac`);
- its exceptions can hold the whole response body: statuses are read here, hvac raises nothing,
  and messages never hold the text of a foreign exception.
"""

from __future__ import annotations

import random
import threading
import time
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec
import requests
import urllib3
from hvac.adapters import RawAdapter

from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.timing import Backoff
from syncd.net.direct_session import DirectSession
from syncd.net.interruption import CONNECT_TIMEOUT, READ_TIMEOUT, Interruption
from syncd.net.proxies import proxy_for
from syncd.net.reasons import parse_retry_after
from syncd.net.requests_session import CONNECTIONS, explain, make_session
from syncd.net.rotating_session import RotatingSession
from syncd.provision.vault.response import ResponseError, parse_response

if TYPE_CHECKING:
    import ssl

    from syncd.net.tls import Trust
    from syncd.provision.vault.response import Response

ATTEMPTS = 3
"""Attempts at a GET within a pass; then the refresh loop backs off."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt, at most; twice that before the third."""
LONGEST_PAUSE = 5.0
"""Seconds between attempts, at most; a longer `Retry-After` ends the pass instead."""


class Answer(msgspec.Struct, frozen=True):
    """A response.

    Attributes:
        status: HTTP status.
        body: The whole body, which can be a secret.
        retry_after: Seconds that the server asks us to wait, or None.
    """

    status: int
    body: bytes
    retry_after: float | None = None

    def __repr__(self) -> str:
        return f"Answer({self.status})"

    @property
    def is_success(self) -> bool:
        """Whether the status is one of success (2xx)."""
        return 200 <= self.status < 300  # noqa: PLR2004 - RFC 9110


class ThrottledError(TemporaryError):
    """The server limits requests (429)."""


class Connection:
    """Requests to one server, from any number of threads.

    Args:
        address: URL of the server.
        namespace: Sent with every request where not empty.
        trust: The configuration of TLS.
    """

    def __init__(self, address: str, namespace: str, trust: Trust) -> None:
        self.address = address
        self._namespace = namespace
        self._interruption = Interruption()
        self._session = RotatingSession(address, trust, _session)
        self._adapter: Any = None
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: str = "",
        body: str | None = None,
        token: str = "",
    ) -> Answer:
        """Makes a request; repeats a GET after a failure that may be temporary.

        Args:
            method: HTTP verb in capitals.
            path: Below `/v1/`, not quoted.
            what: Its purpose, for messages: `read client-secret`.
            query: The query, as in a URL.
            body: JSON.
            token: The token to send; empty for none.

        Returns:
            The answer, with any status but those that may be temporary.

        Raises:
            TemporaryError: The server cannot be reached, does not finish, or cannot answer now
                (412, 429, 5xx).
            RefusedError: TLS or the address cannot work as configured.
        """
        url = "/v1/" + quote(path, safe="/~:@!$&'()*+,;=")
        if query:
            url += "?" + quote(query, safe="/~:@!$&'()*+,;=?%")
        backoff = Backoff(first=FIRST_PAUSE, cap=LONGEST_PAUSE)
        while True:
            problem: TemporaryError
            try:
                answer = self._once(method, url, what, body, token)
            except TemporaryError as error:
                problem = error
            else:
                if not _is_temporary(answer.status):
                    return answer
                problem = self._unable(answer, what)
            pause = backoff.next(_RNG, at_least=problem.retry_after or 0.0)
            if method != "GET" or backoff.failures >= ATTEMPTS or pause > LONGEST_PAUSE:
                raise problem
            if self._interruption.pause(pause):
                raise problem

    def parse(self, answer: Answer, what: str) -> Response:
        """The body of an answer.

        Args:
            answer: As `request` returned it.
            what: As for `request`.

        Raises:
            TemporaryError: It is not a response of Vault's.
        """
        if answer.body.startswith(_GZIP):  # requests unpacks it; `DirectSession` asks for none
            raise TemporaryError(
                f"cannot {what}: the answer of {self.address} is compressed, unasked",
                "turn compression off in the proxy in front of the server",
            )
        try:
            return parse_response(answer.body)
        except ResponseError as error:
            raise TemporaryError(
                f"cannot {what}: the answer of {self.address} {error}",
                "check that a Vault server listens there",
            ) from None

    def check_namespace(self, status: int, what: str) -> None:
        """Explains a refusal by the namespace, where the server has none of that name.

        `sys/internal/ui/mounts` answers without a token, in every namespace that exists; for one
        that does not, login and reads answer 404 (OpenBao 2.7) or, depending on the version, 403.

        Args:
            status: Of the answer that refuses.
            what: As for `request`.

        Raises:
            RefusedError: There is no such namespace.
        """
        if not self._namespace or status not in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            return
        try:
            answer = self.request("GET", "sys/internal/ui/mounts", "look up the namespace")
        except TemporaryError:
            return  # the refusal is explained without it
        if answer.status == HTTPStatus.NOT_FOUND:
            raise RefusedError(
                f"cannot {what}: {self.address} has no namespace {self._namespace} ({status:d})",
                "create it, or correct vaultNamespace",
            )

    def resume(self) -> None:
        """Allows requests again after an interruption."""
        self._interruption.resume()

    def interrupt(self) -> None:
        """Ends the running request, and fails others until `resume`. For any thread."""
        self._interruption.interrupt()

    def close(self) -> None:
        """Closes all connections, idle ones too."""
        self.interrupt()
        self._session.close()

    def _once(self, method: str, url: str, what: str, body: str | None, token: str) -> Answer:
        headers = {"X-Vault-Token": token} if token else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            adapter = self._ready()
            response = self._interruption.call(
                lambda: adapter.request(
                    method,
                    url,
                    headers=headers,
                    data=None if body is None else body.encode(),
                    raise_exception=False,
                ),
                what=what,
                server=self.address,
                check="check secretPath",
            )
        except _ERRORS as error:
            raise explain(
                error,
                what=what,
                server=self.address,
                address="vaultAddress or vault_url",
                ca="ca_file or vaultCACertPath",
                server_name="vaultTLSServerName",
            ) from None
        retry_after = parse_retry_after(response.headers.get("Retry-After"), time.time())
        answer = Answer(response.status_code, response.content, retry_after)
        self._refuse_foreign(answer, what)
        return answer

    def _refuse_foreign(self, answer: Answer, what: str) -> None:
        """Raises for an answer that is not the server's, or not of HTTP as configured."""
        if answer.status < 400 or urlsplit(self.address).scheme != "http":  # noqa: PLR2004 - RFC 9110
            return
        proxy = proxy_for(self.address)
        if proxy is not None and proxy.is_answer(answer.status, answer.body):
            raise proxy.refusal(answer.status, what)
        if answer.status == HTTPStatus.BAD_REQUEST and any(
            text in answer.body[:1000].lower() for text in _TLS_ONLY
        ):
            problem = f"cannot {what}: the server at {self.address} requires TLS (400)"
            raise RefusedError(problem, "write https:// in vaultAddress or vault_url")

    def _ready(self) -> Any:  # noqa: ANN401 - hvac has no types
        """The adapter on the current session, which changes with the files of TLS."""
        with self._lock:
            session = self._session.current()
            if self._adapter is None or self._adapter.session is not session:
                self._adapter = RawAdapter(
                    base_uri=self.address,
                    token="",
                    namespace=self._namespace,
                    verify=session.verify,
                    timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                    allow_redirects=False,
                    session=session,
                    proxies=session.proxies,
                )
            return self._adapter

    def _unable(self, answer: Answer, what: str) -> TemporaryError:
        status, kind = answer.status, TemporaryError
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            kind = ThrottledError
            problem, remedy = "limits requests (429)", "raise its quota or the interval"
        elif status == HTTPStatus.SERVICE_UNAVAILABLE:
            problem, remedy = "is sealed or not ready (503)", "unseal it"
        else:
            problem, remedy = f"cannot answer now ({status})", "check its log"
        message = f"cannot {what}: the server at {self.address} {problem}"
        return kind(message, remedy, retry_after=answer.retry_after)


_ERRORS = (HTTPException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)
_TLS_ONLY = (b"to an https server", b"sent to https port")
"""What Go's net/http and nginx answer to HTTP on a port for HTTPS."""
_GZIP = b"\x1f\x8b"
_RNG = random.Random()  # noqa: S311 - jitter


def _session(
    address: str, trust: Trust, context: ssl.SSLContext | None
) -> DirectSession | requests.Session:
    if proxy_for(address) is not None:
        return make_session(address, trust, context)
    return DirectSession(address, context, server_name=trust.server_name, keep=CONNECTIONS)


def _is_temporary(status: int) -> bool:
    """412 (a standby that lags behind), 429 and 5xx except 501 (not initialised)."""
    return status in (412, 429) or (status >= 500 and status != 501)  # noqa: PLR2004
