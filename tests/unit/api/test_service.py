"""One address of the API: opened, served, replaced and closed."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from syncd.api.service import _Endpoint
from syncd.api.sockets import Listener

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


class Served:
    """Makes listeners, and records what was started and stopped on them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.listeners: list[Listener] = []

    def make(self, address: str) -> Callable[[], Listener]:
        def make() -> Listener:
            self.listeners.append(Listener(socket.socket(socket.AF_UNIX), address))
            return self.listeners[-1]

        return make

    async def serve(self, listener: Listener) -> Callable[[], Awaitable[None]]:
        self.log.append(f"serve {listener.address}")

        async def stop() -> None:
            self.log.append(f"stop {listener.address}")

        return stop

    async def apply(self, endpoint: _Endpoint, address: str, settings: object = None) -> None:
        await endpoint.open(address, self.make(address))
        await endpoint.switch(settings, self.serve)

    @property
    def open(self) -> list[str]:
        return [item.address for item in self.listeners if item.socket.fileno() >= 0]


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    for listener in served.listeners:
        listener.socket.close()


async def test_an_address_that_stays(served: Served) -> None:
    """Nothing is opened or stopped unless something has changed."""
    endpoint = _Endpoint(None)
    await served.apply(endpoint, "a", 1)
    await served.apply(endpoint, "a", 1)
    assert served.log == ["serve a"]
    await served.apply(endpoint, "a", 2)
    assert served.log == ["serve a", "stop a", "serve a"]
    assert len(served.listeners) == 1
    await endpoint.aclose()
    assert served.log[-1] == "stop a"
    assert served.open == []


async def test_an_address_that_changes(served: Served) -> None:
    """The new one is open before the old one is closed; an empty one serves nothing."""
    endpoint = _Endpoint(None)
    await served.apply(endpoint, "a")
    await endpoint.open("b", served.make("b"))
    assert served.open == ["a", "b"]
    await endpoint.switch(None, served.serve)
    assert served.log == ["serve a", "stop a", "serve b"]
    assert served.open == ["b"]
    await served.apply(endpoint, "")
    assert served.log[-1] == "stop b"
    assert served.open == []
    await endpoint.aclose()


async def test_an_address_that_is_abandoned(served: Served) -> None:
    """What was opened in vain is closed; the present address is served as before."""
    endpoint = _Endpoint(None)
    await served.apply(endpoint, "a")
    await endpoint.open("b", served.make("b"))
    for _ in range(2):
        await endpoint.abandon()
        assert served.open == ["a"]
    await endpoint.open("a", served.make("a"))
    await endpoint.abandon()
    assert served.open == ["a"]
    await served.apply(endpoint, "a")
    assert served.log == ["serve a"]
    await endpoint.aclose()


async def test_an_address_from_systemd(served: Served) -> None:
    """It is used regardless of the configuration, and closed at the end."""
    inherited = served.make("inherited")()
    endpoint = _Endpoint(inherited)
    for address in ("", "a", "b"):
        await served.apply(endpoint, address)
    assert served.log == ["serve inherited"]
    assert served.open == ["inherited"]
    await endpoint.aclose()
    assert served.open == []
