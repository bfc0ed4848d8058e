"""The actions of consumers of kind `aidbox` that have a loop of their own, and their outcomes."""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import TYPE_CHECKING

import anyio

from syncd.config.settings import Aidbox, grant_of
from syncd.consumers.factory import open_recreator, open_roller, open_verifier
from syncd.core.event_data import AdoptionData, DestinationData

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from syncd.config.settings import ConsumerSettings, Settings
    from syncd.consumers.aidbox.leadership import Leadership
    from syncd.consumers.aidbox.recreate import Recreator
    from syncd.consumers.aidbox.rollout import Roller
    from syncd.consumers.aidbox.verify import Verifier
    from syncd.core.events import Event
    from syncd.core.model import Grant, Known
    from syncd.daemon.pipeline import Pipeline
    from syncd.daemon.resources import Resources
    from syncd.net.kubernetes import Cluster


class Actions:
    """The actions of one configuration.

    Args:
        settings: The configuration.
        pipeline: Its consumers.
        resources: What outlives the engine.
        read: Reads the value of a secret for a consumer, by name, path and version; blocks.
        inventory: Every secret, as of the last commit.
        publish: Commits an event and delivers it.

    Attributes:
        verifiers: What verifies adoption, by the name of the consumer.
        recreators: What recreates destinations.
        rollers: What rolls workloads.
    """

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        resources: Resources,
        *,
        read: Callable[[ConsumerSettings, str, str, str], bytes | None],
        inventory: Callable[[], Mapping[str, Known]],
        publish: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._resources = resources
        self._settings = settings
        self._leadership: Leadership | None = None
        self._cluster: Cluster | None = None
        self.rollers: list[Roller] = []
        self.verifiers: dict[str, Verifier] = {}
        self.recreators: list[Recreator] = []
        for item in settings.consumers:
            verifier = open_verifier(
                item,
                pipeline.consumers[item.name],
                stamp=pipeline.stamp,
                ledger=resources.ledger,
                metrics=resources.metrics,
                rng=pipeline.rng,
                read=partial(read, item),
                publish=publish,
            )
            recreator = open_recreator(
                item,
                pipeline.consumers[item.name],
                stamp=pipeline.stamp,
                ledger=resources.ledger,
                leadership=self._lead,
                inventory=inventory,
                rng=pipeline.rng,
                publish=publish,
            )
            roller = open_roller(
                item,
                cluster=self._cluster_of_pod,
                leadership=self._lead,
                inventory=inventory,
                ledger=resources.ledger,
                rng=pipeline.rng,
            )
            if verifier is not None:
                self.verifiers[item.name] = verifier
            if recreator is not None:
                self.recreators.append(recreator)
            if roller is not None:
                self.rollers.append(roller)

    def _lead(self) -> Leadership:
        """The one way to a term, for all actions: the Lease of a cluster, or the ledger."""
        if self._leadership is None:
            from syncd.config.cluster import server_url  # noqa: PLC0415
            from syncd.consumers.aidbox.leadership import LocalLeadership  # noqa: PLC0415 - where configured
            from syncd.net.lease import Lease  # noqa: PLC0415

            settings, ledger = self._settings, self._resources.ledger
            if server_url(settings.kubernetes, os.environ) is None:
                self._leadership = LocalLeadership(ledger)
            else:
                # one process has the ledger, so it is the same holder after a crash, and no other
                identity = f"{settings.instance or socket.gethostname()}_{ledger.epoch}"
                self._leadership = Lease(
                    self._cluster_of_pod(), settings.kubernetes.lease, identity
                )
        return self._leadership

    def _cluster_of_pod(self) -> Cluster:
        if self._cluster is None:
            from syncd.net.kubernetes import Cluster  # noqa: PLC0415 - only where configured

            self._cluster = Cluster(self._settings.kubernetes)
        return self._cluster

    async def aclose(self) -> None:
        """Closes the connection to the cluster."""
        if self._cluster is not None:
            with anyio.move_on_after(1, shield=True):
                await self._cluster.aclose()

    @property
    def workers(self) -> tuple[Verifier | Recreator | Roller, ...]:
        """Everything that has a loop."""
        return (*self.verifiers.values(), *self.recreators, *self.rollers)


def outcome_audience(settings: Settings, event: Event) -> dict[str, Grant]:
    """The consumers that may see the outcome of an action.

    Of those of kind `aidbox`, only the one whose action it was records it.
    """
    return {
        item.name: grant_of(item)
        for item in settings.consumers
        if not isinstance(item, Aidbox) or _records(item, event)
    }


def _records(consumer: Aidbox, event: Event) -> bool:
    data = event.data
    own = isinstance(data, AdoptionData | DestinationData) and data.consumer == consumer.name
    return own and "audit_event" in consumer.actions
