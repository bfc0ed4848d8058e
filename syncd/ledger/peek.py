"""A look into a ledger from another process: read-only, whether or not a daemon has it open."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from syncd.core.event_data import SECRET_CHANGED, VAULT_CONFIG_CHANGED
from syncd.core.timing import seconds_of
from syncd.ledger import absence
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
        versions: The last version of each secret that changed, by name.
        replaced: When each secret changed, and the version before, in order, by name; none before
            `config_since`.
        late: Since when that may have changed which the daemon found at a time, because it did not
            run before; by that time.
    """

    baseline: float = math.inf
    changed: Mapping[str, float] = field(default_factory=dict)
    config_since: float = math.inf
    config_changed: float | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    replaced: Mapping[str, tuple[tuple[float, str | None], ...]] = field(default_factory=dict)
    late: Mapping[float, float] = field(default_factory=dict)


class _Replaced(msgspec.Struct):
    """What is read of a change."""

    previous_version: str | None


_decode = msgspec.json.Decoder(_Replaced).decode


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
            statement = "SELECT name, changed_at, version FROM secret WHERE changed_at IS NOT NULL"
            rows = db.execute(statement).fetchall()
            changed = {name: seconds_of(at) for name, at, _ in rows}
            versions = {name: version for name, _, version in rows}
            replaced: dict[str, list[tuple[float, str | None]]] = {}
            statement = "SELECT subject, time, data FROM event WHERE type = ? ORDER BY sequence"
            for name, at, data in db.execute(statement, (SECRET_CHANGED,)):
                replaced.setdefault(name, []).append(
                    (seconds_of(at), _decode(data).previous_version)
                )
            since = baseline
            if meta(db, "pruned") is not None:  # the log may have lost changes before its oldest
                since = db.execute("SELECT min(time) FROM event").fetchone()[0]
            statement = "SELECT max(time) FROM event WHERE type = ?"
            config_changed = db.execute(statement, (VAULT_CONFIG_CHANGED,)).fetchone()[0]
            late = {seconds_of(at): seconds_of(since) for at, since in absence.late(db).items()}
    except (sqlite3.Error, msgspec.MsgspecError):
        return Rotations()
    return Rotations(
        _seconds(baseline),
        changed,
        _seconds(since),
        seconds_of(config_changed) if config_changed else None,
        {name: version for name, version in versions.items() if name in replaced},
        {name: tuple(changes) for name, changes in replaced.items()},
        late,
    )


def _seconds(at: str | None) -> float:
    return math.inf if at is None else seconds_of(at)
