"""Reading the value of one secret."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from syncd.core.errors import RefusedError
from syncd.core.model import Entry, Scope
from syncd.core.payload import File
from syncd.mount.publish import Publisher
from syncd.mount.value import read_value
from syncd.settings import Watch

if TYPE_CHECKING:
    from pathlib import Path


def entries(*paths: object) -> dict[str, Entry]:
    found = (str(path) for path in paths)
    return {p.rpartition("/")[2]: Entry(p.rpartition("/")[2], p, (Scope("Client"),)) for p in found}


def test_the_current_generation(tmp_path: Path) -> None:
    """The value is what the generation holds now, byte for byte."""
    known = entries(tmp_path / "mount/a", tmp_path / "mount/b")
    publisher = Publisher(str(tmp_path / "mount"))
    for value in (b"\xffone\n", b"two"):
        publisher.publish([File("a", value), File("b", b"other")])
        assert read_value("a", known, Watch()) == value
    assert read_value("b", known, Watch()) == b"other"


def test_a_file_being_written(tmp_path: Path) -> None:
    """A plain file that was just written to is not at rest; later it is."""
    (tmp_path / "a").write_bytes(b"half")
    known = entries(tmp_path / "a")
    assert read_value("a", known, Watch(settle=60)) is None  # type: ignore[arg-type]
    os.utime(tmp_path / "a", (1, 1))
    assert read_value("a", known, Watch(settle=60)) == b"half"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unknown", "is not in the vault config"),
        ("missing", "there is no file"),
        ("empty", "is empty"),
        ("directory", "is a directory"),
        ("outside", "leads outside the watch roots"),
        ("large", "larger than max_secret_size"),
    ],
)
def test_nothing_to_give(tmp_path: Path, name: str, reason: str) -> None:
    """What a scan would not take for a value is none, and neither is an empty one."""
    mount = tmp_path / "mount"
    files = [File("empty", b""), File("large", b"x" * 11), File("directory/x", b"1")]
    Publisher(str(mount)).publish(files)
    (tmp_path / "elsewhere").write_bytes(b"another's")
    (mount / "outside").symlink_to(tmp_path / "elsewhere")
    known = entries(*(mount / n for n in ("missing", "empty", "directory", "outside", "large")))
    watch = Watch(roots=(str(mount),), max_secret_size=10)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=reason):
        read_value(name, known, watch)
