"""The guide to provisioning from Vault and OpenBao: every command in it runs as written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.documents import blocks, document, follow
from support.openbao import free_ports

from syncd.config.auth import VaultAuth
from syncd.config.settings import Provision
from syncd.core.decode import decode
from syncd.core.yaml_text import parse_yaml
from syncd.provision.vault.objects import _PREFIXED, _Object

if TYPE_CHECKING:
    from pathlib import Path

PAGE = document("docs/provisioning-vault.md")
TUTORIAL = PAGE[PAGE.index("## Tutorial") : PAGE.index("## On a real VM")]
REFERENCE = PAGE[PAGE.index("## Reference") :]


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    """One shell runs all commands in order; what the page shows is in their output, in order."""
    follow(TUTORIAL, tmp_path, {"8200": str(free_ports()), "9000": str(free_ports())})


@pytest.mark.parametrize("text", [c for language, c in blocks(REFERENCE) if language == "yaml"])
def test_every_example_of_a_login_is_valid(text: str) -> None:
    """As part of a provision entry."""
    (tree,) = parse_yaml(text.encode())
    entry, problems = decode({"manifest": "/m", "target": "/t", **tree}, Provision)
    assert not problems
    assert entry is not None
    assert isinstance(entry.auth, VaultAuth)


def test_every_key_is_explained() -> None:
    """Object keys, parameters, and keys of the entry and the logins."""
    names = [*_Object.__struct_encode_fields__, *(f"vault{name}" for name in _PREFIXED)]
    names += ["roleName", "audience", "objects"]
    for method in VaultAuth.__args__:
        names += [method.__struct_config__.tag, *method.__struct_fields__]
    azure_only = {"api_version", "verify_challenge_resource"}
    names += [name for name in Provision.__struct_fields__ if name not in azure_only]
    assert [name for name in names if f"`{name}`" not in REFERENCE] == []
