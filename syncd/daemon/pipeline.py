"""From a commit to the consumers: their mailboxes, their delivery loops, and other listeners.

Every engine has a pipeline: what makes the commits is the engine's part.
"""

from __future__ import annotations

import socket
from random import Random
from typing import TYPE_CHECKING

import anyio.to_thread
import structlog

from syncd.config.settings import Aidbox, grant
from syncd.consumers.delivery import Delivery
from syncd.consumers.factory import mailboxes, open_consumer
from syncd.core.events import Stamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.config.settings import RelaySettings, Settings
    from syncd.core.events import Commit
    from syncd.core.health import ConsumerHealth
    from syncd.core.model import Grant, Known
    from syncd.daemon.resources import Resources
    from syncd.ledger.ledger import Ledger

log = structlog.get_logger()


class Pipeline:
    """The consumers of one configuration.

    Attributes:
        consumers: The consumers, by name.
        stamp: The attributes that this installation adds to its events.
        deliveries: The loop of each consumer, by name; the engine runs them.
        grants: Every mailbox, and which events go into it.
        inventory: Every secret, as of the last commit.
        rng: Source of the jitter.
    """

    def __init__(self, settings: Settings | RelaySettings, resources: Resources) -> None:
        self._settings = settings.consumers
        self._resources = resources
        self.rng = Random()  # noqa: S311 - jitter
        self.inventory: Mapping[str, Known] = {}
        self.grants = mailboxes(settings.consumers)
        self.stamp = make_stamp(resources.ledger, settings.instance)
        self.consumers = {item.name: open_consumer(item, self.stamp) for item in settings.consumers}
        self.deliveries = {
            item.name: Delivery(
                self.consumers[item.name],
                resources.ledger,
                resources.metrics,
                self.rng,
                eager=isinstance(item, Aidbox),
            )
            for item in settings.consumers
        }

    async def forget_removed(self) -> None:
        """Deletes the mailboxes of consumers that are no longer configured.

        Raises:
            StateError: The ledger cannot be used.
        """
        ledger = self._resources.ledger
        gone = await anyio.to_thread.run_sync(ledger.forget_others, list(self.grants))
        for name, count in gone.items():
            log.warning("consumer.forgotten", consumer=name, undelivered=count)

    def committed(self, commit: Commit) -> None:
        """Wakes the delivery loops and calls the listeners. In the event loop only."""
        self.inventory = commit.inventory
        if commit.events:
            for delivery in self.deliveries.values():
                delivery.wake(commit.events)
        for listener in self._resources.listeners:
            listener(commit)

    def health(self) -> dict[str, tuple[Grant, ConsumerHealth]]:
        """The scope and the health of each consumer, by name."""
        return {
            item.name: (grant(item.scope, item.types), self.deliveries[item.name].health)
            for item in self._settings
        }

    def release(self, following: Pipeline) -> None:
        """Ends the metrics of consumers that the following pipeline does not have."""
        for name in self.deliveries.keys() - following.deliveries.keys():
            self._resources.metrics.forget_consumer(name)


def make_stamp(ledger: Ledger, instance: str | None) -> Stamp:
    """The attributes that an installation adds to its events; its name defaults to the host's."""
    return Stamp(ledger.epoch, f"/syncd/{instance or socket.gethostname()}")
