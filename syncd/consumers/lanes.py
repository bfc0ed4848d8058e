"""What is delivered in order: the lanes of a consumer, their failures, and a batch on its way."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from syncd.core.events import Event
from syncd.core.model import secret_key
from syncd.core.timing import Backoff


class Trouble(msgspec.Struct):
    """Why a lane is held.

    Attributes:
        reason: One line; empty while only the receiver is to blame.
        backoff: Its failures.
        due: When to try again (monotonic, seconds).
        successes: Deliveries that had succeeded at its last failure.
    """

    reason: str = ""
    backoff: Backoff = msgspec.field(default_factory=Backoff)
    due: float = 0.0
    successes: int = 0


class Lane(msgspec.Struct):
    """A lane that has something to deliver.

    Attributes:
        event: What is delivered next, or now; None until it is read again.
        slots: The ledger's slots that hold something, besides that of `event`.
        in_flight: Whether `event` is being delivered or recorded.
        trouble: Its failures since it last succeeded.
    """

    event: Event | None = None
    slots: set[str] = msgspec.field(default_factory=set)
    in_flight: bool = False
    trouble: Trouble | None = None


class Batch(msgspec.Struct, eq=False):
    """A delivery in flight.

    Attributes:
        events: Each of another lane.
        again: Whether it is another attempt at something that failed.
        successes: Deliveries that had succeeded when it began.
    """

    events: Sequence[Event]
    again: bool
    successes: int


def lane_of(event: Event) -> str:
    """What an event is in order with: all that concerns one secret, or one vault config."""
    return secret_key(event.subject, event.origin.source if event.origin else None)
