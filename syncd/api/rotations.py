"""The history of rotations: when a change was seen, each attempt to deliver it, what Aidbox does.

Pure, and slow with many events: call it in a worker thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from syncd.core.event_data import (
    DESTINATION_RECREATED,
    DESTINATION_STALE,
    SECRET_ADOPTED,
    SECRET_REJECTED,
    AdoptionData,
    DestinationData,
    SecretData,
    Version,
)
from syncd.core.model import ChangeKind
from syncd.core.timing import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from syncd.api.subscribers import View
    from syncd.core.events import Event, Stamp
    from syncd.core.record import Record
    from syncd.ledger.reads import Reads

MOST: Final = 1000
"""Rotations in one answer, at most."""

DEFAULT: Final = 100
"""Rotations in an answer by default."""

_OUTCOMES: Final[Mapping[str, Literal["adopted", "not_adopted", "recreated", "stale"]]] = {
    SECRET_ADOPTED: "adopted",
    SECRET_REJECTED: "not_adopted",
    DESTINATION_RECREATED: "recreated",
    DESTINATION_STALE: "stale",
}
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class HistoryEntry(msgspec.Struct, frozen=True):
    """What happened to a rotation at one consumer.

    A caller with a limited scope sees that it was delivered or adopted, and no attempt that failed,
    since these also depend on other secrets.

    Attributes:
        at: When the attempt ended, of several the first (RFC 3339, UTC).
        until: When the last of them ended.
        consumer: The consumer.
        outcome: `delivered`, which is acknowledged; `retried`, which may heal by itself;
            `rejected`, which a person must change; for Aidbox, where it is configured, `adopted` or
            `not_adopted`, and for a destination of its `recreated` or `stale`.
        attempts: Attempts in a row that failed alike.
        status: The status of the answer, or a command's exit code; null where there was none, and
            for a caller with a limited scope.
        reason: Why it failed, or null; always null for a caller with a limited scope.
    """

    at: str
    until: str
    consumer: str
    outcome: Literal[
        "delivered", "retried", "rejected", "adopted", "not_adopted", "recreated", "stale"
    ]
    attempts: _Positive
    status: int | None
    reason: str | None


class RotationReport(msgspec.Struct, frozen=True):
    """One change of a secret, and what became of it.

    Attributes:
        secret: Name in the vault config.
        event: Id of its event; null for a caller with a limited scope.
        change: `added`, `modified` or `removed`.
        version: Version since then; null when removed.
        previous_version: Version before it.
        detected_at: When the scan saw it (RFC 3339, UTC).
        pending: Consumers that have yet to acknowledge it. One that acknowledged a newer version
            instead has no entry.
        entries: What happened, in order.
        source: The installation that has the secret; only at a relay.
    """

    secret: str
    event: str | None
    change: ChangeKind
    version: Version | None
    previous_version: Version | None
    detected_at: str
    pending: tuple[str, ...]
    entries: tuple[HistoryEntry, ...]
    source: str | msgspec.UnsetType = msgspec.UNSET


class HistoryReport(msgspec.Struct, frozen=True):
    """Rotations within the caller's scope, the newest last, as far as the event log reaches."""

    rotations: tuple[RotationReport, ...]


def history_report(
    ledger: Reads,
    view: View,
    names: Sequence[str] | None,
    unwritten: Mapping[str, Sequence[Record]],
    *,
    stamp: Stamp,
    limited: bool,
    consumer: str | None,
    most: int,
) -> HistoryReport:
    """The newest rotations that a view shows. Reads the ledger, so it blocks.

    Args:
        ledger: Has the events, and the attempts that were written.
        view: What is shown.
        names: Secrets that it can show; None for any.
        unwritten: Attempts that are not in the ledger yet, by consumer.
        stamp: Makes the ids of events.
        limited: Whether the caller sees a part of the secrets, and nothing that others cause.
        consumer: Show this consumer alone, and what concerns it.
        most: How many rotations, at most.

    Raises:
        StateError: The ledger cannot be used.
    """
    changes = [event for event in ledger.changes(names, most) if view.see(event) is not None]
    outcomes = _outcomes(ledger, changes)
    records = ledger.attempts([event.sequence for event in changes])
    for name, items in unwritten.items():
        for item in items:
            found = records.setdefault(item.sequence, {}).setdefault(name, [])
            found[:] = [*(old for old in found if old.at != item.at), item]
    waiting: dict[int, list[str]] = {}
    for name, slots in ledger.pending().items():
        if "/" not in name:  # else what a consumer has to verify
            for pending in slots.values():
                waiting.setdefault(pending.sequence, []).append(name)
    rotations = []
    for event in changes:
        entries = [
            _entry(name, item, limited=limited)
            for name, items in records.get(event.sequence, {}).items()
            for item in items
            # how often, and why not, also depends on other secrets
            if not limited or item.outcome == "delivered"
        ]
        entries += [_outcome(item, limited=limited) for item in outcomes.get(event.sequence, ())]
        pending_for = sorted(waiting.get(event.sequence, ()))
        if consumer is not None:
            entries = [entry for entry in entries if entry.consumer == consumer]
            pending_for = [name for name in pending_for if name == consumer]
            if not entries and not pending_for:
                continue
        entries.sort(key=lambda entry: entry.at)
        rotations.append(_rotation(event, stamp, pending_for, entries, limited=limited))
    return HistoryReport(tuple(rotations))


def _outcomes(ledger: Reads, changes: Sequence[Event]) -> dict[int, list[Event]]:
    """What actions made of changes, by the sequence of the change."""
    if not changes:
        return {}
    newest: dict[tuple[str | None, str | None], int] = {}
    about: dict[int, list[Event]] = {}
    results = ledger.outcomes({event.subject for event in changes}, changes[0].sequence)
    for event in sorted([*changes, *results], key=lambda item: item.sequence):
        if isinstance(event.data, SecretData):
            newest[event.secret, event.data.version] = event.sequence
        elif isinstance(event.data, AdoptionData | DestinationData):
            sequence = newest.get((event.secret, event.data.version))
            if sequence is not None:
                about.setdefault(sequence, []).append(event)
    return about


def _rotation(
    event: Event,
    stamp: Stamp,
    pending: Sequence[str],
    entries: Sequence[HistoryEntry],
    *,
    limited: bool,
) -> RotationReport:
    assert isinstance(event.data, SecretData)
    origin = stamp.origin(event)
    return RotationReport(
        event.subject,
        None if limited else origin.id,
        event.data.change,
        event.data.version,
        event.data.previous_version,
        event.time,
        tuple(pending),
        tuple(entries),
        msgspec.UNSET if event.origin is None else event.origin.source,
    )


def _entry(consumer: str, record: Record, *, limited: bool) -> HistoryEntry:
    return HistoryEntry(
        rfc3339(record.at),
        rfc3339(record.until),
        consumer,
        record.outcome,
        record.attempts,
        None if limited else record.status,
        None if limited else record.reason,
    )


def _outcome(event: Event, *, limited: bool) -> HistoryEntry:
    data = event.data
    assert isinstance(data, AdoptionData | DestinationData)
    if isinstance(data, DestinationData):
        reason = None if data.reason is None else f"{data.scope}: {data.reason}"
    else:
        failed = [f"{item.address}: {item.reason}" for item in data.replicas if not item.adopted]
        reason = "; ".join(failed) or None
    outcome = _OUTCOMES[event.type]
    is_good = outcome in ("adopted", "recreated")
    shown = None if is_good or limited else reason
    return HistoryEntry(event.time, event.time, data.consumer, outcome, 1, None, shown)
