"""syncd.ledger.room: a short log and a reserve, so that a full volume can be used again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from syncd.ledger.room import FILE_NAME, Room

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def volume(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Makes every directory one on a volume of that size."""
    real = os.statvfs("/")
    fields = list(real)
    fields[1], fields[2] = 4096, size // 4096  # f_frsize, f_blocks
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(fields))


@pytest.mark.parametrize(
    ("size", "pages", "reserve"),
    [
        (MIB, 8, MIB // 8),
        (8 * MIB, 64, MIB),
        (1024 * MIB, 1000, 4 * MIB),
        (0, 1000, 4 * MIB),  # a tmpfs without a size
    ],
)
def test_both_fit_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, pages: int, reserve: int
) -> None:
    """On a large volume the log is as long as SQLite's default, and the reserve no larger."""
    volume(monkeypatch, size)
    room = Room(str(tmp_path))
    assert room.log_pages == pages
    room.keep()
    assert os.stat(tmp_path / FILE_NAME).st_size == reserve
    assert os.stat(tmp_path / FILE_NAME).st_blocks * 512 >= reserve


def test_the_reserve_follows_the_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is larger while more is in the log, away while it is lent, and back afterwards."""
    volume(monkeypatch, MIB)
    room, file = Room(str(tmp_path)), tmp_path / FILE_NAME
    usual = MIB // 8
    room.keep()
    room.keep_for(usual // 2)
    assert file.stat().st_size == usual
    room.keep_for(3 * usual)
    assert file.stat().st_size == 3 * usual
    room.shrink()
    assert file.stat().st_size == usual
    with room.lent():
        assert not file.exists()
        with room.lent():
            room.keep_for(3 * usual)
        assert not file.exists()
    assert file.stat().st_size == usual
    assert (room.release(), room.release()) == (True, False)


def test_no_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it syncd runs, as before; a commit that it must be larger for is refused."""
    volume(monkeypatch, MIB)
    room = Room(str(tmp_path))

    def refuse(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    room.keep()
    assert os.stat(tmp_path / FILE_NAME).st_size == 0
    with pytest.raises(OSError, match="No space left"):
        room.keep_for(MIB)
