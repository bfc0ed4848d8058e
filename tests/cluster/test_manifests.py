"""The API server accepts the manifests, with strict validation and Pod Security `restricted`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from support.cluster.cluster import Cluster

OVERLAYS = ("vault", "azure")


def pod_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """A pod as the Deployment makes it: only pods are refused, of others the API server warns."""
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    metadata = {**template["metadata"], "name": "pod"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def accept(cluster: Cluster, text: str, namespace: str) -> None:
    """Applies objects on the server's side without storing them, and a pod of their Deployment."""
    objects = [item for item in yaml.safe_load_all(text) if item]
    for item in objects:
        item["metadata"].pop("namespace", None)
    said = cluster.apply(objects, "--dry-run=server", "-n", namespace)
    assert "Warning" not in said
    pod = pod_of(objects)
    account = pod["spec"].pop("serviceAccountName")  # it exists in the dry run only
    assert account == "aidbox"
    assert "Warning" not in cluster.apply([pod], "--dry-run=server", "-n", namespace)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_accepted(cluster: Cluster, overlay: str) -> None:
    """By a cluster with the driver and nothing else: there is no Prometheus operator here."""
    assert "podmonitors" not in cluster.kubectl("api-resources")
    with cluster.namespace(f"overlay-{overlay}") as namespace:
        accept(
            cluster,
            cluster.kubectl("kustomize", f"{ROOT}/kubernetes/overlays/{overlay}"),
            namespace,
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_class_is_applied_before_the_pod(cluster: Cluster, overlay: str) -> None:
    """A pod whose class does not exist yet waits for the kubelet to try again."""
    text = cluster.kubectl("kustomize", f"{ROOT}/kubernetes/overlays/{overlay}")
    kinds = [item["kind"] for item in yaml.safe_load_all(text)]
    assert kinds.index("SecretProviderClass") < kinds.index("Deployment") == len(kinds) - 1


def test_the_pod_monitor(cluster: Cluster, tmp_path: Path) -> None:
    """Its component is accepted where the Prometheus operator's definitions are."""
    with open(f"{cluster.programs}/deploy/podmonitors.yaml") as file:
        definition = file.read()
    relative = os.path.relpath(f"{ROOT}/kubernetes", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{relative}/overlays/vault]\ncomponents: [{relative}/components/pod-monitor]\n"
    )
    cluster.apply(definition)
    try:
        cluster.kubectl(
            "wait", "--for=condition=established", "crd/podmonitors.monitoring.coreos.com"
        )
        with cluster.namespace("monitored") as namespace:
            text = cluster.kubectl("kustomize", str(tmp_path))
            assert "kind: PodMonitor" in text
            accept(cluster, text, namespace)
    finally:
        cluster.kubectl("delete", "crd", "podmonitors.monitoring.coreos.com")


def test_pod_security_refuses(cluster: Cluster) -> None:
    """The check is one: without the securityContext of Aidbox the pod is refused."""
    objects = list(
        yaml.safe_load_all(cluster.kubectl("kustomize", f"{ROOT}/kubernetes/overlays/vault"))
    )
    pod = pod_of(objects)
    del pod["spec"]["serviceAccountName"]
    del pod["spec"]["containers"][0]["securityContext"]
    with cluster.namespace("refused") as namespace, pytest.raises(AssertionError) as refused:
        cluster.apply([pod], "--dry-run=server", "-n", namespace)
    assert 'violates PodSecurity "restricted' in str(refused.value)
