"""The file of a Unix socket: made, opened to its callers, closed to some, and removed.

The directory of a socket can belong to a user whom syncd does not trust (a shared volume, a
directory made for the subscriber), and that user can put a link in the file's place at any moment.
So nothing here is done to a path that was looked at before: the directory and the file are pinned
by `O_PATH` descriptors, and mode, group and access control list are set on the pinned file, by its
name in `/proc/self/fd` (open(2), "O_PATH"; `fchmod` itself refuses such a descriptor). Only `bind`
takes a path; what it made is pinned afterwards, and is used only if it is this user's socket.

A user who floods the socket can be denied for a while by an access control list, also where its
mode allows others to connect. The kernel then refuses that user's connections (acl(5)).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, Final

from syncd.core.errors import ConfigurationError, ListenError
from syncd.core.findings import finding
from syncd.system import errnos
from syncd.system.accounts import group_id

if TYPE_CHECKING:
    from collections.abc import Iterable

_PIN: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ACL: Final = "system.posix_acl_access"
_VERSION: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
# include/uapi/linux/posix_acl.h, posix_acl_xattr.h
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_UNDEFINED: Final = 0xFFFFFFFF


class SocketFile:
    """A socket's file in its pinned directory.

    Args:
        path: Where it is, or will be; its directory is created if only that is missing.
        key: The configuration key of the path, for messages.

    Raises:
        ListenError: The directory cannot be used.
    """

    def __init__(self, path: str, key: str) -> None:
        self.path = path
        self._key = key
        self._name = os.path.basename(path)
        self._file: int | None = None
        self._directory: int | None = None
        self._mode = 0o600
        self._denied: tuple[int, ...] = ()
        directory = os.path.dirname(path)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o755)
            self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._refusal(error) from None

    def bind(self, listener: socket.socket) -> None:
        """Makes the file, in place of that of a process that has ended.

        It is never more accessible than 0600 until `set_access`: the mode that `fchmod` sets on a
        socket before `bind` bounds the mode of the file (unix(7), net/unix/af_unix.c
        `unix_bind_bsd`).

        Raises:
            ListenError: The path cannot be used, or another process listens there.
        """
        self._make_room()
        os.fchmod(listener.fileno(), 0o600)
        try:
            listener.bind(self.path)
            made = os.open(self._name, _PIN, dir_fd=self._directory)
        except OSError as error:
            raise self._refusal(error) from None
        found = os.fstat(made)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            os.close(made)
            raise self._replaced()
        self._file = made

    def set_access(self, mode: int, group: str | None) -> None:
        """Sets who may connect.

        Raises:
            ConfigurationError: The group does not exist, or this process is not a member of it.
            ListenError: The mode cannot be set, or another file is in the place of the socket.
        """
        if not self._in_place():
            raise self._replaced()
        if group is not None:
            try:
                os.chown(self._pinned, -1, group_id(group))
            except LookupError:
                hint = "create the group, or name another one"
                raise _misconfigured(f"there is no group {group}", hint) from None
            except OSError as error:
                if error.errno == errno.EPERM:
                    hint = "make syncd's user a member of the group"
                    problem = f"{group} cannot own the socket"
                elif error.errno == errno.EINVAL:
                    hint = "use a group that it maps"
                    problem = f"the user namespace of syncd does not map {group}"
                else:
                    raise self._refusal(error) from None
                raise _misconfigured(problem, hint) from None
        try:
            self._allow_all()
            os.chmod(self._pinned, mode)
            self._mode = mode
            self.deny(self._denied)
        except OSError as error:
            raise self._refusal(error) from None

    def deny(self, uids: Iterable[int]) -> None:
        """Lets these users not connect, and all others as the mode says.

        Raises:
            OSError: The file system has no access control lists.
        """
        self._denied = tuple(sorted(uids))
        if not self._denied:
            self._allow_all()
            return
        owner, group, others = (self._mode >> shift & 7 for shift in (6, 3, 0))
        entries = [
            (_USER_OBJ, owner, _UNDEFINED),
            *((_USER, 0, uid) for uid in self._denied),
            (_GROUP_OBJ, group, _UNDEFINED),
            (_MASK, group, _UNDEFINED),
            (_OTHER, others, _UNDEFINED),
        ]
        os.setxattr(
            self._pinned, _ACL, _VERSION.pack(2) + b"".join(_ENTRY.pack(*item) for item in entries)
        )

    def _allow_all(self) -> None:
        try:
            os.removexattr(self._pinned, _ACL)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise

    def remove(self) -> None:
        """Removes the file, unless another one is in its place, and closes the directory."""
        with contextlib.suppress(OSError):
            if self._in_place():
                os.unlink(self._name, dir_fd=self._directory)
        for descriptor in (self._file, self._directory):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._directory = None

    @property
    def _pinned(self) -> str:
        return f"/proc/self/fd/{self._file}"

    def _in_place(self) -> bool:
        if self._file is None or self._directory is None:
            return False
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._file))

    def _make_room(self) -> None:
        """Removes the socket of a process that has ended."""
        try:
            there = os.open(self._name, _PIN, dir_fd=self._directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refusal(error) from None
        try:
            if not stat.S_ISSOCK(os.fstat(there).st_mode):
                raise ListenError(
                    f"cannot listen on {self.path}: a file that is not a socket is there",
                    f"remove the file or change {self._key}",
                )
            if self._answers(f"/proc/self/fd/{there}"):
                raise ListenError(
                    f"cannot listen on {self.path}: another process listens there",
                    f"stop the process or change {self._key}",
                )
        finally:
            os.close(there)
        try:
            os.unlink(self._name, dir_fd=self._directory)
        except OSError as error:
            raise self._refusal(error) from None

    def _answers(self, path: str) -> bool:
        """Whether a process listens: ECONNREFUSED, or no file at all, means that none does.

        Raises:
            ListenError: It cannot be found out.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
                caller.setblocking(False)  # with a full backlog, connecting would block
                caller.connect(path)
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return False
            if error.errno not in (errno.EAGAIN, errno.EINPROGRESS, errno.EPROTOTYPE):
                raise self._refusal(error) from None
        return True

    def _refusal(self, error: OSError) -> ListenError:
        return cannot_listen(self.path, error, self._key)

    def _replaced(self) -> ListenError:
        return ListenError(
            f"cannot listen on {self.path}: another file took the place of the socket",
            f"let only syncd's user write to the directory of {self._key}, and restart syncd",
        )


def cannot_listen(path: str, error: OSError, key: str) -> ListenError:
    """Why a Unix socket cannot be opened, and what to do."""
    correction = f"set {key} to a path of at most 107 bytes in a writable directory"
    # "AF_UNIX path too long" comes without an errno
    reason = error.strerror or "the path is too long"
    remedy = errnos.remedy(error, path=correction, access=correction, otherwise=correction)
    return ListenError(f"cannot listen on {path}: {reason}", remedy)


def _misconfigured(message: str, hint: str) -> ConfigurationError:
    where = "api.socket_group"
    return ConfigurationError([finding("config-invalid", "configuration", where, message, hint)])
