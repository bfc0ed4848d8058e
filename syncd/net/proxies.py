"""The proxy of the environment, and the failures that are its own and not the server's.

A message that a vault refuses connections makes its reader look at the vault. So a failure on the
way to a proxy, or an answer of the proxy's, names the proxy and the variable that it comes from.

What belongs to the proxy (requests 2.34, urllib3 2.8, http.client of Python 3.11 to 3.13):

- every `ProxyError`; http.client has no type for a CONNECT that is refused, only the text
  `Tunnel connection failed: 407 …`, of which the status is read;
- for a server without TLS every failure, since there is no connection beyond the proxy's, and every
  407. Other statuses are the proxy's unless their body is JSON, as Vault's always is.

Behind a tunnel, TLS errors are the server's. A connection that ends or does not answer can be
either's: then both are named.
"""

from __future__ import annotations

import os
import re
import ssl
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import msgspec
import requests
import urllib3
from requests.utils import get_environ_proxies, select_proxy

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.reasons import causes, reason_of

_PROXY_ERRORS: Final = (requests.exceptions.ProxyError, urllib3.exceptions.ProxyError)
_INVALID: Final = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    urllib3.exceptions.LocationValueError,
)
_TUNNEL: Final = re.compile(r"Tunnel connection failed: (\d{3})\b")
_OF_PROXY: Final = frozenset((403, 405, 500, 502, 503, 504))
"""Statuses with which proxies answer for a server that they do not reach or do not allow."""


class Proxy(msgspec.Struct, frozen=True):
    """The proxy for one server.

    Attributes:
        url: Its URL, without user and password.
        variable: The environment variable that names it.
        has_login: Whether the variable holds user and password.
        server: URL of the server.
        timeouts: Exceptions that stand for a time limit.
    """

    url: str
    variable: str
    has_login: bool
    server: str
    timeouts: tuple[type[BaseException], ...] = ()

    def judge(
        self, error: BaseException, what: str, ca: str
    ) -> TemporaryError | RefusedError | None:
        """The error to raise for a request that failed; None where the failure is the server's.

        Args:
            error: What requests, urllib3 or an SDK raised.
            what: The purpose of the request: `read client-secret`.
            ca: The option that names CAs to trust.
        """
        found = causes(error)
        if any(isinstance(cause, _INVALID) for cause in found):
            return RefusedError(
                f"cannot {what}: {self.variable} is not the URL of an HTTP proxy",
                f"write http://host:port in {self.variable}",
            )
        for cause in found:
            refused = _TUNNEL.match(str(cause)) if isinstance(cause, OSError) else None
            if refused is not None:
                return self.refusal(int(refused[1]), what)
        is_own = any(isinstance(cause, _PROXY_ERRORS) for cause in found)
        if not is_own and any(isinstance(cause, ssl.SSLError) for cause in found):
            return None
        reason = reason_of(error, address=self.variable, ca=ca, timeouts=self.timeouts)
        kind = RefusedError if reason.is_certificate else TemporaryError
        if is_own or self._is_only_hop:
            remedy = reason.remedy if reason.is_specific else "check that the proxy is up"
            return kind(
                f"cannot {what}: {reason.problem} at {self} on the way to {self.server}",
                f"{remedy}, correct {self.variable}, or {self._bypass}",
            )
        return kind(
            f"cannot {what}: {reason.problem} ({self.server}, through {self})",
            f"check that the proxy and the server are up, or {self._bypass}",
        )

    def is_answer(self, status: int, body: bytes) -> bool:
        """Whether an answer to a request without a tunnel is the proxy's own."""
        if not self._is_only_hop:
            return False
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return True
        return status in _OF_PROXY and not body.lstrip().startswith(b"{")

    def refusal(self, status: int, what: str) -> TemporaryError | RefusedError:
        """The error for a status of the proxy's."""
        kind: type[TemporaryError | RefusedError] = RefusedError
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED and self.has_login:
            problem = f"rejects the login in {self.variable}"
            remedy = f"correct user and password in {self.variable}"
        elif status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            problem, remedy = "requires a login", f"write http://user:password@… in {self.variable}"
        elif status < 500 and status not in (408, 429):  # noqa: PLR2004 - RFC 9110, RFC 6585
            problem = f"does not allow connections to {self.server}"
            remedy = "allow it in the proxy"
        else:
            kind = TemporaryError
            problem = f"cannot reach {self.server}"
            remedy = "check that the server is up and that the proxy resolves and reaches it"
        return kind(f"cannot {what}: {self} {problem} ({status})", f"{remedy}, or {self._bypass}")

    def __str__(self) -> str:
        return f"the proxy {self.url} ({self.variable})"

    @property
    def _is_only_hop(self) -> bool:
        return urlsplit(self.server).scheme == "http"

    @property
    def _bypass(self) -> str:
        return f"add {urlsplit(self.server).hostname} to NO_PROXY"


def proxy_for(server: str, timeouts: tuple[type[BaseException], ...] = ()) -> Proxy | None:
    """The proxy that requests to a server take, as the environment has it now.

    Args:
        server: URL of the server.
        timeouts: As `Proxy.timeouts`.
    """
    url = select_proxy(server, get_environ_proxies(server))
    if not url:
        return None
    scheme, _, rest = url.rpartition("://")
    login, _, host = rest.rpartition("@")
    shown = f"{scheme or 'http'}://{host}"
    return Proxy(shown, _variable(server, url), bool(login), server, timeouts)


def _variable(server: str, url: str) -> str:
    """The variable that holds a URL; lower case wins (urllib.request.getproxies_environment)."""
    wanted = (f"{urlsplit(server).scheme}_proxy", "all_proxy")
    for name in wanted:
        found = [key for key, value in os.environ.items() if key.lower() == name and value == url]
        if found:
            return max(found)  # lower case sorts after upper case
    return wanted[0].upper()
