"""What the API can be asked about, as the daemon hands it over; holds no web framework."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from syncd.core.adoption import Adoption
    from syncd.core.health import ConsumerHealth
    from syncd.core.model import Grant, Known


class ProviderFacts(Protocol):
    """How a provider of secrets is doing."""

    @property
    def target(self) -> str:
        """Where its files go."""

    @property
    def files(self) -> int | None:
        """How many there were in the last fetch; None before the first."""

    @property
    def last_success_at(self) -> str | None:
        """When everything was last fetched and in place (RFC 3339, UTC)."""

    @property
    def last_change_at(self) -> str | None:
        """When a fetch last changed something, in this process."""

    @property
    def last_error(self) -> str | None:
        """Why the last attempt failed, one line, or None if it did not."""

    @property
    def failures(self) -> int:
        """Attempts that failed since the last success."""

    @property
    def next_attempt_at(self) -> str | None:
        """When the next one is due (RFC 3339, UTC)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the daemon knows at one moment of its event loop.

    Attributes:
        ready: Whether the first pass over the mount is done.
        inventory: Everything known, as of the last commit.
        scanned_at: When the last pass ended (RFC 3339, UTC), or None.
        failure: Why the last pass could not be committed, or None.
        watch_mode: `inotify` or `poll`.
        watch_problem: Why changes are not noticed the way that was asked for, or None.
        vault_config: Path of the vault config.
        vault_config_valid: Whether the one on disk is the one in use.
        rescan_interval: Seconds between two passes at the most.
        consumers: Each with what it may see and how it is doing, by name.
        providers: How they are doing, by name.
        refresh: Asks every provider now; None where none is configured.
        adoptions: What is known of the adoption of secrets, by name, by the consumer that
            verifies it.
    """

    ready: bool
    inventory: Mapping[str, Known]
    scanned_at: str | None
    failure: str | None
    watch_mode: str
    watch_problem: str | None
    vault_config: str
    vault_config_valid: bool
    rescan_interval: float
    consumers: Mapping[str, tuple[Grant, ConsumerHealth]]
    providers: Mapping[str, ProviderFacts] = field(default_factory=dict)
    refresh: Callable[[], None] | None = None
    adoptions: Mapping[str, Mapping[str, Adoption]] = field(default_factory=dict)
