"""syncd.system.accounts: users and groups by name or number."""

from __future__ import annotations

import errno
import os

import pytest

from syncd.system import accounts, files
from syncd.system.accounts import (
    LARGEST_ID,
    account_problem,
    group_id,
    maps_every_id,
    overflow_uid,
    unmapped_uid,
    user_id,
)


@pytest.mark.parametrize("find", [user_id, group_id])
def test_a_name_or_a_number(find: object) -> None:
    """A number is taken as it is, a name is looked up."""
    assert callable(find)
    assert (find("0"), find("4242"), find("root")) == (0, 4242, 0)
    assert find(str(LARGEST_ID)) == LARGEST_ID
    too_large = (str(LARGEST_ID + 1), "9" * 20, "9" * 5000)
    for unknown in ("no-such-account", "", "٤", "-1", "a\0b", *too_large):
        with pytest.raises(LookupError):
            find(unknown)


@pytest.mark.parametrize(
    ("account", "problem"),
    [
        ("aidbox", None),
        ("0", None),
        ("00042", None),
        (str(LARGEST_ID), None),
        (str(LARGEST_ID + 1), "is larger than 4294967294, the largest uid and gid"),
        ("", "is not a name or number of an account"),
        ("a\0b", "is not a name or number of an account"),
        ("a:b", "is not a name or number of an account"),
    ],
)
def test_what_can_be_an_account(account: str, problem: str | None) -> None:
    """The kernel's largest number bounds a number; -1 is its "no change"."""
    assert account_problem(account) == problem


@pytest.mark.parametrize(
    ("uid_map", "whole"),
    [
        ("         0          0 4294967295\n", True),
        ("0 0 65536\n65536 65536 4294901759\n", True),
        ("         0       1000          1\n", False),
        ("0 100000 65536\n", False),
        ("", False),
        ("broken\n", False),
    ],
)
def test_mappings(uid_map: str, *, whole: bool) -> None:
    """A mapping is complete when its lines together have every uid but -1."""
    assert maps_every_id(uid_map) is whole


@pytest.mark.parametrize(
    ("missing", "number", "unmapped"),
    [
        ("/proc/self/uid_map", errno.ENOENT, None),  # a kernel without user namespaces
        ("/proc", errno.ENOENT, 65534),
        ("/proc/self/uid_map", errno.EACCES, 65534),
    ],
)
def test_a_mapping_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, missing: str, number: int, unmapped: int | None
) -> None:
    """What is not known to be complete is taken as incomplete."""
    read = files.read_file

    def refuse(path: str, limit: int) -> tuple[bytes, os.stat_result]:
        if path.startswith(missing):
            raise OSError(number, os.strerror(number))
        return read(path, limit)

    monkeypatch.setattr(accounts, "read_file", refuse)
    assert unmapped_uid() == unmapped


def test_the_overflow_uid() -> None:
    """It is the kernel's."""
    with open("/proc/sys/kernel/overflowuid") as file:
        assert overflow_uid() == int(file.read())
