"""A look into a ledger from another process: read-only, whether or not a daemon has it open."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from syncd.core.event_data import VAULT_CONFIG_CHANGED
from syncd.core.timing import seconds_of
from syncd.ledger.rows import meta
from syncd.ledger.schema import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Rotations:
    """When the daemon saw secrets change.

    Attributes:
        baseline: When it first looked, seconds since the epoch; infinite where it never did.
        changed: When it last saw the content of each secret change, seconds since the epoch, by
            name; the baseline for those that did not change since.
        config_since: Since when it would have seen the vault config change; infinite where it never
            looked.
        config_changed: When it last saw the vault config change, or None.
    """

    baseline: float = math.inf
    changed: Mapping[str, float] = field(default_factory=dict)
    config_since: float = math.inf
    config_changed: float | None = None


def read_rotations(state_dir: str) -> Rotations:
    """Reads when secrets changed; empty where there is no ledger, or it cannot be read."""
    path = f"{state_dir}/{FILE_NAME}"
    # SQLite opens a WAL database by creating -wal and -shm where they are missing. Run as another
    # user, that would leave files that the daemon cannot open. Without -wal the database is closed,
    # so it can be read as immutable, which creates nothing.
    mode = "mode=ro" if os.path.exists(f"{path}-wal") else "mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?{mode}", uri=True)) as db:
            baseline = meta(db, "baseline")
            rows = db.execute("SELECT name, changed_at FROM secret WHERE changed_at IS NOT NULL")
            changed = {name: seconds_of(at) for name, at in rows}
            since = baseline
            if meta(db, "pruned") is not None:  # the log may have lost changes before its oldest
                since = db.execute("SELECT min(time) FROM event").fetchone()[0]
            statement = "SELECT max(time) FROM event WHERE type = ?"
            config_changed = db.execute(statement, (VAULT_CONFIG_CHANGED,)).fetchone()[0]
    except sqlite3.Error:
        return Rotations()
    return Rotations(
        _seconds(baseline),
        changed,
        _seconds(since),
        seconds_of(config_changed) if config_changed else None,
    )


def _seconds(at: str | None) -> float:
    return math.inf if at is None else seconds_of(at)
