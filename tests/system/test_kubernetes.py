"""The manifests: what kustomize makes of them, against the schemas of Kubernetes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.documents import commands
from support.machine import step

from syncd import __version__
from syncd.config.settings import Settings
from syncd.config.validation import check_section
from syncd.core.decode import decode
from syncd.core.vault_config import lint_vault_config
from syncd.core.yaml_text import parse_yaml
from syncd.provision.manifest import decode_manifests
from syncd.provision.vault.objects import decode_vault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
BIN = os.path.dirname(sys.executable)
CUSTOM = {"ExternalSecret", "PodMonitor", "SecretProviderClass"}
"""Kinds whose schemas are not Kubernetes' own."""

CHART = {
    *("affinity", "auditbox", "autoscaling", "config", "deploymentAnnotations", "extraContainers"),
    *("extraEnvFromConfigMaps", "extraEnvFromSecrets", "extraEnvs", "fullnameOverride", "host"),
    *("image", "imagePullSecrets", "ingress", "initContainers", "labels", "livenessProbe"),
    *("nameOverride", "nodeSelector", "podAnnotations", "podDisruptionBudget", "podLabels"),
    *("podSecurityContext", "protocol", "readinessProbe", "replicaCount", "resources", "route"),
    *("securityContext", "service", "serviceAccount", "serviceMonitor", "startupProbe"),
    *("tolerations", "topologySpreadConstraints", "updateStrategy", "volumeMounts", "volumes"),
}
"""Keys of values.yaml in the chart aidbox 0.2.x of HealthSamurai/helm-charts."""


@pytest.fixture(autouse=True)
def _tools(need: Callable[..., None]) -> None:
    need("kubectl", "kubernetes-validate")


def run(command: str) -> str:
    path = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def validate(documents: str, path: Path) -> list[dict[str, Any]]:
    """Checks what Kubernetes knows against its schema, strictly; returns everything."""
    objects = list(yaml.safe_load_all(documents))
    known = [item for item in objects if item["kind"] not in CUSTOM]
    file = path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(known))
    said = run(f"kubernetes-validate --strict {file}")
    assert said.count(" passed ") == len(known), said
    return objects


