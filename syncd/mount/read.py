"""Reading a mount: one consistent snapshot, each file safely, values only long enough to hash.

A root (`syncd.mount.roots`) is either an AtomicWriter mount, as the Secrets Store CSI Driver and
the kubelet write it (a `..data` symlink that is swapped by rename; kubernetes/kubernetes
`pkg/volume/util/atomic_writer.go`), or a directory of plain files. In an AtomicWriter mount the
directory behind `..data` is pinned by a descriptor and every file is read through it, so that one
snapshot cannot mix two generations however fast a publisher swaps. Plain files, and files that
were written to after their generation was published, are read only when they are at rest: two
observations, `settle` apart, are identical.

A file that does not exist was removed, or its mount is being taken down or set up. It counts as
removed at once where the mount is as it was: the same directory, and a generation that came after
the one with the file (a publisher removes a file only with a new generation). Otherwise the mount
counts as away, and has a grace period to become complete again (`RootScan._remember`).

Each root is scanned in a thread of its own, since its file system may never answer. A root that
makes no progress for `LIMIT` seconds is unreadable, and delays no other one.

The content of a file is hashed at once, keyed and bound to the secret's name, and dropped: equal
values of two secrets have different versions, and without the key no guess can be tested.
"""

from __future__ import annotations

import secrets
import time
from concurrent.futures import wait
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from syncd.mount.listing import mounts
from syncd.mount.root_scan import RootScan
from syncd.mount.roots import Home, Parent, Root, group, home_of, of_extra, parents_of
from syncd.mount.rules import Rules
from syncd.mount.snapshot import Snapshot
from syncd.mount.verdict import silent, unreadable
from syncd.system.threads import gather, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future

    from syncd.config.settings import Watch
    from syncd.core.model import Entry
    from syncd.mount.contents import Contents

LIMIT: Final = 4.0
"""Seconds without progress after which a root counts as unreadable."""

OUTSIDE: Final = unreadable("secret-outside-roots", "lies outside the watch roots")
"""The observation of an entry that is in no root."""


def _never(_path: str) -> bool:
    return False


def _unknown(_name: str) -> None:
    return None


class Members(msgspec.Struct):
    """The entries that are scanned as one root.

    Attributes:
        root: What is remembered of the root.
        parents: The directories of its files, each with the root as that directory's path names it.
    """

    root: Root
    parents: list[tuple[Parent, str]]

    def names(self) -> Iterator[str]:
        """The names of the secrets."""
        return (entry.name for parent, _ in self.parents for entry in parent.entries)


