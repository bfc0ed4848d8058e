"""A fleet whose network is cut: three machines with a NATS server and an installation each.

The relay is on the machine that is cut off, with a server that has no quorum.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.nats import bucket, documents, stream
from support.partition import Network, PartedCluster, reason_against
from support.subscriber import ask
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from nats.js import JetStreamContext

BUCKET = "state"
NAMES = ("i1", "i2", "i3")


@pytest.fixture
def network() -> Iterator[Network]:
    reason = reason_against()
    if reason is not None:
        pytest.skip(reason)
    with Network() as network:
        yield network


class Fleet:
    """An installation on each machine, and a relay on the last one."""

    def __init__(
        self, network: Network, cluster: PartedCluster, key: Path, stack: ExitStack
    ) -> None:
        self.urls = cluster.urls
        self.worlds: dict[str, World] = {}
        key.write_bytes(secret("the key of the fleet"))
        for name, machine, server in zip(NAMES, network.machines, cluster.servers, strict=True):
            world = self.worlds[name] = stack.enter_context(World())
            world.publish(db=secret("1"))
            world.map("db")
            urls = [server.url, *cluster.urls]
            bus = {"name": "bus", "kind": "nats", "urls": urls, "timeout": 3}
            bus |= {"state_bucket": BUCKET, "state_heartbeat": "2s"}
            world.configure(instance=name, fingerprint_key_file=str(key), consumers=[bus])
            stack.enter_context(world.daemon(wrapper=machine.wrapper))
        wait_until(lambda: documents(cluster, BUCKET).keys() == set(NAMES))
        self.world = stack.enter_context(World())
        self.path = f"{self.world.directory}/relay.sock"
        source = {"urls": [cluster.urls[2], *cluster.urls], "subject": "syncd.>", "timeout": 3}
        source |= {"state_bucket": BUCKET, "converge_within": "2s", "durable": "relay"}
        wrapper = network.machines[2].wrapper
        self.relay = self.world.relay(wrapper=wrapper, relay=source, api={"socket": self.path})
        stack.enter_context(self.relay)
        self.relay.wait_for("fleet.following")
        self.relay.wait_for("relay.following")
        wait_until(lambda: cluster.ask(consumer_is_on("n3")))

    def announced(self) -> list[tuple[str, Any]]:
        """Type and data of each event of the relay's own, oldest first."""
        done = self.world.run(
            *("events", "--socket", self.path, "--after", "start", "--format", "json")
        )
        events = [json.loads(line) for line in done.stdout.splitlines()]
        return [
            (event["type"].rpartition(".")[2], event["data"])
            for event in events
            if event["type"].endswith("verged")
        ]

    def attention(self) -> list[str]:
        """What the relay says needs attention."""
        _, found = ask(self.path, "/v1/status")
        return list(found["attention"])

    def knows_nothing(self) -> bool:
        """Whether the relay says that neither events nor documents can reach it."""
        found = self.attention()
        fleet = [line for line in found if line.startswith("the fleet is not known: ")]
        return bool(fleet) and any("no leader" in line for line in found if line not in fleet)

    def relayed(self) -> set[tuple[str, str]]:
        """Source and version of each secret as the relay has it."""
        _, found = ask(self.path, "/v1/secrets")
        return {(item["source"], item["version"]) for item in found["secrets"]}

    def status(self, url: str) -> tuple[int, Any]:
        done = self.world.run(
            *("fleet", "status", "--nats", url, "--bucket", BUCKET, "--format", "json")
        )
        (found,) = json.loads(done.stdout)["secrets"]
        return done.returncode, found


def consumer_is_on(server: str) -> Callable[[JetStreamContext], Awaitable[bool]]:
    """Whether the consumer that reads the bucket is there; elsewhere it is deleted, and comes anew.

    The server puts it anywhere. There, it goes on after the cut as if nothing had happened.
    """

    async def ask(js: JetStreamContext) -> bool:
        found = await js.consumers_info(f"KV_{BUCKET}")
        elsewhere = [
            info.name for info in found if info.cluster is None or info.cluster.leader != server
        ]
        for name in elsewhere:
            await js.delete_consumer(f"KV_{BUCKET}", name)
        return bool(found) and not elsewhere

    return ask


def test_a_relay_that_is_cut_off(
    network: Network, tmp_path: Path, count: Callable[[str], None]
) -> None:
    """Nothing has converged until it is known; who is silent is named on both sides; nothing is
    lost, and after the heal all is as if nothing had happened."""
    with PartedCluster(network) as cluster, ExitStack() as stack:
        cluster.ask(stream("fleet", "syncd.>", num_replicas=3))
        cluster.ask(bucket(BUCKET, num_replicas=3))
        fleet = Fleet(network, cluster, tmp_path / "key", stack)
        network.machines[2].connect(up=False)
        for world in fleet.worlds.values():
            world.publish(db=secret("2"))

        def majority_knows() -> bool:
            try:
                code, found = fleet.status(fleet.urls[0])
            except (ValueError, subprocess.SubprocessError):
                return False  # while it has no leader
            return bool(code == 1 and found["have"] == 2 and found["silent"] == ["i3"])

        wait_until(majority_knows)
        wait_until(fleet.announced, lambda: fleet.relay.output[-5:])
        (kind, diverged), *more = fleet.announced()
        assert (kind, more) == ("diverged", [])
        assert diverged["silent"] == list(NAMES)
        # a server that led the bucket notices only after a while that it is alone
        wait_until(fleet.knows_nothing, fleet.attention)
        network.machines[2].connect(up=True)
        wait_until(lambda: "converged" in dict(fleet.announced()))
        *between, (_, converged) = fleet.announced()
        assert {kind for kind, _ in between} == {"diverged"}
        assert (converged["instances"], converged["have"], converged["lagging"]) == (3, 3, [])
        assert converged["version"] != diverged["version"]
        expected = {(f"/syncd/{name}", converged["version"]) for name in NAMES}
        wait_until(lambda: fleet.relayed() == expected)
        code, found = fleet.status(fleet.urls[2])
        assert (code, found["have"], found["silent"]) == (0, 3, [])
    count(f"lost 0 of 3 rotations, cuts 1, false convergence 0, divergences {len(between)}")
