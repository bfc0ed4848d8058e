"""The answers of the API: their structures, which docs/openapi.json describes, and their content.

Pure, and slow with many secrets: call it in a worker thread.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import msgspec

from syncd import __version__
from syncd.api.attention import (
    daemon_problems,
    fleet_problems,
    reload_problems,
    secret_problems,
    shortened,
    unusable,
)
from syncd.api.status import MountStatus, RelayStatus
from syncd.core.adoption import AdoptionState, adoption_of
from syncd.core.event_data import SECRET_CHANGED, SecretState, Version, secret_state
from syncd.core.model import State
from syncd.core.timing import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from syncd.api.status import DaemonStatus
    from syncd.api.subscribers import View
    from syncd.core.health import ConsumerHealth, ProviderHealth
    from syncd.core.model import Known
    from syncd.ledger.reads import Pending

Count = Annotated[int, msgspec.Meta(ge=0)]


class Refusal(msgspec.Struct, frozen=True):
    """Why a request was not answered, in one line."""

    error: str


class AdoptionReport(msgspec.Struct, frozen=True):
    """Whether Aidbox uses the present version of a secret.

    Attributes:
        state: The result; `not_verifiable` where the scope is not one Client, `unreachable` where a
            replica has not answered for `verify_timeout`, and verification goes on.
        seconds: From the scan that detected the change until the last replica used the new
            version, or until the rejection; null while pending or unreachable.
        problem: Why it was rejected, or what keeps it from being verified, or null.
    """

    state: AdoptionState
    seconds: float | None
    problem: str | None


class ConsumerPosition(msgspec.Struct, frozen=True, omit_defaults=True):
    """The position of a consumer for one secret.

    Attributes:
        acknowledged_version: The version that the consumer acknowledged last, or null. A new
            consumer starts with the version that was present when it was configured.
        pending: Whether a change is not yet acknowledged.
        adoption: Whether Aidbox uses the present version; left out for a consumer that does
            not verify it, and for a version that was not verified.
    """

    acknowledged_version: Version | None
    pending: bool
    adoption: AdoptionReport | None = None


class SecretReport(SecretState, frozen=True, kw_only=True):
    """The state of one secret, and the position of each consumer.

    Attributes:
        not_after: When the certificate in it ends (RFC 3339, UTC); null where there is none.
        content_problem: What is wrong with its content, such as an expired certificate, or null.
    """

    consumers: dict[str, ConsumerPosition]
    not_after: str | None = None
    content_problem: str | None = None


class SecretsReport(msgspec.Struct, frozen=True):
    """Every secret within the caller's scope, by name."""

    secrets: tuple[SecretReport, ...]


class WaitingReport(msgspec.Struct, frozen=True):
    """Events that wait for one reason.

    Attributes:
        reason: Why the last attempt failed.
        events: How many wait for the next one.
    """

    reason: str
    events: Count


class ConsumerReport(msgspec.Struct, frozen=True):
    """The health of a consumer.

    A caller with a limited scope sees whether the consumer is failing with something of that scope
    pending: `failures` is then 1, and the times and the error are always null, since they also
    depend on other secrets.

    Attributes:
        state: `failing` after an attempt that did not succeed, or while events wait after one;
            `rejecting` if that needs a person; `unproven` before its first acknowledgement, which
            is remembered. A caller with a limited scope sees `failing` or `ok`.
        pending: Secrets and other events, within the caller's scope, that are not acknowledged.
        last_success_at: When the consumer last acknowledged an event (RFC 3339, UTC), since the
            start.
        last_error: Why the last attempt failed.
        failures: Failed attempts since the last success.
        next_attempt_at: When the next attempt is due, or null when none is.
        waiting: How many events wait for which reason: that of the consumer as a whole, or their
            own; always empty for a caller with a limited scope.
    """

    state: Literal["unproven", "ok", "failing", "rejecting"]
    pending: Count
    last_success_at: str | None
    last_error: str | None
    failures: Count
    next_attempt_at: str | None
    waiting: tuple[WaitingReport, ...] = ()


class ProviderReport(msgspec.Struct, frozen=True):
    """The health of a provider.

    A caller with a limited scope sees whether the provider is failing: `failures` is then 1, and
    `files`, the times and the error are always null.

    Attributes:
        state: `failing` after a fetch that did not succeed.
        target: The directory of its files.
        files: The number of files in the last fetch, or null before the first.
        last_success_at: When all files were last fetched and in place (RFC 3339, UTC).
        last_change_at: When a fetch last changed a file, since the start.
        last_error: Why the last fetch failed.
        failures: Failed fetches since the last success.
        next_attempt_at: When the next fetch is due, or null.
    """

    state: Literal["ok", "failing"]
    target: str
    files: int | None
    last_success_at: str | None
    last_change_at: str | None
    last_error: str | None
    failures: Count
    next_attempt_at: str | None


