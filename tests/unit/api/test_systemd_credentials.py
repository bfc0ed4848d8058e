"""The address that systemd connects from, and when its connection is accepted."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import anyio
import pytest
from support.waiting import DEADLINE

from syncd.api.systemd_credentials import CredentialServer, parse_address
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from pathlib import Path


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


async def test_no_connection_is_accepted_before_values_can_be_read(tmp_path: Path) -> None:
    """Killed until then, the daemon leaves a reset, which fails the unit: no empty credential."""
    ready = anyio.Event()
    server = CredentialServer(ready=ready, metrics=Metrics())
    path = str(tmp_path / "credentials.sock")
    listener, early, late = (socket.socket(socket.AF_UNIX) for _ in range(3))
    with contextlib.ExitStack() as stack:
        for one in (listener, early, late):
            one.settimeout(DEADLINE)
            stack.enter_context(one)
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        early.connect(path)
        with anyio.move_on_after(0.05):
            await server.run(listener)
        # the connection is still there to be accepted
        accepted, _ = listener.accept()
        accepted.close()
        late.connect(path)
        listener.close()
        with pytest.raises(ConnectionResetError):
            late.recv(1)
