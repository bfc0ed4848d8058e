"""Addresses as users write them."""

from __future__ import annotations

_PORTS = range(1, 1 << 16)


def parse_host_port(text: str) -> tuple[str, int] | None:
    """Splits `host:port`; returns None where the text is something else.

    The host is a name or an IP address. The brackets of an IPv6 address are removed.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or "/" in host:
        return None
    if not host or not (port.isascii() and port.isdigit()) or int(port[:6]) not in _PORTS:
        return None
    return host, int(port)
