"""How something that is tried again and again is doing, for status reports."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Health(msgspec.Struct, frozen=True):
    """How something that is tried again and again is doing.

    Attributes:
        last_success_at: When an attempt last succeeded (RFC 3339, UTC), or None.
        last_error: Why the last attempt failed, one line, or None if it did not.
        failures: Attempts that failed since the last success.
        next_attempt_at: When the next one is due (RFC 3339, UTC), or None when nothing is due.
    """

    last_success_at: str | None = None
    last_error: str | None = None
    failures: int = 0
    next_attempt_at: str | None = None


class ConsumerHealth(Health, frozen=True):
    """How a consumer is doing; an attempt succeeds when the consumer acknowledges events.

    A failure is that of the consumer as a whole, or else that of the events that wait.

    Attributes:
        pending: Events that it has not acknowledged.
        waiting: How many of them wait for the next attempt, by the reason of the last failure.
        is_proven: Whether it has ever acknowledged an event at its address.
        is_refused: Whether what failed last needs a person.
        findings: Why it cannot work, as far as can be known without a delivery; one line each.
    """

    pending: int = 0
    waiting: Mapping[str, int] = {}
    is_proven: bool = True
    is_refused: bool = False
    findings: tuple[str, ...] = ()


class ProviderHealth(Health, frozen=True):
    """How a provider is doing; an attempt succeeds when everything is fetched and in place.

    Attributes:
        target: Directory of its files.
        files: How many there were in the last fetch; None before the first.
        last_change_at: When a fetch last changed something, in this process (RFC 3339, UTC), or
            None.
    """

    target: str = ""
    files: int | None = None
    last_change_at: str | None = None
