"""A pod whose secrets are not complete: `syncd wait` keeps Aidbox from starting, and says why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import yaml
from support.cluster.cluster import LONG
from support.cluster.product import Product, class_of, render, vault_config
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.cluster.cluster import Cluster


def test_a_missing_secret_is_named(cluster: Cluster) -> None:
    """Its log names the secret at once; when the class has it, Aidbox starts."""
    cluster.write("app", present="0", late="0")
    files = {"class_": class_of("present"), "vault_config": vault_config("present", "late")}
    with cluster.namespace("incomplete") as namespace:
        cluster.apply(render(cluster, namespace, **files))
        product = Product(cluster, namespace, "app.kubernetes.io/name=aidbox")
        wait_until(lambda: product.get("pods")["items"], product.describe)

        def log() -> str:
            name = product.pod["metadata"]["name"]
            return product.kubectl("logs", name, "-c", "syncd-wait", check=False)

        wait_until(lambda: "late" in log(), product.describe, LONG)
        assert "waiting" in product.container("aidbox")["state"]
        spec = yaml.safe_load(class_of("present", "late"))["spec"]
        patch = {"spec": {"parameters": {"objects": spec["parameters"]["objects"]}}}
        name = "secretproviderclass/aidbox-secrets"
        product.kubectl("patch", name, "--type=merge", "-p", json.dumps(patch))
        product.wait_ready()
