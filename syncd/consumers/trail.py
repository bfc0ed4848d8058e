"""The attempts of one consumer on their way to the ledger, as few records as possible.

They are written with the acknowledgements, so that they cost no commit of their own. Until then
readers get them from here, and the end of the process without a shutdown loses them.

Attempts that failed alike are one record with a count, and of one event there are at most `MOST`
records: the last one then takes all that follows. So an event that fails for weeks takes no more
room than one that failed for an hour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from syncd.consumers.lanes import lane_of
from syncd.core.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from syncd.core.events import Event
    from syncd.core.record import Outcome

MOST: Final = 20
"""Records of one event, since the start of the process."""

_TICK: Final = 1e-6
"""Seconds between two records of an event, at least: together with it the time is their name."""


class Trail:
    """The records that are not in the ledger yet."""

    def __init__(self) -> None:
        self._new: dict[tuple[int, float], Record] = {}
        self._failing: dict[str, tuple[Record, int]] = {}

    def delivered(self, events: Iterable[Event], status: int | None, now: float) -> None:
        """Adds an attempt that was acknowledged, `now` in seconds since the epoch."""
        for event in events:
            if self._failing:
                self._failing.pop(lane_of(event), None)
            self._add(Record(event.sequence, now, now, 1, "delivered", status))

    def failed(
        self,
        events: Iterable[Event],
        outcome: Outcome,
        status: int | None,
        reason: str,
        now: float,
    ) -> None:
        """Adds an attempt that failed, `now` in seconds since the epoch."""
        for event in events:
            key = lane_of(event)
            last, count = self._failing.get(key, (None, 0))
            if last is None or last.sequence != event.sequence:
                last, count = None, 0
            if last is not None and (count >= MOST or _is_alike(last, outcome, status, reason)):
                last.until, last.attempts = now, last.attempts + 1
                last.outcome, last.status, last.reason = outcome, status, reason
                self._new[last.sequence, last.at] = last
                continue
            last = Record(event.sequence, now, now, 1, outcome, status, reason)
            self._add(last)
            self._failing[key] = last, count + 1

    def _add(self, record: Record) -> None:
        while (record.sequence, record.at) in self._new:
            record.at += _TICK
        self._new[record.sequence, record.at] = record

    def pending(self) -> tuple[Record, ...]:
        """What was not taken yet, as it is now."""
        return tuple(map(msgspec.structs.replace, self._new.values()))

    def take(self) -> tuple[Record, ...]:
        """What is to be written; it is the caller's."""
        taken = self.pending()
        self._new.clear()
        return taken

    def put_back(self, records: Sequence[Record]) -> None:
        """Adds again what could not be written, unless it has gone on since."""
        self._new = {**{(item.sequence, item.at): item for item in records}, **self._new}

    def calm(self) -> None:
        """Nothing fails any longer."""
        self._failing.clear()


def _is_alike(record: Record, outcome: Outcome, status: int | None, reason: str) -> bool:
    return (record.outcome, record.status, record.reason) == (outcome, status, reason)
