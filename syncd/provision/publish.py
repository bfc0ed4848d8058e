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
- files that syncd did not write are neither overwritten nor removed, but for names of the layout:
  what is called like a generation, or `..data_tmp`, is a leftover;
- no other user can make it write, or change the owner of, a file elsewhere: nothing is done by path
  (`syncd.system.trusted`, `syncd.provision.generation`).

The refresh loop decides when to publish, and what.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from typing import TYPE_CHECKING

from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.mountinfo import parse_mountinfo
from syncd.core.payload import path_problem
from syncd.provision.generation import (
    Access,
    NoAccessError,
    UnmappedError,
    holds,
    remove,
    share_directory,
    write_generation,
)
from syncd.system.accounts import group_id, user_id
from syncd.system.errnos import LOCKS, OTHERWISE, reason, remedy
from syncd.system.files import read_file
from syncd.system.trusted import UntrustedError, open_trusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from syncd.core.payload import File

IN_MEMORY = frozenset(("tmpfs", "ramfs"))
"""File systems that do not keep secrets over a power cut."""
_DATA, _DATA_TMP = "..data", "..data_tmp"
_GENERATION = re.compile(r"\.\.\d{4}_\d\d_\d\d_\d\d_\d\d_\d\d\.")
UNTRUSTED_REMEDIES = {
    errno.ELOOP: "remove the link, or set target to where it leads",
    errno.EPERM: "run syncd as its owner, or chown it to syncd's user, with mode 0750",
}
"""What to do about a target that another user can change."""
_LARGEST_MOUNTINFO = 16 << 20
"""Bytes; a node with 10,000 mounts has about 2 MiB."""


class Publisher:
    """Writes generations into one target. Every method blocks: for worker threads.

    Args:
        target: Absolute path of the directory; made where it does not exist.
        owner: Name or number of the user that shall own the files, and may enter the directories;
            None for the user that syncd runs as.
        group: Name or number of the group of files and directories; None leaves it to the kernel.
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
            RefusedError: A path is invalid, owner or group do not exist, another user can change
                the target, or a file that syncd did not write has the name of a new one.
        """
        for file in files:
            problem = path_problem(file.path)
            if problem is not None:
                raise RefusedError(
                    f"cannot publish into {self.target}: the path of a file {problem}",
                    "correct the object's name in the manifest",
                )
        access = self._access()
        try:
            with self._locked(access) as target:
                return self._publish(target, files, access)
        except UntrustedError as error:
            raise RefusedError(
                f"cannot publish into {self.target}: {error.strerror}",
                UNTRUSTED_REMEDIES[error.errno or errno.EPERM],
            ) from None
        except UnmappedError:
            options = (("owner", self._owner), ("group", self._group))
            given = " or ".join(f"{option} {name}" for option, name in options if name is not None)
            raise RefusedError(
                f"cannot publish into {self.target}: syncd's user namespace does not map {given}",
                "use an owner and a group that it maps",
            ) from None
        except NoAccessError:
            raise RefusedError(
                f"cannot publish into {self.target}: its file system has no access control lists,"
                f" so {self._owner} could not enter the directories",
                f"set group to a group of {self._owner}",
            ) from None
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

    def _publish(self, target: int, files: Sequence[File], access: Access) -> bool:
        # a leftover that cannot be removed (a mount point, for example) is reported at the end
        with contextlib.suppress(OSError):
            self._clean(target)
        names = {file.path.partition("/")[0] for file in files}
        self._refuse_foreign(target, names)
        current = _current(target)
        changed = current is None or not holds(target, current, files, access)
        if changed:
            self._write(target, files, access)
        # New links come before the rename, where they dangle: for readers a missing file. Old ones
        # go after it. The AtomicWriter makes new links after the rename, and a crash in between
        # hides files that exist.
        self._link(target, names)
        if changed:
            self._step("swap")
            os.rename(_DATA_TMP, _DATA, src_dir_fd=target, dst_dir_fd=target)
            os.fsync(target)
        self._unlink(target, names)
        self._clean(target)
        return changed

    @contextlib.contextmanager
    def _locked(self, access: Access) -> Iterator[int]:
        """The target's descriptor, while no other process cleans up there.

        That would be `run --once` beside the daemon, for example.
        """
        descriptor = open_trusted(self.target, lambda made: share_directory(made, access))
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
                yield descriptor
            finally:
                # explicitly, since a child that another thread is starting holds the descriptor
                # until it executes its program, and closing ours would not unlock
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def _access(self) -> Access:
        return Access(
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

    def _clean(self, target: int) -> None:
        """Removes leftovers: what has a reserved name and is not the current generation."""
        current = _current(target)
        for name in os.listdir(target):
            if name == _DATA_TMP:
                self._step("clean data_tmp")
                remove(target, name)
            elif _GENERATION.match(name) and name != current:
                self._step("clean generation")
                remove(target, name)

    def _refuse_foreign(self, target: int, names: set[str]) -> None:
        for name in (_DATA, *sorted(names)):
            is_ours = _current(target) if name == _DATA else _published(target, name) == name
            if not is_ours and _exists(target, name):
                raise RefusedError(
                    f"cannot publish {name} into {self.target}: there is a {name} that syncd did"
                    " not write",
                    "move it out of the target",
                )

    def _write(self, target: int, files: Sequence[File], access: Access) -> None:
        generation = write_generation(target, files, access, self._step)
        try:
            self._step("link data_tmp")
            os.symlink(generation, _DATA_TMP, dir_fd=target)
        except OSError:
            with contextlib.suppress(OSError):
                remove(target, generation)
            raise

    def _link(self, target: int, names: set[str]) -> None:
        missing = sorted(name for name in names if not _exists(target, name))
        for name in missing:
            self._step("link name")
            os.symlink(f"{_DATA}/{name}", name, dir_fd=target)
        if missing:
            os.fsync(target)

    def _unlink(self, target: int, names: set[str]) -> None:
        for name in os.listdir(target):
            if name not in names and _published(target, name) == name:
                self._step("unlink name")
                os.unlink(name, dir_fd=target)


def _current(target: int) -> str | None:
    """The name of the generation that `..data` leads to, if any."""
    try:
        name = os.readlink(_DATA, dir_fd=target)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
    return name if _GENERATION.match(name) and "/" not in name else None


def _published(target: int, name: str) -> str | None:
    """The name below `..data` that a link points to; None where it is not such a link."""
    try:
        link = os.readlink(name, dir_fd=target)
    except OSError:
        return None
    return link.removeprefix(f"{_DATA}/") if link.startswith(f"{_DATA}/") else None


def _exists(target: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


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
