"""`syncd relay`: the daemon where there is no mount; what comes in over NATS goes to its consumers.

It is the same daemon with another beginning: events of other installations are committed to a
ledger of its own as a scan would commit changes, so mailboxes, deliveries, subscribers, probes and
their guarantees are the same. An event keeps the id, source and time that it has where it was
made, so whoever gets it from several sides can tell that it is one.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from syncd.api.status import Facts
from syncd.config.settings import RelaySettings
from syncd.core.event_data import SecretData, known_of
from syncd.core.events import Commit
from syncd.core.nats_binding import escape
from syncd.core.timing import rfc3339
from syncd.daemon.daemon import Daemon
from syncd.daemon.pipeline import Pipeline
from syncd.daemon.subscription import FETCH_TIMEOUT, Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anyio.abc import TaskStatus

    from syncd.core.events import Event
    from syncd.core.model import Known
    from syncd.daemon.pipeline import AnySettings
    from syncd.ledger.ledger import Ledger
    from syncd.ledger.state_dir import StateDir
    from syncd.telemetry.metrics import Metrics

_LONGEST_NAME: Final = 63


class RelayEngine(Pipeline):
    """Everything that one configuration of a relay calls for, running.

    Args:
        settings: The configuration.
        ledger: The open ledger.
        metrics: What operators scrape.
        listeners: Called with each commit, in the event loop.
    """

    def __init__(
        self,
        settings: RelaySettings,
        *,
        ledger: Ledger,
        metrics: Metrics,
        listeners: list[Callable[[Commit], None]],
    ) -> None:
        super().__init__(settings, ledger=ledger, metrics=metrics, listeners=listeners)
        source = settings.relay
        self._source = source
        durable = source.durable or default_durable(settings.instance or socket.gethostname())
        self._subscription = Subscription(source, durable, ledger, self._grants(), self._received)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled; reports as started at once, since old mail can be delivered.

        Raises:
            StateError: The ledger cannot be used at the start.
        """
        await self._forget_others()
        self.inventory = await anyio.to_thread.run_sync(self._ledger.received)
        self._metrics.set_inventory(self.inventory.values())
        async with anyio.create_task_group() as tasks:
            for delivery in self.deliveries.values():
                tasks.start_soon(delivery.run)
            task_status.started()
            await self._subscription.run()

    def summary(self) -> dict[str, object]:
        """How many secrets are known, and what is listened to."""
        return {"secrets": len(self.inventory), "watch": "nats", "subject": self._source.subject}

    def facts(self, inventory: Mapping[str, Known], *, ready: bool) -> Facts:
        """What can be told about it now, after `Pipeline.facts`."""
        heard = self._subscription.heard_at
        return Facts(
            ready=ready,
            inventory=inventory,
            scanned_at=None if heard is None else rfc3339(heard),
            failure=self._subscription.failure,
            watch_mode="nats",
            watch_problem=None,
            vault_config=f"none: relaying {self._source.subject}",
            vault_config_valid=True,
            rescan_interval=5 * FETCH_TIMEOUT,
            consumers=self._health(),
        )

    def _received(self, events: Sequence[Event]) -> None:
        news = [
            known_of(event.time, event.origin.source, event.data)
            for event in events
            if event.origin is not None and isinstance(event.data, SecretData)
        ]
        known = {**self.inventory, **{item.entry.key: item for item in news}}
        self._metrics.set_inventory(known.values())
        self._committed(Commit(tuple(events), known, time.monotonic()))


class RelayDaemon(Daemon):
    """The daemon of `syncd relay`."""

    async def _prepare(self, settings: AnySettings, _: StateDir, ledger: Ledger) -> Pipeline:
        assert isinstance(settings, RelaySettings)
        return RelayEngine(settings, ledger=ledger, metrics=self.metrics, listeners=self.listeners)


def default_durable(instance: str) -> str:
    """The name of a relay's consumer on the server: one of its own for each instance."""
    name = escape(instance).replace("%", "_").replace("~", "_")
    return f"syncd-relay-{name}"[:_LONGEST_NAME]
