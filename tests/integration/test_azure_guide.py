"""The guide to provisioning from Azure Key Vault: every command in it runs as written."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from support.azure import Azure
from support.documents import REPOSITORY, blocks, document, follow

from syncd.config.auth import AzureAuth
from syncd.config.settings import Provision
from syncd.core.decode import decode
from syncd.core.yaml_text import parse_yaml
from syncd.provision.azure.objects import _CLOUDS, _PARAMETERS, _Object

if TYPE_CHECKING:
    from pathlib import Path

PAGE = document("docs/provisioning-azure.md")
TUTORIAL = PAGE[PAGE.index("## Tutorial") : PAGE.index("## Reference")]
REFERENCE = PAGE[PAGE.index("## Reference") :]


def test_the_tutorial_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shell runs all commands in order, against a fake that stands in for the cloud."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "work").mkdir()
    az = tmp_path / "tools" / "az"
    az.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY}/tests/support/az.py "$@"\n')
    az.chmod(0o755)
    with Azure(tmp_path) as azure:
        monkeypatch.setenv("FAKE", f"{azure.imds}/control")
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.imds)
        monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
        fake = f"    vault_url: {azure.url}\n    ca_file: {azure.authority.file}\n"
        fake += "    verify_challenge_resource: false\n"
        here = "    interval: 5s\n"
        assert TUTORIAL.count(here) == 1
        follow(TUTORIAL, tmp_path / "work", {here: here + fake})
    (role,) = [item for item in azure.told if item["command"] == "role assignment create"]
    assert role["role"] == "Key Vault Secrets User"
    assert role["assignee-object-id"] == "the-principalId-of-my-vm"
    assert role["scope"] == "the-id-of-my-aidbox-vault"


@pytest.mark.parametrize("text", [c for language, c in blocks(REFERENCE) if language == "yaml"])
def test_every_example_of_an_identity_is_valid(text: str) -> None:
    """As part of a provision entry."""
    (tree,) = parse_yaml(text.encode())
    entry, problems = decode({"manifest": "/m", "target": "/t", **tree}, Provision)
    assert not problems
    assert entry is not None
    assert isinstance(entry.auth, AzureAuth)


def test_every_key_is_explained() -> None:
    """Object keys, parameters, clouds, and keys of the entry and the identities."""
    names = [*_Object.__struct_encode_fields__, *_PARAMETERS, *_CLOUDS]
    names += Provision.__struct_fields__
    for method in AzureAuth.__args__:
        names += [str(method.__struct_config__.tag), *method.__struct_fields__]
    assert [name for name in names if f"`{name}`" not in REFERENCE] == []
