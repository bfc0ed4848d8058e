"""`rollout` and the Lease with a real API server, and with exactly the rights of the components."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from support.cluster.cluster import LONG
from support.sources import ROOT
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from pathlib import Path

    from support.cluster.cluster import Cluster

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  replicas: 0
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec: {containers: [{name: aidbox, image: none}]}
---
"""
COMPONENTS = """\
namespace: NAMESPACE
resources: [service-account.yaml]
components: [repair, rollout]
"""


def rights(cluster: Cluster, directory: Path, namespace: str) -> str:
    """The roles, as kustomize makes them of the components."""
    for name in ("repair", "rollout"):
        shutil.copytree(f"{ROOT}/kubernetes/components/{name}", directory / name)
    account = f"{ROOT}/kubernetes/components/service-account/service-account.yaml"
    shutil.copy(account, directory)
    kustomization = directory / "repair" / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().partition("patches:")[0])
    (directory / "kustomization.yaml").write_text(COMPONENTS.replace("NAMESPACE", namespace))
    return cluster.kubectl("kustomize", str(directory))


def test_a_rollout_with_the_rights_of_the_components(cluster: Cluster, tmp_path: Path) -> None:
    """The Deployment that they name is rolled once by two installations; no other one can be."""
    with cluster.namespace("repair") as namespace, World() as one, World() as two:
        cluster.apply(rights(cluster, tmp_path, namespace))
        objects = "".join(DEPLOYMENT.replace("NAME", name) for name in ("aidbox", "other"))
        cluster.apply(objects, "-n", namespace)
        before = cluster.get("deployment", "aidbox", "-n", namespace)["metadata"]["generation"]
        token = cluster.kubectl("create", "token", "aidbox", "-n", namespace).strip()
        (tmp_path / "token").write_text(token)
        (tmp_path / "shared.key").write_bytes(os.urandom(32))
        daemons = []
        for world in (one, two):
            world.publish({"db-password": secret("0"), "own": b"x"})
            paths = {"db-password": f"{world.mount}/db-password"}
            world.map(paths=paths)
            consumers = [
                {
                    "name": name,
                    "kind": "aidbox",
                    "urls": ["http://127.0.0.1:9"],
                    "client_id": "syncd",
                    "client_secret_file": f"{world.mount}/own",
                    "actions": ["rollout"],
                    "rollout": {"name": name, "secrets": ["db-password"]},
                }
                for name in ("aidbox", "other")
            ]
            world.configure(
                consumers=consumers,
                fingerprint_key_file=str(tmp_path / "shared.key"),
                kubernetes={
                    "server": "https://127.0.0.1:6443",
                    "token_file": str(tmp_path / "token"),
                    "ca_file": f"{cluster.directory}/ca.crt",
                    "namespace": namespace,
                },
            )
            daemons.append(world.daemon(wrapper=cluster.enter_network))
        with daemons[0] as first, daemons[1] as second:
            for world in (one, two):
                world.publish({"db-password": secret("1")})
            for daemon in (first, second):
                refused = daemon.wait_for("action.postponed", consumer="other")["reason"]
                assert "kubernetes/components/rollout" in refused
                assert "403" in refused
            wait_until(
                lambda: all(
                    daemon.logged("rollout.begun") or daemon.logged("rollout.done_before")
                    for daemon in (first, second)
                ),
                within=LONG,
            )
            assert len(first.logged("rollout.begun") + second.logged("rollout.begun")) == 1
        found = cluster.get("deployment", "aidbox", "-n", namespace)
        assert found["metadata"]["generation"] == before + 1
        annotations = found["spec"]["template"]["metadata"]["annotations"]
        assert list(annotations) == ["syncd/secrets"]
        lease = cluster.get("lease", "syncd", "-n", namespace)
        assert lease["spec"]["holderIdentity"] in ("", None)
        untouched = cluster.get("deployment", "other", "-n", namespace)["spec"]["template"]
        assert "annotations" not in untouched["metadata"]
