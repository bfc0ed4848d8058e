"""The manifests for the External Secrets Operator go together, and with syncd's.

That the kubelet's volume of a Secret is followed is shown in `tests/cluster/test_volumes.py`.
"""

from __future__ import annotations

import json
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from support.documents import REPOSITORY

from syncd.core.vault_config import decode_vault_config

OVERLAY = f"{REPOSITORY}/kubernetes/overlays/external-secrets"
COMPONENT = f"{REPOSITORY}/kubernetes/components/syncd"


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
SCHEMA = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "external-secrets.io/v1"},
    kind={"const": "ExternalSecret"},
    metadata=closed(["name"], name=TEXT),
    spec=closed(
        ["secretStoreRef", "target", "data"],
        refreshInterval={"type": "string", "pattern": "^([0-9]+(ns|us|µs|ms|s|m|h))+$"},
        secretStoreRef=closed(
            ["name"], kind={"enum": ["SecretStore", "ClusterSecretStore"]}, name=TEXT
        ),
        target=closed(["name"], name=TEXT),
        data={
            "type": "array",
            "minItems": 1,
            "items": closed(
                ["secretKey", "remoteRef"],
                secretKey={"type": "string", "pattern": "^[-._a-zA-Z0-9]+$", "maxLength": 253},
                remoteRef=closed(["key"], key=TEXT, property=TEXT, version=TEXT),
            ),
        },
    ),
)
"""What is used here of the operator's CRD (external-secrets.io/v1)."""


def load(path: str) -> Any:
    with open(path) as file:
        return yaml.safe_load(file)


def test_the_secret_has_each_file_of_the_vault_config() -> None:
    """By the operator's own schema; the Deployment's volume is of the Secret that it writes."""
    manifest = load(f"{OVERLAY}/external-secret.yaml")
    Draft202012Validator(SCHEMA).validate(manifest)
    (volume,) = load(f"{OVERLAY}/volume.yaml")["spec"]["template"]["spec"]["volumes"]
    assert volume["secret"]["secretName"] == manifest["spec"]["target"]["name"]
    sidecar = load(f"{COMPONENT}/sidecar.yaml")["spec"]["template"]["spec"]
    (replaced,) = [item for item in sidecar["volumes"] if "csi" in item]
    assert volume["name"] == replaced["name"]
    (mounted,) = {
        mount["mountPath"]
        for container in [*sidecar["initContainers"], *sidecar["containers"]]
        for mount in container["volumeMounts"]
        if mount["name"] == volume["name"]
    }
    with open(f"{COMPONENT}/vault-config.json") as file:
        entries, _ = decode_vault_config(json.dumps(json.load(file)).encode(), "x")
    assert entries is not None
    keys = {item["secretKey"] for item in manifest["spec"]["data"]}
    assert {entry.path for entry in entries.values()} == {f"{mounted}/{key}" for key in keys}
    listed = load(f"{OVERLAY}/kustomization.yaml")
    assert {"external-secret.yaml"} < set(listed["resources"])
    assert listed["patches"] == [{"path": "volume.yaml"}]
