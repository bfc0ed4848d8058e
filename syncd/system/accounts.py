"""Users and groups by name or number; looked up when used, since they can appear later."""

from __future__ import annotations

from grp import getgrnam
from pwd import getpwnam


def user_id(user: str) -> int:
    """The uid of a user, who is given by name or number.

    Raises:
        LookupError: There is no such user.
    """
    return int(user) if _is_number(user) else getpwnam(user).pw_uid


def group_id(group: str) -> int:
    """The gid of a group, which is given by name or number.

    Raises:
        LookupError: There is no such group.
    """
    return int(group) if _is_number(group) else getgrnam(group).gr_gid


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
