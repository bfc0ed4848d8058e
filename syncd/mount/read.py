"""Reading a mount: one consistent snapshot, each file safely, values only long enough to hash.

A root is either an AtomicWriter mount, as the Secrets Store CSI Driver and the kubelet write it
(a `..data` symlink that is swapped by rename; kubernetes/kubernetes
`pkg/volume/util/atomic_writer.go`), or a directory of plain files. In an AtomicWriter mount the
directory behind `..data` is pinned by a descriptor and every file is read through it, so that one
snapshot cannot mix two generations however fast a publisher swaps. Plain files, and files that
were written to after their generation was published, are read only when they are at rest.

A file that does not exist was removed, or its mount is being taken down or set up. It counts as
removed at once where the mount is as it was: the same directory, and a generation that came after
the one with the file (a publisher removes a file only with a new generation). Otherwise the mount
counts as away, and has a grace period to become complete again (`RootScan._remember`).

The content of a file is hashed at once, keyed and bound to the secret's name, and dropped: equal
values of two secrets have different versions, and without the key no guess can be tested.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from syncd.mount.root_scan import Root, RootScan, Rules
from syncd.mount.roots import contains, roots_of
from syncd.mount.snapshot import Snapshot
from syncd.mount.verdict import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from syncd.config.settings import Watch
    from syncd.core.model import Entry


def _never(_path: str) -> bool:
    return False


class Reader:
    """Takes snapshots of the files that a vault config names.

    The fingerprints are made with `key`. `Rules` describes the other arguments.
    """

    def __init__(
        self, key: bytes, roots: Iterable[str], *, max_size: int, settle: float, grace: float
    ) -> None:
        self._hash = blake2b(key=key, digest_size=16)
        self._rules = Rules((), max_size, settle, grace, self.fingerprint)
        self._roots: dict[str, Root] = {}
        self.set_roots(roots)

    @property
    def roots(self) -> tuple[str, ...]:
        """The roots, longest first."""
        return self._rules.roots

    def set_roots(self, roots: Iterable[str]) -> None:
        """Replaces the roots; what is remembered of one that stays is kept."""
        ordered = sorted(roots, key=len, reverse=True)
        self._roots = {root: self._roots.get(root) or Root(root) for root in ordered}
        self._rules = replace(self._rules, roots=tuple(self._roots))

    def scan(
        self,
        entries: Mapping[str, Entry],
        *,
        now: float,
        monotonic: float,
        is_written: Callable[[str], bool] = _never,
    ) -> Snapshot:
        """Reads and fingerprints every entry's file.

        Args:
            entries: By name.
            now: Wall clock as the scan begins, seconds, to compare with modification times.
            monotonic: Monotonic clock, seconds, for the grace period.
            is_written: Whether a file, by its path, is being written, as `Watcher.is_written`.
        """
        snapshot = Snapshot()
        by_root: dict[str, list[Entry]] = {root: [] for root in self._roots}
        for entry in entries.values():
            root = next((root for root in self._roots if contains(root, entry.path)), None)
            if root is None:
                snapshot.observations[entry.name] = unreadable(
                    "secret-outside-roots", "lies outside the watch roots"
                )
            else:
                by_root[root].append(entry)
        for root, members in by_root.items():
            scan = RootScan(
                self._roots[root],
                self._rules,
                members,
                now=now,
                monotonic=monotonic,
                is_written=is_written,
            )
            snapshot.add(scan.run())
        return snapshot

    def fingerprint(self, name: str, content: bytes) -> str:
        """The version of a secret's content: a keyed hash, bound to the secret's name."""
        digest = self._hash.copy()
        digest.update(name.encode() + b"\0")
        digest.update(content)  # separately, so that the value is not copied
        return "k1:" + digest.hexdigest()


def scan_once(
    entries: Mapping[str, Entry],
    watch: Watch,
    *,
    settle: float,
    is_written: Callable[[str], bool] = _never,
) -> Snapshot:
    """Scans for a command: nothing is remembered, so that a missing file counts as removed.

    The key is a random one, so the versions can be compared with nothing.
    With a `settle` of 0, files that are being written are read, too.
    """
    reader = Reader(
        secrets.token_bytes(32),
        roots_of(watch, entries),
        max_size=watch.max_secret_size,
        settle=settle,
        grace=0.0,
    )
    return reader.scan(entries, now=time.time(), monotonic=time.monotonic(), is_written=is_written)
