"""What every kind of daemon runs: something that commits events, and those who get them."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from random import Random
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import structlog

from syncd.config.settings import Aidbox, grant
from syncd.consumers.delivery import Delivery
from syncd.consumers.factory import mailboxes, open_consumer
from syncd.core.events import Stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyio.abc import TaskStatus

    from syncd.api.status import Facts
    from syncd.config.settings import RelaySettings, Settings
    from syncd.consumers.aidbox.verify import Verifier
    from syncd.core.events import Commit
    from syncd.core.health import ConsumerHealth
    from syncd.core.model import Grant, Known
    from syncd.ledger.ledger import Ledger
    from syncd.provision.refresh import Refresher
    from syncd.telemetry.metrics import Metrics

    AnySettings = Settings | RelaySettings

log = structlog.get_logger()


class Pipeline(ABC):
    """What every kind of daemon runs: something that commits events, and who gets them.

    Args:
        settings: The configuration.
        ledger: The open ledger.
        metrics: What operators scrape.
        listeners: Called with each commit, in the event loop.

    Attributes:
        deliveries: The loop of each consumer, by name.
        verifiers: Who verifies that a consumer adopted a change, by the consumer's name.
        refreshers: Who fetches secrets.
        inventory: Everything known now.
    """

    inventory: Mapping[str, Known]

    def __init__(
        self,
        settings: AnySettings,
        *,
        ledger: Ledger,
        metrics: Metrics,
        listeners: list[Callable[[Commit], None]],
    ) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._listeners = listeners
        self._consumers = settings.consumers
        stamp = make_stamp(ledger, settings.instance)
        self._rng = Random()  # noqa: S311 - jitter
        self.deliveries = {
            item.name: Delivery(
                open_consumer(item, stamp),
                ledger,
                metrics,
                self._rng,
                eager=isinstance(item, Aidbox),
            )
            for item in settings.consumers
        }
        self.verifiers: dict[str, Verifier] = {}
        self.refreshers: list[Refresher] = []

    @abstractmethod
    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled; reports as started when it does its work."""

    @abstractmethod
    def facts(self, inventory: Mapping[str, Known], *, ready: bool) -> Facts:
        """What can be told about it now.

        Args:
            inventory: Everything known.
            ready: Whether the first pass is done.
        """

    @abstractmethod
    def summary(self) -> dict[str, object]:
        """What the log says about it when it is ready."""

    def refresh(self) -> None:
        """Asks every provider now, whatever its interval or backoff. From the event loop."""
        for refresher in self.refreshers:
            refresher.wake()

    def release(self, following: Pipeline | None = None) -> None:
        """Closes the vault clients that the following engine does not take over.

        The metrics of consumers and providers that it does not have end, too.
        """
        kept = [refresher.provider for refresher in following.refreshers] if following else []
        for refresher in self.refreshers:
            if refresher.provider not in kept:
                refresher.provider.close()
        if following is None:
            return
        for name in {item.provider.name for item in self.refreshers} - {p.name for p in kept}:
            self._metrics.forget_provider(name)
        for name in self.deliveries.keys() - following.deliveries.keys():
            self._metrics.forget_consumer(name)
        for name in self.verifiers.keys() - following.verifiers.keys():
            self._metrics.forget_adoption(name)

    async def _forget_others(self) -> None:
        gone = await anyio.to_thread.run_sync(self._ledger.forget_others, list(self._grants()))
        for name, count in gone.items():
            log.warning("consumer.forgotten", consumer=name, undelivered=count)

    def _grants(self) -> dict[str, Grant]:
        return mailboxes(self._consumers)

    def _health(self) -> dict[str, tuple[Grant, ConsumerHealth]]:
        return {c.name: (grant(c.scope), self.deliveries[c.name].health) for c in self._consumers}

    @property
    def _workers(self) -> Sequence[Delivery | Verifier]:
        """Verifiers come first: what they find out is delivered, too."""
        return (*self.verifiers.values(), *self.deliveries.values())

    def _committed(self, commit: Commit) -> None:
        self.inventory = commit.inventory
        if commit.events:
            for worker in self._workers:
                worker.wake()
        for listener in self._listeners:
            listener(commit)


def make_stamp(ledger: Ledger, instance: str | None) -> Stamp:
    """What this installation writes on its events.

    Args:
        ledger: Gives the epoch.
        instance: The installation's name, or None for the host's.
    """
    return Stamp(ledger.epoch, f"/syncd/{instance or socket.gethostname()}")
