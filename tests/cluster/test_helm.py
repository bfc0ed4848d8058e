"""syncd beside Aidbox in a Helm chart, whose site has lists of its own.

The chart is ours, with the keys and the list semantics of the vendor's.
"""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.cluster.certificates import ADDRESS
from support.cluster.cluster import LONG
from support.cluster.node import VAULT
from support.cluster.product import Hook, Product
from support.documents import commands
from support.sources import ROOT
from support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from support.cluster.cluster import Cluster

CHART = f"{ROOT}/tests/cluster/chart"
RESTRICTED = {
    "runAsUser": 1000,
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
SITE: dict[str, Any] = {
    "extraEnvs": [{"name": "BOX_INIT_BUNDLE", "value": "/bundle/init.json"}],
    "volumes": [{"name": "bundle", "configMap": {"name": "bundle"}}],
    "volumeMounts": [{"name": "bundle", "mountPath": "/bundle"}],
    "podLabels": {"team": "records"},
    "initContainers": [
        {
            "name": "migrate",
            "image": "healthsamurai/aidboxone:2605",
            "command": ["test", "-e", "/bundle/init.json"],
            "securityContext": RESTRICTED,
            "volumeMounts": [{"name": "bundle", "mountPath": "/bundle"}],
        }
    ],
}
ROOTED: dict[str, Any] = {
    **SITE,
    "initContainers": [{"name": "chown", "image": "syncd:0.1.0", "command": ["id"]}],
    "extraContainers": "- name: envoy\n  image: healthsamurai/aidboxone:2605\n"
    "  env: [{name: BOX_WEB_PORT, value: '8081'}]\n  securityContext: {runAsUser: 0}\n",
}


@pytest.fixture
def kubernetes(cluster: Cluster, tmp_path: Path) -> str:
    """The manifests as a site has adapted them; the receiver's name is its address here."""
    shutil.copytree(f"{ROOT}/kubernetes", tmp_path / "kubernetes")
    path = tmp_path / "kubernetes/components/syncd/syncd.yaml"
    path.write_text(path.read_text().replace("secret-events", ADDRESS))
    return f"{tmp_path}/kubernetes"


@pytest.fixture(params=["plain", "umbrella"])
def chart(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> tuple[str, str]:
    """A chart, and what it calls Aidbox's: itself, or one that has it by another name."""
    if request.param == "plain":
        return CHART, "aidbox"
    umbrella = tmp_path / "umbrella"
    umbrella.mkdir()
    dependency = {"name": "aidbox", "version": "0.2.18", "alias": "fhir"}
    dependency["repository"] = f"file://{CHART}"
    head = {"apiVersion": "v2", "name": "site", "version": "1.0.0", "dependencies": [dependency]}
    (umbrella / "Chart.yaml").write_text(yaml.safe_dump(head))
    helm(cluster, "dependency", "build", str(umbrella))
    return str(umbrella), "fhir"


def helm(cluster: Cluster, *command: str) -> str:
    """Runs Helm with the cluster's configuration."""
    return cluster.user(shlex.join(["helm", *command]), "/")


def options(
    chart: tuple[str, str], kubernetes: str, values: dict[str, Any], place: Path
) -> list[str]:
    path, name = chart
    if name != "aidbox":
        values = {name: values}
    (place / "values.yaml").write_text(yaml.safe_dump(values))
    renderer = ["--post-renderer", f"{kubernetes}/helm/post-renderer"]
    arguments = [] if name == "aidbox" else ["--post-renderer-args", name]
    return [path, "-f", f"{place}/values.yaml", *renderer, *arguments]


def pod_of(text: str) -> dict[str, Any]:
    objects = [item for item in yaml.safe_load_all(text) if item]
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    template: dict[str, Any] = deployment["spec"]["template"]
    return template


def names(items: list[dict[str, Any]]) -> list[str]:
    return [item["name"] for item in items]


def class_for(cluster: Cluster) -> dict[str, Any]:
    with open(f"{ROOT}/kubernetes/overlays/vault/secret-provider-class.yaml") as file:
        class_: dict[str, Any] = yaml.safe_load(file)
    parameters = class_["spec"]["parameters"]
    parameters |= {"vaultAddress": VAULT, "vaultCACertPath": f"{cluster.directory}/ca.crt"}
    return class_


def test_a_site_with_lists_of_its_own(
    cluster: Cluster, chart: tuple[str, str], kubernetes: str, tmp_path: Path
) -> None:
    """Installed in a restricted namespace, both it and syncd get what they need; it rotates."""
    bundle = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bundle"}}
    namespace = f"helm-{chart[1]}"
    cluster.write("client", **{"client-secret": "first"})
    with Hook(cluster) as hook, cluster.namespace(namespace):
        objects = [class_for(cluster), {**bundle, "data": {"init.json": "{}"}}]
        cluster.apply(objects, "-n", namespace)
        install = options(chart, kubernetes, SITE, tmp_path)
        helm(cluster, "install", "box", *install, "-n", namespace)
        product = Product(cluster, namespace, "app.kubernetes.io/instance=box")
        wait_until(lambda: product.get("pods")["items"], product.describe)
        product.wait_ready()
        spec = product.pod["spec"]
        assert names(spec["initContainers"]) == ["syncd", "syncd-wait", "migrate"]
        (aidbox,) = spec["containers"]
        assert {"BOX_VAULT_CONFIG", "BOX_INIT_BUNDLE"} == set(names(aidbox["env"]))
        assert product.pod["metadata"]["labels"]["team"] == "records"
        assert spec["serviceAccountName"] == "aidbox"
        cluster.write("client", **{"client-secret": "second"})
        wait_until(hook.events, product.describe, LONG)
        assert len(hook.events()) == 1
        config = f"{kubernetes}/components/syncd/vault-config.json"
        with open(config) as file:
            text = file.read()
        with open(config, "w") as file:
            file.write(text.replace("my-client", "other-client"))
        before = product.pod["metadata"]["name"]
        helm(cluster, "upgrade", "box", *install, "-n", namespace)
        wait_until(lambda: product.pod["metadata"]["name"] != before, product.describe, LONG)
        product.wait_ready()
        helm(cluster, "uninstall", "box", "-n", namespace)


def test_the_guide(cluster: Cluster, kubernetes: str, tmp_path: Path) -> None:
    """The commands of docs/install.md, with our chart for the vendor's."""
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"replicaCount": 0}))
    (script,) = commands("docs/install.md", "helm")
    assert "healthsamurai/aidbox " in script
    script = script.replace("healthsamurai/aidbox ", f"{CHART} ")
    with cluster.namespace("guide") as namespace:
        cluster.user(f"kubectl config set-context --current --namespace={namespace}", "/")
        try:
            assert "deployed" in cluster.user(script, str(tmp_path))
        finally:
            cluster.user("kubectl config set-context --current --namespace=default", "/")
        applied = cluster.get("-n", namespace, "deployment,networkpolicy,serviceaccount")["items"]
        kinds = {item["kind"] for item in applied if item["metadata"]["name"] != "default"}
        assert kinds == {"Deployment", "NetworkPolicy", "ServiceAccount"}