def of(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


def check_pod(spec: dict[str, Any], volumes: set[str]) -> None:
    """Our containers: order, rights, probes, limits, mounts."""
    sidecar, waiting = spec["initContainers"]
    assert (sidecar["name"], waiting["name"]) == ("syncd", "syncd-wait")
    assert sidecar["restartPolicy"] == "Always"
    assert "restartPolicy" not in waiting
    assert waiting["args"][0] == "wait"
    assert {"livenessProbe", "startupProbe"} <= sidecar.keys()
    assert "readinessProbe" not in sidecar  # a native sidecar's is the pod's
    # other containers of the pod may run as root
    assert "securityContext" not in spec
    for container in (sidecar, waiting):
        context = container["securityContext"]
        assert context["runAsUser"] == context["runAsGroup"] == 65532
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"] == {"cpu": "10m", "memory": "48Mi"}
        assert container["resources"]["limits"]["memory"] == "128Mi"
        assert container["image"] == f"syncd:{__version__}"
        for mount in container["volumeMounts"]:
            assert mount["name"] in volumes
            assert "subPath" not in mount


@pytest.mark.parametrize("overlay", ["vault", "azure"])
def test_an_overlay(overlay: str, tmp_path: Path) -> None:
    """What the documentation applies is valid, and its pod is as it should be."""
    shown = [*commands("README.md", "kubernetes"), *commands("docs/install.md", "kubernetes")]
    (command,) = (text for text in shown if f"overlays/{overlay}" in text)
    step(command.strip())
    objects = validate(run(command.replace(" | kubectl apply -f -", "")), tmp_path)
    deployment = of(objects, "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    check_pod(spec, set(volumes))
    (aidbox,) = spec["containers"]
    assert {"name": "BOX_VAULT_CONFIG", "value": "/etc/aidbox/vault-config.json"} in aidbox["env"]
    assert aidbox["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    secrets = of(objects, "SecretProviderClass")
    assert secrets["spec"]["provider"] == overlay
    attributes = volumes["vault-secrets"]["csi"]["volumeAttributes"]
    assert attributes == {"secretProviderClass": secrets["metadata"]["name"]}
    with open(f"{ROOT}/kubernetes/components/pod-monitor/pod-monitor.yaml") as file:
        monitor = yaml.safe_load(file)["spec"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for item in spec["initContainers"] for port in item.get("ports", ())}
    assert {item["port"] for item in monitor["podMetricsEndpoints"]} <= ports
    selected = of(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert selected.items() <= labels.items()
    check_configuration(objects)


def test_external_secrets(tmp_path: Path) -> None:
    """The volume is the Secret that the operator writes, in the place of the CSI driver's."""
    (command,) = (c for c in commands("docs/install.md", "kubernetes") if "external-secrets" in c)
    step(command.strip())
    objects = validate(run(command.replace(" | kubectl apply -f -", "")), tmp_path)
    spec = of(objects, "Deployment")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    check_pod(spec, set(volumes))
    target = of(objects, "ExternalSecret")["spec"]["target"]["name"]
    assert volumes["vault-secrets"] == {"name": "vault-secrets", "secret": {"secretName": target}}
    assert all(item["kind"] != "SecretProviderClass" for item in objects)


def check_configuration(objects: list[dict[str, Any]]) -> None:
    """Vault config, manifest and syncd's configuration go together."""
    maps = [item["data"] for item in objects if item["kind"] == "ConfigMap"]
    data = {name: text for item in maps for name, text in item.items()}
    (tree,) = parse_yaml(data["syncd.yaml"].encode())
    settings, problems = decode(tree, Settings, check_section)
    assert not problems
    assert settings is not None
    entries, findings = lint_vault_config(data["vault-config.json"].encode(), "vault-config.json")
    assert not findings
    secrets = of(objects, "SecretProviderClass")
    text = yaml.safe_dump(secrets).encode()
    (manifest,), findings = decode_manifests(text, "secret-provider-class.yaml")
    assert not findings
    names = {entry.path.removeprefix("/run/vault-secrets/") for entry in entries.values()}
    if manifest.provider == "vault":
        decoded, findings = decode_vault(manifest)
        assert not findings
        assert decoded is not None
        assert set(decoded.paths) == names
    else:
        objects_ = yaml.safe_load(secrets["spec"]["parameters"]["objects"])["array"]
        assert {yaml.safe_load(item)["objectName"] for item in objects_} == names


def test_the_components_for_repair(tmp_path: Path) -> None:
    """Rights for named objects, for one ServiceAccount; a token for syncd alone."""
    relative = os.path.relpath(f"{ROOT}/kubernetes", tmp_path)
    components = ", ".join(f"{relative}/components/{name}" for name in ("repair", "rollout"))
    (tmp_path / "kustomization.yaml").write_text(
        f"namespace: hospital\nresources: [{relative}/overlays/vault]\ncomponents: [{components}]\n"
    )
    objects = validate(run(f"kubectl kustomize {tmp_path}"), tmp_path)
    spec = of(objects, "Deployment")["spec"]["template"]["spec"]
    check_pod(spec, {volume["name"] for volume in spec["volumes"]})
    assert spec["automountServiceAccountToken"] is False
    mounted = [
        container["name"]
        for container in (*spec["initContainers"], *spec["containers"])
        for mount in container["volumeMounts"]
        if mount["name"] == "syncd-token"
    ]
    assert mounted == ["syncd"]
    roles = {item["metadata"]["name"]: item for item in objects if item["kind"] == "Role"}
    assert sorted(roles) == ["syncd-repair", "syncd-rollout"]
    for role in roles.values():
        for rule in role["rules"]:
            assert rule["verbs"] == ["create"] or len(rule["resourceNames"]) == 1
    for item in objects:
        if item["kind"] == "RoleBinding":
            (subject,) = item["subjects"]
            assert (subject["name"], subject["namespace"]) == ("aidbox", "hospital")
            assert item["roleRef"]["name"] in roles


def test_the_fragments_for_the_chart(tmp_path: Path) -> None:
    """They use keys that the chart has, below one that it does not know."""
    with open(f"{ROOT}/kubernetes/helm/fragments.yaml") as file:
        (top, values), *others = yaml.safe_load(file).items()
    assert (top in CHART, others) == (False, [])
    assert values.keys() <= CHART
    container = {"name": "aidbox", "image": "aidbox", "env": values["extraEnvs"]}
    container |= {key: values[key] for key in ("volumeMounts", "securityContext")}
    spec = {"containers": [container], "initContainers": values["initContainers"]}
    spec["volumes"] = values["volumes"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "aidbox"}, "spec": spec}
    validate(yaml.safe_dump(pod), tmp_path)
    check_pod(spec, {volume["name"] for volume in values["volumes"]})
    with open(f"{ROOT}/kubernetes/components/syncd/sidecar.yaml") as file:
        same = yaml.safe_load(file)["spec"]["template"]["spec"]["initContainers"]
    for ours, theirs in zip(values["initContainers"], same, strict=True):
        assert {**ours, "image": ""} == {**theirs, "image": ""}


def test_what_the_schemas_refuse(tmp_path: Path) -> None:
    """The validation is one: a misspelt key does not pass."""
    text = run("kubectl kustomize kubernetes/overlays/vault")
    with pytest.raises(AssertionError):
        validate(text.replace("readOnlyRootFilesystem", "readonlyRootFilesystem"), tmp_path)
