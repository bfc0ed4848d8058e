"""syncd.mount.way: real paths of many files are those that each one's way leads to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from syncd.mount.way import RealPaths, Watched, follow

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tree(tmp_path: Path) -> str:
    """An AtomicWriter mount, and links of every kind."""
    for name in ("mount/..1/sub", "plain/deep"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("mount/..1/a", "mount/..1/sub/b", "plain/c"):
        (tmp_path / name).touch()
    for name, target in (
        ("mount/..data", "..1"),
        ("mount/a", "..data/a"),
        ("mount/sub", "..data/sub"),
        ("mount/gone", "..data/gone"),
        ("plain/absolute", str(tmp_path / "mount" / "a")),
        ("plain/up", "../mount/sub/b"),
        ("plain/twice", "up"),
        ("plain/deep/back", "../../plain/c"),
        ("plain/loop", "loop"),
        ("alias", "plain/deep/.."),
    ):
        (tmp_path / name).symlink_to(target)
    return str(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        *("mount/a", "mount/..data/a", "mount/sub/b", "mount/gone", "mount/none", "mount"),
        *("plain/c", "plain/absolute", "plain/up", "plain/twice", "plain/deep/back"),
        *("plain/loop", "plain/none/of/these", "plain/c/below", "alias/c", "alias/deep/back"),
        *("plain/../plain/c", "plain//c", "plain/deep/", "plain/deep/.", "plain/deep/.."),
    ],
)
def test_a_real_path_is_where_the_way_leads(tree: str, path: str) -> None:
    """Also where its directory is known from another file, and where nothing exists."""
    paths, expected = RealPaths(), follow(f"{tree}/{path}", Watched())
    assert [paths.of(f"{tree}/{path}") for _ in range(2)] == [expected] * 2
    assert paths.of("/") == "/"


def test_files_share_the_way_to_their_directory(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a look at itself and at what it links to."""
    looks: list[str] = []
    original = os.readlink

    def readlink(path: str) -> str:
        looks.append(path)
        return original(path)

    monkeypatch.setattr(os, "readlink", readlink)
    paths = RealPaths()
    paths.of(f"{tree}/mount/a")
    looks.clear()
    assert paths.of(f"{tree}/mount/gone") == f"{tree}/mount/..1/gone"
    assert looks == [f"{tree}/mount/gone", f"{tree}/mount/..1/gone"]
