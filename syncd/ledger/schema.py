"""The schema of the ledger's database, and how an older one becomes the current one."""

from __future__ import annotations

from typing import Final

from syncd.ledger.records import TABLE

FILE_NAME: Final = "ledger.sqlite3"
"""Name of the database inside the state directory."""

VERSION: Final = 5
"""`PRAGMA user_version` of the schema below."""

TABLES: Final = frozenset(("meta", "secret", "event", "pending"))
"""Tables that every version of the schema has."""

_CORE = """
-- What the ledger knows of itself: epoch, key_id, open_since_boot (empty after a clean close),
-- closed (when), baseline (time of the first scan), late (see `syncd.ledger.absence`), pruned
-- (newest sequence that is gone), and for a relay stream
-- and stream_past (see `Ledger.follow`).
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- The inventory: one row per entry of the vault config, and per file of watch.extra (extra = 1), as
-- of the last scan.
CREATE TABLE secret (
    name TEXT PRIMARY KEY, path TEXT NOT NULL, scopes TEXT NOT NULL, state TEXT NOT NULL,
    version TEXT, problem TEXT, changed_at TEXT, extra INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- The event log. AUTOINCREMENT, because a sequence must not come back after its row was pruned.
-- audience and origin are JSON: `Event.visible_to` and `Event.origin`.
CREATE TABLE event (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, type TEXT NOT NULL,
    subject TEXT NOT NULL, data TEXT NOT NULL, audience TEXT NOT NULL, origin TEXT
);

-- The mailboxes: per consumer and `Event.slot` the newest event that it has not acknowledged, and
-- the version that it acknowledged last.
CREATE TABLE pending (
    consumer TEXT NOT NULL, slot TEXT NOT NULL, sequence INTEGER NOT NULL, acknowledged TEXT,
    PRIMARY KEY (consumer, slot)
) WITHOUT ROWID;
CREATE INDEX pending_order ON pending (consumer, sequence);
CREATE INDEX pending_event ON pending (sequence);
"""

_RECEIVED = """
-- What a relay received: per slot the newest event of another installation, with its id there and
-- its position in the stream.
CREATE TABLE received (
    slot TEXT PRIMARY KEY, id TEXT NOT NULL, position INTEGER NOT NULL, time TEXT NOT NULL,
    source TEXT NOT NULL, data TEXT
) WITHOUT ROWID;
"""

_FROM_4 = "ALTER TABLE secret ADD COLUMN extra INTEGER NOT NULL DEFAULT 0;"
_FROM_3 = f"{TABLE} {_FROM_4}"
_FROM_2 = f"DROP INDEX event_time; {_FROM_3}"
_FROM_1 = f"ALTER TABLE event ADD COLUMN origin TEXT; {_RECEIVED} {_FROM_2}"

UPGRADES: Final = {
    0: _CORE + _RECEIVED + TABLE,
    1: _FROM_1,
    2: _FROM_2,
    3: _FROM_3,
    4: _FROM_4,
}
"""Statements that bring a database of an older version to `VERSION`; 0 is an empty file."""
