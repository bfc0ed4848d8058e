"""The guide to provisioning from Vault and OpenBao: every command in it runs as written."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.openbao import free_ports

from syncd.core.decode import decode
from syncd.core.tree import parse_yaml
from syncd.providers.auth import VaultAuth
from syncd.providers.vault_objects import _KEYS, _PREFIXED
from syncd.settings import Provision

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
with open(f"{ROOT}/docs/provisioning-vault.md") as _file:
    PAGE = _file.read()
TUTORIAL = PAGE[PAGE.index("## Tutorial") : PAGE.index("## On a real VM")]
REFERENCE = PAGE[PAGE.index("## Reference") :]


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks: language and content."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    """One shell runs all commands in order; what the page shows is in their output, in order."""
    script, expected = "set -eu\n", []
    for language, content in blocks(TUTORIAL):
        if language == "sh":
            script += content
        else:
            expected += content.splitlines()
    vault, receiver = str(free_ports()), str(free_ports())
    done = run(script.replace("8200", vault).replace("9000", receiver), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    position = 0
    for line in expected:
        wanted = line.replace("8200", vault).removesuffix("…")
        position = done.stdout.find(wanted, position)
        assert position >= 0, f"{wanted!r} is not in the output:\n{done.stdout}"
    assert not os.listdir(tmp_path)


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a shell in a process group of its own, of which nothing is left afterwards."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env={**os.environ, "PATH": path, "HOME": str(directory), "SYNCD_LOG_FORMAT": "json"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess([], process.returncode, output, errors)


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
    names = [*_KEYS, *(f"vault{name}" for name in _PREFIXED), "roleName", "audience", "objects"]
    for method in VaultAuth.__args__:
        names += [method.__struct_config__.tag, *method.__struct_fields__]
    azure_only = {"api_version", "verify_challenge_resource"}
    names += [name for name in Provision.__struct_fields__ if name not in azure_only]
    assert [name for name in names if f"`{name}`" not in REFERENCE] == []
