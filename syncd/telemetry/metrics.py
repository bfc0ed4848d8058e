"""The metrics that syncd exposes.

One `Metrics` owns one registry; nothing is registered globally. Every series whose labels are
known in advance exists from the start at zero, so that `rate()` and alerts see the first
increment. Names of consumers and providers are labels, names of secrets only if configured.

The registry also has the `process_*` series of prometheus-client, which read `/proc` when
scraped: call `exposition` in a worker thread.
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING, Final

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from syncd import __version__
from syncd.core.model import ChangeKind, State
from syncd.core.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from syncd.core.model import Change, Known

SCAN_REASONS: Final = ("start", "inotify", "interval", "overflow", "reload")
CREDENTIAL_OUTCOMES: Final = ("served", "denied", "unavailable")
_SCAN_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LATENCY_BUCKETS = (
    *(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    *(10, 30, 60, 300, 1800, 3600),
)
_CONVERGENCE_BUCKETS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)

# `*_created` would double the counters' series under names that the contract does not have
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class ConsumerMetrics:
    """The series of one consumer."""

    def __init__(self, deliveries: Counter, latency: Histogram, pending: Gauge, name: str) -> None:
        self._delivered = deliveries.labels(name, "delivered")
        self._retried = deliveries.labels(name, "retried")
        self._rejected = deliveries.labels(name, "rejected")
        self._latency = latency.labels(name)
        self._pending = pending.labels(name)

    def delivered(self, latency: float) -> None:
        """Counts an acknowledged event, `latency` seconds after the scan that detected it."""
        self._delivered.inc()
        self._latency.observe(latency)

    def retried(self) -> None:
        """Counts an attempt that failed and will be repeated."""
        self._retried.inc()

    def rejected(self) -> None:
        """Counts an attempt that the consumer refused."""
        self._rejected.inc()

    def set_pending(self, count: int) -> None:
        """Sets the number of events in the mailbox."""
        self._pending.set(count)


class AdoptionMetrics:
    """The series of one consumer that verifies adoption."""

    def __init__(self, adoptions: Counter, seconds: Histogram, name: str) -> None:
        self._adopted = adoptions.labels(name, "adopted")
        self._rejected = adoptions.labels(name, "rejected")
        self._seconds = seconds.labels(name)

    def adopted(self, seconds: float) -> None:
        """Counts a version that every replica uses, `seconds` after the scan that detected it."""
        self._adopted.inc()
        self._seconds.observe(seconds)

    def rejected(self) -> None:
        """Counts a version that a replica did not use within its time."""
        self._rejected.inc()


class ProviderMetrics:
    """The series of one provider."""

    def __init__(self, provision: Counter, last_success: Gauge, name: str) -> None:
        self._success = provision.labels(name, "success")
        self._failed = provision.labels(name, "failed")
        self._refused = provision.labels(name, "refused")
        self._last_success = last_success.labels(name)

    def succeeded(self) -> None:
        """Counts a pass after which every file is as the vault has it."""
        self._success.inc()
        self._last_success.set_to_current_time()

    def failed(self) -> None:
        """Counts a pass that failed and may succeed when repeated."""
        self._failed.inc()

    def refused(self) -> None:
        """Counts a pass that fails until a person corrects something."""
        self._refused.inc()


class FleetMetrics:
    """The series of the fleet that a relay watches."""

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self._instances = Gauge(
            "syncd_fleet_instances",
            "Installations by state: live, silent, or with a document that cannot be read",
            ["state"],
            registry=registry,
        )
        self._secrets = Gauge(
            "syncd_fleet_secrets",
            "Secrets of the fleet by state: converged, spreading, or diverged",
            ["state"],
            registry=registry,
        )
        self._convergence = Histogram(
            "syncd_fleet_convergence_seconds",
            "From the first installation that got a version to the last one",
            registry=registry,
            buckets=_CONVERGENCE_BUCKETS,
        )
        self._last_read = Gauge(
            "syncd_fleet_last_read_timestamp_seconds",
            "When the bucket last answered",
            registry=registry,
        )

    def set(self, instances: Mapping[str, int], secrets: Mapping[str, int]) -> None:
        """Sets how many installations and secrets there are, by state."""
        for state, count in instances.items():
            self._instances.labels(state).set(count)
        for state, count in secrets.items():
            self._secrets.labels(state).set(count)

    def converged(self, seconds: float | None) -> None:
        """Counts a version that all have, some seconds after the first; None if not known."""
        if seconds is not None:
            self._convergence.observe(seconds)

    def read(self) -> None:
        """Notes that the bucket has answered."""
        self._last_read.set_to_current_time()

    def close(self, registry: prometheus_client.CollectorRegistry) -> None:
        """Ends the series."""
        for metric in (self._instances, self._secrets, self._convergence, self._last_read):
            registry.unregister(metric)


class Metrics:
    """Every metric of one daemon.

    Args:
        secret_names: Whether `syncd_secrets` carries a `secret` label, one series per secret
            (`api.metrics_secret_names`).
        mount: Whether there is a mount; without one, series about scans are not exposed.

    Attributes:
        registry: Holds all metrics.
    """

    def __init__(self, *, secret_names: bool = False, mount: bool = True) -> None:
        self.registry = registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)
        self._secret_names = secret_names
        self._fleet: FleetMetrics | None = None

        build = prometheus_client.Info("syncd_build", "The running syncd", registry=registry)
        build.info({"version": __version__})
        self._secrets = Gauge(
            "syncd_secrets",
            "Entries of the vault config by state",
            ["state", "secret"] if secret_names else ["state"],
            registry=registry,
        )
        self._not_after = Gauge(
            "syncd_secret_not_after_timestamp_seconds",
            "When a certificate among the secrets ends"
            if secret_names
            else "When the first certificate among the secrets ends",
            ["secret"] if secret_names else [],
            registry=None,
        )
        self._has_end = False
        self._reload_ok = Gauge(
            "syncd_config_reload_ok",
            "1 while the configuration on disk is the one in use, as of the last reload",
            registry=registry,
        )
        self._reload_ok.set(1)
        named = registry if secret_names and mount else None  # a relay's secrets have sources
        self._versions = Gauge(
            "syncd_secret_version_info",
            "1 for the version that a secret has",
            ["secret", "version"],
            registry=named,
        )
        self._subscribers = Gauge("syncd_subscribers", "Open event streams", registry=registry)
        self._credentials = Counter(
            "syncd_credentials",
            "Credentials that systemd requested by outcome",
            ["outcome"],
            registry=registry,
        )

        scans = registry if mount else None  # a zero would be an alarm, not an absence
        self._vault_config_valid = Gauge(
            "syncd_vault_config_valid",
            "1 while the vault config on disk is the one in use",
            registry=scans,
        )
        self._last_scan = Gauge(
            "syncd_last_scan_timestamp_seconds", "When the last scan ended", registry=scans
        )
        self._unreadable_roots = Gauge(
            "syncd_unreadable_roots",
            "Mounts that cannot be read or do not answer",
            registry=scans,
        )
        self._scans = Counter(
            "syncd_scans", "Scans of the mounts by cause", ["reason"], registry=scans
        )
        self._scan_duration = Histogram(
            "syncd_scan_duration_seconds",
            "Time to read and compare the mounts",
            registry=scans,
            buckets=_SCAN_BUCKETS,
        )
        self._changes = Counter("syncd_changes", "Changes of secrets", ["change"], registry=scans)

        deliveries = Counter(
            "syncd_deliveries",
            "Events delivered, and attempts that failed",
            ["consumer", "outcome"],
            registry=registry,
        )
        latency = Histogram(
            "syncd_delivery_latency_seconds",
            "From the scan that detected a change to the consumer's acknowledgement",
            ["consumer"],
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        pending = Gauge(
            "syncd_delivery_pending",
            "Events that a consumer has not acknowledged",
            ["consumer"],
            registry=registry,
        )
        self._consumer = (deliveries, latency, pending)
        adoptions = Counter(
            "syncd_adoptions",
            "Verified versions of secrets by outcome",
            ["consumer", "outcome"],
            registry=registry,
        )
        seconds = Histogram(
            "syncd_adoption_seconds",
            "From the scan that detected a change to its adoption by the last replica",
            ["consumer"],
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        self._adoption = (adoptions, seconds)
        provision = Counter(
            "syncd_provision",
            "Fetches from a vault by outcome",
            ["provider", "outcome"],
            registry=registry,
        )
        last_success = Gauge(
            "syncd_provision_last_success_timestamp_seconds",
            "When all secrets of a provider were last fetched",
            ["provider"],
            registry=registry,
        )
        self._provider = (provision, last_success)

        for outcome in CREDENTIAL_OUTCOMES:
            self._credentials.labels(outcome)
        for reason in SCAN_REASONS:
            self._scans.labels(reason)
        for kind in ChangeKind:
            self._changes.labels(kind.value)
        self.set_inventory(())

    def set_inventory(self, known: Iterable[Known]) -> None:
        """Sets the state of every secret."""
        if self._secret_names:
            self._secrets.clear()
            self._versions.clear()
            for item in known:
                name = visible(item.entry.name)
                self._secrets.labels(item.state.value, name).set(1)
                self._versions.labels(name, item.version or "none").set(1)
            return
        tally = Tally(item.state for item in known)
        for state in State:
            self._secrets.labels(state.value).set(tally[state])

    def set_not_after(self, ends: Mapping[str, float]) -> None:
        """Sets when certificates end, seconds since the epoch, by the secret's name.

        Without names in metrics, the first of them. There is no series without a certificate.
        """
        if bool(ends) != self._has_end:
            self._has_end = bool(ends)
            change = self.registry.register if ends else self.registry.unregister
            change(self._not_after)
        if self._secret_names:
            self._not_after.clear()
            for name, end in ends.items():
                self._not_after.labels(visible(name)).set(end)
        elif ends:
            self._not_after.set(min(ends.values()))

    def set_vault_config_valid(self, *, valid: bool) -> None:
        """Sets whether the vault config on disk is the one in use."""
        self._vault_config_valid.set(valid)

    def set_reload_ok(self, *, ok: bool) -> None:
        """Sets whether the last reload was accepted."""
        self._reload_ok.set(ok)

    def set_unreadable_roots(self, count: int) -> None:
        """Sets the number of roots that cannot be read as a whole."""
        self._unreadable_roots.set(count)

    def scanned(self, reason: str, seconds: float) -> None:
        """Counts a scan that has just ended.

        Args:
            reason: Its cause, one of `SCAN_REASONS`.
            seconds: Its duration.
        """
        self._scans.labels(reason).inc()
        self._scan_duration.observe(seconds)
        self._last_scan.set_to_current_time()

    def changed(self, changes: Iterable[Change]) -> None:
        """Counts changes of secrets."""
        for kind, count in Tally(change.kind for change in changes).items():
            self._changes.labels(kind.value).inc(count)

    def consumer(self, name: str) -> ConsumerMetrics:
        """Creates the series of a consumer."""
        return ConsumerMetrics(*self._consumer, name)

    def forget_consumer(self, name: str) -> None:
        """Drops the series of a consumer that left the configuration."""
        for metric in self._consumer:
            metric.remove_by_labels({"consumer": name})

    def adoption(self, consumer: str) -> AdoptionMetrics:
        """Creates the series of a consumer that verifies adoption."""
        return AdoptionMetrics(*self._adoption, consumer)

    def forget_adoption(self, consumer: str) -> None:
        """Drops the series of a consumer that no longer verifies adoption."""
        for metric in self._adoption:
            metric.remove_by_labels({"consumer": consumer})

    def fleet(self) -> FleetMetrics:
        """The series of the fleet; created when they are first asked for."""
        if self._fleet is None:
            self._fleet = FleetMetrics(self.registry)
        return self._fleet

    def forget_fleet(self) -> None:
        """Drops the series of the fleet, which is no longer watched."""
        if self._fleet is not None:
            self._fleet.close(self.registry)
            self._fleet = None

    def set_subscribers(self, count: int) -> None:
        """Sets the number of open event streams."""
        self._subscribers.set(count)

    def credential(self, outcome: str) -> None:
        """Counts an answer to systemd; the outcome is one of `CREDENTIAL_OUTCOMES`."""
        self._credentials.labels(outcome).inc()

    def provider(self, name: str) -> ProviderMetrics:
        """Creates the series of a provider."""
        return ProviderMetrics(*self._provider, name)

    def forget_provider(self, name: str) -> None:
        """Drops the series of a provider that left the configuration."""
        for metric in self._provider:
            metric.remove_by_labels({"provider": name})

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics, in the format that a scraper's `Accept` header requests.

        Blocks on `/proc`: call it in a worker thread.

        Returns:
            The body and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
