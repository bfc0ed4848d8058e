"""The atomic publisher: a complete generation of files, or the one before, and never a mixture.

It writes the layout of the Secrets Store CSI driver and the kubelet's AtomicWriter:

    target/..2026_11_23_20_40_28.k3xw9f/   a generation: the files themselves
    target/..data -> ..2026_11_23_…        the one that counts
    target/client-secret -> ..data/client-secret

Its promises:

- the rename of `..data_tmp` over `..data` is the one step that counts. Before it a reader finds
  every file of the old generation and nothing of the new; after it the other way round. For that,
  links for new names are made before it (until then they lead nowhere, which to a reader is a
  missing file) and links of old names are removed after it; the AtomicWriter makes new links
  after the rename, and a crash between the two hides files that exist;
- what a crash or a failure leaves behind (`..data_tmp`, generations that do not count, links that
  lead nowhere) the next pass removes;
- nothing is written when nothing changed in content, permissions or owner;
- files and directories are synced to disk before the rename, and the rename after it;
- what syncd did not write it neither overwrites nor removes.

When to publish, and what, is the refresh loop's matter.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import re
import shutil
import stat
import tempfile
import time
from typing import TYPE_CHECKING

from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.payload import path_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from syncd.core.payload import File

DIRECTORY_MODE = 0o750
_DATA, _DATA_TMP = "..data", "..data_tmp"
_GENERATION = re.compile(r"\.\.\d{4}_\d\d_\d\d_\d\d_\d\d_\d\d\.")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Publisher:
    """Writes generations into one target.

    Every method blocks and belongs into a worker thread.
    """

    def __init__(
        self,
        target: str,
        *,
        owner: str | None = None,
        group: str | None = None,
        step: Callable[[str], None] = lambda _name: None,
    ) -> None:
        """Prepares; touches nothing.

        Args:
            target: Absolute path of the directory; made where it does not exist.
            owner: Name or number of the user that gets files and directories; None leaves them.
            group: The same for the group.
            step: Called with its name before every step, for tests that break in there.
        """
        self.target = target
        self._owner = owner
        self._group = group
        self._step = step

    def publish(self, files: Sequence[File]) -> bool:
        """Makes the target hold exactly these files.

        Returns:
            Whether anything had to be written.

        Raises:
            TemporaryError: The disk is full, or cannot be written to now.
            RefusedError: A path, an owner or something in the target makes it impossible.
        """
        for file in files:
            problem = path_problem(file.path)
            if problem is not None:
                raise RefusedError(
                    f"cannot publish into {self.target}: a path {problem}; mend objectName"
                )
        try:
            with self._locked():
                return self._publish(files)
        except OSError as error:
            raise self._explain(error) from None

    def _publish(self, files: Sequence[File]) -> bool:
        uid, gid = self._ids()
        current = self._clean()
        names = {file.path.partition("/")[0] for file in files}
        self._refuse_strangers(names)
        changed = current is None or not self._holds(current, files, uid, gid)
        if changed:
            current = self._write(files, uid, gid)
        self._link(names)
        if changed:
            self._step("swap")
            os.rename(f"{self.target}/{_DATA_TMP}", f"{self.target}/{_DATA}")
            self._sync(self.target)
        self._unlink(names)
        self._clean()
        return changed

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps another syncd, such as `run --once` beside the daemon, from cleaning up in here."""
        if not os.path.isdir(self.target):
            os.makedirs(self.target, exist_ok=True)
            os.chmod(self.target, DIRECTORY_MODE)
            os.chown(self.target, *self._ids())
        descriptor = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TemporaryError(
                    f"cannot publish into {self.target}: another syncd is at it; keep one of them"
                ) from None
            try:
                yield
            finally:
                # a process that another thread is just starting has the descriptor, too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def _ids(self) -> tuple[int, int]:
        """Owner and group as numbers, -1 for leaving it: looked up each time, they may appear."""
        uid = gid = -1
        if self._owner is not None:
            try:
                uid = int(self._owner) if self._owner.isdecimal() else pwd.getpwnam(self._owner)[2]
            except KeyError:
                raise RefusedError(
                    f"cannot publish into {self.target}: there is no user {self._owner};"
                    " create it or change owner"
                ) from None
        if self._group is not None:
            try:
                gid = int(self._group) if self._group.isdecimal() else grp.getgrnam(self._group)[2]
            except KeyError:
                raise RefusedError(
                    f"cannot publish into {self.target}: there is no group {self._group};"
                    " create it or change group"
                ) from None
        return uid, gid

    def _clean(self) -> str | None:
        """Removes what does not count; returns the generation that does, as an absolute path."""
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

    def _refuse_strangers(self, names: set[str]) -> None:
        for name in (_DATA, *sorted(names)):
            path = f"{self.target}/{name}"
            ours = self._current() if name == _DATA else self._leads(path) == name
            if os.path.lexists(path) and not ours:
                raise RefusedError(
                    f"cannot publish {name} into {self.target}: something that syncd did not write"
                    " is in its place; move it away"
                )

    @staticmethod
    def _leads(path: str) -> str | None:
        """The name below `..data` that a visible link leads to, or None if it is no such link."""
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
                _write_file(f"{generation}/{file.path}", file, uid, gid)
            for directory in sorted(directories, reverse=True):
                self._step("sync directory")
                os.chown(directory, uid, gid)
                os.chmod(directory, DIRECTORY_MODE)
                self._sync(directory)
            self._step("link data_tmp")
            os.symlink(os.path.basename(generation), f"{self.target}/{_DATA_TMP}")
        except OSError:
            shutil.rmtree(generation, ignore_errors=True)
            raise
        return generation

    def _link(self, names: set[str]) -> None:
        missing = sorted(name for name in names if not os.path.lexists(f"{self.target}/{name}"))
        for name in missing:
            self._step("link name")
            os.symlink(f"{_DATA}/{name}", f"{self.target}/{name}")
        if missing:
            self._sync(self.target)

    def _unlink(self, names: set[str]) -> None:
        for name in os.listdir(self.target):
            path = f"{self.target}/{name}"
            if name not in names and self._leads(path) == name:
                self._step("unlink name")
                os.unlink(path)

    @staticmethod
    def _sync(directory: str) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _explain(self, error: OSError) -> SyncdError:
        reason = os.strerror(error.errno) if error.errno else "I/O error"
        where = f"cannot publish into {self.target}: {reason}"
        if error.errno in _NO_ROOM:
            return TemporaryError(f"{where}; make room there, the files before stay")
        if error.errno in _DENIED:
            return TemporaryError(f"{where}; let this user write there and give files away")
        return TemporaryError(f"{where}; look at the file system, the files before stay")


def filesystem(path: str) -> str | None:
    """The type of the file system that a directory is on, such as `tmpfs`; None if unknown."""
    try:
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            wanted = f"{os.major(device)}:{os.minor(device)}"
            for line in mounts:
                fields, _, source = line.partition(" - ")
                if fields.split(" ")[2] == wanted:
                    return source.split(" ")[0]
    except OSError:
        pass
    return None


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


def _write_file(path: str, file: File, uid: int, gid: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as opened:
        opened.write(file.content)
        opened.flush()
        os.fchown(opened.fileno(), uid, gid)
        os.fchmod(opened.fileno(), file.mode)
        os.fsync(opened.fileno())
