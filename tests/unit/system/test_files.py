"""syncd.system.files: small files, whole or not at all."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from syncd.system.files import UnsuitableError, read_file, size_text, sync_directory

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    """The limit itself is allowed, and the status is of the file that was read."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1024)
    content, status = read_file(str(file), 1024)
    assert content == b"x" * 1024
    assert status.st_ino == file.stat().st_ino


def test_a_file_above_its_limit_is_refused_and_never_cut(tmp_path: Path) -> None:
    """One byte too many is an error that names the limit."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1025)
    with pytest.raises(UnsuitableError) as caught:
        read_file(str(file), 1024)
    assert (caught.value.errno, caught.value.strerror) == (errno.EFBIG, "larger than 1 KiB")


def test_a_file_without_a_size_is_bounded_too() -> None:
    """Files of procfs have size 0."""
    with pytest.raises(UnsuitableError, match="larger than 4 bytes"):
        read_file("/proc/self/mountinfo", 4)
    assert read_file("/proc/self/mountinfo", 1 << 20)[0]


@pytest.mark.timeout(10)
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A FIFO without a writer is not waited for; a directory is named as such."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_file(str(path), 1024)


@pytest.mark.timeout(10)
def test_a_pipe_is_read_to_its_end_where_the_caller_allows_one() -> None:
    """Its size is unknown, so the limit holds for what is read; a directory is still refused."""
    reader, writer = os.pipe()
    try:
        os.write(writer, b"x" * 1024)
        with pytest.raises(UnsuitableError, match="larger than 1023 bytes"):
            read_file(f"/dev/fd/{reader}", 1023, stream=True)
        os.write(writer, b"x" * 1024)
        os.close(writer)
        assert read_file(f"/dev/fd/{reader}", 1024, stream=True)[0] == b"x" * 1024
    finally:
        os.close(reader)
    assert read_file(os.devnull, 1024, stream=True)[0] == b""
    with pytest.raises(UnsuitableError, match="not a regular file"):
        read_file("/", 1024, stream=True)


def test_limits_are_shown_in_the_largest_whole_unit() -> None:
    """As the configuration writes sizes."""
    assert [size_text(size) for size in (0, 7, 1 << 10, 64 << 10, 4 << 20, 1500)] == [
        "0 bytes",
        "7 bytes",
        "1 KiB",
        "64 KiB",
        "4 MiB",
        "1500 bytes",
    ]


def test_a_directory_that_is_not_there_cannot_be_synced(tmp_path: Path) -> None:
    """The caller learns of it."""
    sync_directory(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        sync_directory(str(tmp_path / "missing"))
