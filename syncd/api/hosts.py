"""Which `Host` a request to `api.listen` may name.

A web page can have its own name resolve to 127.0.0.1, and its browser then reads what syncd serves
there (DNS rebinding): the request comes from this machine, and only `Host` shows whose page it is.
So a name is accepted only if no stranger can own it: an IP address, `localhost`, this machine's
name, the name in `api.listen`, and those in `api.allowed_hosts`. Where syncd listens beyond
loopback, names of one label are accepted, too: they are resolved by the local network (services of
Docker Compose and Kubernetes).

A request without `Host` is of HTTP/1.0, and no browser's.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING

from syncd.core.address import is_loopback, parse_host_port

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Receive, Scope, Send


class AllowedHosts:
    """The hosts that requests may name.

    Args:
        listen: `api.listen`; empty for a socket that systemd passed.
        names: `api.allowed_hosts`.
    """

    def __init__(self, listen: str, names: Iterable[str]) -> None:
        address = parse_host_port(listen)
        self._is_local = address is None or is_loopback(address[0])
        own = (os.uname().nodename, address[0] if address else "localhost")
        self._names = frozenset(name.lower().rstrip(".") for name in (*names, *own))

    def allows(self, host: str) -> bool:
        """Whether a request may have this value of `Host`."""
        name = _without_port(host).lower().removesuffix(".")
        if name in self._names or is_loopback(name):
            return True
        if not self._is_local and name and "." not in name and ":" not in name:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True

    def guard(self, app: ASGIApp, refusal: ASGIApp) -> ASGIApp:
        """An application that answers requests for other hosts with a refusal."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            allowed = all(self.allows(host.decode("latin-1")) for host in hosts if host)
            await (app if allowed else refusal)(scope, receive, send)

        return guarded


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return name if name and port.isascii() and port.isdigit() else host
