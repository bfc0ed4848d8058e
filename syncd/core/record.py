"""What is remembered of the attempts to deliver an event."""

from __future__ import annotations

from typing import Literal

import msgspec

Outcome = Literal["delivered", "retried", "rejected"]


class Record(msgspec.Struct):
    """An attempt at an event, or several in a row that failed alike.

    Times are seconds since the epoch.

    Attributes:
        sequence: The event.
        at: When the first of them ended.
        until: When the last of them ended.
        attempts: How many there were.
        outcome: `delivered`, `retried` if it may heal by itself, or `rejected`.
        status: The status of the answer, or a command's exit code; None where there was none.
        reason: Why it failed, one line, or None.
    """

    sequence: int
    at: float
    until: float
    attempts: int
    outcome: Outcome
    status: int | None = None
    reason: str | None = None