class FleetReport(msgspec.Struct, frozen=True):
    """The state of a fleet, as a relay knows it.

    Attributes:
        bucket: The bucket with the state of the installations.
        instances: How many installations are `live`, `silent` and `unreadable`; empty before the
            bucket was read.
        secrets: How many secrets have `converged`, are `spreading`, and have `diverged`; empty
            before the bucket was read.
    """

    bucket: str
    instances: dict[str, int]
    secrets: dict[str, int]


class RelayReport(msgspec.Struct, frozen=True):
    """The source of a relay's events.

    Attributes:
        subject: The NATS subject.
        fleet: The state of the fleet, where the relay reads a bucket and the caller may see all.
    """

    subject: str
    fleet: FleetReport | msgspec.UnsetType = msgspec.UNSET


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the daemon.

    Attributes:
        version: The version of syncd.
        ready: Whether the first scan is done, or the relay has started.
        epoch: The ledger's epoch: first half of every event id.
        sequence: The newest event's: `<epoch>-<sequence>` is a position to subscribe from. For a
            caller with a limited scope both are of a numbering of the events within that scope.
        watch_mode: How changes are detected: `inotify`, `poll`, or for a relay `nats`.
        watch_problem: Why `watch_mode` is not the configured mode, or null.
        last_scan: When the last scan ended, or a relay's stream last answered (RFC 3339, UTC), or
            null; always null for a caller with a limited scope.
        vault_config: Path of the vault config; null for a relay.
        vault_config_valid: Whether the vault config on disk is the one in use; null for a relay.
        secrets: The number of secrets within the caller's scope, by state.
        consumers: The health of each consumer, by name.
        providers: The health of each provider, by name; empty without `provision`.
        subscribers: Open event streams; for a caller with a limited scope, those with that scope.
        attention: Problems that a person should look at, one per line.
        relay: The source of the events; left out unless this is a relay.
    """

    version: str
    ready: bool
    epoch: str
    sequence: Count
    watch_mode: str
    watch_problem: str | None
    last_scan: str | None
    vault_config: str | None
    vault_config_valid: bool | None
    secrets: dict[State, Count]
    consumers: dict[str, ConsumerReport]
    providers: dict[str, ProviderReport]
    subscribers: Count
    attention: tuple[str, ...]
    relay: RelayReport | msgspec.UnsetType = msgspec.UNSET


class RefreshReport(msgspec.Struct, frozen=True):
    """The providers that fetch now."""

    providers: tuple[str, ...]


def visible(inventory: Mapping[str, Known], view: View) -> list[Known]:
    """The secrets of the inventory that a view shows, by name."""
    shown = (
        key for key, known in inventory.items() if view.shows(known.entry.name, known.entry.scopes)
    )
    return [inventory[key] for key in sorted(shown)]


def states(inventory: Mapping[str, Known], view: View) -> tuple[SecretState, ...]:
    """The state of every secret that a view shows."""
    return tuple(map(secret_state, visible(inventory, view)))


def secrets_report(
    status: DaemonStatus, pending: Mapping[str, Mapping[str, Pending]], view: View
) -> SecretsReport:
    """Every secret that a view shows, and the position of each consumer."""
    reports = []
    for known in visible(status.inventory, view):
        positions = {}
        for consumer, (grant, _) in status.consumers.items():
            if not (grant.takes(SECRET_CHANGED) and grant.shows(known.entry)):
                continue
            waiting = pending.get(consumer, {}).get(known.entry.key)
            version = known.version if waiting is None else waiting.acknowledged_version
            positions[consumer] = ConsumerPosition(
                version, waiting is not None, _adoption(status, consumer, known)
            )
        state = msgspec.structs.asdict(secret_state(known))
        end = status.not_after.get(known.entry.key)
        reports.append(
            SecretReport(
                **state,
                consumers=positions,
                not_after=None if end is None else rfc3339(end),
                content_problem=status.content_problems.get(known.entry.key),
            )
        )
    return SecretsReport(tuple(reports))


def _adoption(status: DaemonStatus, consumer: str, known: Known) -> AdoptionReport | None:
    if consumer not in status.adoptions:
        return None
    found = adoption_of(known, status.adoptions[consumer])
    return None if found is None else AdoptionReport(found.state, found.seconds, found.problem)


def status_report(
    status: DaemonStatus,
    pending: Mapping[str, Mapping[str, Pending]],
    view: View,
    *,
    position: tuple[str, int],
    subscribers: int,
    now: datetime,
) -> StatusReport:
    """The state of the daemon, without what depends on secrets that the view does not show.

    Args:
        status: The state of the daemon.
        pending: The mailbox of each consumer.
        view: What the caller may see.
        position: Epoch and number of the newest event, as the caller's ids have them.
        subscribers: Open event streams that the caller may know of.
        now: The present time, for the age of the last scan.
    """
    limited = not view.shows_all
    shown = visible(status.inventory, view)
    names = {known.entry.key for known in shown}
    consumers, providers = {}, {}
    for name, (_, health) in status.consumers.items():
        backlog = sum(not limited or slot in names for slot in pending.get(name, ()))
        consumers[name] = _consumer_report(health, backlog, limited=limited)
    for name, provider in status.providers.items():
        providers[name] = _provider_report(provider, limited=limited)
    tally = Counter(known.state for known in shown)
    epoch, sequence = position
    return StatusReport(
        version=__version__,
        ready=status.ready,
        epoch=epoch,
        sequence=sequence,
        secrets={state: tally[state] for state in State},
        consumers=consumers,
        providers=providers,
        subscribers=subscribers,
        attention=(
            *daemon_problems(status, now, limited=limited),
            *reload_problems(status, limited=limited),
            *secret_problems(status, shown),
            *_unadopted(status, shown),
            *_failing("consumer", consumers, limited=limited),
            *(() if limited else unusable(status)),
            *(() if limited else fleet_problems(status)),
            *_failing("provider", providers, limited=limited),
        ),
        **_source(status.source, limited=limited),
    )


def _consumer_report(health: ConsumerHealth, pending: int, *, limited: bool) -> ConsumerReport:
    if limited:
        failing = bool(health.failures and pending)
        return ConsumerReport(
            "failing" if failing else "ok", pending, None, None, int(failing), None, ()
        )
    return ConsumerReport(
        _consumer_state(health),
        pending,
        health.last_success_at,
        health.last_error or next(iter(health.findings), None),
        health.failures,
        health.next_attempt_at,
        tuple(WaitingReport(*item) for item in health.waiting.items()),
    )


def _consumer_state(health: ConsumerHealth) -> Literal["unproven", "ok", "failing", "rejecting"]:
    if health.failures:
        return "rejecting" if health.is_refused else "failing"
    return "ok" if health.is_proven else "unproven"


def _provider_report(health: ProviderHealth, *, limited: bool) -> ProviderReport:
    state: Literal["ok", "failing"] = "failing" if health.failures else "ok"
    if limited:
        failures = int(bool(health.failures))
        return ProviderReport(state, health.target, None, None, None, None, failures, None)
    return ProviderReport(
        state,
        health.target,
        health.files,
        health.last_success_at,
        health.last_change_at,
        health.last_error,
        health.failures,
        health.next_attempt_at,
    )


class _Source(TypedDict):
    watch_mode: str
    watch_problem: str | None
    last_scan: str | None
    vault_config: str | None
    vault_config_valid: bool | None
    relay: RelayReport | msgspec.UnsetType


def _source(source: MountStatus | RelayStatus, *, limited: bool) -> _Source:
    if isinstance(source, RelayStatus):
        return {
            "watch_mode": "nats",
            "watch_problem": None,
            "last_scan": None if limited else source.heard_at,
            "vault_config": None,
            "vault_config_valid": None,
            "relay": RelayReport(source.subject, _fleet(source, limited=limited)),
        }
    return {
        "watch_mode": source.watch_mode,
        "watch_problem": None if limited else source.watch_problem,
        "last_scan": None if limited else source.scanned_at,
        "vault_config": source.vault_config,
        "vault_config_valid": source.vault_config_valid,
        "relay": msgspec.UNSET,
    }


def _fleet(source: RelayStatus, *, limited: bool) -> FleetReport | msgspec.UnsetType:
    if limited or source.fleet is None:
        return msgspec.UNSET
    fleet = source.fleet
    return FleetReport(fleet.bucket, dict(fleet.instances), dict(fleet.secrets))


def _unadopted(status: DaemonStatus, shown: list[Known]) -> list[str]:
    """The secrets that a replica refuses, and those of which nothing is known."""
    refused: list[str] = []
    unknown: list[str] = []
    for consumer in status.adoptions:
        for known in shown:
            report, name = _adoption(status, consumer, known), known.entry.name
            if report is not None and report.state is AdoptionState.REJECTED:
                refused.append(f"secret {name} was not adopted: {report.problem}")
            elif report is not None and report.state is AdoptionState.UNREACHABLE:
                unknown.append(f"whether secret {name} was adopted is not known: {report.problem}")
    return [
        *shortened(refused, "secrets were not adopted"),
        *shortened(unknown, "secrets of which that is not known"),
    ]


def _failing(
    kind: str, reports: Mapping[str, ConsumerReport | ProviderReport], *, limited: bool
) -> list[str]:
    return [
        f"{kind} {name} is failing"
        if limited
        else f"{kind} {name} has failed {item.failures} times in a row"
        + (f": {item.last_error}" if item.last_error else "")
        for name, item in reports.items()
        if item.failures
    ]
