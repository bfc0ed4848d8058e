"""The atomic publisher: readers see one complete generation of files, never a mixture of two.

It writes the layout of the Secrets Store CSI driver and the kubelet's AtomicWriter:

    target/..2026_11_23_20_40_28.k3xw9f/   a generation: the files themselves
    target/..data -> ..2026_11_23_…        the current generation
    target/client-secret -> ..data/client-secret

It guarantees:

- the rename of `..data_tmp` over `..data` is the only step that readers notice. Before it they find
  every file of the old generation and nothing of the new; after it the other way round;
- the next pass removes what a crash or a failure leaves behind: `..data_tmp`, generations that are
  not current, dangling links;
- nothing is written when content, permissions and owners are unchanged;
- files and directories are synced to disk before the rename, and the rename after it;
- files that syncd did not write are neither overwritten nor removed.

The refresh loop decides when to publish, and what.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from typing import TYPE_CHECKING

from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.mountinfo import parse_mountinfo
from syncd.core.payload import path_problem
from syncd.system.accounts import group_id, user_id
from syncd.system.errnos import LOCKS, OTHERWISE, reason, remedy
from syncd.system.files import ensure_directory, read_file, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from syncd.core.payload import File

DIRECTORY_MODE = 0o750
IN_MEMORY = frozenset(("tmpfs", "ramfs"))
"""File systems that do not keep secrets over a power cut."""
_DATA, _DATA_TMP = "..data", "..data_tmp"
_GENERATION = re.compile(r"\.\.\d{4}_\d\d_\d\d_\d\d_\d\d_\d\d\.")
_LARGEST_MOUNTINFO = 16 << 20
"""Bytes; a node with 10,000 mounts has about 2 MiB."""


class Publisher:
    """Writes generations into one target. Every method blocks: for worker threads.

    Args:
        target: Absolute path of the directory; made where it does not exist.
        owner: Name or number of the user that shall own files and directories; None for the
            user that syncd runs as.
        group: The same for the group.
        step: Called with the name of every step before it; tests fail or stop there.
    """

    def __init__(
        self,
        target: str,
        *,
        owner: str | None = None,
        group: str | None = None,
        step: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self.target = target
        self._owner = owner
        self._group = group
        self._step = step

    def publish(self, files: Sequence[File]) -> bool:
        """Makes the target hold exactly these files.

        Returns:
            Whether anything had to be written.

        Raises:
            TemporaryError: The target cannot be written now: its disk is full, for example.
            RefusedError: A path is invalid, owner or group do not exist, or a file that syncd did
                not write has the name of a new one.
        """
        for file in files:
            problem = path_problem(file.path)
            if problem is not None:
                raise RefusedError(
                    f"cannot publish into {self.target}: the path of a file {problem}",
                    "correct the object's name in the manifest",
                )
        try:
            with self._locked():
                return self._publish(files)
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError, otherwise: str = OTHERWISE) -> TemporaryError:
        """The error for one of the file system."""
        access = "let syncd's user write there"
        if error.errno == errno.EPERM:
            access += " and change the owner of files"
        path = "set target to a directory, or correct it"
        return TemporaryError(
            f"cannot publish into {self.target}: {reason(error)}",
            remedy(error, path=path, access=access, otherwise=otherwise),
        )

    def _publish(self, files: Sequence[File]) -> bool:
        uid, gid = self._ids()
        current = self._clean()
        names = {file.path.partition("/")[0] for file in files}
        self._refuse_foreign(names)
        changed = current is None or not self._holds(current, files, uid, gid)
        if changed:
            current = self._write(files, uid, gid)
        # New links come before the rename, where they dangle: for readers a missing file. Old ones
        # go after it. The AtomicWriter makes new links after the rename, and a crash in between
        # hides files that exist.
        self._link(names)
        if changed:
            self._step("swap")
            os.rename(f"{self.target}/{_DATA_TMP}", f"{self.target}/{_DATA}")
            sync_directory(self.target)
        self._unlink(names)
        self._clean()
        return changed

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes, such as `run --once` beside the daemon, from cleaning up here."""
        if ensure_directory(self.target, 0o777):
            os.chmod(self.target, DIRECTORY_MODE)
            self._chown(self.target, *self._ids())
        descriptor = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TemporaryError(
                    f"cannot publish into {self.target}: another syncd is publishing into it",
                    "stop one of them",
                ) from None
            except OSError as error:
                raise self._failure(error, LOCKS) from None
            try:
                yield
            finally:
                # explicitly, since a child that another thread is starting holds the descriptor
                # until it executes its program, and closing ours would not unlock
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def _ids(self) -> tuple[int, int]:
        """Owner and group as numbers; -1 leaves them as they are (chown(2))."""
        return (
            self._id("user", "owner", self._owner, user_id),
            self._id("group", "group", self._group, group_id),
        )

    def _id(self, kind: str, option: str, name: str | None, find: Callable[[str], int]) -> int:
        if name is None:
            return -1
        try:
            return find(name)
        except LookupError:
            raise RefusedError(
                f"cannot publish into {self.target}: there is no {kind} {name}",
                f"create the {kind}, or correct {option}",
            ) from None

    def _chown(self, file: str | int, uid: int, gid: int) -> None:
        """Sets owner and group, of a path or a descriptor.

        Raises:
            RefusedError: The user namespace has no such user or group (chown(2), `EINVAL`).
        """
        try:
            os.chown(file, uid, gid)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            options = (("owner", self._owner), ("group", self._group))
            given = " or ".join(f"{option} {name}" for option, name in options if name is not None)
            raise RefusedError(
                f"cannot publish into {self.target}: syncd's user namespace does not map {given}",
                "use an owner and a group that it maps",
            ) from None

    def _clean(self) -> str | None:
        """Removes leftovers; returns the absolute path of the current generation, if any."""
        current = self._current()
        for name in os.listdir(self.target):
            path = f"{self.target}/{name}"
            if name == _DATA_TMP:
                self._step("clean data_tmp")
                os.unlink(path)
            elif _GENERATION.match(name) and name != current:
                self._step("clean generation")
                shutil.rmtree(path)
        return None if current is None else f"{self.target}/{current}"

    def _current(self) -> str | None:
        try:
            name = os.readlink(f"{self.target}/{_DATA}")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return None
            raise
        return name if _GENERATION.match(name) and "/" not in name else None

    def _refuse_foreign(self, names: set[str]) -> None:
        for name in (_DATA, *sorted(names)):
            path = f"{self.target}/{name}"
            is_ours = self._current() if name == _DATA else self._published_name(path) == name
            if os.path.lexists(path) and not is_ours:
                raise RefusedError(
                    f"cannot publish {name} into {self.target}: there is a {name} that syncd did"
                    " not write",
                    "move it out of the target",
                )

    @staticmethod
    def _published_name(path: str) -> str | None:
        """The name below `..data` that a link points to; None where it is not such a link."""
        try:
            link = os.readlink(path)
        except OSError:
            return None
        return link.removeprefix(f"{_DATA}/") if link.startswith(f"{_DATA}/") else None

    def _holds(self, current: str, files: Sequence[File], uid: int, gid: int) -> bool:
        """Whether a generation holds exactly these files, in content, permissions and owner."""
        expected = {file.path: file for file in files}
        found = 0
        try:
            for directory, _, names in os.walk(current, onerror=_raise):
                if not _fits(os.stat(directory), DIRECTORY_MODE, uid, gid):
                    return False
                for name in names:
                    path = os.path.join(directory, name)
                    file = expected.get(os.path.relpath(path, current))
                    if file is None or not _same(path, file, uid, gid):
                        return False
                    found += 1
        except FileNotFoundError:
            return False
        return found == len(expected)

    def _write(self, files: Sequence[File], uid: int, gid: int) -> str:
        self._step("make generation")
        stamp = time.strftime("..%Y_%m_%d_%H_%M_%S.", time.gmtime())
        generation = tempfile.mkdtemp(prefix=stamp, dir=self.target)
        try:
            directories = {generation}
            for file in files:
                parent = os.path.dirname(f"{generation}/{file.path}")
                os.makedirs(parent, mode=0o700, exist_ok=True)
                while parent not in directories:
                    directories.add(parent)
                    parent = os.path.dirname(parent)
                self._step("write file")
                self._write_file(f"{generation}/{file.path}", file, uid, gid)
            for directory in sorted(directories, reverse=True):
                self._step("sync directory")
                self._chown(directory, uid, gid)
                os.chmod(directory, DIRECTORY_MODE)
                sync_directory(directory)
            self._step("link data_tmp")
            os.symlink(os.path.basename(generation), f"{self.target}/{_DATA_TMP}")
        except (OSError, RefusedError):
            shutil.rmtree(generation, ignore_errors=True)
            raise
        return generation

    def _write_file(self, path: str, file: File, uid: int, gid: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "wb") as opened:
            opened.write(file.content)
            opened.flush()
            self._chown(opened.fileno(), uid, gid)
            os.fchmod(opened.fileno(), file.mode)
            os.fsync(opened.fileno())

    def _link(self, names: set[str]) -> None:
        missing = sorted(name for name in names if not os.path.lexists(f"{self.target}/{name}"))
        for name in missing:
            self._step("link name")
            os.symlink(f"{_DATA}/{name}", f"{self.target}/{name}")
        if missing:
            sync_directory(self.target)

    def _unlink(self, names: set[str]) -> None:
        for name in os.listdir(self.target):
            path = f"{self.target}/{name}"
            if name not in names and self._published_name(path) == name:
                self._step("unlink name")
                os.unlink(path)


def filesystem(path: str) -> str | None:
    """The type of the file system that a directory is on, such as `tmpfs`; None if unknown."""
    try:
        device = os.stat(path).st_dev
        text, _ = read_file("/proc/self/mountinfo", _LARGEST_MOUNTINFO)
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = (mount.filesystem for mount in parse_mountinfo(text) if mount.device == wanted)
    return next(found, None)


def _raise(error: OSError) -> None:
    raise error


def _fits(found: os.stat_result, mode: int, uid: int, gid: int) -> bool:
    return (
        stat.S_IMODE(found.st_mode) == mode
        and uid in (-1, found.st_uid)
        and gid in (-1, found.st_gid)
    )


def _same(path: str, file: File, uid: int, gid: int) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not _fits(found, file.mode, uid, gid):
            return False
        if found.st_size != len(file.content) and not file.volatile:
            return False
        return file.same_content(opened.read())
