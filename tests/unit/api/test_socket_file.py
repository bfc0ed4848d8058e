"""The file of a socket, in a directory where another user replaces it at any moment."""

from __future__ import annotations

import os
import socket
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from support.accounts import as_user, needs_root

from syncd.api.sockets import make_unix
from syncd.core.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from syncd.api.socket_file import SocketFile

STRANGER, OTHER = 4343, 4444


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    return directory / "s"


def test_a_link_in_the_place_of_the_socket(place: Path, tmp_path: Path) -> None:
    """Neither mode nor group reach what a link leads to; it is reported."""
    key = tmp_path / "key"
    key.write_text("x")
    key.chmod(0o600)
    listener = make_unix(str(place), 0o660, None)
    assert listener.file is not None
    place.rename(f"{place}.old")
    place.symlink_to(key)
    with pytest.raises(ListenError, match="another file took the place of the socket"):
        listener.file.set_access(0o666, None)
    assert mode(key) == 0o600
    listener.close()
    assert place.is_symlink()


@pytest.mark.parametrize("swap", ["link", "file", "owner"])
def test_replaced_before_it_was_pinned(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    """What is found after `bind` and is not this user's socket is not touched."""
    key = tmp_path / "key"
    key.write_text("x")
    key.chmod(0o600)

    class Bound(socket.socket):
        """A socket whose file is replaced as soon as it is there."""

        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type] # a path
            if swap == "owner":
                os.chown(place, STRANGER, STRANGER)
                return
            place.unlink()
            if swap == "link":
                place.symlink_to(key)
            else:
                os.link(key, place)

    if swap == "owner" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    monkeypatch.setattr(
        "syncd.api.sockets.socket", SimpleNamespace(**{**vars(socket), "socket": Bound})
    )
    with pytest.raises(ListenError, match="another file took the place of the socket"):
        make_unix(str(place), 0o666, None)
    assert mode(key) == 0o600
    assert place.exists()


def test_what_is_there_before(place: Path, tmp_path: Path) -> None:
    """A link is no socket, whatever it leads to; the file of an ended process is replaced."""
    elsewhere = tmp_path / "elsewhere"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(elsewhere))
    place.symlink_to(elsewhere)
    with pytest.raises(ListenError, match="a file that is not a socket is there"):
        make_unix(str(place), 0o666, None)
    place.unlink()
    elsewhere.rename(place)
    make_unix(str(place), 0o600, None).close()
    assert not place.exists()


@pytest.fixture
def listener(reachable: Path) -> Iterator[tuple[SocketFile, str]]:
    made = make_unix(f"{reachable}/s", 0o666, None)
    assert made.file is not None
    yield made.file, f"{reachable}/s"
    made.close()
    made.close()


def connects(uid: int, path: str) -> bool:
    code = "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    return as_user(uid, code, path).returncode == 0


@needs_root
def test_one_user_is_denied(listener: tuple[SocketFile, str]) -> None:
    """The kernel refuses that user, and nobody else; a new mode keeps it so."""
    file, path = listener
    assert connects(STRANGER, path)
    file.deny([STRANGER])
    assert (connects(STRANGER, path), connects(OTHER, path)) == (False, True)
    file.set_access(0o660, None)
    assert connects(OTHER, path) is False
    file.set_access(0o666, None)
    assert (connects(STRANGER, path), connects(OTHER, path)) == (False, True)
    file.deny([])
    assert connects(STRANGER, path)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o666


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    """Only the last directory is made."""
    with pytest.raises(ListenError, match="No such file or directory; set "):
        make_unix(str(tmp_path / "no" / "such" / "s"), 0o600, None)
