"""When a relay announces that a secret has converged or diverged; pure.

The rules:

- A secret that has converged when it is seen first is not announced: that is how things were. One
  that was still spreading then is announced when it has converged.
- Each version is announced as converged once. An installation that is silent for a while, or one
  that appears later and catches up in time, changes nothing.
- A secret that has not converged for as long as the limit has diverged, and so has a version that
  is the newest one for as long. Afterwards it is announced when it has converged again, also in the
  version that it had before.
- Under a new fingerprint key every version is another one. It is a rotation only where something
  arrived since; and where all that differs is the key, the new one has `KEY_TIME` more to spread.

What was announced is kept across restarts, so that none repeats or loses anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from syncd.core.event_data import SECRET_CONVERGED, SECRET_DIVERGED, FleetData, scope_data
from syncd.core.timing import rfc3339

if TYPE_CHECKING:
    from syncd.core.convergence import Convergence
    from syncd.core.model import Scope

MOST_NAMED: Final = 1000
"""Installations in each list of an event: a receiver may refuse a body of a megabyte."""

KEY_TIME: Final = 60.0
"""Seconds beyond the limit that a fingerprint key has: installations look at its file every 5 s."""

FORGET_AFTER: Final = 7 * 86400.0
"""Seconds after which a secret that no installation has any longer is forgotten."""

_SAME: Final = 5.0
"""Seconds by which two readings of one arrival may differ: a clock that is wrong is corrected."""


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a relay knows of the convergence of one secret.

    Attributes:
        version: The version that last converged, or None.
        key: Names the fingerprint key of that version.
        arrived: When it arrived last, seconds since the epoch; None where nothing arrived.
        since: Since when the secret has not converged; None while it has.
        newest: The newest version since `moved`.
        moved: Since when that has been the newest version.
        extra: Seconds beyond the limit that it has.
        diverged: The newest version of the divergence that was announced and has not ended.
        absent: Since when no installation has the secret.
    """

    version: str | None = None
    key: str | None = None
    arrived: float | None = None
    since: float | None = None
    newest: str | None = None
    moved: float = 0.0
    extra: float = 0.0
    diverged: str | None = None
    absent: float | None = None

    @property
    def has_diverged(self) -> bool:
        """Whether a divergence was announced that has not ended."""
        return self.diverged is not None

    def due(self, limit: float) -> float | None:
        """When it will have diverged unless something changes, seconds since the epoch."""
        if self.since is None or self.diverged == self.newest:
            return None
        return (self.moved if self.has_diverged else self.since) + limit + self.extra


class Judgement(msgspec.Struct, frozen=True):
    """What follows from a convergence.

    Attributes:
        standing: What is known now; None where the secret is forgotten.
        announce: The type of the event to announce, or None.
        previous: The version that had converged before, as the event carries it.
    """

    standing: Standing | None
    announce: str | None = None
    previous: str | None = None


def judge(
    found: Convergence, before: Standing | None, now: float, limit: float, *, current: bool
) -> Judgement:
    """What to announce of a secret, and what is known of it then.

    Args:
        found: How far it has spread.
        before: What was known.
        now: Seconds since the epoch.
        limit: Seconds within which a version has to converge.
        current: Whether `found` is what the bucket has: if it cannot be read, nothing converges.
    """
    if not found.instances:
        return Judgement(_absent(before, now))
    if found.version is None:  # all have the same, which is none
        return Judgement(None if before is None else replace(before, since=None, absent=None))
    if found.converged:
        return _converged(found, before) if current else Judgement(before)
    standing = before or Standing()
    is_news = standing.since is None or standing.newest != found.version
    standing = replace(
        standing,
        since=now if standing.since is None else min(standing.since, now),
        newest=found.version,
        moved=now if is_news else min(standing.moved, now),
        extra=0.0 if found.older or found.silent or found.unreadable else KEY_TIME,
        absent=None,
    )
    due = standing.due(limit)
    if due is None or now < due:
        return Judgement(standing)
    return Judgement(replace(standing, diverged=found.version), SECRET_DIVERGED, standing.version)


def _absent(before: Standing | None, now: float) -> Standing | None:
    if before is None:
        return None
    if before.absent is None:
        return replace(before, absent=now, since=None)
    return before if now - before.absent < FORGET_AFTER else None


def _converged(found: Convergence, before: Standing | None) -> Judgement:
    standing = Standing(found.version, found.key, found.last)
    if before is None:
        return Judgement(standing)
    is_same = before.version == found.version if before.key == found.key else _is_old(found, before)
    if is_same and not before.has_diverged:
        return Judgement(standing)
    return Judgement(standing, SECRET_CONVERGED, found.version if is_same else before.version)


def _is_old(found: Convergence, before: Standing) -> bool:
    """Whether nothing arrived since: under another key the version is another one anyway."""
    if before.version is None:
        return False
    if found.last is None:
        return True
    return before.arrived is not None and found.last <= before.arrived + _SAME


def fleet_data(found: Convergence, scopes: tuple[Scope, ...], previous: str | None) -> FleetData:
    """The data of the event about a convergence; `previous` is the version that was so before."""
    return FleetData(
        found.secret,
        scope_data(scopes),
        found.version,
        previous,
        found.instances,
        found.have,
        found.adopted,
        found.lagging[:MOST_NAMED],
        found.silent[:MOST_NAMED],
        found.incomparable[:MOST_NAMED],
        found.unreadable[:MOST_NAMED],
        None if found.first is None else rfc3339(found.first),
        None if found.last is None else rfc3339(found.last),
        found.seconds,
    )