def test_containers_that_run_as_root(
    cluster: Cluster, chart: tuple[str, str], kubernetes: str, tmp_path: Path
) -> None:
    """The vendor's Envoy and init containers keep their rights: none is set for the pod."""
    install = options(chart, kubernetes, ROOTED, tmp_path)
    text = helm(cluster, "template", "box", *install)
    spec = pod_of(text)["spec"]
    assert "runAsNonRoot" not in (spec.get("securityContext") or {})
    assert names(spec["initContainers"]) == ["syncd", "syncd-wait", "chown"]
    assert "securityContext" not in spec["initContainers"][-1]
    assert names(spec["containers"]) == [chart[1], "envoy"]
    assert spec["containers"][1]["securityContext"] == {"runAsUser": 0}
    said = cluster.apply(text, "--dry-run=server", "-n", "default")
    assert "networkpolicy.networking.k8s.io/syncd" in said


def test_fragments_that_are_merged_by_hand(
    cluster: Cluster, kubernetes: str, tmp_path: Path
) -> None:
    """They make the same pod as the post-renderer, and are harmless as a values file."""
    with open(f"{kubernetes}/helm/fragments.yaml") as file:
        fragments = yaml.safe_load(file)
    as_values = f"{kubernetes}/helm/fragments.yaml"
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(SITE))
    plain = helm(cluster, "template", "box", CHART, "-f", f"{tmp_path}/site.yaml")
    both = helm(cluster, "template", "box", CHART, "-f", f"{tmp_path}/site.yaml", "-f", as_values)
    assert both == plain
    merged = dict(SITE)
    for key, value in fragments["fragments"].items():
        mine = merged.get(key)
        merged[key] = (
            [*value, *(mine or [])] if isinstance(value, list) else {**(mine or {}), **value}
        )
    (tmp_path / "merged.yaml").write_text(yaml.safe_dump(merged))
    by_hand = pod_of(helm(cluster, "template", "box", CHART, "-f", f"{tmp_path}/merged.yaml"))
    rendered = pod_of(
        helm(cluster, "template", "box", *options((CHART, "aidbox"), kubernetes, SITE, tmp_path))
    )
    for volume in rendered["spec"]["volumes"]:  # names with a hash, which makes new pods
        for name in ("aidbox-vault-config", "syncd"):
            if volume.get("configMap", {}).get("name", "").startswith(f"{name}-"):
                volume["configMap"]["name"] = name
    assert by_hand == rendered


def test_a_name_that_the_chart_does_not_have(
    cluster: Cluster, kubernetes: str, tmp_path: Path
) -> None:
    """The post-renderer refuses: otherwise the release would be without syncd, in silence."""
    command = options((CHART, "aidbox"), kubernetes, SITE, tmp_path)
    with pytest.raises(AssertionError) as refused:
        helm(cluster, "template", "box", *command, "--post-renderer-args", "fhir")
    assert "has no container 'fhir'" in str(refused.value)
