"""Opening beneath a directory: what may be opened, what may not, and who races for it."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE

from syncd.system import beneath

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OUTSIDE = os.strerror(errno.EXDEV)
LOOP = os.strerror(errno.ELOOP)
CANARY = b"CANARY outside the root"


@pytest.fixture(params=["openat2", "pinning"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "openat2":
        if not beneath._is_supported():
            pytest.skip("this kernel has no openat2")
        monkeypatch.setattr(beneath, "_open", beneath._openat2)
    else:
        monkeypatch.setattr(beneath, "_open", beneath._open_by_pinning)
    return str(request.param)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "root-outside"
    path.write_bytes(CANARY)
    return path


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    path = tmp_path / "root"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "file").write_bytes(b"inside")
    return path


@pytest.fixture
def directory(root: Path) -> Iterator[int]:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def read(directory: int, path: str) -> bytes:
    descriptor = beneath.open_file(directory, path)
    try:
        return os.read(descriptor, 1000)
    finally:
        os.close(descriptor)


def test_what_lies_beneath_opens(way: str, root: Path, directory: int) -> None:
    """A file, also through relative links that stay inside, and a directory to go on from."""
    (root / "link").symlink_to("sub/file")
    (root / "sub" / "up").symlink_to("../sub/file")
    assert read(directory, "sub/file") == b"inside"
    assert read(directory, "link") == b"inside"
    assert read(directory, "sub/up") == b"inside"
    pinned = beneath.open_directory(directory, "sub")
    try:
        assert read(pinned, "file") == b"inside"
    finally:
        os.close(pinned)


@pytest.mark.parametrize("target", ["../root-outside", "{outside}", "sub/../../root-outside"])
def test_what_leads_outside_does_not_open(
    way: str, root: Path, directory: int, outside: Path, target: str
) -> None:
    """Relative and absolute links out of the root are refused with EXDEV, and so is `..`."""
    (root / "link").symlink_to(target.format(outside=outside))
    for path in ("link", "../root-outside"):
        with pytest.raises(OSError, match=OUTSIDE):
            beneath.open_file(directory, path)
    with pytest.raises(OSError, match=OUTSIDE):
        beneath.open_directory(directory, "..")


@pytest.mark.parametrize("times", [1, 20])
def test_what_the_kernel_cannot_tell_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, directory: int, times: int
) -> None:
    """Whether `..` leads outside while anything is renamed: openat2(2), EAGAIN."""
    refusals = [errno.EAGAIN] * times

    def syscall(*_: object) -> int:
        if refusals:
            ctypes.set_errno(refusals.pop())
            return -1
        return os.dup(directory)

    monkeypatch.setattr(beneath, "_libc", SimpleNamespace(syscall=syscall))
    os.close(beneath._openat2(directory, "sub/../file", beneath._READ))
    assert refusals == []
    refusals += [errno.EAGAIN] * 1000
    with pytest.raises(BlockingIOError):
        beneath._openat2(directory, "sub/../file", beneath._READ)
    assert refusals


def test_magic_links_do_not_help(way: str, root: Path, directory: int, outside: Path) -> None:
    """A link to a descriptor in /proc leads outside as well."""
    with outside.open("rb") as file:
        (root / "link").symlink_to(f"/proc/self/fd/{file.fileno()}")
        with pytest.raises(OSError, match=f"{OUTSIDE}|{LOOP}"):
            beneath.open_file(directory, "link")


def test_nothing_blocks(way: str, root: Path, directory: int) -> None:
    """A FIFO without a writer opens at once; a socket and a loop are refused."""
    os.mkfifo(root / "fifo")
    os.close(beneath.open_file(directory, "fifo"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            beneath.open_file(directory, "socket")
    (root / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=LOOP):
        beneath.open_file(directory, "loop")


def test_an_attacker_who_swaps_links_gets_nothing_opened_outside(
    way: str, root: Path, directory: int, outside: Path
) -> None:
    """While file and directory turn into links to the outside and back, only the inside opens."""
    hostile = root.parent / "hostile"
    hostile.mkdir()
    (hostile / "file").write_bytes(CANARY)
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            for target in (str(hostile), "../hostile", "sub"):
                os.symlink(target, root / "new")
                os.replace(root / "new", root / "door")

    os.symlink("sub", root / "door")
    thread = threading.Thread(target=attack)
    thread.start()
    opened = refused = 0
    deadline = time.monotonic() + DEADLINE
    try:
        while opened < 300 or refused < 300:
            assert time.monotonic() < deadline
            try:
                descriptor = beneath.open_file(directory, "door/file")
            except OSError as error:
                refused += error.errno in (errno.EXDEV, errno.EAGAIN)
                continue
            try:
                assert os.readlink(f"/proc/self/fd/{descriptor}") == str(root / "sub/file")
                assert os.read(descriptor, 100) == b"inside"
            finally:
                os.close(descriptor)
            opened += 1
    finally:
        stop.set()
        thread.join()
    assert outside.read_bytes() == CANARY


def test_no_descriptor_leaks(way: str, root: Path, directory: int) -> None:
    """Refusals and openings leave the table of descriptors as it was."""
    (root / "link").symlink_to("../root-outside")
    before = set(os.listdir("/proc/self/fd"))
    for path in ("link", "nothing", "sub/file"):
        try:
            os.close(beneath.open_file(directory, path))
        except OSError:
            continue
    assert set(os.listdir("/proc/self/fd")) == before
