"""Provision entries with manifests, for tests of what they say together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syncd.config.auth import TokenFile
from syncd.config.settings import Provision

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = """\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: NAME}
spec:
  provider: vault
  parameters:
    vaultCACertPath: /manifest-ca.pem
    objects: |
      - {objectName: OBJECT, secretPath: p, secretKey: k}
"""
AZURE = """\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: NAME}
spec:
  provider: azure
  parameters:
    keyvaultName: kv-1
    objects: |
      array:
        - |
          {objectName: key-vault, objectType: secret}
"""
TOKEN = TokenFile(token_file="/token")


def manifest(directory: Path, name: str = "app", content: str | None = None) -> str:
    file = directory / f"{name}.yaml"
    file.write_text(content or MANIFEST.replace("NAME", name).replace("OBJECT", name))
    return str(file)


def entry(directory: Path, name: str = "app", **options: Any) -> Provision:
    fields: dict[str, Any] = {"manifest": manifest(directory, name), "auth": TOKEN}
    fields["target"] = str(directory / "target")
    return Provision(**fields | options)
