"""Noticing that a file was replaced."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

import pytest
from support.tls import replace

from syncd.core.errors import TemporaryError
from syncd.net.rotation import is_settled, signature, stat_file, unreadable

if TYPE_CHECKING:
    from pathlib import Path


def test_a_replacement_changes_the_signature(tmp_path: Path) -> None:
    """By its inode, even with the same size and times."""
    file = tmp_path / "file"
    replace(file, "one")
    before = file.stat()
    assert signature(file.stat()) == signature(before)
    replace(file, "two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert signature(file.stat()) != signature(before)


def test_a_status_just_after_a_change_is_not_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one from the future: the file system's clock may be another one."""
    (tmp_path / "file").touch()
    status = (tmp_path / "file").stat()
    for seconds, settled in ((0, False), (0.05, False), (1, True), (-0.05, False)):
        now = status.st_ctime_ns + int(seconds * 1e9)
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        assert is_settled(status) == settled


def test_a_missing_file_names_the_option(tmp_path: Path) -> None:
    """The remedy differs for a file that is there."""
    missing = tmp_path / "missing"
    with pytest.raises(TemporaryError) as caught:
        stat_file("token_file", str(missing))
    assert caught.value.problem == f"cannot read token_file {missing}: No such file or directory"
    assert caught.value.remedy == "create it, or correct token_file"
    denied = unreadable("token_file", "/f", OSError(errno.EACCES, "canary"))
    assert str(denied) == (
        "cannot read token_file /f: Permission denied; make it readable for syncd's user"
    )
