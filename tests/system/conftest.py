"""What the tests on whole systems need: tools, a Debian tree, wheels; each made or fetched once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from support import sources
from support.machine import debian_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def need() -> Callable[..., None]:
    """Skips, with the reason, where tools are missing; fails where they could be installed."""
    return partial(sources.need, "tests/system/prepare")


@pytest.fixture(scope="session")
def tree(need: Callable[..., None]) -> str:
    """A Debian tree with systemd and Python; not to be written to."""
    need("debootstrap")
    return debian_tree()


@pytest.fixture(scope="session")
def wheels() -> str:
    """A directory with the wheels of requirements.lock for the tree's Python."""
    return sources.wheels()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a user has after `git clone`: every file that git knows or would know."""
    target = f"{tmp_path_factory.mktemp('checkout')}/syncd"
    sources.copy_checkout(target)
    return target


@pytest.fixture(scope="session")
def release(need: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit, of which a release was made: see its `dist`."""
    need("git", "make")
    directory = tmp_path_factory.mktemp("release") / "syncd"
    sources.make_release(directory)
    return directory
