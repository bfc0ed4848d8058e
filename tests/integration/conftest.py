"""Servers that are expensive to start are started once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.nats import NatsServer
from support.openbao import OpenBao

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def openbao() -> Iterator[OpenBao]:
    """A server that all tests share: each keeps to paths of its own, and none stops it."""
    with OpenBao() as server:
        yield server


@pytest.fixture(scope="session")
def openbao_tls() -> Iterator[OpenBao]:
    """The same with TLS and a CA of its own."""
    with OpenBao(tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    """A NATS server that all tests share: each keeps to a stream of its own."""
    with NatsServer() as server:
        yield server
