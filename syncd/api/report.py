"""What the API answers: the structures, which docs/openapi.json describes, and how facts fill them.

Pure, and slow where there are many secrets: call it in a worker thread.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from syncd import __version__
from syncd.core.adoption import AdoptionState, adoption_of
from syncd.core.event_data import SecretState, Version, secret_state
from syncd.core.model import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.api.status import Facts
    from syncd.api.subscribers import View
    from syncd.core.model import Known
    from syncd.ledger.ledger import Pending

_NAMED: Final = 5
_OVERDUE: Final = 3
Count = Annotated[int, msgspec.Meta(ge=0)]


class Refusal(msgspec.Struct, frozen=True):
    """Why a request was not answered, in one line."""

    error: str


class AdoptionReport(msgspec.Struct, frozen=True):
    """Whether Aidbox has taken the present version of a secret.

    Attributes:
        state: What is known; `not_verifiable` where the scope is not one Client.
        seconds: From the scan that saw the change until the last replica took it, or until the
            deadline; null while pending.
        problem: Why it was rejected, or null.
    """

    state: AdoptionState
    seconds: float | None
    problem: str | None


class ConsumerPosition(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a consumer is with one secret.

    Attributes:
        acknowledged_version: The version that it acknowledged last, or null. A consumer begins
            with what was there when it was configured.
        pending: Whether it has yet to learn of a change.
        adoption: Whether Aidbox has taken the present version; left out for a consumer that does
            not verify it, and for a version that was not verified.
    """

    acknowledged_version: Version | None
    pending: bool
    adoption: AdoptionReport | None = None


class SecretReport(SecretState, frozen=True, kw_only=True):
    """What is known of one secret, and which consumers know it too."""

    consumers: dict[str, ConsumerPosition]


class SecretsReport(msgspec.Struct, frozen=True):
    """Every secret within the caller's scope, by name."""

    secrets: tuple[SecretReport, ...]


class ConsumerReport(msgspec.Struct, frozen=True):
    """How a consumer is doing.

    Attributes:
        state: `failing` after an attempt that did not succeed.
        pending: Secrets and other events, within the caller's scope, that it has yet to learn of.
        last_success_at: When it last acknowledged something (RFC 3339, UTC), since the start.
        last_error: Why the last attempt failed; always null for a caller with a limited scope.
        failures: Attempts that failed since the last success.
        next_attempt_at: When it is tried again, or null when nothing is due.
    """

    state: Literal["ok", "failing"]
    pending: Count
    last_success_at: str | None
    last_error: str | None
    failures: Count
    next_attempt_at: str | None


class ProviderReport(msgspec.Struct, frozen=True):
    """How a provider of secrets is doing.

    Attributes:
        state: `failing` after a fetch that did not succeed.
        target: Where its files go.
        files: How many there were in the last fetch, or null before the first.
        last_success_at: When everything was last fetched and in place (RFC 3339, UTC).
        last_change_at: When a fetch last changed something, since the start.
        last_error: Why the last fetch failed; always null for a caller with a limited scope.
        failures: Fetches that failed since the last success.
        next_attempt_at: When the next one is due, or null.
    """

    state: Literal["ok", "failing"]
    target: str
    files: int | None
    last_success_at: str | None
    last_change_at: str | None
    last_error: str | None
    failures: Count
    next_attempt_at: str | None


class StatusReport(msgspec.Struct, frozen=True):
    """How the daemon is doing.

    Attributes:
        version: Of syncd.
        ready: Whether the first pass over the mount is done.
        epoch: The ledger's; first half of every event id.
        sequence: Of the newest event: `<epoch>-<sequence>` is a position to subscribe from.
        watch_mode: How changes are noticed.
        watch_problem: Why not the way that was asked for, or null.
        last_scan: When the last pass ended (RFC 3339, UTC), or null.
        vault_config: Path of the vault config.
        vault_config_valid: Whether the one on disk is the one in use.
        secrets: How many secrets within the caller's scope are in which state.
        consumers: Their health, by name.
        providers: Their health, by name; empty where syncd fetches nothing itself.
        subscribers: Open event streams.
        attention: What a person should look at, a line for each; empty when all is well.
    """

    version: str
    ready: bool
    epoch: str
    sequence: Count
    watch_mode: str
    watch_problem: str | None
    last_scan: str | None
    vault_config: str
    vault_config_valid: bool
    secrets: dict[State, Count]
    consumers: dict[str, ConsumerReport]
    providers: dict[str, ProviderReport]
    subscribers: Count
    attention: tuple[str, ...]


class RefreshReport(msgspec.Struct, frozen=True):
    """Which providers were asked to fetch now."""

    providers: tuple[str, ...]


class ReadinessReport(msgspec.Struct, frozen=True):
    """Whether the daemon does its work, and if not, why."""

    ready: bool
    reasons: tuple[str, ...]


def visible(inventory: Mapping[str, Known], view: View) -> list[Known]:
    """What a view shows of the inventory, by name."""
    shown = (
        key for key, known in inventory.items() if view.shows(known.entry.name, known.entry.scopes)
    )
    return [inventory[key] for key in sorted(shown)]


