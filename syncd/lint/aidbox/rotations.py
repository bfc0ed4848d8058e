"""What is known of when secrets and the vault config last changed, and what follows from it.

The ledger compares contents, so it proves a change, and that there was none since it first looked.
A file's time proves less: publishing a generation writes every file of the mount again, so a recent
time says nothing. A time before the start of a process proves that the process read this content.
"""

from __future__ import annotations

import enum
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from syncd.ledger.peek import read_rotations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncd.core.model import Entry


class Verdict(enum.Enum):
    """Whether a process that read something when it started has its current content."""

    CURRENT = enum.auto()
    OLD = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the changes of one file; times are seconds since the epoch.

    Attributes:
        changed: When its content was last seen to change, or None.
        since: Since when a change would have been seen; infinite where nothing was seen.
        written: When it was last written, with or without a change; infinite where unknown.
        version: Its version now, or None.
        replaced: When it changed, and the version before, in order, without a gap from `complete`
            on.
        complete: Since when.
        after: Since when it may have changed, where the daemon did not run then; else None.
    """

    changed: float | None = None
    since: float = math.inf
    written: float = math.inf
    version: str | None = None
    replaced: tuple[tuple[float, str | None], ...] = ()
    complete: float = math.inf
    after: float | None = None

    def judge(self, started: float) -> Verdict:
        """What a process has that read the file at `started`."""
        if self.changed is not None and self.changed > started:
            if not self._has_come_back(started):
                is_certain = self.after is None or self.after >= started
                return Verdict.OLD if is_certain else Verdict.UNKNOWN
            return Verdict.CURRENT if started >= self.complete else Verdict.UNKNOWN
        if started >= min(self.since, self.written):
            return Verdict.CURRENT
        return Verdict.UNKNOWN

    def _has_come_back(self, started: float) -> bool:
        """Whether the content is again what it was then, as after a mount that was away.

        Or, where what is known does not go back so far, what it was first.
        """
        then = next((before for at, before in self.replaced if at > started), None)
        return then is not None and then == self.version


def secret_evidence(state_dir: str, entries: Iterable[Entry]) -> dict[str, Evidence]:
    """What is known of each secret, by name."""
    ledger = read_rotations(state_dir)
    found = {}
    for entry in entries:
        changed, written = ledger.changed.get(entry.name), _written(entry.path)
        if changed is None:
            found[entry.name] = Evidence(written=written)
        else:
            moment = changed if changed > ledger.baseline else None
            found[entry.name] = Evidence(
                moment,
                ledger.baseline,
                written,
                ledger.versions.get(entry.name),
                ledger.replaced.get(entry.name, ()),
                ledger.config_since,
                ledger.late.get(changed),
            )
    return found


def vault_config_evidence(state_dir: str, path: str) -> Evidence:
    """What is known of the vault config."""
    ledger = read_rotations(state_dir)
    changed = ledger.config_changed
    after = None if changed is None else ledger.late.get(changed)
    return Evidence(changed, ledger.config_since, _written(path), after=after)


def _written(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return math.inf
