"""`rollout` and the Lease against a double of the API server, with the real daemon."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.aidbox_clients import OWN
from support.aidbox_destinations import destination, prepare, recreating, serve, stored, value
from support.kubernetes import TOKEN, Kubernetes
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.world import DaemonProcess

INSTANCES = 5


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Kubernetes]:
    with Kubernetes(tmp_path) as cluster:
        cluster.create("deployments", "aidbox", spec={"replicas": INSTANCES})
        yield cluster


def rolling(
    world: World,
    cluster: Kubernetes,
    *secrets: str,
    instance: str,
    key: str,
    kind: str = "Deployment",
) -> None:
    """Configures a daemon that rolls the workload."""
    with open(f"{world.directory}/own", "wb") as file:
        file.write(OWN)
    consumer: dict[str, Any] = {
        "name": "aidbox",
        "kind": "aidbox",
        "urls": ["http://127.0.0.1:9"],
        "client_id": "syncd",
        "client_secret_file": f"{world.directory}/own",
        "actions": ["rollout"],
        "rollout": {"kind": kind, "name": "aidbox", "secrets": list(secrets)},
    }
    world.configure(
        consumers=[consumer],
        kubernetes=cluster.settings,
        fingerprint_key_file=key,
        instance=instance,
    )


def done(daemons: list[DaemonProcess]) -> int:
    """How many daemons have rolled, or found that another one has."""
    events = ("rollout.begun", "rollout.done_before")
    return sum(entry["event"] in events for daemon in daemons for entry in daemon.log)


def test_five_instances_make_one_patch_for_each_change(cluster: Kubernetes, tmp_path: Path) -> None:
    """Of the vault config, and of a secret that is listed; another secret makes none."""
    key = tmp_path / "shared.key"
    key.write_bytes(b"k" * 32)
    with ExitStack() as stack:
        worlds = [stack.enter_context(World()) for _ in range(INSTANCES)]
        # entries name one path, as in the pods of a Deployment
        paths = {name: f"{worlds[0].directory}/mount/{name}" for name in ("a", "password", "b")}
        worlds[0].publish(a=secret("0"), password=secret("0"), b=secret("0"))
        daemons = []
        for number, world in enumerate(worlds):
            world.map(paths={name: paths[name] for name in ("a", "password")})
            rolling(world, cluster, "password", instance=f"pod-{number}", key=str(key))
            daemons.append(stack.enter_context(world.daemon()))

        def annotations() -> dict[str, str]:
            return cluster.annotations("deployments", "aidbox")

        seen = []
        for number in range(1, 3):
            worlds[0].publish(password=secret(str(number)))
            wait_until(lambda n=number: done(daemons) == n * INSTANCES)  # type: ignore[misc]
            assert cluster.sent("PATCH", "deployments") == number
            seen.append(annotations())
        assert len({found["syncd/secrets"] for found in seen}) == 2
        worlds[0].publish(a=secret("1"))
        for world in worlds:
            world.map(paths=paths)
        wait_until(lambda: done(daemons) == 3 * INSTANCES)
        assert cluster.sent("PATCH", "deployments") == 3
        assert annotations()["syncd/secrets"] == seen[-1]["syncd/secrets"]
        assert len(annotations()["syncd/vault-config"]) == 32
        assert cluster.sent("PATCH", "deployments", 409) == 0
    written = json.dumps([*cluster.objects.values(), *cluster.log])
    assert "CANARY" not in written
    assert TOKEN not in "".join(line for daemon in daemons for line in daemon.output)


def test_what_stands_in_the_way_of_a_rollout(cluster: Kubernetes, tmp_path: Path) -> None:
    """A right or a workload that is missing; after it is there, the rollout is made."""
    key = tmp_path / "shared.key"
    key.write_bytes(b"k" * 32)
    with World() as world:
        world.publish(password=secret("0"))
        world.map("password")
        cluster.create("statefulsets", "aidbox")
        rolling(world, cluster, "password", instance="pod-0", key=str(key), kind="StatefulSet")
        cluster.denied.add(("PATCH", "statefulsets"))
        with world.daemon() as daemon:
            world.publish(password=secret("1"))
            reason = daemon.wait_for("action.postponed", action="rollout")["reason"]
            assert "cannot patch StatefulSet/aidbox" in reason
            assert "kubernetes/components/rollout" in reason
            cluster.denied.clear()
            daemon.wait_for("rollout.begun", name="aidbox")
            found = cluster.objects.pop(("statefulsets", "aidbox"))
            world.publish(password=secret("2"))
            reason = daemon.wait_for(
                "action.postponed",
                action="rollout",
                reason="there is no StatefulSet aidbox in the namespace hospital; correct rollout",
            )
            cluster.store("statefulsets", found)
            wait_until(lambda: cluster.sent("PATCH", "statefulsets") == 2)


def test_a_lease_decides_who_recreates(cluster: Kubernetes) -> None:
    """Three installations see one rotation; one recreates, and the others find it done.

    What a pod began that is gone is completed from the Lease.
    """
    with ExitStack() as stack:
        worlds = [stack.enter_context(World()) for _ in range(3)]
        for world in worlds:
            prepare(world, count=2)
        aidbox = stack.enter_context(serve(worlds[0], destination(0), destination(1)))
        before = stored(aidbox)
        daemons = []
        for number, world in enumerate(worlds):
            with open(f"{world.directory}/own", "wb") as file:
                file.write(OWN)
            world.configure(
                consumers=[recreating(world, aidbox, "drop_cache")],
                kubernetes=cluster.settings,
                instance=f"pod-{number}",
            )
            daemons.append(stack.enter_context(world.daemon()))
        for world in worlds:
            world.publish(d0=value(1))

        def outcomes(event: str) -> int:
            return sum(entry["event"] == event for daemon in daemons for entry in daemon.log)

        wait_until(lambda: outcomes("destination.recreated") + outcomes("destination.current") >= 3)
        wait_until(lambda: stored(aidbox) == before)
        deleted = [r["method"] for r in aidbox.requests("/fhir/AidboxTopicDestination/d0")]
        assert deleted.count("DELETE") == outcomes("destination.recreated") >= 1
        assert aidbox.lost == 0
        wait_until(lambda: cluster.objects["leases", "syncd"]["spec"]["holderIdentity"] == "")
        lease = cluster.objects["leases", "syncd"]
        assert "syncd/begun" not in lease["metadata"].get("annotations", {})
