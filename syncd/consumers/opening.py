"""From a consumer's configuration to the consumer: the one place that knows every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncd.consumers.webhook import WebhookConsumer
from syncd.settings import Nats, grant

if TYPE_CHECKING:
    from syncd.consumers.delivery import Consumer
    from syncd.core.events import Stamp
    from syncd.settings import ConsumerSettings


def open_consumer(settings: ConsumerSettings, stamp: Stamp) -> Consumer:
    """Makes a consumer; it connects when it first delivers.

    Args:
        settings: An element of `consumers`.
        stamp: What is written on events.

    Raises:
        RefusedError: The configuration cannot be used.
    """
    if isinstance(settings, Nats):
        from syncd.consumers.nats import NatsConsumer  # noqa: PLC0415 - 7 MiB, when configured

        return NatsConsumer(settings, grant(settings.scope), stamp)
    return WebhookConsumer(settings, grant(settings.scope), stamp)
