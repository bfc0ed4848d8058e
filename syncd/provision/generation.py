"""One generation of files in a target: written, compared and removed by descriptors only.

A generation is made with mode 0700 and opened once. Everything in it is reached from that
descriptor, and until it is complete no other user can enter it. So a file gets its mode and owner
before anyone can reach it, through the descriptor that wrote it.

Directories stay syncd's own, also where the files have another owner, who could otherwise replace
what is in them. The group may enter them by its permissions, and an owner by an access control
list.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.system.trusted import grant_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncd.core.payload import File

DIRECTORY_MODE: Final = 0o750
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIFFERENT: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
"""What opening says where another kind of file was expected, or none is there."""


class Access(msgspec.Struct, frozen=True):
    """Who may read a generation besides syncd.

    Attributes:
        uid: Owner of the files; -1 for syncd's own user.
        gid: Group of files and directories; -1 leaves it as it is (chown(2)).
    """

    uid: int = -1
    gid: int = -1


class NoAccessError(Exception):
    """The owner of the files could not enter their directory."""


class UnmappedError(Exception):
    """The user namespace has no such user or group (chown(2), setxattr(2): `EINVAL`)."""


def share_directory(descriptor: int, access: Access) -> None:
    """Lets group and owner of the files enter a directory, which stays syncd's own.

    Raises:
        NoAccessError: There is an owner without a group, on a file system without access control
            lists.
        UnmappedError: This user namespace has no such owner or group.
        OSError: The group cannot be set.
    """
    if access.gid != -1:
        _chown(descriptor, -1, access.gid)
    os.fchmod(descriptor, DIRECTORY_MODE)
    if access.uid in (-1, os.geteuid()):
        return
    try:
        grant_entry(descriptor, access.uid, DIRECTORY_MODE)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise UnmappedError from None
        if error.errno != errno.EOPNOTSUPP:
            raise
        if access.gid == -1:
            raise NoAccessError from None


def write_generation(
    target: int, files: Sequence[File], access: Access, step: Callable[[str], None]
) -> str:
    """Writes files into a new directory of a target, and syncs them to disk.

    Args:
        target: Descriptor of the target.
        files: The files.
        access: Who may read them.
        step: Called with the name of every step before it.

    Returns:
        The name of the directory; nothing leads to it yet.

    Raises:
        NoAccessError, UnmappedError: As `share_directory`.
        OSError: Something could not be written; nothing is left behind.
    """
    step("make generation")
    name = f"{time.strftime('..%Y_%m_%d_%H_%M_%S', time.gmtime())}.{os.urandom(8).hex()}"
    os.mkdir(name, 0o700, dir_fd=target)
    try:
        generation = os.open(name, _DIRECTORY, dir_fd=target)
        try:
            if not _fits(os.fstat(generation), 0o700, -1, -1):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # another one, put there
            _fill(generation, files, access, step)
        finally:
            os.close(generation)
    except (OSError, NoAccessError, UnmappedError):
        shutil.rmtree(name, ignore_errors=True, dir_fd=target)
        raise
    return name


def holds(target: int, name: str, files: Sequence[File], access: Access) -> bool:
    """Whether a generation holds exactly these files, in content, permissions and owner.

    Raises:
        OSError: It cannot be read.
    """
    try:
        generation = os.open(name, _DIRECTORY, dir_fd=target)
        try:
            return all(
                _same_directory(generation, path, names, access)
                for path, names in _listing(files).items()
            ) and all(_same_file(generation, file, access) for file in files)
        finally:
            os.close(generation)
    except OSError as error:
        if error.errno in _DIFFERENT:
            return False
        raise


def remove(target: int, name: str) -> None:
    """Removes a leftover of any kind: a directory with all that is in it, a link, a file.

    Raises:
        OSError: It cannot be removed.
    """
    try:
        os.unlink(name, dir_fd=target)
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=target)


def _listing(files: Sequence[File]) -> dict[str, set[str]]:
    """The names in each directory, by its path; a directory comes before those in it.

    The first one, ".", is the generation itself.
    """
    found: dict[str, set[str]] = {".": set()}
    for file in files:
        parent = "."
        for name in file.path.split("/"):
            path = name if parent == "." else f"{parent}/{name}"
            found.setdefault(parent, set()).add(name)
            parent = path
    return found


def _fill(
    generation: int, files: Sequence[File], access: Access, step: Callable[[str], None]
) -> None:
    directories = list(_listing(files))
    for directory in directories[1:]:
        os.mkdir(directory, 0o700, dir_fd=generation)
    for file in files:
        step("write file")
        _write_file(generation, file, access)
    # the generation's own is the last: until then, no other user can enter
    for directory in reversed(directories):
        step("sync directory")
        descriptor = os.open(directory, _DIRECTORY, dir_fd=generation)
        try:
            share_directory(descriptor, access)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_file(generation: int, file: File, access: Access) -> None:
    with open(os.open(file.path, _WRITE, 0o600, dir_fd=generation), "wb") as opened:
        opened.write(file.content)
        opened.flush()
        # the mode first: changing it afterwards would take CAP_FOWNER
        os.fchmod(opened.fileno(), file.mode)
        _chown(opened.fileno(), access.uid, access.gid)
        os.fsync(opened.fileno())


def _chown(descriptor: int, uid: int, gid: int) -> None:
    try:
        os.fchown(descriptor, uid, gid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise UnmappedError from None


def _same_directory(generation: int, path: str, names: set[str], access: Access) -> bool:
    descriptor = os.open(path, _DIRECTORY, dir_fd=generation)
    try:
        return (
            _fits(os.fstat(descriptor), DIRECTORY_MODE, -1, access.gid)
            and set(os.listdir(descriptor)) == names
        )
    finally:
        os.close(descriptor)


def _same_file(generation: int, file: File, access: Access) -> bool:
    descriptor = os.open(file.path, _READ, dir_fd=generation)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not _fits(found, file.mode, access.uid, access.gid):
            return False
        if found.st_size != len(file.content) and not file.volatile:
            return False
        with open(descriptor, "rb", closefd=False) as opened:
            return file.same_content(opened.read())
    finally:
        os.close(descriptor)


def _fits(found: os.stat_result, mode: int, uid: int, gid: int) -> bool:
    return (
        stat.S_IMODE(found.st_mode) == mode
        and found.st_uid == (os.geteuid() if uid == -1 else uid)
        and gid in (-1, found.st_gid)
    )
