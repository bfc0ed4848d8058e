"""One scan of one root: its generation, the version of each file, and what absence means.

The rules are explained in `syncd.mount.read`, whose `Reader` makes one `RootScan` per root and
scan.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from syncd.core.model import Observation, State
from syncd.mount.file_reader import TRY_AGAIN, FileReader
from syncd.mount.lookup import exists, is_empty, link, modified_ns
from syncd.mount.roots import opened
from syncd.mount.snapshot import Snapshot
from syncd.mount.verdict import (
    GONE,
    MACHINE_SHORT,
    RECOVERABLE,
    failure,
    gone,
    missing,
)
from syncd.mount.way import DATA_LINK, Watched, contains, follow, in_generation
from syncd.system import beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from syncd.core.model import Entry
    from syncd.mount.roots import Parent, Root
    from syncd.mount.rules import Rules

_OF_DATA: Final = f"{DATA_LINK}/"
_ATTEMPTS: Final = 50


class _GenerationGoneError(Exception):
    """The generation that was being read was replaced: read the next one."""


class RootScan:
    """One scan of one root."""

    def __init__(
        self,
        root: Root,
        rules: Rules,
        members: list[tuple[Parent, str]],
        *,
        clock: Callable[[], float],
        known: Callable[[str], str | None],
        is_written: Callable[[str], bool],
        swapped: bool,
    ) -> None:
        self._root = root
        self._rules = rules
        self._members = members
        self._clock = clock
        self._files = FileReader(
            rules, root.candidates, clock=clock, known=known, is_written=is_written
        )
        self._trusts_links = swapped and root.linked is members
        root.linked = None  # until this scan has looked at all of them
        root.scans += 1
        self._number = root.scans
        self.progress = 0
        """Grows with each file; a scan in which it stands still is held by a system call."""
        self._start()

    def _start(self) -> None:
        """Drops what was read: a snapshot must not mix two generations."""
        self._snapshot = Snapshot()
        self._links: dict[str, bool] = {}
        self._absent: list[str] = []
        self._strays: list[str] = []
        self._generation: str | None = None
        self._published_ns = 0
        self._dangling = False
        self._left = False
        self._all_linked = True
        self._is_linked = False

    def run(self) -> Snapshot:
        """Reads the root's entries, again as often as their generation is replaced meanwhile.

        Never fails: an error of the file system is the observation of what it concerns.
        """
        try:
            are_free = all(map(self._is_free, self._entries()))
            with opened(self._root.path, () if are_free else self._rules.boundary) as root:
                self._read_root(root)
        except OSError as error:
            self._start()
            if error.errno not in GONE:
                self._fail(error)
            elif not self._may_return():
                self._observe_all(gone(f"the mount {self._root.path} does not exist"))
                self._root.absent = frozenset(self._snapshot.observations)
        self._watch()
        return self._snapshot

    def _fail(self, error: OSError) -> None:
        """The root cannot be read at all."""
        seen = self._failure(error, self._root.path)
        self._observe_all(seen)
        if seen.settled:
            self._snapshot.failed = seen.problem

    def _read_root(self, root: int) -> None:
        for _ in range(_ATTEMPTS):
            self._start()
            try:
                self._trusts_links &= self._identity(root) == self._root.identity
                data = self._pin(root)
                try:
                    if data is None and self._is_away():
                        return
                    self._read_generation(root, data)
                finally:
                    if data is not None:
                        os.close(data)
            except _GenerationGoneError:
                continue
            self._remember(root)
            return
        # Generations are replaced faster than they can be read. What was read is dropped, and the
        # secrets keep their versions until a later scan is fast enough.
        self._start()
        self._observe_all(Observation(State.PRESENT, settled=False))
        self._snapshot.retry_within(self._rules.settle)

    @staticmethod
    def _identity(root: int) -> tuple[int, int]:
        status = os.fstat(root)
        return status.st_dev, status.st_ino

    def _pin(self, root: int) -> int | None:
        """Opens the directory behind `..data`, so that all files are read from this one."""
        if not exists(root, DATA_LINK):
            return None
        generation = link(root, DATA_LINK)
        try:
            data = self._open(beneath.open_directory, root, DATA_LINK)
        except OSError as error:
            if error.errno not in GONE:
                raise
            data = None
        try:
            # The link's own time is when the generation was published. It is read between two
            # readings of the link's target: only if these are the same is it the time of this
            # generation, and not of the one before or after.
            published_ns = modified_ns(root, DATA_LINK)
            if link(root, DATA_LINK) != generation:
                raise _GenerationGoneError  # noqa: TRY301 - as for every other way out
        except BaseException:
            if data is not None:
                os.close(data)
            raise
        self._generation, self._published_ns = generation, published_ns
        return data

    def _is_away(self) -> bool:
        """Whether a mount without a readable generation had one or has a link to one.

        It is being taken down or set up then, and the grace period applies to all of its secrets.
        """
        expected = self._generation is not None or self._root.generation is not None
        return expected and self._may_return()

    def _read_generation(self, root: int, data: int | None) -> None:
        observations = self._snapshot.observations
        for parent, named in self._members:
            prefix = len(named.rstrip("/")) + 1
            for entry in parent.entries:
                observations[entry.name] = self._observe(root, data, entry, entry.path[prefix:])
                self.progress += 1
        if data is None and self._generation is not None:
            self._generation, self._dangling = None, True

    def _remember(self, root: int) -> None:
        """Decides what absence means, and keeps what the next scan needs for that.

        A file that does not exist was removed, or its mount is away. A removal that is reported by
        mistake makes consumers drop a secret that is in use, while one that is reported late costs
        only the grace period. So a file that the last scan did not count as removed (`vanished`)
        counts as removed at once only where there is no doubt. There is doubt where

        - the mount already counts as away, since it can come back file by file;
        - the directory is another one than at the last scan: something was mounted over the path,
          or unmounted;
        - the generation is the one of the last scan: publishers remove files only by a new
          generation, so files that are missing from the same one are being taken down.

        The first scan of a root has nothing to compare with. There is doubt where the directory is
        empty, since it may be a mount point that is not mounted yet. A secret that was added to the
        vault config since the last scan has no version to lose, and is not in `vanished`.
        """
        known, identity = self._root, self._identity(root)
        absent = frozenset(self._absent)
        first = known.identity is None
        vanished = absent - known.absent if first else absent & known.names - known.absent
        in_doubt = vanished and (
            known.away_since is not None
            or (is_empty(known.path) if first else known.identity != identity)
            or (self._generation is not None and self._generation == known.generation)
        )
        if in_doubt and self._may_return(vanished):
            # not absent yet, so that the next scan decides again, until the grace period is over
            absent -= vanished
        elif not self._dangling:
            # The mount is complete. One with a dangling `..data` is not, and keeps its time: else
            # the next scan would begin a new grace period for secrets that count as removed.
            known.away_since = None
        known.identity, known.generation = identity, self._generation
        known.names, known.absent = frozenset(self._snapshot.observations), absent
        self._is_linked = self._all_linked and self._generation is not None

    def _may_return(self, names: Iterable[str] | None = None) -> bool:
        """Keeps secrets of a mount that is away unsettled while the grace period lasts.

        Returns False when the period is over.
        """
        known = self._root
        if known.away_since is None:
            known.away_since = self._clock()
        left = known.away_since + self._rules.grace - self._clock()
        if left <= 0:
            return False
        problem = f"the mount {known.path} is missing or incomplete"
        held = Observation(State.MISSING, None, problem, settled=False)
        if names is None:
            names = self._names()
        self._snapshot.observations.update(dict.fromkeys(names, held))
        self._snapshot.retry_within(left)
        return True

    def _entries(self) -> Iterator[Entry]:
        return (entry for parent, _ in self._members for entry in parent.entries)

    def _is_free(self, entry: Entry) -> bool:
        """Whether links of a file may lead anywhere: the operator named it, in `watch.extra`."""
        return entry.extra and not self._rules.strict

    def _names(self) -> list[str]:
        return [entry.name for entry in self._entries()]

    def _observe_all(self, observation: Observation) -> None:
        self._snapshot.observations = dict.fromkeys(self._names(), observation)

    def _observe(self, root: int, data: int | None, entry: Entry, relative: str) -> Observation:
        directory, published = root, False
        try:
            if data is not None:
                published = self._is_published(root, relative)
                if published:
                    directory, relative = data, relative.removeprefix(_OF_DATA)
                else:
                    self._strays.append(entry.path)
            descriptor = self._open(
                beneath.open_file, directory, relative, free=self._is_free(entry)
            )
        except OSError as error:
            if error.errno not in GONE:
                return self._failure(error)
            if published and link(root, DATA_LINK) != self._generation:
                raise _GenerationGoneError from None
            return self._missing(entry, published=published)
        try:
            if self._left and published:
                # The links led out of the pinned generation, perhaps through the mount's own
                # `..data`. The file is of this generation only if that is still the current one,
                # and when it was published is unknown.
                published = False
                if link(root, DATA_LINK) != self._generation:
                    raise _GenerationGoneError
            published_ns = self._published_ns if published else None
            return self._files.read(descriptor, entry, self._snapshot, published_ns)
        except OSError as error:
            return self._failure(error)
        finally:
            os.close(descriptor)

    def _is_published(self, root: int, relative: str) -> bool:
        """Whether a visible name is the AtomicWriter's link into the current generation.

        A name that does not exist counts as published: the AtomicWriter creates the links of new
        files after the swap. A name that was the link when it was last looked at still is, if
        nothing but a swap was noticed since.
        """
        if "/" not in relative and (
            self._trusts_links or link(root, relative) == _OF_DATA + relative
        ):
            return True  # the usual case, and each name comes once
        self._all_linked = False
        first = relative.partition("/")[0]
        if first == DATA_LINK:
            return True
        if first not in self._links:
            target = link(root, first)
            if target is None and not exists(root, first):
                target = _OF_DATA + first
            self._links[first] = target == _OF_DATA + first
        return self._links[first]

    def _open(
        self,
        opener: Callable[[int, str], int],
        directory: int,
        relative: str,
        *,
        free: bool = False,
    ) -> int:
        self._left = False
        try:
            return opener(directory, relative)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        # An absolute link, or one out of its generation. It is allowed where it ends in a root, and
        # that is checked by opening the real path beneath this root: a link that is swapped after
        # `realpath` makes the opening fail.
        self._left = True
        real = follow(f"/proc/self/fd/{directory}/{relative}", Watched())
        for limit in ("/",) if free else self._rules.boundary or self._rules.targets:
            base = follow(limit, Watched())
            if real != base and contains(base, real):
                pinned = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    return opener(pinned, os.path.relpath(real, base))
                finally:
                    os.close(pinned)
        raise OSError(errno.EXDEV, "outside")

    def _failure(self, error: OSError, mount: str | None = None) -> Observation:
        if error.errno in MACHINE_SHORT | RECOVERABLE:
            self._snapshot.retry_within(TRY_AGAIN)
        return failure(error, mount)

    def _missing(self, entry: Entry, *, published: bool) -> Observation:
        seen = missing(entry, atomic=published)
        if seen.state is State.MISSING:
            self._absent.append(entry.name)
        return seen

    def _watch(self) -> None:
        known = self._root
        if self._trusts_links and self._is_linked:
            self._snapshot.watched = known.watched  # the way is what it was, too
        else:
            self._follow(self._snapshot.watched)
        # one that was given up because it was held must not take back what a later one has found
        if self._is_linked and known.scans == self._number:
            known.linked, known.watched = self._members, self._snapshot.watched

    def _follow(self, watched: Watched) -> None:
        for parent, _ in self._members:
            directory = follow(parent.path, watched)
            if not in_generation(directory):
                watched.add_files(directory, parent.names)
                watched.add_way(directory, DATA_LINK)
        plain = self._strays
        if self._generation is None:
            plain = [entry.path for entry in self._entries()]
        for path in plain:
            if os.path.islink(path):
                directory, _, name = follow(path, watched).rpartition("/")
                if not in_generation(directory):
                    watched.add_files(directory or "/", frozenset((name,)))
