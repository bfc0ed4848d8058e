"""Becoming another user for the rest of the process, so that the kernel judges what that user may.

Only root can. Groups go first, since a user without privileges cannot change them (setgroups(2)).
A service may hold capabilities beside its user (`AmbientCapabilities=`, systemd.exec(5)); those
that decide about files are kept (capabilities(7), `PR_SET_KEEPCAPS` and capset(2)).
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE_CAPABILITIES: Final = {
    "cap_chown": 0,
    "cap_dac_override": 1,
    "cap_dac_read_search": 2,
    "cap_fowner": 3,
}
"""The capabilities that decide about files, and their numbers (include/uapi/linux/capability.h)."""

_PR_SET_KEEPCAPS: Final = 8
_VERSION_3: Final = 0x20080522


class Identity(msgspec.Struct, frozen=True):
    """A user with groups and capabilities.

    Attributes:
        name: The user, for messages.
        uid: The user's number.
        gid: The number of its group.
        groups: All of its groups.
        capabilities: Names of `FILE_CAPABILITIES`.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    capabilities: tuple[str, ...] = ()


def become(identity: Identity) -> None:
    """Takes on an identity, for good. Before the process has other threads.

    Raises:
        OSError: This process may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if identity.capabilities:
        _checked(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    if identity.capabilities:
        held = _mask(identity.capabilities)
        header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
        data = (ctypes.c_uint32 * 6)(held, held, 0, 0, 0, 0)
        _checked(libc.capset(header, data))


def _mask(capabilities: Iterable[str]) -> int:
    return sum(1 << FILE_CAPABILITIES[name] for name in set(capabilities))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
