"""When secrets were last rotated: by content where the ledger recorded it, else by file time.

A file's time proves less: publishing a generation writes every file of the mount again.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from syncd.ledger.peek import read_rotations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncd.core.model import Entry


def rotations(state_dir: str, entries: Iterable[Entry]) -> dict[str, float]:
    """When each secret's content last changed, seconds since the epoch, where that is known."""
    ledger = read_rotations(state_dir)
    found = {}
    for entry in entries:
        changed = ledger.changed.get(entry.name)
        if changed is not None and changed > ledger.baseline:
            found[entry.name] = changed
            continue
        with contextlib.suppress(OSError):
            written = os.stat(entry.path).st_mtime
            # the ledger saw this content at its baseline, so a later write did not change it
            if changed is None or written <= ledger.baseline:
                found[entry.name] = written
    return found
