"""Reading one open file: whether it may be a secret, is at rest, and which version it has.

The rules are explained in `syncd.mount.read`.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from syncd.core.model import Observation, State
from syncd.mount.lookup import is_generated
from syncd.mount.roots import Candidate
from syncd.mount.verdict import not_a_file, unreadable
from syncd.system.lease import is_open_for_writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncd.core.model import Entry
    from syncd.mount.rules import Rules
    from syncd.mount.snapshot import Snapshot

WRITER_LIMIT: Final = 10.0
"""Seconds that a file may be open for writing without changing until it is read all the same."""

TRY_AGAIN: Final = 1.0
"""Seconds until a file is looked at again where nothing says when."""


class FileReader:
    """Reads the files of one root.

    Args:
        rules: The parameters.
        candidates: New contents that wait for a second, identical observation, by secret.
        clock: Monotonic clock, seconds.
        known: The version of a secret that is known already; such content is at rest.
        is_written: Whether a file, by its path, is being written.
    """

    def __init__(
        self,
        rules: Rules,
        candidates: dict[str, Candidate],
        *,
        clock: Callable[[], float],
        known: Callable[[str], str | None],
        is_written: Callable[[str], bool],
    ) -> None:
        self._rules = rules
        self._candidates = candidates
        self._clock = clock
        self._known = known
        self._is_written = is_written

    def read(
        self, descriptor: int, entry: Entry, snapshot: Snapshot, published_ns: int | None
    ) -> Observation:
        """Reads it, if it is at rest.

        Args:
            descriptor: The file.
            entry: Whose file it is.
            snapshot: Gets what is remarkable about the file, and when to look again.
            published_ns: When its generation was published; None where it is in none.

        Raises:
            OSError: It cannot be read.
        """
        rules, status = self._rules, os.fstat(descriptor)
        size = status.st_size
        unfit = size > rules.max_size or not stat.S_ISREG(status.st_mode)
        if unfit or rules.refuses is not None:
            problem = self._unfit(descriptor, status)
            if problem is not None:
                return problem
        content = os.read(descriptor, size + 1)  # one more shows that it has grown
        untouched = published_ns is not None and status.st_mtime_ns <= published_ns
        version = rules.fingerprint(entry.name, content)
        former = None if rules.former is None else self._former(entry, version, content)
        versions = (version, former)
        if not untouched and not self._at_rest(descriptor, status, entry, versions, snapshot):
            return Observation(State.PRESENT, settled=False)
        if len(content) != size:
            snapshot.retry_within(rules.settle)
            return Observation(State.PRESENT, settled=False)
        if not content:
            snapshot.empty.append(entry.name)
            if not untouched:
                return unreadable("secret-empty", "is empty: half-written, or never filled")
        if content.endswith(b"\n"):
            snapshot.newline_ended.append(entry.name)
        if published_ns is None and status.st_mode & stat.S_IROTH and not is_generated(descriptor):
            snapshot.world_readable.append(entry.name)
        if rules.see is not None:
            rules.see(entry.name, version, content)
        return Observation(State.PRESENT, version, former=former)

    def _former(self, entry: Entry, version: str, content: bytes) -> str | None:
        """The known version, where that is this content's under a key that was replaced."""
        known = self._known(entry.name)
        if known is None or known == version or self._rules.former is None:
            return None
        return known if known in self._rules.former(entry.name, content) else None

    def _unfit(self, descriptor: int, status: os.stat_result) -> Observation | None:
        if not stat.S_ISREG(status.st_mode):
            return not_a_file(status.st_mode)
        if self._rules.refuses is not None and self._rules.refuses(descriptor):
            return unreadable("secret-unreadable", "is one of syncd's own files")
        limit = self._rules.max_size
        if status.st_size > limit:
            return unreadable("secret-too-large", f"is larger than max_secret_size ({limit} bytes)")
        return None

    def _at_rest(
        self,
        descriptor: int,
        before: os.stat_result,
        entry: Entry,
        versions: tuple[str, str | None],
        snapshot: Snapshot,
    ) -> bool:
        """Whether a plain file's content may be taken: it is known, or was the same before.

        Two identical observations, `settle` apart by the monotonic clock, need no wall clock: the
        server of a network file system has another one. What two observations cannot show is a
        writer that pauses for longer. The kernel knows the writers of this machine: inotify reports
        them, and where it is not used, a lease is refused.
        """
        candidates, settle = self._candidates, self._rules.settle
        status, after = _signature(before), _signature(os.fstat(descriptor))
        if settle == 0:
            return status == after
        known = self._known(entry.name)
        if known is not None and known in versions:
            candidates.pop(entry.name, None)
            return True
        version, seen, now = versions[0], candidates.get(entry.name), self._clock()
        if status != after or seen is None or (seen.status, seen.version) != (status, version):
            candidates[entry.name] = Candidate(after, version, now)
            snapshot.retry_within(settle)
            return False
        left = seen.since + settle - now
        if left > 0:
            snapshot.retry_within(left)
            return False
        busy = seen.since + WRITER_LIMIT > now and is_open_for_writing(descriptor)
        if busy or self._is_written(entry.path):
            # No hurry: when the file is closed, the watcher gives a hint.
            snapshot.retry_within(max(settle, TRY_AGAIN))
            return False
        return True


def _signature(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written, replaced or resized; its mode is no part of it."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
