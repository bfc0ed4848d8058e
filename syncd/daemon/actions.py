"""The actions of consumers of kind `aidbox` that have a loop of their own, and their outcomes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from syncd.config.settings import Aidbox, grant_of
from syncd.consumers.factory import open_recreator, open_verifier
from syncd.core.event_data import AdoptionData, DestinationData

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from syncd.config.settings import ConsumerSettings, Settings
    from syncd.consumers.aidbox.leadership import Leadership
    from syncd.consumers.aidbox.recreate import Recreator
    from syncd.consumers.aidbox.verify import Verifier
    from syncd.core.events import Event
    from syncd.core.model import Grant, Known
    from syncd.daemon.pipeline import Pipeline
    from syncd.daemon.resources import Resources


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
        self._leadership: Leadership | None = None
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
            if verifier is not None:
                self.verifiers[item.name] = verifier
            if recreator is not None:
                self.recreators.append(recreator)

    def _lead(self) -> Leadership:
        """The one way to a term, for all actions."""
        if self._leadership is None:
            from syncd.consumers.aidbox.leadership import LocalLeadership  # noqa: PLC0415 - only where configured

            self._leadership = LocalLeadership(self._resources.ledger)
        return self._leadership

    @property
    def workers(self) -> tuple[Verifier | Recreator, ...]:
        """Everything that has a loop."""
        return (*self.verifiers.values(), *self.recreators)


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