class Reader:
    """Takes snapshots of the files that a vault config names.

    The fingerprints are made with `key`; content that has its known version under one of the
    `former` keys is the same content. `watch` is the section of the configuration. `settle` and
    `grace` replace what that section says. `see` is called as `Rules.see`.
    """

    def __init__(
        self,
        key: bytes,
        watch: Watch,
        *,
        settle: float,
        grace: float,
        former: Iterable[bytes] = (),
        see: Callable[[str, str, bytes], object] | None = None,
    ) -> None:
        make, compare = _versions_with(key, former)
        self._rules = Rules(
            watch.roots, (), watch.max_secret_size, settle, grace, make, compare, see
        )
        self._roots: dict[str, Root] = {}
        self._homes: dict[str, Home] = {}
        self._points: frozenset[str] | None = None

    @classmethod
    def configured(cls, key: bytes, watch: Watch, contents: Contents) -> Reader:
        """The reader of a daemon, with the times of its configuration."""
        settle, grace = watch.settle, watch.remount_grace
        return cls(key, watch, settle=settle, grace=grace, see=contents.see)

    def use(self, key: bytes, former: Iterable[bytes] = ()) -> None:
        """Makes versions with another key from now on; `former` are the keys before it."""
        # one assignment, and a scan that is going on keeps the rules that it began with
        make, compare = _versions_with(key, former)
        self._rules = msgspec.structs.replace(self._rules, fingerprint=make, former=compare)

    def forget_mounts(self) -> None:
        """Reads the mount table again at the next need: it may have changed."""
        self._points = None

    def _mount_points(self) -> frozenset[str]:
        if self._points is None:
            self._points = frozenset(mount.point for mount in mounts())
        return self._points

    def locate(
        self, entries: Mapping[str, Entry], limit: float = LIMIT
    ) -> tuple[dict[str, Members], frozenset[str]]:
        """Finds the roots of all entries. Blocks, at most `limit` seconds.

        What is remembered of a root that stays is kept. A directory that cannot be looked at in
        time keeps the root that it had.

        Returns:
            The members of each root, by its path; and the names of the entries outside the
            boundary.
        """
        parents = parents_of(entries.values())
        homes = self._find_homes(parents, limit)
        self._homes = homes
        inside = {
            path: kept
            for path, parent in parents.items()
            if (kept := of_extra(parent) if homes[path].outside else parent) is not None
        }
        outside = frozenset(
            entry.name
            for path, parent in parents.items()
            if homes[path].outside
            for entry in parent.entries
            if not entry.extra
        )
        located = {
            path: Members(self._roots.get(path) or Root(path), members)
            for path, members in group(inside, homes).items()
        }
        self._roots = {path: members.root for path, members in located.items()}
        targets = () if self._rules.boundary else tuple(sorted(self._roots.keys() - {"/"}))
        self._rules = msgspec.structs.replace(self._rules, targets=targets)
        return located, outside

    def _find_homes(self, parents: Mapping[str, Parent], limit: float) -> dict[str, Home]:
        points = self._mount_points()
        homes = self._homes
        found = gather(
            {
                path: partial(home_of, path, self._rules.boundary, points, homes.get(path))
                for path in parents
            },
            limit,
        )
        return {path: found.get(path) or homes.get(path) or Home(path, path) for path in parents}

    def has_moved(self, members: Members) -> bool:
        """Whether the root of some of these entries is another one now. Blocks."""
        boundary, points = self._rules.boundary, self._mount_points()
        aliased = len({named for _, named in members.parents}) > 1
        for parent, _ in members.parents:
            before = self._homes.get(parent.path)
            now = home_of(parent.path, boundary, points, before)
            if before is None or (now.root, now.outside) != (before.root, before.outside):
                return True
            if aliased and now.real != before.real:
                return True  # two names of one directory have become two directories
        return False

    def root_scan(
        self,
        members: Members,
        *,
        clock: Callable[[], float] = time.monotonic,
        known: Callable[[str], str | None] = _unknown,
        is_written: Callable[[str], bool] = _never,
        swapped: bool = False,
    ) -> RootScan:
        """A scan of one root, to be run.

        Args:
            members: Of the root.
            clock: Monotonic clock, seconds.
            known: The version of a secret that is known already; such content is at rest.
            is_written: Whether a file, by its path, is being written, as `Watcher.is_written`.
            swapped: Whether nothing but a swap of its generation was noticed since the last scan.
        """
        return RootScan(
            members.root,
            self._rules,
            members.parents,
            clock=clock,
            known=known,
            is_written=is_written,
            swapped=swapped,
        )

    def scan(
        self,
        entries: Mapping[str, Entry],
        *,
        clock: Callable[[], float] = time.monotonic,
        known: Callable[[str], str | None] = _unknown,
        is_written: Callable[[str], bool] = _never,
        limit: float = LIMIT,
    ) -> Snapshot:
        """Reads and fingerprints every entry's file, each root in a thread of its own. Blocks.

        The arguments are those of `root_scan`, and `limit`, seconds: a root that is not read by
        then is unreadable.
        """
        surveyed, outside = self.survey(
            entries, clock=clock, known=known, is_written=is_written, limit=limit
        )
        snapshot = Snapshot(dict.fromkeys(outside, OUTSIDE))
        for _, found in surveyed.values():
            snapshot.add(found)
        return snapshot

    def survey(
        self,
        entries: Mapping[str, Entry],
        *,
        clock: Callable[[], float] = time.monotonic,
        known: Callable[[str], str | None] = _unknown,
        is_written: Callable[[str], bool] = _never,
        limit: float = LIMIT,
    ) -> tuple[dict[str, tuple[Members, Snapshot]], frozenset[str]]:
        """As `scan`, root by root; the second result is that of `locate`."""
        located, outside = self.locate(entries, limit)
        scans = {
            path: self.root_scan(members, clock=clock, known=known, is_written=is_written)
            for path, members in located.items()
        }
        calls = {path: start(scan.run) for path, scan in scans.items()}
        await_all(calls, scans, limit)
        surveyed = {
            path: (located[path], call.result() if call.done() else unanswered(located[path]))
            for path, call in calls.items()
        }
        return surveyed, outside

    def fingerprint(self, name: str, content: bytes) -> str:
        """The version of a secret's content: a keyed hash, bound to the secret's name."""
        return self._rules.fingerprint(name, content)


def _versions_with(
    key: bytes, former: Iterable[bytes]
) -> tuple[Callable[[str, bytes], str], Callable[[str, bytes], Iterable[str]] | None]:
    """What makes versions with a key, and with keys before it, if there are any."""
    current, *others = (_fingerprint(blake2b(key=k, digest_size=16)) for k in (key, *former))
    if not others:
        return current, None
    return current, lambda name, content: (make(name, content) for make in others)


def _fingerprint(keyed: blake2b) -> Callable[[str, bytes], str]:
    copy = keyed.copy

    def version(name: str, content: bytes) -> str:
        digest = copy()
        digest.update(name.encode() + b"\0")
        digest.update(content)  # separately, so that the value is not copied
        return "k1:" + digest.hexdigest()

    return version


class Progressing(Protocol):
    """Something whose progress can be seen from another thread."""

    @property
    def progress(self) -> object:
        """Differs from the value before as long as something is going on."""


def await_all(
    calls: Mapping[str, Future[Snapshot]], scans: Mapping[str, Progressing], limit: float
) -> None:
    """Waits for all calls, as long as one that is not done makes progress within the limit."""
    progress = {path: scan.progress for path, scan in scans.items()}
    pending = dict(calls)
    while pending:
        wait(pending.values(), timeout=limit)
        pending = {path: call for path, call in pending.items() if not call.done()}
        now = {path: scans[path].progress for path in pending}
        if now == {path: progress[path] for path in pending}:
            return
        progress = now


def unanswered(members: Members) -> Snapshot:
    """The snapshot of a root whose file system does not answer."""
    seen = silent(members.root.path)
    return Snapshot(dict.fromkeys(members.names(), seen), failed=seen.problem)


def scan_once(
    entries: Mapping[str, Entry],
    watch: Watch,
    *,
    settle: float,
    limit: float = LIMIT,
    contents: Contents | None = None,
) -> Snapshot:
    """Scans for a command: nothing is remembered, so that a missing file counts as removed.

    The key is a random one, so the versions can be compared with nothing.
    With a `settle` of 0, files that are being written are read, too.
    """
    key = secrets.token_bytes(32)
    see = None if contents is None else contents.see
    reader = Reader(key, watch, settle=settle, grace=0.0, see=see)
    return reader.scan(entries, limit=limit)
