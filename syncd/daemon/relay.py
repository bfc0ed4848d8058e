"""The engine of `syncd relay`: events arrive over NATS instead of from a mount.

The events of other installations are committed to the relay's own ledger as a scan would commit
changes, so that mailboxes, deliveries, subscribers, probes and their guarantees are the same. An
event keeps the id, source and time of its origin: a consumer that receives it by several ways can
recognise it. What it announces of the whole fleet is an event of the relay itself
(`syncd.daemon.fleet`).
"""

from __future__ import annotations

import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from syncd.api.status import DaemonStatus, RelayStatus
from syncd.core.event_data import SecretData, known_of
from syncd.core.events import Commit
from syncd.core.nats_binding import escape
from syncd.core.timing import rfc3339
from syncd.daemon.fleet import FleetWatch
from syncd.daemon.pipeline import Pipeline
from syncd.daemon.subscription import FETCH_TIMEOUT, Subscription
from syncd.lint.consumers import examine_consumers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import TaskStatus

    from syncd.config.settings import RelaySettings
    from syncd.core.model import Known
    from syncd.daemon.resources import Resources
    from syncd.ledger.received import Receipt

_LONGEST_NAME: Final = 63
_MAX_SILENCE: Final = 5 * FETCH_TIMEOUT


async def open_engine(
    settings: RelaySettings, resources: Resources, _previous: RelayEngine | None
) -> RelayEngine:
    """Makes an engine; it connects when it runs."""
    return RelayEngine(settings, resources)


class RelayEngine:
    """Everything that one configuration of a relay calls for, running.

    Attributes:
        pipeline: The consumers.
        credentials: None: a relay has no values of secrets.
    """

    credentials: Final = None

    def __init__(self, settings: RelaySettings, resources: Resources) -> None:
        self.pipeline = Pipeline(settings, resources)
        self._resources = resources
        self._settings = settings
        self._source = settings.relay
        durable = self._source.durable or default_durable(settings.instance or socket.gethostname())
        self._subscription = Subscription(
            self._source, durable, resources.ledger, self.pipeline.grants, self._received
        )
        self._fleet: FleetWatch | None = None
        if self._source.state_bucket is not None:
            metrics = resources.metrics.fleet()
            self._fleet = FleetWatch(self._source, resources.ledger, metrics, self.pipeline)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled.

        Reports as started before it is connected: the backlog can be delivered without NATS.

        Raises:
            StateError: The ledger cannot be used at the start.
        """
        await self.pipeline.forget_removed()
        known = await anyio.to_thread.run_sync(self._resources.ledger.received)
        self.pipeline.inventory = known
        self._resources.metrics.set_inventory(known.values())
        async with anyio.create_task_group() as tasks:
            for delivery in self.pipeline.deliveries.values():
                tasks.start_soon(delivery.run)
            tasks.start_soon(self.pipeline.watch_credentials)
            tasks.start_soon(
                self.pipeline.examine, partial(examine_consumers, self._settings, None)
            )
            if self._fleet is not None:
                tasks.start_soon(self._fleet.run)
            task_status.started()
            await self._subscription.run()

    def summary(self) -> dict[str, object]:
        """The number of secrets and the subject, for the log."""
        return {
            "secrets": len(self.pipeline.inventory),
            "watch": "nats",
            "subject": self._source.subject,
        }

    def status(self, inventory: Mapping[str, Known], *, ready: bool) -> DaemonStatus:
        """The state of the engine now."""
        heard = self._subscription.heard_at
        return DaemonStatus(
            ready=ready,
            inventory=inventory,
            source=RelayStatus(
                heard_at=None if heard is None else rfc3339(heard),
                subject=self._source.subject,
                max_silence=_MAX_SILENCE,
                fleet=None if self._fleet is None else self._fleet.status(),
            ),
            failure=self._subscription.failure,
            consumers=self.pipeline.health(),
            actions=self.pipeline,
        )

    def refresh(self) -> int:
        """Does nothing: a relay has no providers; returns 0."""
        return 0

    def release(self, following: RelayEngine | None = None) -> None:
        """Ends the metrics of what the following engine does not have."""
        if following is not None:
            self.pipeline.release(following.pipeline)
            if following.has_fleet:
                return
        self._resources.metrics.forget_fleet()

    @property
    def has_fleet(self) -> bool:
        """Whether it watches the convergence of a fleet."""
        return self._fleet is not None

    def _received(self, receipt: Receipt) -> None:
        events = receipt.events
        news = [
            known_of(event.time, event.origin.source, event.data)
            for event in events
            if event.origin is not None and isinstance(event.data, SecretData)
        ]
        known = {**self.pipeline.inventory, **{item.entry.key: item for item in news}}
        for key in receipt.forgotten:
            known.pop(key, None)
        self._resources.metrics.set_inventory(known.values())
        self.pipeline.committed(Commit(tuple(events), known, time.monotonic()))


def default_durable(instance: str) -> str:
    """The name of a relay's consumer on the server, which differs between instances."""
    name = escape(instance).replace("%", "_").replace("~", "_")
    return f"syncd-relay-{name}"[:_LONGEST_NAME]
