"""Where only the rescan notices a change: said with the place, the reason and what to do."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from inotify_simple import INotify

from syncd.config.settings import Settings, Watch
from syncd.core.mountinfo import Mount
from syncd.lint.watching import check_watching
from syncd.mount.way import Watched, follow

if TYPE_CHECKING:
    from pathlib import Path

    from syncd.core.findings import Finding


def checked(path: Path, *mounts: Mount, watch: Watch | None = None) -> list[Finding]:
    """The findings about one file."""
    watched = Watched()
    real = follow(str(path), watched)
    settings = Settings(vault_config="/v", watch=watch or Watch())
    return check_watching(settings, watched, {"a": real}, mounts)


def test_a_local_file_is_noticed_at_once(tmp_path: Path) -> None:
    """No finding for a file whose way can be watched."""
    assert checked(tmp_path / "a", Mount("/", "/", "", "ext4")) == []


@pytest.mark.parametrize("filesystem", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_a_file_system_with_a_server(tmp_path: Path, filesystem: str) -> None:
    """The kernel does not hear what other machines change; one finding for the mount."""
    mount = Mount("/", str(tmp_path), "", filesystem)
    (found,) = checked(tmp_path / "a", Mount("/", "/", "", "ext4"), mount)
    assert (found.code, found.source) == ("watch-rescan-only", str(tmp_path))
    assert found.message.startswith(f"is on {filesystem}: the rescan, every 60 s, alone notices")
    local = Mount("/", str(tmp_path / "local"), "", "tmpfs")
    assert checked(tmp_path / "local" / "a", mount, local) == []


@pytest.mark.parametrize(
    ("number", "where", "hint"),
    [
        (errno.EACCES, "directory", "let syncd's user read the directory"),
        (errno.ENOSPC, "watch", "raise fs.inotify.max_user_watches"),
    ],
)
def test_what_cannot_be_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str, hint: str
) -> None:
    """A directory that syncd's user may not read, and too few watches."""
    add_watch = INotify.add_watch

    def refuse(self: INotify, path: str, mask: int) -> int:
        if path == str(tmp_path):
            raise OSError(number, os.strerror(number))
        return int(add_watch(self, path, mask))

    monkeypatch.setattr(INotify, "add_watch", refuse)
    (found,) = checked(tmp_path / "a")
    assert found.code == "watch-rescan-only"
    assert found.source == (str(tmp_path) if where == "directory" else "watch")
    assert os.strerror(number) in found.message
    assert found.hint == hint


def test_polling_is_what_was_asked_for(tmp_path: Path) -> None:
    """Where it is configured, it is no finding."""
    mount = Mount("/", "/", "", "nfs4")
    assert checked(tmp_path / "a", mount, watch=Watch(mode="poll")) == []
