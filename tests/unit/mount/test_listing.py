"""syncd.mount.listing: the files of a mount that no entry names."""

from __future__ import annotations

import os
import tracemalloc
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
    found = listing.unclaimed_files(str(tmp_path), [str(tmp_path / "link")], most=100, named=100)
    assert found == ([str(tmp_path / "b"), str(tmp_path / "deep/er/a")], 2)


def test_a_root_that_does_not_exist_has_no_files(tmp_path: Path) -> None:
    """It is reported with its secrets."""
    assert listing.unclaimed_files(str(tmp_path / "none"), [], most=100, named=9) == ([], 0)


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
    found = listing.unclaimed_files(str(tmp_path), [], most=100, named=9)
    assert found == ([str(tmp_path / "a")], 1)


def test_links_at_the_top_lead_to_files(tmp_path: Path) -> None:
    """A link to a directory is entered there, and a file behind it is known by its real path."""
    (tmp_path / "root").mkdir()
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "data")
    root = str(tmp_path / "root")
    found = listing.unclaimed_files(root, [str(tmp_path / "data" / "a")], most=100, named=9)
    assert found == ([f"{root}/linked/b"], 1)


def test_a_root_within_a_root_is_not_listed_twice(tmp_path: Path) -> None:
    """It is listed for itself."""
    inner = tmp_path / "inner"
    inner.mkdir()
    for path in (tmp_path / "a", inner / "b"):
        path.touch()
    roots = {str(tmp_path), str(inner)}
    found = [
        listing.unclaimed_files(root, [], elsewhere=roots, most=9, named=9)
        for root in sorted(roots)
    ]
    assert found == [([str(tmp_path / "a")], 1), ([str(inner / "b")], 1)]


def test_a_wide_root_takes_no_memory(tmp_path: Path) -> None:
    """Only what is named is held, however many files and directories there are."""
    for number in range(5000):
        (tmp_path / f"some-rather-long-name-of-a-file-{number:05}").touch()
    root = str(tmp_path)
    tracemalloc.start()
    try:
        paths, count = listing.unclaimed_files(root, [], most=100_000, named=3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 5000
    assert [path[-5:] for path in paths] == ["00000", "00001", "00002"]
    assert peak < 500 * 1024, peak
    _, count = listing.unclaimed_files(root, [], most=70, named=3)
    assert count == 70
