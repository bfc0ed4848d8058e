"""The replicas of a server, each of which gets its own requests.

A host name may stand for one server or, as a headless service of Kubernetes does, for as many as it
has addresses. A request to one of the addresses still carries the name, in the header `Host`, and
TLS verifies the name. The name is resolved each time, so a replica that left the DNS is not waited
for.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.http1 import Request
from syncd.net.reasons import reason_of
from syncd.net.url import Url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

RESOLVE_TIMEOUT: Final = 5.0
"""Seconds that the DNS may take."""

_NO_ADDRESS: Final = (socket.EAI_NONAME, socket.EAI_NODATA)


class Replica(msgspec.Struct, frozen=True):
    """One server.

    Attributes:
        url: As configured; its path is put before every request's.
        address: IP address to connect to, or None to let the connection resolve the name.
    """

    url: Url
    address: str | None = None

    def __str__(self) -> str:
        origin = self.url.origin
        return origin if self.address in (None, self.url.host) else f"{origin} ({self.address})"

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        content: bytes | None = None,
    ) -> Request:
        """A request to this replica.

        Args:
            method: HTTP method.
            target: Path and query, from `/` on.
            headers: All but `Host`.
            content: The body.
        """
        return Request(method, self.url.below(target), headers, content, self.address)


async def _addresses(host: str, port: int) -> Sequence[str]:
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(item[4][0]) for item in found]


class Replicas:
    """The replicas of one consumer.

    Args:
        urls: Base URL of each.
        expand: Whether a name stands for all of its addresses.
        resolve: The addresses of a host and port.

    Raises:
        RefusedError: A URL cannot be used.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        expand: bool,
        resolve: Callable[[str, int], Awaitable[Sequence[str]]] = _addresses,
    ) -> None:
        try:
            self._urls = [Url.parse(url) for url in urls]
        except ValueError:
            raise RefusedError(
                "cannot use urls: one of them is malformed", "write http://host:port"
            ) from None
        self._expand = expand
        self._resolve = resolve

    @property
    def has_tls(self) -> bool:
        """Whether any of them is reached over TLS."""
        return any(url.scheme == "https" for url in self._urls)

    async def current(self) -> tuple[Replica, ...]:
        """The replicas that exist now, at least one.

        Raises:
            TemporaryError: A name cannot be resolved.
        """
        if not self._expand:
            return tuple(map(Replica, self._urls))
        found: dict[Replica, None] = {}
        for url in self._urls:
            try:
                with anyio.fail_after(RESOLVE_TIMEOUT):
                    addresses = await self._resolve(url.host, url.port)
            except TimeoutError:
                problem = f"the DNS does not answer within {RESOLVE_TIMEOUT:g} s"
                raise _unresolved(url.host, problem, "check the DNS") from None
            except OSError as error:
                if not (isinstance(error, socket.gaierror) and error.errno in _NO_ADDRESS):
                    reason = reason_of(error, address="urls")
                    raise _unresolved(url.host, reason.problem, reason.remedy) from None
                addresses = ()
            if not addresses:
                remedy = "start Aidbox, or correct urls or the DNS"
                raise _unresolved(url.host, "the DNS has no address for it", remedy)
            found |= dict.fromkeys(Replica(url, address) for address in sorted(addresses))
        return tuple(found)


def _unresolved(host: str, problem: str, remedy: str) -> TemporaryError:
    return TemporaryError(f"cannot resolve {host}: {problem}", remedy)
