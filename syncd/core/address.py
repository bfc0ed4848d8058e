"""Addresses as users write them."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

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


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its spelling: `localhost`, 127.0.0.0/8 or ::1.

    Names below `localhost` count, too (RFC 6761, section 6.3). Nothing is resolved.
    """
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_plain_http(url: str) -> bool:
    """Whether requests to a URL cross the network unencrypted."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")
