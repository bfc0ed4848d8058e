"""Reading a mount: one consistent snapshot, each file safely, values only long enough to hash.

A root is either an AtomicWriter mount, as the Secrets Store CSI Driver and the kubelet write it
(a `..data` symlink that is swapped by rename; kubernetes/kubernetes
`pkg/volume/util/atomic_writer.go`), or a directory of plain files. In an AtomicWriter mount the
directory behind `..data` is pinned by a descriptor and every file is read through it, so that one
snapshot cannot mix two generations however fast a publisher swaps. Plain files are taken only
when they are at rest.

What a file holds is hashed at once, keyed and bound to the secret's name, and dropped: equal
values of two secrets have different versions, and nobody without the key can test a guess.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from syncd.core.model import Observation, State
from syncd.mount import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.core.model import Entry

DATA_LINK: Final = "..data"
_ATTEMPTS: Final = 50
_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ESTALE))
_MACHINE_SHORT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN))
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(slots=True)
class Snapshot:
    """What one scan saw.

    Attributes:
        observations: By secret name; entries under a mount that is away are unsettled.
        watch: Directories whose changes matter, each with the names that do, or None for all.
        retry_in: Seconds after which an unsettled observation may have settled, or None.
        empty: Names of secrets whose file holds nothing.
        newline_ended: Names of secrets whose file ends in a newline.
        world_readable: Names of secrets outside an AtomicWriter mount that anyone can read.
        atomic_roots: The roots that are AtomicWriter mounts.
    """

    observations: dict[str, Observation] = field(default_factory=dict)
    watch: dict[str, frozenset[str] | None] = field(default_factory=dict)
    retry_in: float | None = None
    empty: list[str] = field(default_factory=list)
    newline_ended: list[str] = field(default_factory=list)
    world_readable: list[str] = field(default_factory=list)
    atomic_roots: list[str] = field(default_factory=list)

    def retry_within(self, seconds: float) -> None:
        """Asks for another scan after at most this many seconds."""
        self.retry_in = seconds if self.retry_in is None else min(self.retry_in, seconds)


@dataclass(slots=True)
class _Root:
    """What is remembered of a root between scans, to tell a removal from a remount."""

    path: str
    atomic: bool = False
    identity: tuple[int, int] | None = None
    away_since: float | None = None


def derive_roots(entries: Iterable[Entry]) -> tuple[str, ...]:
    """The roots of a vault config that names none: the mounts its files lie in.

    For each path that is the nearest ancestor with a `..data` link, else its parent directory; a
    root inside another one is that other one.
    """
    found: set[str] = set()
    by_parent: dict[str, str] = {}
    for entry in entries:
        parent = os.path.dirname(entry.path)
        if parent not in by_parent:
            by_parent[parent] = _nearest_mount(parent) or parent
        found.add(by_parent[parent])
    return tuple(sorted(r for r in found if not any(_contains(o, r) for o in found if o != r)))


def _nearest_mount(directory: str) -> str | None:
    while True:
        if os.path.islink(f"{directory}/{DATA_LINK}"):
            return directory
        if directory in ("/", ""):
            return None
        directory = os.path.dirname(directory)


def _contains(root: str, path: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


class Reader:
    """Takes snapshots of the files that a vault config names.

    Args:
        key: Key of the fingerprints.
        roots: Directories that files must lie in, after resolving symlinks.
        max_size: Largest secret, bytes.
        settle: Seconds a plain file must rest before it is read.
        grace: Seconds that a vanished mount has to come back before its secrets count as removed.
    """

    def __init__(
        self, key: bytes, roots: Iterable[str], *, max_size: int, settle: float, grace: float
    ) -> None:
        self._key = key
        self.max_size = max_size
        self.settle = settle
        self.grace = grace
        self._roots = {root: _Root(root) for root in sorted(roots, key=len, reverse=True)}

    @property
    def roots(self) -> tuple[str, ...]:
        """The roots, longest first."""
        return tuple(self._roots)

    def scan(
        self,
        entries: Mapping[str, Entry],
        *,
        now: float,
        monotonic: float,
        writers: frozenset[str] = frozenset(),
    ) -> Snapshot:
        """Reads and fingerprints every entry's file.

        Args:
            entries: By name.
            now: Wall clock, seconds, to compare with modification times.
            monotonic: Monotonic clock, seconds, for the grace period.
            writers: Paths of files that somebody has open and has written to.
        """
        snapshot = Snapshot()
        by_root: dict[str, list[Entry]] = {root: [] for root in self._roots}
        for entry in entries.values():
            root = next((root for root in self._roots if _contains(root, entry.path)), None)
            if root is None:
                snapshot.observations[entry.name] = _unreadable(
                    "secret-outside-roots", "lies outside the watch roots"
                )
            else:
                by_root[root].append(entry)
        for root, members in by_root.items():
            scan = _RootScan(self._roots[root], self, snapshot, now, writers)
            scan.run(members, monotonic)
        return snapshot

    def fingerprint(self, name: str, content: bytes) -> str:
        """The version of a secret's content: a keyed hash, bound to the secret's name."""
        digest = blake2b(name.encode() + b"\0", key=self._key, digest_size=16)
        digest.update(content)
        return "k1:" + digest.hexdigest()


class _GenerationGoneError(Exception):
    """The generation that was being read is not there any more: read the next one."""


class _RootScan:
    """One scan of one root."""

    def __init__(
        self,
        root: _Root,
        reader: Reader,
        snapshot: Snapshot,
        now: float,
        writers: frozenset[str],
    ) -> None:
        self._root = root
        self._reader = reader
        self._snapshot = snapshot
        self._now = now
        self._writers = writers
        self._links: dict[str, bool] = {}
        self._generation: str | None = None

    def run(self, entries: list[Entry], monotonic: float) -> None:
        """Reads the root's entries into the snapshot, again while generations move away."""
        try:
            root = os.open(self._root.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _GONE:
                self._observe_all(entries, _failure(error, "its mount"))
            elif not self._may_return(entries, monotonic):
                problem = f"the mount {self._root.path} is gone"
                self._observe_all(entries, _gone(problem))
        else:
            try:
                self._read_root(root, entries, monotonic)
            finally:
                os.close(root)
        self._watch(entries)

    def _read_root(self, root: int, entries: list[Entry], monotonic: float) -> None:
        known, status = self._root, os.fstat(root)
        identity = (status.st_dev, status.st_ino)
        atomic = _link(root, DATA_LINK) is not None
        replaced = identity != known.identity
        emptied = not atomic and (known.atomic or (replaced and _is_empty(known.path)))
        if emptied and self._may_return(entries, monotonic):
            return  # unmounted, or mounted and not yet filled
        known.atomic, known.identity, known.away_since = atomic, identity, None
        for _ in range(_ATTEMPTS):
            try:
                self._read_generation(root, entries)
            except _GenerationGoneError:
                continue
            return
        self._snapshot.retry_within(self._reader.settle)

    def _may_return(self, entries: list[Entry], monotonic: float) -> bool:
        """Holds the entries of a mount that is away, for as long as the grace period lasts."""
        known = self._root
        if known.away_since is None:
            known.away_since = monotonic
        left = known.away_since + self._reader.grace - monotonic
        if left <= 0:
            return False
        problem = f"the mount {known.path} is away"
        self._observe_all(entries, Observation(State.MISSING, None, problem, settled=False))
        self._snapshot.retry_within(left)
        return True

    def _observe_all(self, entries: list[Entry], observation: Observation) -> None:
        for entry in entries:
            self._snapshot.observations[entry.name] = observation

    def _read_generation(self, root: int, entries: list[Entry]) -> None:
        """Reads all entries through one pinned generation.

        Raises:
            _GenerationGoneError: It was replaced and removed before all was read.
        """
        self._generation = _link(root, DATA_LINK)
        self._links.clear()
        snapshot, names = self._snapshot, (self._snapshot.empty, self._snapshot.newline_ended)
        marks = [len(listed) for listed in names]
        data = _pin(root) if self._generation is not None else None
        try:
            for entry in entries:
                snapshot.observations[entry.name] = self._observe(root, data, entry)
        except _GenerationGoneError:
            for listed, mark in zip(names, marks, strict=True):
                del listed[mark:]
            raise
        finally:
            if data is not None:
                os.close(data)
        if data is not None:
            snapshot.atomic_roots.append(self._root.path)

    def _observe(self, root: int, data: int | None, entry: Entry) -> Observation:
        relative = entry.path[len(self._root.path.rstrip("/")) + 1 :]
        directory, atomic = root, False
        if data is not None and self._is_published(root, relative):
            directory, atomic = data, True
            relative = relative.removeprefix(f"{DATA_LINK}/")
        try:
            descriptor = self._open(directory, relative)
        except OSError as error:
            if error.errno not in _GONE:
                return _failure(error, "the file")
            if atomic and _link(root, DATA_LINK) != self._generation:
                raise _GenerationGoneError from None
            return _missing(entry, atomic=atomic)
        try:
            return self._read(descriptor, entry, atomic=atomic)
        except OSError as error:
            return _failure(error, "the file")
        finally:
            os.close(descriptor)

    def _is_published(self, root: int, relative: str) -> bool:
        """Whether a visible name is the AtomicWriter's link into the current generation.

        A name without a link counts as published: links of new files appear just after the swap.
        """
        first = relative.partition("/")[0]
        if first == DATA_LINK:
            return True
        if first not in self._links:
            target = _link(root, first)
            if target is None and not _exists(root, first):
                target = f"{DATA_LINK}/{first}"
            self._links[first] = target == f"{DATA_LINK}/{first}"
        return self._links[first]

    def _open(self, directory: int, relative: str) -> int:
        try:
            return beneath.open_file(directory, relative)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        # an absolute link, or one from a generation to elsewhere: fine if it ends in some root
        real = os.path.realpath(os.path.join(self._root.path, relative))
        for path in self._reader.roots:
            base = os.path.realpath(path)
            if real != base and _contains(base, real):
                pinned = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    return beneath.open_file(pinned, os.path.relpath(real, base))
                finally:
                    os.close(pinned)
        raise OSError(errno.EXDEV, "outside")

    def _read(self, descriptor: int, entry: Entry, *, atomic: bool) -> Observation:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for test, name in _KINDS if test(status.st_mode)), "no regular file")
            return _unreadable("secret-not-a-file", f"is {kind}, not a file")
        limit = self._reader.max_size
        if status.st_size > limit:
            return _unreadable(
                "secret-too-large", f"is larger than max_secret_size ({limit} bytes)"
            )
        content = os.read(descriptor, status.st_size + 1)
        if not atomic and not self._at_rest(descriptor, status, len(content), entry):
            self._snapshot.retry_within(self._reader.settle)
            return Observation(State.PRESENT, settled=False)
        if not content:
            self._snapshot.empty.append(entry.name)
            if not atomic:
                return _unreadable("secret-empty", "is empty: half-written, or never filled")
        if content.endswith(b"\n"):
            self._snapshot.newline_ended.append(entry.name)
        if not atomic and status.st_mode & stat.S_IROTH:
            self._snapshot.world_readable.append(entry.name)
        return Observation(State.PRESENT, self._reader.fingerprint(entry.name, content))

    def _at_rest(self, descriptor: int, before: os.stat_result, size: int, entry: Entry) -> bool:
        after = os.fstat(descriptor)
        unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        age = self._now - before.st_mtime
        if not unchanged or size != before.st_size or 0 <= age < self._reader.settle:
            return False
        if not self._writers:
            return True
        return self._writers.isdisjoint((entry.path, os.path.realpath(entry.path)))

    def _watch(self, entries: list[Entry]) -> None:
        watch, root = self._snapshot.watch, self._root.path
        watch_path(watch, root)
        watch[root] = None
        for parent in {os.path.dirname(entry.path) for entry in entries}:
            while parent != root and not os.path.isdir(parent):
                parent = os.path.dirname(parent)  # noqa: PLW2901 - climbs to what exists
            if parent != root and f"/{DATA_LINK}" not in parent:
                watch[parent] = None
        if not self._root.atomic:
            for entry in entries:
                if os.path.islink(entry.path):
                    watch[os.path.dirname(os.path.realpath(entry.path))] = None


