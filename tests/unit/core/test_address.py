"""syncd.core.address: addresses as users write them."""

from __future__ import annotations

import pytest

from syncd.core.address import parse_host_port


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