def states(inventory: Mapping[str, Known], view: View) -> tuple[SecretState, ...]:
    """The state of every secret that a view shows."""
    return tuple(map(secret_state, visible(inventory, view)))


def secrets_report(
    facts: Facts, pending: Mapping[str, Mapping[str, Pending]], view: View
) -> SecretsReport:
    """Every secret that a view shows, and which consumers know its version."""
    reports = []
    for known in visible(facts.inventory, view):
        positions = {}
        for consumer, (grant, _) in facts.consumers.items():
            if not grant.sees(known.entry.scopes):
                continue
            waiting = pending.get(consumer, {}).get(known.entry.key)
            version = known.version if waiting is None else waiting.acknowledged_version
            positions[consumer] = ConsumerPosition(
                version, waiting is not None, _adoption(facts, consumer, known)
            )
        state = msgspec.structs.asdict(secret_state(known))
        reports.append(SecretReport(**state, consumers=positions))
    return SecretsReport(tuple(reports))


def _adoption(facts: Facts, consumer: str, known: Known) -> AdoptionReport | None:
    if consumer not in facts.adoptions:
        return None
    found = adoption_of(known, facts.adoptions[consumer])
    return None if found is None else AdoptionReport(found.state, found.seconds, found.problem)


def status_report(
    facts: Facts,
    pending: Mapping[str, Mapping[str, Pending]],
    view: View,
    *,
    position: tuple[str, int],
    subscribers: int,
    limited: bool,
    now: datetime,
) -> StatusReport:
    """How the daemon is doing, as far as a caller may know.

    Args:
        facts: What the daemon knows.
        pending: What waits for whom.
        view: What the caller may see.
        position: The ledger's epoch and the newest sequence.
        subscribers: Open event streams.
        limited: Leave out what may speak of secrets that the view does not show.
        now: To tell how old the last pass is.
    """
    shown = visible(facts.inventory, view)
    names = {known.entry.key for known in shown}
    consumers = {
        name: ConsumerReport(
            "failing" if health.failures else "ok",
            sum(not limited or slot in names for slot in pending.get(name, ())),
            health.last_success_at,
            None if limited else health.last_error,
            health.failures,
            health.next_attempt_at,
        )
        for name, (_, health) in facts.consumers.items()
    }
    providers = {
        name: ProviderReport(
            "failing" if health.failures else "ok",
            health.target,
            health.files,
            health.last_success_at,
            health.last_change_at,
            None if limited else health.last_error,
            health.failures,
            health.next_attempt_at,
        )
        for name, health in facts.providers.items()
    }
    tally = Counter(known.state for known in shown)
    return StatusReport(
        __version__,
        facts.ready,
        *position,
        facts.watch_mode,
        None if limited else facts.watch_problem,
        facts.scanned_at,
        facts.vault_config,
        facts.vault_config_valid,
        {state: tally[state] for state in State},
        consumers,
        providers,
        subscribers,
        tuple(
            _daemon_troubles(facts, now)
            + _secret_troubles(shown)
            + _rejections(facts, shown)
            + [
                _failing("consumer", name, item)
                for name, item in consumers.items()
                if item.failures
            ]
            + [
                _failing("provider", name, item)
                for name, item in providers.items()
                if item.failures
            ]
        ),
    )


def readiness(facts: Facts) -> ReadinessReport:
    """Whether the daemon does its work; says nothing that names a secret."""
    reasons = []
    if not facts.ready:
        reasons.append("the first scan is not done")
    if not facts.vault_config_valid:
        reasons.append("the vault config on disk is not valid; see the log or run syncd check")
    if facts.failure is not None:
        reasons.append(facts.failure)
    return ReadinessReport(not reasons, tuple(reasons))


def _daemon_troubles(facts: Facts, now: datetime) -> list[str]:
    troubles = list(readiness(facts).reasons)
    if facts.scanned_at is not None:
        age = (now - datetime.fromisoformat(facts.scanned_at)).total_seconds()
        if age > _OVERDUE * facts.rescan_interval + 1:
            troubles.append(f"the last scan is {age:.0f} s ago")
    return troubles


def _secret_troubles(shown: list[Known]) -> list[str]:
    troubled = [known for known in shown if known.problem or known.state is not State.PRESENT]
    lines = [
        f"secret {known.entry.key} is {known.state.value}"
        + (f": {known.problem}" if known.problem else "")
        for known in troubled[:_NAMED]
    ]
    if len(troubled) > _NAMED:
        lines.append(f"{len(troubled) - _NAMED} more secrets are missing or have a problem")
    return lines


def _rejections(facts: Facts, shown: list[Known]) -> list[str]:
    found = [
        f"secret {known.entry.name} was not adopted: {report.problem}"
        for consumer in facts.adoptions
        for known in shown
        if (report := _adoption(facts, consumer, known)) is not None
        and report.state is AdoptionState.REJECTED
    ]
    more = [f"{len(found) - _NAMED} more secrets were not adopted"]
    return found[:_NAMED] + more * (len(found) > _NAMED)


def _failing(kind: str, name: str, item: ConsumerReport | ProviderReport) -> str:
    reason = f": {item.last_error}" if item.last_error else ""
    return f"{kind} {name} has failed {item.failures} times in a row{reason}"