def watch_path(watch: dict[str, frozenset[str] | None], path: str) -> None:
    """Adds what must be watched to see a path come, go or be replaced: its nearest real parent."""
    parent, name = os.path.split(path)
    while name and not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    names = watch.get(parent, frozenset())
    if name and names is not None:
        watch[parent] = names | {name}


def _link(directory: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


def _exists(directory: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except OSError:
        return False
    return True


def _pin(root: int) -> int | None:
    try:
        return beneath.open_directory(root, DATA_LINK)
    except OSError:
        return None


def _is_empty(directory: str) -> bool:
    with os.scandir(directory) as listing:
        return all(item.name.startswith("..") for item in listing)


def _missing(entry: Entry, *, atomic: bool) -> Observation:
    if not atomic and os.path.islink(entry.path):
        return _unreadable("secret-link-dangling", "is a symlink to nothing")
    return _gone(f"there is no file {entry.path}")


def _gone(problem: str) -> Observation:
    return Observation(State.MISSING, None, problem, code="secret-missing")


def _unreadable(code: str, reason: str) -> Observation:
    return Observation(State.UNREADABLE, None, reason, code=code)


def _failure(error: OSError, what: str) -> Observation:
    if error.errno in _MACHINE_SHORT:
        problem = f"{what} could not be read: {error.strerror}"
        return Observation(State.UNREADABLE, None, problem, settled=False)
    reasons = {
        errno.EXDEV: ("secret-outside-roots", "leads outside the watch roots"),
        errno.ELOOP: ("secret-link-loop", "is a loop of symlinks"),
        errno.EACCES: ("secret-unreadable", f"may not be read by uid {os.geteuid()}"),
        errno.ENXIO: ("secret-not-a-file", "is a socket or device, not a file"),
    }
    otherwise = ("secret-unreadable", f"cannot be read: {error.strerror}")
    code, reason = reasons.get(error.errno or 0, otherwise)
    return _unreadable(code, reason if what == "the file" else f"{what} {reason}")
