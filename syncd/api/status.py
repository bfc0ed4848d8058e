"""The state of the daemon as the API reports it. Imports no web framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from syncd.api.actions import Actions
from syncd.core.adoption import Adoption
from syncd.core.health import ConsumerHealth, ProviderHealth
from syncd.core.model import Grant, Known


class MountStatus(msgspec.Struct, frozen=True):
    """The state of a daemon that watches a mount.

    Attributes:
        scanned_at: When the last scan ended (RFC 3339, UTC), or None.
        watch_mode: `inotify` or `poll`.
        watch_problem: Why `watch_mode` is not the configured mode, or None.
        vault_config: Path of the vault config.
        vault_config_valid: Whether the vault config on disk is the one in use.
        rescan_interval: Seconds between two scans, at most.
        unreadable: Why a root cannot be read as a whole, by its path.
    """

    scanned_at: str | None
    watch_mode: str
    watch_problem: str | None
    vault_config: str
    vault_config_valid: bool
    rescan_interval: float
    unreadable: Mapping[str, str] = {}


class FleetStatus(msgspec.Struct, frozen=True):
    """The state of a fleet, as a relay knows it.

    Attributes:
        bucket: The bucket with the state of the installations.
        failure: Why the state of the fleet is not known now, one line, or None.
        instances: How many installations are `live`, `silent` and `unreadable`; empty before the
            bucket was read.
        secrets: How many secrets have `converged`, are `spreading`, and have `diverged`; empty
            before the bucket was read.
        diverged: For each secret that has diverged, who is behind, one line.
    """

    bucket: str
    failure: str | None
    instances: Mapping[str, int]
    secrets: Mapping[str, int]
    diverged: Mapping[str, str]


class RelayStatus(msgspec.Struct, frozen=True):
    """The state of a relay.

    Attributes:
        heard_at: When the stream last answered (RFC 3339, UTC), or None.
        subject: The NATS subject whose events are relayed.
        max_silence: Seconds between two answers of the stream, at most.
        fleet: The state of the fleet; None where the relay reads no bucket.
    """

    heard_at: str | None
    subject: str
    max_silence: float
    fleet: FleetStatus | None = None


class DaemonStatus(msgspec.Struct, frozen=True):
    """The state of the daemon at one moment of its event loop.

    Attributes:
        ready: Whether the engine has started: with a mount, whether the first scan is done.
        inventory: Every secret, as of the last commit.
        source: Where changes come from.
        failure: Why changes cannot be received or committed now, one line, or None.
        consumers: The scope and the health of each consumer, by name.
        providers: The health of each provider, by name.
        refresh: Starts a fetch by every provider; None without providers.
        actions: What a person can ask of the consumers, or None.
        reload_problems: Why the configuration on disk was rejected at the last reload, one line
            each; empty where it is in use.
        adoptions: For each consumer that verifies adoption, the adoption of each secret by name.
        not_after: When certificates among the secrets end, seconds since the epoch, by name.
        content_problems: What is wrong with the content of secrets, one line, by name.
    """

    ready: bool
    inventory: Mapping[str, Known]
    source: MountStatus | RelayStatus
    failure: str | None
    consumers: Mapping[str, tuple[Grant, ConsumerHealth]]
    providers: Mapping[str, ProviderHealth] = msgspec.field(default_factory=dict)
    refresh: Callable[[], object] | None = None
    adoptions: Mapping[str, Mapping[str, Adoption]] = msgspec.field(default_factory=dict)
    not_after: Mapping[str, float] = msgspec.field(default_factory=dict)
    content_problems: Mapping[str, str] = msgspec.field(default_factory=dict)
    reload_problems: tuple[str, ...] = ()
    actions: Actions | None = None
