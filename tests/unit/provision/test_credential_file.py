"""Credentials from files: what is taken, and what is refused by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from syncd.core.errors import RefusedError
from syncd.provision.credential_file import LARGEST, read_bytes, read_credential

if TYPE_CHECKING:
    from pathlib import Path


def test_white_space_around_a_credential_is_no_part_of_it(tmp_path: Path) -> None:
    """Editors and `echo` end a file with a newline."""
    file = tmp_path / "token"
    file.write_bytes(b" s.CANARY\r\n")
    assert read_credential("token_file", str(file)) == "s.CANARY"
    assert read_bytes("token_file", str(file)) == b" s.CANARY\r\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot use auth.token_file FILE: the file is empty"),
        (b"two CANARY", "cannot use auth.token_file FILE: it is not one word"),
        (b"CANARY\x00", "cannot use auth.token_file FILE: it is not one word"),
        ("CANARYé".encode(), "cannot use auth.token_file FILE: it is not one word"),
        (b"c" * (LARGEST + 1), "cannot read auth.token_file FILE: larger than 64 KiB"),
        (None, "cannot read auth.token_file FILE: No such file or directory"),
    ],
)
def test_a_file_that_holds_no_credential(tmp_path: Path, content: bytes | None, says: str) -> None:
    """One line names the option and the file, and quotes nothing of it."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RefusedError) as caught:
        read_credential("token_file", str(file))
    assert caught.value.problem.startswith(says.replace("FILE", str(file)))
    assert caught.value.remedy
    assert "CANARY" not in str(caught.value)


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    """A worker thread that waits there cannot be interrupted."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RefusedError, match="not a regular file"):
        read_credential("token_file", str(tmp_path / "fifo"))


def test_a_certificate_over_the_limit_is_not_cut_off(tmp_path: Path) -> None:
    """PEM that lacks its end would be used as a shorter chain."""
    file = tmp_path / "pem"
    file.write_bytes(b"c" * LARGEST)
    assert len(read_bytes("client_certificate_file", str(file))) == LARGEST
    file.write_bytes(b"c" * (LARGEST + 1))
    with pytest.raises(RefusedError, match="larger than 64 KiB; set client_certificate_file"):
        read_bytes("client_certificate_file", str(file))
