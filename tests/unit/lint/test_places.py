"""State, sockets and port, judged before the start."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from syncd.config.settings import Settings
from syncd.lint.places import check_places

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("host", ["a..example", "." + "x" * 64, "none.invalid"])
def test_a_host_to_listen_on_that_is_no_name(tmp_path: Path, host: str) -> None:
    """Whether the resolver says so or is not even asked."""
    given = {"vault_config": "/v", "state_dir": str(tmp_path), "api": {"listen": f"{host}:9753"}}
    (found,) = check_places(msgspec.convert(given, Settings), "c", None)
    assert found.code == "listen-unusable"
    assert f"{host} is not known" in found.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")
def test_the_state_of_another_user_may_be_that_of_syncds(tmp_path: Path) -> None:
    """Root that asks may not be who runs it."""
    os.chown(tmp_path, 3000, 3000)
    given = {"vault_config": "/v", "state_dir": str(tmp_path)}
    (found,) = check_places(msgspec.convert(given, Settings), "c", None)
    assert found.code == "state-unusable"
    assert found.hint.endswith("or name that user by --as if it is not root")
