"""Provisioning by the real daemon from Azure Key Vault: new version, swap, event."""

from __future__ import annotations

import json
import pathlib
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.azure import Azure, answer
from support.receiver import Receiver
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator

AIDBOX_MANIFEST = """\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: aidbox-azure-secrets
spec:
  provider: azure
  parameters:
    usePodIdentity: "false"
    useVMManagedIdentity: "true"
    userAssignedIdentityID: "<IDENTITY_CLIENT_ID>"
    keyvaultName: "my-key-vault"
    tenantId: "<your-tenant-id>"
    cloudName: "AzurePublicCloud"
    objects: |
      array:
        - |
          objectName: client-secret
          objectType: secret
"""


@pytest.fixture
def azure(tmp_path: pathlib.Path) -> Iterator[Azure]:
    with Azure(tmp_path) as azure:
        azure.identities = {"<IDENTITY_CLIENT_ID>": azure.identities[None]}
        azure.set_secret("client-secret", secret("1").decode())
        yield azure


def configure(world: World, azure: Azure, receiver: Receiver, **more: Any) -> str:
    target = f"{world.directory}/provisioned"
    manifest = pathlib.Path(f"{world.directory}/secret-provider-class.yaml")
    manifest.write_text(AIDBOX_MANIFEST)
    entry = {
        "manifest": str(manifest),
        "target": target,
        "interval": "2s",
        "vault_url": azure.url,
        "ca_file": str(azure.authority.file),
        "verify_challenge_resource": False,
        **more,
    }
    world.map(paths={"client-secret": f"{target}/client-secret"})
    world.configure(
        provision=[entry],
        consumers=[{"name": "hook", "kind": "webhook", "url": receiver.url}],
    )
    return f"{target}/client-secret"


def test_a_new_version_reaches_file_and_webhook_within_the_interval(
    world: World, azure: Azure
) -> None:
    """The manifest of Aidbox's documentation, unchanged; one event, in time."""
    with Receiver() as receiver:
        path = configure(world, azure, receiver)
        with world.daemon(AZURE_POD_IDENTITY_AUTHORITY_HOST=azure.imds):
            assert pathlib.Path(path).read_bytes() == secret("1")
            azure.set_secret("client-secret", secret("2").decode())
            put = time.monotonic()
            (request,) = receiver.wait(1)
            took = time.monotonic() - put
            (event,) = request.events
            assert pathlib.Path(path).read_bytes() == secret("2")
    assert event["data"]["secret"] == "client-secret"
    assert event["data"]["change"] == "modified"
    assert event["data"]["scope"] == {"resource_type": "Client", "id": "client-secret"}
    assert took < 2 * 1.1 + 10  # the interval, its jitter, and a busy machine
    assert len(azure.logins) == 1


def test_a_vault_that_denies_leaves_the_files_and_recovers_by_itself(
    world: World, azure: Azure
) -> None:
    """One clear line once, the old file stays, and no restart is needed."""
    with Receiver() as receiver:
        path = configure(world, azure, receiver, interval="500ms")
        with world.daemon(AZURE_POD_IDENTITY_AUTHORITY_HOST=azure.imds) as daemon:
            azure.fault(*[answer(403, "Forbidden", "ForbiddenByRbac")] * 2)
            refused = daemon.wait_for("provision.refused")
            assert refused["reason"].endswith(
                "assign the role Key Vault Secrets User to the identity"
            )
            assert pathlib.Path(path).read_bytes() == secret("1")
            azure.set_secret("client-secret", secret("2").decode())
            receiver.wait(1)
            assert len(daemon.logged("provision.refused", level="error")) == 1
            assert pathlib.Path(path).read_bytes() == secret("2")


def test_check_covers_the_manifest(world: World, azure: Azure) -> None:
    """Clean once it is filled in; what is left to fill in, or a slip of the pen, is located."""
    with Receiver() as receiver:
        configure(world, azure, receiver)
    pathlib.Path(f"{world.directory}/provisioned").mkdir()
    pathlib.Path(f"{world.directory}/provisioned/client-secret").write_bytes(b"x")
    manifest = pathlib.Path(f"{world.directory}/secret-provider-class.yaml")

    def about_it() -> list[tuple[str, str]]:
        done = world.run("check", "-c", world.config, "--format", "json")
        return [
            (item["code"], item["where"])
            for item in json.loads(done.stdout)["findings"]
            if item["code"].startswith(("manifest", "provision-in"))
        ]

    assert about_it() == [
        ("manifest-placeholder", "spec.parameters.userAssignedIdentityID"),
        ("manifest-placeholder", "spec.parameters.tenantId"),
    ]
    filled = re.sub("<[^>]+>", "a-value", AIDBOX_MANIFEST)
    manifest.write_text(filled)
    assert about_it() == []
    manifest.write_text(filled.replace("objectType: secret", "objectType: secrets"))
    done = world.run("check", "-c", world.config)
    assert done.returncode == 1
    assert "spec.parameters.objects.array[0].objectType: is not known" in done.stdout
