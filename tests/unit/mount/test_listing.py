"""syncd.mount.listing: the files of a mount that no entry names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from syncd.mount import listing

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_files_are_listed_at_any_depth(tmp_path: Path) -> None:
    """Those that are claimed by any of their names are left out."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("deep/er/a", "b", "c"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("c")
    found = listing.unclaimed_files([str(tmp_path)], [str(tmp_path / "link")], most=100)
    assert found == [str(tmp_path / "b"), str(tmp_path / "deep/er/a")]


def test_a_root_that_does_not_exist_has_no_files(tmp_path: Path) -> None:
    """It is reported with its secrets."""
    assert listing.unclaimed_files([str(tmp_path / "none")], [], most=100) == []


def test_a_directory_that_is_removed_meanwhile_has_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher may replace a mount at any moment; a daemon that starts must not end by that."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "a").touch()
    original = listing._is_directory

    def removing(item: os.DirEntry[str], *, follow: bool) -> bool:
        found = original(item, follow=follow)
        if found:
            os.rmdir(item.path)
        return found

    monkeypatch.setattr(listing, "_is_directory", removing)
    assert listing.unclaimed_files([str(tmp_path)], [], most=100) == [str(tmp_path / "a")]
