"""Three machines with a network between them whose cables can be pulled: network namespaces.

Each has an address of its own on a bridge, and so does the machine that runs the tests. What runs
on a machine is started through its `wrapper`. Files, and sockets among them, are shared.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Self

from support.nats import Cluster, NatsServer
from support.waiting import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Sequence

PORT = 4222


def reason_against() -> str | None:
    """Why there can be no such network here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"syncd-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not possible: {made.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False, timeout=DEADLINE)
    return None


class Machine:
    """One of the machines.

    Attributes:
        address: Its IP address.
        wrapper: Executes a command there.
    """

    def __init__(self, network: Network, number: int) -> None:
        self._network = network
        self._port = f"p{number}"
        self.namespace = f"{network.prefix}-{number}"
        self.address = f"{network.net}.{number}"
        self.wrapper = ["ip", "netns", "exec", self.namespace]

    def connect(self, *, up: bool) -> None:
        """Plugs the cable in, or pulls it."""
        state = "up" if up else "down"
        self._network.in_switch("ip", "link", "set", self._port, state)

    def plug(self) -> None:
        _ip("netns", "add", self.namespace)
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        _ip(
            *("-n", self._network.switch, "link", "add", self._port, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.namespace),
        )
        _ip("-n", self._network.switch, "link", "set", self._port, "master", "br0", "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.namespace, "link", "set", "eth0", "up")


class Network:
    """A switch, three machines, and a cable to the machine of the tests."""

    def __init__(self) -> None:
        self.prefix = f"syncd{os.getpid()}"
        self.net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.switch = f"{self.prefix}-sw"
        self._cable = f"sy{os.getpid()}"
        self.machines = [Machine(self, number) for number in (1, 2, 3)]

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self.switch)
            self.in_switch("ip", "link", "add", "br0", "type", "bridge")
            self.in_switch("ip", "link", "set", "br0", "up")
            for machine in self.machines:
                machine.plug()
            _ip(
                *("link", "add", self._cable, "type", "veth"),
                *("peer", "name", "p0", "netns", self.switch),
            )
            self.in_switch("ip", "link", "set", "p0", "master", "br0", "up")
            _ip("addr", "add", f"{self.net}.254/24", "dev", self._cable)
            _ip("link", "set", self._cable, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.switch, *(machine.namespace for machine in self.machines)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def in_switch(self, *command: str) -> None:
        _run(["ip", "netns", "exec", self.switch, *command])


class PartedCluster(Cluster):
    """Three NATS servers, one on each machine."""

    def __init__(self, network: Network) -> None:
        routes = [f"nats://{machine.address}:6222" for machine in network.machines]
        self.servers = [
            NatsServer(
                f"n{number}",
                address=machine.address,
                port=PORT,
                wrapper=machine.wrapper,
                cluster={"name": "test", "listen": f"{machine.address}:6222", "routes": routes},
            )
            for number, machine in enumerate(network.machines, 1)
        ]
        self.urls = [server.url for server in self.servers]


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
