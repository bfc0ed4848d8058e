"""syncd.mount.lane: looking whether a root's file system still answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest
from inotify_simple import INotify, flags

from syncd.config.settings import Watch
from syncd.core.model import Entry, Scope
from syncd.mount.lane import Lane, Probe
from syncd.mount.read import Reader

if TYPE_CHECKING:
    from pathlib import Path

    from syncd.mount.read import Members


@pytest.mark.parametrize("extra", [False, True])
async def test_a_probe_opens_no_file_outside_the_boundary(tmp_path: Path, *, extra: bool) -> None:
    """As a scan: only a file that the operator named may lie anywhere."""
    directory, outside = tmp_path / "mounts", tmp_path / "outside"
    root = directory / "root"
    watch = Watch(roots=(str(directory),))
    entries = {"a": Entry("a", f"{root}/a", (Scope("Client"),), extra=extra)}

    def locate() -> Members:
        for path in (root, outside):
            path.mkdir(parents=True)
            (path / "a").touch()
        located, _ = Reader(b"", watch, settle=0, grace=0).locate(entries)
        return located[str(root)]

    lane = Lane(await anyio.to_thread.run_sync(locate), entries, 60, 0)

    def openings() -> int:
        root.rename(directory / "old")
        root.symlink_to(outside)
        with INotify() as eye:
            eye.add_watch(outside / "a", flags.OPEN)
            probe = Probe([lane], watch.roots)
            probe.run()
            assert (probe.left, probe.failed) == ([], [])
            return len(eye.read(timeout=0))

    assert await anyio.to_thread.run_sync(openings) == int(extra)
