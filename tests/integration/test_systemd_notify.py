"""What systemd hears from the real daemon, on a real datagram socket."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Manager:
    """systemd's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(DEADLINE)
        self.heard: list[str] = []

    def until(self, wanted: Callable[[str], bool]) -> list[str]:
        """Everything but the watchdog's pats up to the message that is wanted."""
        heard: list[str] = []
        while not heard or not wanted(heard[-1]):
            message = self.socket.recv(4096).decode()
            self.heard.append(message)
            if message != "WATCHDOG=1":
                heard.append(message)
        return heard


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish(a=secret("0"))
        world.map("a", "b")
        world.configure()
        yield world


@pytest.mark.parametrize("abstract", [False, True])
def test_the_life_of_a_service(world: World, abstract: bool) -> None:
    """READY after the first scan, counts, RELOADING and READY around SIGHUP, then STOPPING."""
    name = f"syncd-test-{secrets.token_hex(8)}"
    address = f"\0{name}" if abstract else f"{world.directory}/notify"
    manager = Manager(address)
    with manager.socket:
        with world.daemon(NOTIFY_SOCKET=f"@{name}" if abstract else address) as daemon:
            assert manager.until(lambda m: m.startswith("STATUS=")) == [
                "READY=1",
                "STATUS=2 secrets: 1 present, 1 missing, 0 unreadable",
            ]
            world.publish(a=secret("1"))
            world.publish(b=secret("1"))
            assert manager.until(lambda m: m.startswith("STATUS=")) == [
                "STATUS=2 secrets: 2 present, 0 missing, 0 unreadable"
            ]
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            daemon.signal(signal.SIGHUP)
            reloading, ready = manager.until(lambda m: m == "READY=1")
            first, second = reloading.split("\n")
            assert first == "RELOADING=1"
            assert int(second.removeprefix("MONOTONIC_USEC=")) >= before
            assert ready == "READY=1"
            with open(world.config, "w") as file:
                file.write("nonsense: true")
            daemon.signal(signal.SIGHUP)
            rejected, ready = manager.until(lambda m: m == "READY=1")
            assert rejected.startswith("RELOADING=1\n")
            assert manager.until(lambda m: m.startswith("STATUS=")) == [
                "STATUS=2 secrets: 2 present, 0 missing, 0 unreadable; the last reload was rejected"
            ]
        assert manager.until(lambda m: m == "STOPPING=1") == ["STOPPING=1"]


def test_the_watchdog(world: World) -> None:
    """It is patted at half of its interval, unless it is meant for another process."""
    manager = Manager(f"{world.directory}/notify")
    with manager.socket:
        address, interval = f"{world.directory}/notify", "2000000"
        with world.daemon(NOTIFY_SOCKET=address, WATCHDOG_USEC=interval):
            manager.until(lambda m: m.startswith("STATUS="))
            pats: list[float] = []
            while len(pats) < 4:
                if manager.socket.recv(4096) == b"WATCHDOG=1":
                    pats.append(time.monotonic())
        assert 0.5 < (pats[-1] - pats[0]) / 3 < 2
        manager.until(lambda m: m == "STOPPING=1")
        with world.daemon(
            NOTIFY_SOCKET=address, WATCHDOG_USEC=interval, WATCHDOG_PID=str(os.getpid())
        ):
            pass
        manager.heard.clear()
        manager.until(lambda m: m == "STOPPING=1")
        assert "WATCHDOG=1" not in manager.heard
