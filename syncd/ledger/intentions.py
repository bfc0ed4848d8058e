"""What was begun outside of syncd and must be ended, however the process ends.

An intention is on the disk when `intend` returns, also after a power cut: it is written before the
first step, and removed after the last one. It never holds a value of a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from syncd.ledger.reads import Reads
from syncd.ledger.rows import set_meta

if TYPE_CHECKING:
    from syncd.ledger.connection import LedgerConnection

_PREFIX: Final = "intention:"


class Intentions(Reads):
    """The part of the ledger that keeps them."""

    _file: LedgerConnection

    def intend(self, name: str, text: str) -> None:
        """Keeps an intention, durably; one of the same name is replaced."""
        with self._file.transaction() as db:
            set_meta(db, **{_PREFIX + name: text})
        self._file.truncate_log()

    def intended(self) -> dict[str, str]:
        """The intentions that were not settled, by name."""
        rows = self._file.read(
            "SELECT key, value FROM meta WHERE key GLOB ?",
            (f"{_PREFIX}*",),
        )
        return {str(key).removeprefix(_PREFIX): str(value) for key, value in rows}

    def settle(self, name: str) -> None:
        """Forgets an intention."""
        with self._file.transaction() as db:
            db.execute("DELETE FROM meta WHERE key = ?", (_PREFIX + name,))
