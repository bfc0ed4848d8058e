"""The value of one secret: only the announced version, only from beneath a root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from syncd.core.payload import File
from syncd.mount.publish import Publisher
from syncd.mount.read import Reader
from syncd.mount.value import fingerprint, read_value

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(32)


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    path = tmp_path / "mount"
    Publisher(str(path)).publish([File("a", b"value"), File("b", b"value")])
    return path


def read(mount: Path, name: str, version: str, *, path: str = "", limit: int = 64) -> bytes | None:
    path = path or str(mount / name)
    return read_value(KEY, [str(mount)], limit, name=name, path=path, version=version)


def test_the_announced_version(mount: Path) -> None:
    """Through the links of an AtomicWriter mount; the version is the one that a scan tells."""
    version = fingerprint(KEY, "a", b"value")
    scanner = Reader(KEY, [str(mount)], max_size=64, settle=0, grace=0)
    assert version == scanner.fingerprint("a", b"value")
    assert read(mount, "a", version) == b"value"


def test_any_other_version(mount: Path) -> None:
    """Of an earlier content, or of another secret with the same content."""
    assert read(mount, "a", fingerprint(KEY, "a", b"other")) is None
    assert read(mount, "b", fingerprint(KEY, "a", b"value")) is None


def test_what_lies_outside_the_roots(mount: Path, tmp_path: Path) -> None:
    """By its path, or by a link."""
    version = fingerprint(KEY, "a", b"value")
    outside = tmp_path / "outside"
    outside.write_bytes(b"value")
    (mount / "link").symlink_to(outside)
    assert read(mount, "a", version, path=str(outside)) is None
    assert read(mount, "a", version, path=str(mount / "link")) is None
    assert read(mount, "a", version, path=f"{mount}/../outside") is None


def test_what_is_no_secret(mount: Path) -> None:
    """Nothing, a directory, a FIFO that would block, or something too large."""
    version = fingerprint(KEY, "a", b"value")
    os.mkfifo(mount / "fifo")
    for name in ("missing", "fifo", "..data", "."):
        assert read(mount, "a", version, path=str(mount / name)) is None
    assert read(mount, "a", version, limit=4) is None
    assert read(mount, "a", version, limit=5) == b"value"
