"""Adoption: whether Aidbox uses the new value of a secret, decided from its responses.

The proof is the one of Aidbox's own tutorial: a request with HTTP Basic, the Client's id and the
new value. It is possible for a secret whose scope is one Client and no other. Whether Aidbox uses
the new secret of a TokenIntrospector or a destination cannot be verified.

A login that is refused is a warning in Aidbox's log, and the vendor's monitoring alerts on those.
So a value is tried a few times only. The time that a replica has for it does not include that in
which the replica does not answer, because it is starting, for example.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from syncd.core.model import Known, Scope

CLIENT: Final = "Client"
ATTEMPTS: Final = 10
"""Logins with one value at one replica, at most, within the timeout."""
LONGEST_PAUSE: Final = 3600.0
"""Seconds between the rare attempts after a rejection, at most."""
_FIRST: Final = 0.1
_LONGEST_BACKOFF: Final = 5.0
_MOST_DOUBLINGS: Final = 16
_UNAUTHORIZED: Final = 401
_NOT_NOW: Final = frozenset((408, 425, 429))


class AdoptionState(enum.StrEnum):
    """How far the adoption of a secret's version is."""

    PENDING = "pending"
    ADOPTED = "adopted"
    REJECTED = "rejected"
    UNREACHABLE = "unreachable"
    NOT_VERIFIABLE = "not_verifiable"


class Adoption(msgspec.Struct, frozen=True):
    """The adoption of a version.

    Attributes:
        state: How far it is.
        version: The version; None where it is not verifiable.
        seconds: From the scan that saw the change until the last replica adopted it, or until the
            deadline; None while pending.
        problem: Why it was rejected, or what keeps it from being verified, one line, or None.
    """

    state: AdoptionState
    version: str | None = None
    seconds: float | None = None
    problem: str | None = None


class Trial(msgspec.Struct):
    """The attempts at one replica. Times are seconds of the caller's clock.

    Attributes:
        plan: When to try, in seconds of the time that the replica answers.
        due: When the next attempt is due.
        silent_since: When the replica stopped answering, or the first attempt was planned.
        is_answering: Whether it answered the last attempt.
        index: Attempts of the plan that were made; those beyond it are late ones.
        misses: Attempts without an answer since the last answer.
        seconds: When it accepted the value, seconds after the change, or None.
        reason: Why it has not, one line.
    """

    plan: tuple[float, ...]
    due: float
    silent_since: float
    is_answering: bool = False
    index: int = 0
    misses: int = 0
    seconds: float | None = None
    reason: str = "no answer yet"

    @classmethod
    def begin(cls, now: float, plan: tuple[float, ...]) -> Trial:
        """A replica that was not tried yet."""
        return cls(plan, now + plan[0], now)

    @property
    def is_adopted(self) -> bool:
        """Whether the replica accepted the value."""
        return self.seconds is not None

    @property
    def is_exhausted(self) -> bool:
        """Whether the replica refused the value to the end."""
        return not self.is_adopted and self.index >= len(self.plan)

    def is_silent(self, now: float) -> bool:
        """Whether the replica has not answered for as long as it has to adopt a value."""
        return not self.is_answering and now - self.silent_since >= self.plan[-1]

    def accept(self, seconds: float) -> None:
        """Counts an accepted attempt."""
        self.is_answering, self.seconds = True, seconds

    def refuse(self, now: float, reason: str) -> None:
        """Counts a refused attempt.

        The pause before it does not count if the attempt before had no answer: the plan goes on
        from where it was.
        """
        if self.is_answering or self.index in (0, len(self.plan)):
            self.index += 1
        self.is_answering, self.misses, self.reason = True, 0, reason
        self.due = now + self._pause()

    def miss(self, now: float, reason: str) -> None:
        """Counts an attempt without an answer; the next one is due after a backoff."""
        if self.is_answering:
            self.is_answering, self.silent_since = False, now
        self.reason, self.due = reason, now + min(_LONGEST_BACKOFF, _FIRST * 2.0**self.misses)
        self.misses = min(self.misses + 1, _MOST_DOUBLINGS)

    def _pause(self) -> float:
        late = self.index - len(self.plan)
        if late < 0:
            # the first attempt may have been made at once
            return self.plan[self.index] - (self.plan[self.index - 1] if self.index > 1 else 0.0)
        return min(LONGEST_PAUSE, self.plan[-1] * 2.0 ** min(late, _MOST_DOUBLINGS))


def plan_attempts(timeout: float, attempts: int = ATTEMPTS) -> tuple[float, ...]:
    """When to try a value: soon after the change, then ever more rarely, and at the end.

    Args:
        timeout: Seconds that a replica has to adopt it.
        attempts: How often, two at least.
    """
    first, last = min(_FIRST, timeout), attempts - 1
    return tuple(max(first, timeout * (number / last) ** 2) for number in range(attempts))


def judge(trials: Collection[Trial], now: float) -> AdoptionState:
    """The state of a version, from its trials at all replicas."""
    left = [trial for trial in trials if not trial.is_adopted]
    if trials and not left:
        return AdoptionState.ADOPTED
    if not left or not all(trial.is_exhausted or trial.is_silent(now) for trial in left):
        return AdoptionState.PENDING
    if any(trial.is_exhausted for trial in left):
        return AdoptionState.REJECTED
    return AdoptionState.UNREACHABLE


NOT_VERIFIABLE: Final = Adoption(AdoptionState.NOT_VERIFIABLE)


def mailbox_of(consumer: str, action: str = "verify") -> str:
    """Name of the mailbox of an action of a consumer; a consumer's name has no slash."""
    return f"{consumer}/{action}"


def client_of(scopes: Sequence[Scope]) -> str | None:
    """Id of the one Client that may use a secret, or None where adoption cannot be verified."""
    if len(scopes) != 1 or scopes[0].resource_type != CLIENT:
        return None
    return scopes[0].id


def adoption_of(known: Known, adoptions: Mapping[str, Adoption]) -> Adoption | None:
    """The adoption of the version that a secret has now, by the last one of each secret.

    None where it is not known yet, and for a file outside the vault config, of which no resource
    has the value.
    """
    if known.entry.extra:
        return None
    if client_of(known.entry.scopes) is None:
        return NOT_VERIFIABLE
    found = adoptions.get(known.entry.name)
    return found if found is not None and found.version == known.version else None


def accepts(status: int) -> bool | None:
    """Whether a response proves that the credentials were accepted.

    A 403 is documented for a Client that no AccessPolicy permits the request, so it proves the
    credentials; a box that answers 401 for it cannot be told from one with other credentials.
    A redirect, a server that is busy or broken, and the response of a proxy prove nothing.

    Returns:
        None where the response proves neither.
    """
    if status == _UNAUTHORIZED:
        return False
    if status in _NOT_NOW or not (200 <= status < 300 or 400 <= status < 500):  # noqa: PLR2004
        return None
    return True
