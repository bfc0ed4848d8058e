"""The address that systemd connects from."""

from __future__ import annotations

import pytest

from syncd.api.systemd_credentials import parse_address


def test_the_address_of_systemd() -> None:
    """It names the unit and the credential, after a random part."""
    address = b"\0e08dcd33c30e6ef3/unit/aidbox@1.service/client-secret"
    assert parse_address(address) == ("aidbox@1.service", "client-secret")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/run/some.sock",
        b"\0",
        b"\0e08d/unit/aidbox.service",
        b"\0e08d/unit//client-secret",
        b"\0e08d/unit/aidbox.service/",
        b"\0e08d/unit/aidbox.service/a/b",
        b"\0e08d/user/aidbox.service/client-secret",
        b"e08d/unit/aidbox.service/client-secret",
        b"\0e08d/unit/aidbox.service/\xff",
    ],
)
def test_other_addresses(address: str | bytes) -> None:
    """An address in another form names no unit."""
    assert parse_address(address) is None
