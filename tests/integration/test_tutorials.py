"""What the vendor's tutorials have users write is accepted as it is, without a finding.

The files here have the shapes of the two tutorials (Azure Key Vault and HashiCorp Vault by the
Secrets Store CSI Driver): manifests, and vault configs with both forms of a scope.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

AZURE = """\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: aidbox-azure
  namespace: aidbox
spec:
  provider: azure
  parameters:
    usePodIdentity: "false"
    useVMManagedIdentity: "false"
    clientID: "{client_id}"
    keyvaultName: "aidbox-secrets"
    cloudName: ""
    tenantId: "00000000-0000-0000-0000-000000000001"
    objects: |
      array:
        - |
          objectName: client-secret
          objectType: secret
          objectVersion: ""
        - |
          objectName: kafka-jaas
          objectType: secret
"""
VAULT = """\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: aidbox-vault
  namespace: aidbox
spec:
  provider: vault
  parameters:
    vaultAddress: "https://vault.example.org:8200"
    roleName: "aidbox"
    objects: |
      - objectName: "client-secret"
        secretPath: "secret/data/aidbox"
        secretKey: "client-secret"
      - objectName: "kafka-jaas"
        secretPath: "secret/data/aidbox"
        secretKey: "kafka-jaas"
"""
SCOPES = {
    "client-secret": {"resource_type": "Client", "id": "my-client"},
    "kafka-jaas": {"resource_type": "AidboxTopicDestination"},
}
IDENTITY = "00000000-0000-0000-0000-000000000002"


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish(dict.fromkeys(SCOPES, b"value"))
        os.chmod(world.mount, 0o755)  # as syncd makes a target; a CSI mount has 1777
        world.map(**SCOPES)
        for name in ("token", "role-id", "secret-id"):
            with open(f"{world.directory}/{name}", "w") as file:
                file.write("value")
            os.chmod(file.name, 0o600)
        yield world


def checked(world: World, manifest: str, auth: dict[str, Any]) -> list[tuple[str, str]]:
    """Codes and places of the findings of `check --strict`, which fails if there is one."""
    with open(f"{world.directory}/secret-provider-class.yaml", "w") as file:
        file.write(manifest)
    hook = {"name": "hook", "kind": "webhook", "url": "http://127.0.0.1:9000/secret-events"}
    entry = {"manifest": file.name, "target": world.mount, "auth": auth}
    world.configure(consumers=[hook], provision=[entry])
    done = world.run("check", "-c", world.config, "--strict", "--format", "json")
    found = json.loads(done.stdout)["findings"]
    assert bool(done.returncode) is bool(found)
    return [(item["code"], item["where"]) for item in found]


def test_azure_key_vault(world: World) -> None:
    """With the identity filled in; before that, it is named."""
    auth = {"method": "workload_identity", "token_file": f"{world.directory}/token"}
    assert checked(world, AZURE.format(client_id=IDENTITY), auth) == []
    found = checked(world, AZURE.format(client_id="<IDENTITY_CLIENT_ID>"), auth)
    assert found == [("manifest-placeholder", "spec.parameters.clientID")]


def test_hashicorp_vault(world: World) -> None:
    """As on a machine without the CSI driver."""
    files = {
        f"{name}_file": f"{world.directory}/{name.replace('_', '-')}"
        for name in ("role_id", "secret_id")
    }
    assert checked(world, VAULT, {"method": "approle", **files}) == []


def test_in_a_cluster(world: World) -> None:
    """The CSI driver writes the files, and syncd is configured by the environment alone."""
    done = world.run(
        *("check", "--strict"),
        BOX_VAULT_CONFIG=world.vault_config,
        SYNCD_WEBHOOK_URL="http://127.0.0.1:9000/secret-events",
        SYNCD_STATE_DIR=world.state,
    )
    assert (done.returncode, done.stdout) == (0, "0 errors, 0 warnings\n")
