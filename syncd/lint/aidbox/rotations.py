"""When secrets were last rotated: by content if the ledger saw it, else by the file's time.

A file's time says less: whoever publishes a generation writes all of its files anew.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import quote

from syncd.core.timing import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.core.model import Entry


def rotations(state_dir: str, entries: Iterable[Entry]) -> dict[str, float]:
    """When each secret's content last changed, seconds since the epoch, as far as it is known.

    Args:
        state_dir: Of the daemon, which may be running.
        entries: The secrets.
    """
    baseline, known = _seen(f"{state_dir}/ledger.sqlite3")
    found = {}
    for entry in entries:
        changed = known.get(entry.name)
        if changed is not None and changed > baseline:
            found[entry.name] = changed
            continue
        with contextlib.suppress(OSError):
            written = os.stat(entry.path).st_mtime
            # what was written anew and has not changed since the baseline was not rotated then
            if changed is None or written <= baseline:
                found[entry.name] = written
    return found


def _seen(path: str) -> tuple[float, Mapping[str, float]]:
    """When the daemon first looked, and when it last saw each secret change; all by its ledger.

    Returns:
        Infinity and nothing where there is no ledger to read.
    """
    # without a log nobody has it open, and opening it as usual would leave files of this user's
    mode = "mode=ro" if os.path.exists(f"{path}-wal") else "mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?{mode}", uri=True)) as db:
            baseline = db.execute("SELECT value FROM meta WHERE key = 'baseline'").fetchone()
            rows = db.execute("SELECT name, changed_at FROM secret WHERE changed_at IS NOT NULL")
            changed = {name: seconds_of(at) for name, at in rows}
    except sqlite3.Error:
        return math.inf, {}
    return (seconds_of(baseline[0]) if baseline else math.inf), changed
