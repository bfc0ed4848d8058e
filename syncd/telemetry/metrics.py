"""The metrics that syncd exposes.

One `Metrics` owns one registry; nothing is registered globally. Every series whose labels are
known in advance exists from the start at zero, so that `rate()` and alerts see the first
increment. Names of consumers and providers are labels, names of secrets only if configured.

The registry also has the `process_*` series of prometheus-client, which read `/proc` when
scraped: call `exposition` in a worker thread.
"""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from syncd import __version__
from syncd.core.model import ChangeKind, State
from syncd.system.lean_import import import_prometheus_client

import_prometheus_client()
import prometheus_client  # noqa: E402 - see lean_import
from prometheus_client.exposition import choose_encoder  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client import Counter, Gauge, Histogram
    from prometheus_client.metrics import MetricWrapperBase

    from syncd.core.model import Change, Known

SCAN_REASONS: Final = ("start", "inotify", "interval", "overflow", "reload")
PROVISION_OUTCOMES: Final = ("success", "failed", "refused")
OUTCOMES: Final = ("delivered", "retried", "rejected")
ADOPTION_OUTCOMES: Final = ("adopted", "rejected")
CREDENTIAL_OUTCOMES: Final = ("served", "denied", "unavailable")
_SCAN_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LATENCY_BUCKETS = (
    *(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    *(10, 30, 60, 300, 1800, 3600),
)

# `*_created` would double the counters' series under names that the contract does not have
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


_M = TypeVar("_M", bound="MetricWrapperBase")


@dataclass(frozen=True, slots=True)
class _Family(Generic[_M]):
    """A metric with a series for each name, and for each outcome of a name.

    Attributes:
        metric: Labelled with a name, and with an outcome if there are any.
        outcomes: The values of the second label; empty without one.
    """

    metric: _M
    outcomes: Sequence[str] = ()

    def open(self, name: str) -> list[_M]:
        """The series of a name, which exist from now on."""
        return [self.metric.labels(*labels) for labels in self._labels(name)]

    def forget(self, name: str) -> None:
        """Removes the series of a name, if there are any."""
        for labels in self._labels(name):
            self.metric.remove(*labels)

    def _labels(self, name: str) -> list[tuple[str, ...]]:
        return [(name, outcome) for outcome in self.outcomes] or [(name,)]


class ConsumerMetrics:
    """The series of one consumer."""

    def __init__(
        self,
        deliveries: _Family[Counter],
        latency: _Family[Histogram],
        pending: _Family[Gauge],
        name: str,
    ) -> None:
        self._delivered, self._retried, self._rejected = deliveries.open(name)
        (self._latency,) = latency.open(name)
        (self._pending,) = pending.open(name)

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

    def __init__(self, adoptions: _Family[Counter], seconds: _Family[Histogram], name: str) -> None:
        self._adopted, self._rejected = adoptions.open(name)
        (self._seconds,) = seconds.open(name)

    def adopted(self, seconds: float) -> None:
        """Counts a version that every replica uses, `seconds` after the scan that detected it."""
        self._adopted.inc()
        self._seconds.observe(seconds)

    def rejected(self) -> None:
        """Counts a version that a replica did not use within its time."""
        self._rejected.inc()


class ProviderMetrics:
    """The series of one provider."""

    def __init__(
        self, provision: _Family[Counter], last_success: _Family[Gauge], name: str
    ) -> None:
        self._success, self._failed, self._refused = provision.open(name)
        (self._last_success,) = last_success.open(name)

    def succeeded(self) -> None:
        """Counts a pass after which every file is as the vault has it."""
        self._success.inc()
        self._last_success.set_to_current_time()

    def failed(self) -> None:
        """Counts a pass that failed and may succeed when repeated."""
        self._failed.inc()

    def refused(self) -> None:
        """Counts a pass that only a person can make succeed."""
        self._refused.inc()


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

        build = prometheus_client.Info("syncd_build", "The running syncd", registry=registry)
        build.info({"version": __version__})
        labels = ["state", "secret"] if secret_names else ["state"]
        self._secrets = prometheus_client.Gauge(
            "syncd_secrets", "Entries of the vault config by state", labels, registry=registry
        )
        scans = registry if mount else None  # a zero would be an alarm, not an absence
        self._vault_config_valid = prometheus_client.Gauge(
            "syncd_vault_config_valid",
            "1 while the vault config on disk is the one in use",
            registry=scans,
        )
        self._last_scan = prometheus_client.Gauge(
            "syncd_last_scan_timestamp_seconds", "When the last scan ended", registry=scans
        )
        self._scans = prometheus_client.Counter(
            "syncd_scans", "Scans of the mounts by cause", ["reason"], registry=scans
        )
        self._scan_duration = prometheus_client.Histogram(
            "syncd_scan_duration_seconds",
            "Time to read and compare the mounts",
            registry=scans,
            buckets=_SCAN_BUCKETS,
        )
        self._changes = prometheus_client.Counter(
            "syncd_changes", "Changes of secrets", ["change"], registry=scans
        )
        consumer = ("consumer",)
        deliveries = prometheus_client.Counter(
            "syncd_deliveries",
            "Events delivered, and attempts that failed",
            ["consumer", "outcome"],
            registry=registry,
        )
        latency = prometheus_client.Histogram(
            "syncd_delivery_latency_seconds",
            "From the scan that detected a change to the consumer's acknowledgement",
            consumer,
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        pending = prometheus_client.Gauge(
            "syncd_delivery_pending",
            "Events that a consumer has not acknowledged",
            consumer,
            registry=registry,
        )
        self._consumer = (_Family(deliveries, OUTCOMES), _Family(latency), _Family(pending))
        adoptions = prometheus_client.Counter(
            "syncd_adoptions",
            "Verified versions of secrets by outcome",
            ["consumer", "outcome"],
            registry=registry,
        )
        seconds = prometheus_client.Histogram(
            "syncd_adoption_seconds",
            "From the scan that detected a change to its adoption by the last replica",
            consumer,
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        self._adoption = (_Family(adoptions, ADOPTION_OUTCOMES), _Family(seconds))
        self._subscribers = prometheus_client.Gauge(
            "syncd_subscribers", "Open event streams", registry=registry
        )
        provision = prometheus_client.Counter(
            "syncd_provision",
            "Fetches from a vault by outcome",
            ["provider", "outcome"],
            registry=registry,
        )
        last_success = prometheus_client.Gauge(
            "syncd_provision_last_success_timestamp_seconds",
            "When all secrets of a provider were last fetched",
            ["provider"],
            registry=registry,
        )
        self._provider = (_Family(provision, PROVISION_OUTCOMES), _Family(last_success))
        self._credentials = prometheus_client.Counter(
            "syncd_credentials",
            "Credentials that systemd requested by outcome",
            ["outcome"],
            registry=registry,
        )
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
            for item in known:
                self._secrets.labels(item.state.value, item.entry.name).set(1)
            return
        tally = Tally(item.state for item in known)
        for state in State:
            self._secrets.labels(state.value).set(tally[state])

    def set_vault_config_valid(self, *, valid: bool) -> None:
        """Sets whether the vault config on disk is the one in use."""
        self._vault_config_valid.set(valid)

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
        """The series of a consumer, which exist from now on."""
        return ConsumerMetrics(*self._consumer, name)

    def forget_consumer(self, name: str) -> None:
        """Drops the series of a consumer that left the configuration."""
        _forget(self._consumer, name)

    def adoption(self, consumer: str) -> AdoptionMetrics:
        """The series of a consumer that verifies adoption, which exist from now on."""
        return AdoptionMetrics(*self._adoption, consumer)

    def forget_adoption(self, consumer: str) -> None:
        """Drops the series of a consumer that no longer verifies adoption."""
        _forget(self._adoption, consumer)

    def set_subscribers(self, count: int) -> None:
        """Sets the number of open event streams."""
        self._subscribers.set(count)

    def credential(self, outcome: str) -> None:
        """Counts an answer to systemd; the outcome is one of `CREDENTIAL_OUTCOMES`."""
        self._credentials.labels(outcome).inc()

    def provider(self, name: str) -> ProviderMetrics:
        """The series of a provider, which exist from now on."""
        return ProviderMetrics(*self._provider, name)

    def forget_provider(self, name: str) -> None:
        """Drops the series of a provider that left the configuration."""
        _forget(self._provider, name)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics, in the format that a scraper's `Accept` header requests.

        Blocks on `/proc`: call it in a worker thread.

        Returns:
            The body and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _forget(families: Iterable[_Family[Any]], name: str) -> None:
    for family in families:
        family.forget(name)
