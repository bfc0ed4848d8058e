"""Which hosts a request to `api.listen` may name: none that a stranger can own."""

from __future__ import annotations

import os

import pytest

from syncd.api.hosts import AllowedHosts

OWN = os.uname().nodename


@pytest.mark.parametrize(
    ("host", "on_loopback", "beyond"),
    [
        ("127.0.0.1:9753", True, True),
        ("127.0.0.1", True, True),
        ("10.1.2.3:9753", True, True),
        ("[::1]:9753", True, True),
        ("[2001:db8::1]", True, True),
        ("localhost:9753", True, True),
        ("LOCALHOST.", True, True),
        (OWN, True, True),
        (f"{OWN}:9753", True, True),
        ("metrics.example.com", True, True),
        ("Metrics.Example.COM.:9753", True, True),
        ("syncd:9753", False, True),
        ("attacker.example.com", False, False),
        ("attacker.example.com:9753", False, False),
        ("127.0.0.1.attacker.example.com", False, False),
        ("localhost.attacker.example.com", False, False),
        (f"{OWN}.attacker.example.com", False, False),
        ("metrics.example.com.attacker.example.com", False, False),
        ("a@127.0.0.1", False, False),
        ("a b.c", False, False),
        (":9753", False, False),
        ("[::1", True, True),
        ("[x]:1", False, True),
    ],
)
def test_hosts(host: str, on_loopback: bool, beyond: bool) -> None:
    """By address and by names that are known; one label only where the local network resolves."""
    names = ["metrics.example.com"]
    assert AllowedHosts("127.0.0.1:9753", names).allows(host) == on_loopback
    assert AllowedHosts("", names).allows(host) == on_loopback
    assert AllowedHosts("0.0.0.0:9753", names).allows(host) == beyond


def test_the_name_to_listen_at_is_allowed() -> None:
    """It was resolved to be listened at."""
    assert AllowedHosts("node.example.com:9753", ()).allows("node.example.com:9753")
    assert not AllowedHosts("node.example.com:9753", ()).allows("other.example.com:9753")
