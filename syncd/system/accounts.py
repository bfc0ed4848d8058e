"""Users and groups: by name or number, and the number that stands for users without one.

Names are looked up when used, since accounts can appear later.

In a user namespace the kernel shows every user that has no uid there as one number, the overflow
uid (user_namespaces(7), "Unmapped user and group IDs"). A namespace may map that number, too, and
its owner cannot then be told from the others. In the initial user namespace every user is mapped,
and the same number is the ordinary user `nobody`.
"""

from __future__ import annotations

from grp import getgrnam
from pwd import getpwnam
from typing import Final

from syncd.system.files import read_file

LARGEST_ID: Final = (1 << 32) - 2
"""The largest uid and gid; one more is the kernel's "no change" (chown(2))."""

DEFAULT_OVERFLOW_UID: Final = 65534
"""The overflow uid, unless `/proc/sys/kernel/overflowuid` has another one."""

_LARGEST_FILE: Final = 64 << 10
_EVERY_ID: Final = LARGEST_ID + 1


def user_id(user: str) -> int:
    """The uid of a user, who is given by name or number.

    Raises:
        LookupError: There is no such user.
    """
    number = _number(user)
    return getpwnam(user).pw_uid if number is None else number


def group_id(group: str) -> int:
    """The gid of a group, which is given by name or number.

    Raises:
        LookupError: There is no such group.
    """
    number = _number(group)
    return getgrnam(group).gr_gid if number is None else number


def account_problem(account: str) -> str | None:
    """Why a text can name no user and no group on any machine, or None."""
    if not account or not account.isprintable() or ":" in account:
        return "is not a name or number of an account"
    if _is_number(account) and not _fits(account):
        return f"is larger than {LARGEST_ID}, the largest uid and gid"
    return None


def _number(text: str) -> int | None:
    """The number that a text is, or None for a name."""
    if not _is_number(text):
        if account_problem(text):
            raise LookupError(text)  # the libraries raise others, for a NUL among others
        return None
    if not _fits(text):
        raise LookupError(text)
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _fits(number: str) -> bool:
    digits = number.lstrip("0")
    # Python limits the digits that it converts
    return len(digits) <= len(str(LARGEST_ID)) and int(digits or "0") <= LARGEST_ID


def overflow_uid() -> int:
    """The uid that stands for users that are not mapped into a user namespace. Blocks."""
    try:
        return int(read_file("/proc/sys/kernel/overflowuid", _LARGEST_FILE)[0])
    except (OSError, ValueError):
        return DEFAULT_OVERFLOW_UID


def unmapped_uid() -> int | None:
    """The uid that every unmapped user has for this process; None where all users are mapped.

    Where the mapping cannot be read, it is not known to be complete. Blocks.
    """
    try:
        text, _ = read_file("/proc/self/uid_map", _LARGEST_FILE)
    except FileNotFoundError:
        return _unless_procfs_is_there()
    except OSError:
        return overflow_uid()
    return None if maps_every_id(text.decode("ascii", "replace")) else overflow_uid()


def _unless_procfs_is_there() -> int | None:
    """Without the file, a kernel has no user namespaces; without /proc, nothing is known."""
    try:
        read_file("/proc/self/status", _LARGEST_FILE)
    except OSError:
        return overflow_uid()
    return None


def maps_every_id(uid_map: str) -> bool:
    """Whether a mapping covers every uid: lines of first uid, uid outside, and count.

    Args:
        uid_map: The content of `/proc/<pid>/uid_map` (user_namespaces(7)).
    """
    counts = (line.split()[-1] for line in uid_map.splitlines() if line.strip())
    return sum(int(count) for count in counts if count.isdigit()) >= _EVERY_ID
