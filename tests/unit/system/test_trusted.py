"""A directory that only syncd's user and root can change, on a path that they control."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from syncd.system.trusted import UntrustedError, open_trusted

if TYPE_CHECKING:
    from pathlib import Path

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
STRANGER = 4001


def test_the_directory_is_made_with_those_on_its_way(tmp_path: Path) -> None:
    """The last one is syncd's alone until it is prepared, the others can be passed."""
    seen: list[int] = []

    def prepare(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        os.fchmod(descriptor, 0o750)

    os.close(open_trusted(f"{tmp_path}/a/./b//c/", prepare))
    os.close(open_trusted(f"{tmp_path}/a/b/c", prepare))
    assert seen == [0o700]
    assert stat.S_IMODE(os.stat(tmp_path / "a" / "b" / "c").st_mode) == 0o750
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) & 0o755 == 0o755 & ~_umask()


def test_a_failed_preparation_leaves_no_directory(tmp_path: Path) -> None:
    """It would be taken for one that was made on purpose."""

    def prepare(_descriptor: int) -> None:
        raise OSError(errno.EPERM, "injected")

    with pytest.raises(OSError, match="injected"):
        open_trusted(f"{tmp_path}/a", prepare)
    assert os.listdir(tmp_path) == []


def test_nothing_is_made_unless_asked(tmp_path: Path) -> None:
    """Looking is not making."""
    with pytest.raises(FileNotFoundError):
        open_trusted(f"{tmp_path}/a")
    assert os.listdir(tmp_path) == []


def test_own_links_are_followed(tmp_path: Path) -> None:
    """Absolute, relative, in the middle, at the end, with `..`, and dangling."""
    (tmp_path / "real" / "inner").mkdir(parents=True)
    os.symlink(tmp_path / "real", tmp_path / "absolute")
    os.symlink("absolute", tmp_path / "relative")
    os.symlink("../relative/inner", tmp_path / "real" / "up")
    os.symlink("new", tmp_path / "dangling")
    expected = os.stat(tmp_path / "real" / "inner")
    for path in ("absolute/inner", "relative/inner", "real/up", "relative/up/../inner"):
        descriptor = open_trusted(f"{tmp_path}/{path}")
        assert os.path.samestat(os.fstat(descriptor), expected)
        os.close(descriptor)
    os.close(open_trusted(f"{tmp_path}/dangling", lambda _made: None))
    assert (tmp_path / "new").is_dir()


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """As the kernel's own limit does."""
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    with pytest.raises(OSError, match="Too many levels") as caught:
        open_trusted(f"{tmp_path}/a", lambda _made: None)
    assert not isinstance(caught.value, UntrustedError)


@ROOT
@pytest.mark.parametrize("path", ["link", "link/inner", "own/inner"])
def test_a_link_of_another_user_is_not_followed(tmp_path: Path, path: str) -> None:
    """Also if it leads to a directory that is fine, and behind a link of syncd's own."""
    (tmp_path / "real" / "inner").mkdir(parents=True)
    os.symlink("real", tmp_path / "link")
    os.chown(tmp_path / "link", STRANGER, -1, follow_symlinks=False)
    os.symlink("link", tmp_path / "own")
    with pytest.raises(UntrustedError, match=f"link on the way to it is a link of uid {STRANGER}"):
        open_trusted(f"{tmp_path}/{path}")


@ROOT
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its owner can change it, whatever its mode is now."""
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", STRANGER, -1)
    with pytest.raises(UntrustedError, match=f"belongs to uid {STRANGER}, who can replace"):
        open_trusted(f"{tmp_path}/theirs")
    os.close(open_trusted(f"{tmp_path}/theirs/mine", lambda _made: None))


@pytest.mark.parametrize(
    ("mode", "who"), [(0o720, "gid"), (0o702, "every user"), (0o1777, "every user")]
)
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int, who: str) -> None:
    """Also a sticky one: others cannot replace what is there, but be the first to make it."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(UntrustedError, match=who):
        open_trusted(f"{tmp_path}/open")


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Neither after success nor after a refusal."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    os.symlink("a", tmp_path / "link")
    before = len(os.listdir("/proc/self/fd"))
    os.close(open_trusted(f"{tmp_path}/a/b", lambda _made: None))
    os.close(open_trusted(f"{tmp_path}/link/b"))
    for path in ("open", "missing"):
        with pytest.raises(OSError, match=r".*"):
            open_trusted(f"{tmp_path}/{path}")
    assert len(os.listdir("/proc/self/fd")) == before


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before
