"""HTTP to vaults over requests: for a vault behind a proxy, and for SDKs that use requests.

Traps of requests that this module avoids (requests 2.34, urllib3 2.8):

- `verify=True` trusts certifi's bundle instead of the system's CAs, and the environment can
  override it: TLS is one `SSLContext` of `syncd.net.tls`;
- `.netrc` would be taken as credentials: only proxies come from the environment;
- an answer of any length, at any speed, is read whole: `syncd.net.interruption` bounds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.interruption import Bounds
from syncd.net.proxies import proxy_for
from syncd.net.reasons import causes, reason_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from syncd.net.tls import Trust

CONNECTIONS: Final = 4
"""Connections to one server that are kept open, and requests at a time."""

_TIMEOUTS = (requests.Timeout, urllib3.exceptions.TimeoutError)
_INVALID_ADDRESS = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)


def make_session(address: str, trust: Trust, context: ssl.SSLContext | None) -> requests.Session:
    """A session for one server, without retries of its own.

    Args:
        address: URL of the server; decides about the proxies of the environment.
        trust: The configuration of TLS.
        context: Made of `trust`; None for a server without TLS.
    """
    session = requests.Session()
    session.trust_env = False
    session.proxies = get_environ_proxies(address)
    session.verify = not trust.skip_verify
    if trust.skip_verify:  # `syncd check` and the log of the daemon's start report it
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    session.mount("http://", _Adapter())
    if context is not None:
        name = trust.server_name
        session.mount("https://", _Adapter(ssl_context=context, server_hostname=name))
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


class _Body:
    """The raw answer of urllib3, which ends by an error when it is too long or takes too long."""

    def __init__(self, raw: Any, bounds: Bounds) -> None:  # noqa: ANN401 - urllib3's
        self._raw = raw
        self._bounds = bounds

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:  # noqa: ANN401 - urllib3's
        for chunk in self._raw.stream(*args, **kwargs):
            try:
                self._bounds.take(chunk)
            except BaseException:
                self._raw.close()
                raise
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
        bounds = Bounds()
        response = super().send(*args, **kwargs)
        response.raw = _Body(response.raw, bounds)
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
