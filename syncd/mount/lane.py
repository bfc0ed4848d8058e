"""One root's loop: its turns, its scans, and the thread that a dead file system keeps."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from syncd.mount.record import Recorded
from syncd.mount.roots import opened
from syncd.mount.schedule import Schedule
from syncd.mount.snapshot import Snapshot
from syncd.mount.verdict import RECOVERABLE
from syncd.mount.way import Watched
from syncd.system import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.core.model import Entry
    from syncd.mount.read import Members, Reader
    from syncd.mount.record import Recorder
    from syncd.mount.root_scan import RootScan
    from syncd.mount.watch import Hint, Watcher

_REARMS: Final = 5
_SMALL: Final = 1000
"""Secrets that an errand looks at, at most: with more, the garbage collector is to be off."""


class Pass(msgspec.Struct, frozen=True):
    """The result of one scan of one root.

    Attributes:
        snapshot: What was seen.
        recorded: What changed; None where the scan is void.
        moved: Whether entries of this root belong to another one now.
        duration: Seconds from the beginning to the commit.
        took: Seconds of the processor.
    """

    snapshot: Snapshot
    recorded: Recorded | None
    moved: bool
    duration: float
    took: float


class Follower:
    """Something that is looked at when its schedule says so.

    Attributes:
        schedule: The turns.
        watched: What the last look said must be watched.
    """

    def __init__(self, interval: float, settle: float) -> None:
        self.schedule = Schedule(interval, settle)
        self.watched = Watched()

    def concerns(self, directories: frozenset[str]) -> bool:
        """Whether something in these directories is a reason to look; none means anywhere."""
        watched = self.watched
        return not directories or any(
            directory in watched.ways or directory in watched.files for directory in directories
        )


class Errand(msgspec.Struct, eq=False):
    """A look at a root that the attendant's thread has begun.

    Attributes:
        reason: As that of a turn.
        future: Gets the result.
        claim: As for `Lane.work`.
        announced: Whether what it committed was announced.
    """

    reason: str
    future: Future[Pass] = msgspec.field(default_factory=Future)
    claim: Lock = msgspec.field(default_factory=Lock)
    announced: bool = False


class Lane(Follower):
    """One root while it is followed.

    Attributes:
        members: The entries that are scanned as this root.
        entries: All entries of the vault config, at the time of grouping.
        failed: Why the root cannot be read, or None.
        settled: Whether the last scan decided about every file.
        scope: Ends the lane's task.
        errand: A look that was begun, and that the lane's task does not know of yet.
    """

    def __init__(
        self, members: Members, entries: Mapping[str, Entry], interval: float, settle: float
    ) -> None:
        super().__init__(interval, settle)
        self.members = members
        self.entries = entries
        self.failed: str | None = None
        self.settled = False
        self.scope = anyio.CancelScope()
        self._settle = settle
        self.errand: Errand | None = None
        self._turn = Lock()
        self._scan: RootScan | None = None

    @property
    def path(self) -> str:
        """The root."""
        return self.members.root.path

    @property
    def progress(self) -> tuple[int, int]:
        """Differs from the value before as long as a scan is not held by one system call."""
        scan = self._scan
        return (0, 0) if scan is None else (id(scan), scan.progress)

    def take(self, hint: Hint) -> Errand | None:
        """Begins an errand after a swap of this small root, if a turn could begin now.

        May be called from any thread. Until the lane's task has called `adopt`, no other begins.
        """
        if not self._is_swap(hint.directories) or len(self.members.root.names) > _SMALL:
            return None
        with self._turn:
            if self.errand is None and self.schedule.is_open:
                self.errand = Errand(hint.reason)
                return self.errand
        return None

    def adopt(self) -> Errand | None:
        """The errand that was begun since the last call, or None. In the event loop only."""
        with self._turn:
            errand, self.errand = self.errand, None
            return errand

    def saw(self, snapshot: Snapshot) -> None:
        """Takes over what a scan says of the root and of the next turn."""
        self.failed = snapshot.failed
        self.settled = snapshot.retry_in is None
        self.schedule.retry = snapshot.retry_in

    @property
    def was_swapped(self) -> bool:
        """Whether all that happened since the last scan is that this root's generation changed.

        Every directory on the way to it is as it was then: another one would have given a hint, and
        where hints are not reliable, the rescan looks at all of them.
        """
        return self._is_swap(self.schedule.swapped)

    def _is_swap(self, directories: frozenset[str]) -> bool:
        """Whether swaps in these directories are one of this root's generation."""
        return self.members.root.generation is not None and directories == {self.path}

    def scan(
        self, reader: Reader, recorder: Recorder, watcher: Watcher, *, swapped: bool = False
    ) -> Snapshot:
        """Scans the root under its own watches. Blocks, perhaps for ever.

        Args:
            reader: Reads the files.
            recorder: Knows the versions so far.
            watcher: Is armed with what matters.
            swapped: Whether this is all that happened, see `was_swapped`.
        """
        # Which directories matter depends on what the scan finds (links, mounts, missing parents),
        # but they must be watched before the scan, or a change between scan and watch would give no
        # hint. So: watch what mattered last time, scan, and if the scan shows that something else
        # matters, watch that and scan again, until a scan ran entirely under its own watches.
        # Arming the same directories again is needed, too: one that was replaced by another of the
        # same name gets a new watch.
        if not swapped:
            watcher.arm(self.watched, self.path)
        for _ in range(_REARMS):
            scan = self._scan = reader.root_scan(
                self.members,
                known=recorder.version_of,
                is_written=watcher.is_written,
                swapped=swapped,
            )
            snapshot = scan.run()
            self._scan = None  # it holds the snapshot
            if snapshot.watched == self.watched:
                return snapshot
            self.watched = snapshot.watched
            watcher.arm(self.watched, self.path)
            swapped = False
        # The mount changes with every scan. This snapshot is consistent all the same, and what its
        # watches may miss is found by a scan after the settle time.
        snapshot.retry_within(self._settle)
        return snapshot

    def work(
        self, claim: Lock, reader: Reader, recorder: Recorder, watcher: Watcher, *, swapped: bool
    ) -> Pass:
        """Scans the root and records what changed. Blocks, perhaps for ever.

        Args:
            claim: Taken before the result is used. When the loop has taken it, the pass is
                disowned, and its result is dropped.
            reader: As for `scan`.
            recorder: Compares and commits.
            watcher: As for `scan`.
            swapped: As for `scan`.

        Raises:
            StateError: The ledger cannot be used.
        """
        started, began = time.monotonic(), time.thread_time()
        entries, recorded = self.entries, None
        moved = not swapped and reader.has_moved(self.members)
        snapshot = self.scan(reader, recorder, watcher, swapped=swapped)
        if not moved and claim.acquire(blocking=False):
            recorded = recorder.record(entries, snapshot.observations, started)
        took, duration = time.thread_time() - began, time.monotonic() - started
        return Pass(snapshot, recorded, moved, duration, took)


class Probe:
    """Looks whether file systems still answer, by opening one file of each root.

    Args:
        lanes: The roots.
        boundary: Where files of the vault config must lie; empty for anywhere.

    Attributes:
        left: The roots that did not answer yet; the first one is being asked.
        failed: The roots whose file system says that it is broken.
    """

    def __init__(self, lanes: Iterable[Lane], boundary: Iterable[str]) -> None:
        self.left = list(lanes)
        self._boundary = boundary
        self.failed: list[Lane] = []

    def run(self) -> None:
        """Asks one root after the other. Blocks, perhaps for ever."""
        while self.left:
            lane = self.left[0]
            parent, named = lane.members.parents[0]
            entry = parent.entries[0]
            relative = entry.path[len(named.rstrip("/")) + 1 :]
            try:
                # a file that the operator named may lie anywhere
                with opened(lane.path, () if entry.extra else self._boundary) as root:
                    os.close(beneath.open_file(root, relative))
            except OSError as error:
                if error.errno in RECOVERABLE:
                    self.failed.append(lane)
            del self.left[0]
