"""syncd.core.address: addresses as users write them."""

from __future__ import annotations

import pytest

from syncd.core.address import is_loopback, is_plain_http, parse_host_port


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9753", ("127.0.0.1", 9753)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:65535", ("localhost", 65535)),
        ("", None),
        (":80", None),
        ("[]:80", None),
        ("localhost", None),
        ("localhost:", None),
        ("localhost:0", None),
        ("localhost:65536", None),
        ("localhost:1000000000000000000000", None),
        ("localhost:http", None),
        ("localhost:²", None),
        ("::1:80", None),
        ("http://localhost:80", None),
    ],
)
def test_a_host_and_a_port(text: str, expected: tuple[str, int] | None) -> None:
    """A host and a port, an IPv6 address in brackets, and nothing else."""
    assert parse_host_port(text) == expected


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("localhost", True),
        ("Sub.LocalHost.", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::1%lo", True),
        ("10.0.0.1", False),
        ("::", False),
        ("notlocalhost", False),
        ("", False),
    ],
)
def test_loopback_by_spelling(host: str, is_it: bool) -> None:
    """Nothing is resolved."""
    assert is_loopback(host) == is_it


@pytest.mark.parametrize(
    ("url", "is_it"),
    [
        ("http://vault:8200", True),
        ("http://localhost:8200", False),
        ("https://vault:8200", False),
        ("http://[::1]:8200/x", False),
        ("http:", True),
    ],
)
def test_plain_http_across_the_network(url: str, is_it: bool) -> None:
    """The scheme and the host decide."""
    assert is_plain_http(url) == is_it
