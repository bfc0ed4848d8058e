"""Volumes of the kubelet: Secret, ConfigMap, projected; and subPath, which never changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from support.cluster.certificates import ADDRESS
from support.cluster.cluster import LONG
from support.cluster.product import Hook, Product
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.cluster.cluster import Cluster

VOLUMES: dict[str, dict[str, Any]] = {
    "secret": {"secret": {"secretName": "values"}},
    "config-map": {"configMap": {"name": "values"}},
    "projected": {"projected": {"sources": [{"secret": {"name": "values"}}]}},
}
RESTRICTED = {
    "runAsUser": 65532,
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def objects(value: str) -> list[dict[str, Any]]:
    metadata = {"name": "values"}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"key": value}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"key": value}},
    ]


def pod() -> list[dict[str, Any]]:
    """syncd alone in a pod, with a volume of each kind, and one by subPath."""
    places = {name: f"/run/volumes/{name}/key" for name in VOLUMES} | {
        "sub-path": "/run/single/key"
    }
    scope = {"resource_type": "Client"}
    entries = {name: {"path": path, "scope": scope} for name, path in places.items()}
    settings = {
        "vault_config": "/etc/syncd/vault-config.json",
        "consumers": [{"name": "hook", "kind": "webhook", "url": f"http://{ADDRESS}:9000/"}],
    }
    data = {
        "vault-config.json": json.dumps({"secret": entries}),
        "syncd.yaml": json.dumps(settings),
    }
    mounts = [{"name": name, "mountPath": f"/run/volumes/{name}"} for name in VOLUMES]
    mounts += [
        {"name": "secret", "mountPath": "/run/single/key", "subPath": "key"},
        {"name": "settings", "mountPath": "/etc/syncd"},
        {"name": "state", "mountPath": "/var/lib/syncd"},
    ]
    container = {
        "name": "syncd",
        "image": "syncd:0.1.0",
        "env": [
            {"name": "SYNCD_CONFIG", "value": "/etc/syncd/syncd.yaml"},
            {"name": "SYNCD_STATE_DIR", "value": "/var/lib/syncd/state"},
        ],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 9753}, "periodSeconds": 1},
        "securityContext": RESTRICTED,
        "volumeMounts": mounts,
    }
    volumes: list[dict[str, Any]] = [{"name": name, **source} for name, source in VOLUMES.items()]
    volumes += [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "state", "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}},
    ]
    spec = {"containers": [container], "volumes": volumes}
    metadata = {"name": "volumes", "labels": {"app": "volumes"}}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": data},
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
    ]


def test_volumes_of_the_kubelet(cluster: Cluster) -> None:
    """An update of the object is an event of each; the one by subPath is reported by `check`."""
    with Hook(cluster) as hook, cluster.namespace("volumes") as namespace:
        cluster.apply([*objects("0"), *pod()], "-n", namespace)
        product = Product(cluster, namespace, "app=volumes")
        product.wait_ready()
        cluster.apply(objects("1"), "-n", namespace)
        wait_until(lambda: len(hook.events()) >= len(VOLUMES), product.describe, LONG)
        assert {event["subject"] for event in hook.events()} == set(VOLUMES)
        said = product.kubectl(
            "exec", "volumes", "--", "python3", "-m", "syncd", "check", check=False
        )
        table = product.kubectl("exec", "volumes", "--", "cat", "/proc/self/mountinfo").splitlines()
        (line,) = (line.split() for line in table if " /run/single/key " in line)
        assert line[3].endswith("//deleted")
        assert "subPath" in said
        assert "/run/single/key" in said
