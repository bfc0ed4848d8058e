"""Aidbox stays on its Service whatever happens to syncd."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import yaml
from support.cluster.cluster import LONG
from support.cluster.product import Hook, Product, deployed
from support.fanotify import HeldDirectory
from support.machine import step
from support.sources import ROOT
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.cluster.cluster import Cluster
    from support.cluster.product import Probes

ENOUGH = 350
"""Answers at ten a second: longer than a probe of the kubelet's defaults takes to fail (30 s)."""


@pytest.fixture(scope="module")
def hook(cluster: Cluster) -> Iterator[Hook]:
    with Hook(cluster) as hook:
        yield hook


@pytest.fixture(scope="module")
def product(cluster: Cluster, hook: Hook) -> Iterator[Product]:
    cluster.write("client", **{"client-secret": "first"})
    with open(f"{ROOT}/kubernetes/components/syncd/syncd.yaml") as file:
        settings = yaml.safe_load(file)
    settings["watch"]["rescan_interval"] = "1s"
    with deployed(cluster, "availability", syncd=yaml.safe_dump(settings)) as product:
        yield product


def keeps_answering(probes: Probes) -> None:
    """Waits for as many answers as show that no probe of the kubelet fails."""
    wanted = probes.answered + ENOUGH
    wait_until(lambda: probes.answered >= wanted or probes.failures, within=LONG)
    assert probes.failures == []


def unready(product: Product) -> bool:
    return product.ask("/readyz")[0] == 503


def write_vault_config(product: Product, text: str) -> None:
    """Changes the ConfigMap that is mounted in the running pod."""
    volumes = product.pod["spec"]["volumes"]
    (name,) = (item["configMap"]["name"] for item in volumes if item["name"] == "vault-config")
    patch = json.dumps({"data": {"vault-config.json": text}})
    product.kubectl("patch", "configmap", name, "--type=merge", "-p", patch)


def test_a_broken_vault_config(product: Product) -> None:
    """All replicas share it, so a readiness that depended on it would take all of them away."""
    volumes = product.pod["spec"]["volumes"]
    (name,) = (item["configMap"]["name"] for item in volumes if item["name"] == "vault-config")
    valid = product.get("configmap", name)["data"]["vault-config.json"]
    with product.probing() as probes:
        write_vault_config(product, valid.rstrip().removesuffix("}") + ",}")
        wait_until(lambda: unready(product), product.describe, LONG)
        keeps_answering(probes)
        assert product.is_ready()
        write_vault_config(product, valid)
        wait_until(lambda: not unready(product), product.describe, LONG)


def test_a_full_state_volume_a_probe_flood_and_a_held_mount(
    cluster: Cluster, product: Product, hook: Hook
) -> None:
    """All at once; afterwards the rotation that came meanwhile is delivered."""
    state = f"/var/lib/kubelet/pods/{product.pod['metadata']['uid']}/volumes"
    state += "/kubernetes.io~empty-dir/syncd-state"
    mount = product.mount
    before = len(hook.events())
    with product.probing() as probes, ExitStack() as faults:
        cluster.shell(f"dd if=/dev/zero of={state}/filler bs=64k 2> /dev/null || true")
        with cluster.network():
            for _ in range(192):
                faults.enter_context(socket.create_connection((product.ip, 9753)))
        generation = product.generation()
        held = faults.enter_context(HeldDirectory(cluster.path(f"{mount}/{generation}")))
        cluster.shell(f"chmod 0604 {mount}/{generation}/client-secret")  # so it is read again
        held.wait()
        wait_until(lambda: unready(product), product.describe, LONG)
        keeps_answering(probes)
        assert product.is_ready()
        assert product.restarts() == 0
        held.release()
        cluster.write("client", **{"client-secret": "second"})
        wait_until(lambda: product.generation() != generation, product.describe, LONG)
        cluster.shell(f"rm {state}/filler")
        wait_until(lambda: len(hook.events()) == before + 1, product.describe, LONG)
        wait_until(lambda: not unready(product), product.describe, LONG)
    assert probes.failures == []


def test_syncd_is_killed(product: Product, hook: Hook, cluster: Cluster) -> None:
    """The pod is unready until syncd answers, as no manifest can prevent; no event is lost."""
    before, restarts = len(hook.events()), product.restarts()
    with product.probing() as probes:
        wait_until(lambda: probes.answered > 5)
        product.kill()
        cluster.write("client", **{"client-secret": "third"})
        wait_until(lambda: product.restarts() == restarts + 1, product.describe, LONG)
        product.wait_ready()
        wait_until(lambda: len(hook.events()) > before, product.describe, LONG)
        answered = probes.answered
        wait_until(lambda: probes.answered > answered + 20)
    missed = len(probes.failures)
    step(f"the Service refused {missed} of {missed + probes.answered} connections, 0.1 s apart")
    assert [event["data"]["change"] for event in hook.events()[before:]] == ["modified"]


def test_the_manifests_give_syncd_no_readiness_of_its_own(product: Product) -> None:
    """The readiness of a sidecar is the pod's."""
    spec = product.pod["spec"]
    (syncd,) = (item for item in spec["initContainers"] if item["name"] == "syncd")
    assert "readinessProbe" not in syncd
    assert syncd["livenessProbe"]["failureThreshold"] * 10 >= 120
    assert os.path.basename(syncd["image"]) != "syncd:latest"
    assert yaml.safe_dump(spec).count("emptyDir") == 2
