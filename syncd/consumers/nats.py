"""NATS JetStream as a consumer: events published to a stream, acknowledged when they are stored.

`syncd.core.nats_binding` defines the messages, `syncd.net.nats` keeps the connection.

An event is delivered when JetStream acknowledges it (`PubAck`); "duplicate" is an acknowledgement,
too. Several events are in flight at a time, in order. If one event of a batch fails, those that are
acknowledged are not published again while this process runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from syncd.config.settings import grant
from syncd.core.nats_binding import MESSAGE_ID, encode, render
from syncd.net.nats import Connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.config.settings import Nats
    from syncd.core.events import Event, Stamp

MAX_IN_FLIGHT: Final = 256
"""Events that are published ahead of their acknowledgements."""


class NatsConsumer:
    """A consumer of kind `nats`."""

    def __init__(self, settings: Nats, stamp: Stamp) -> None:
        self.name = settings.name
        self.grant = grant(settings.scope)
        self.max_batch = MAX_IN_FLIGHT
        self._subject = settings.subject
        self._mode = settings.content_mode
        self._stamp = stamp
        self._connection = Connection(settings, f"syncd {self.name}")
        self._stored: set[str] = set()

    def __repr__(self) -> str:
        return f"NatsConsumer({self.name!r}, {self._connection.address!r})"

    async def deliver(self, events: Sequence[Event]) -> None:
        """Publishes the events; returns when JetStream has stored every one.

        Raises:
            TemporaryError: NATS cannot be reached, or JetStream cannot store them now.
            RefusedError: Credentials or permissions are missing, or the message is too large.
        """
        messages = []
        for event in events:
            subject = render(self._subject, event, self._stamp.origin(event).source)
            headers, payload = encode(event, self._stamp, subject, self._mode)
            if headers[MESSAGE_ID] not in self._stored:
                messages.append((subject, headers, payload))
        answers = await self._connection.publish(messages) if messages else []
        self._stored |= {
            headers[MESSAGE_ID]
            for (_, headers, _), error in zip(messages, answers, strict=True)
            if error is None
        }
        for error in answers:
            if error is not None:
                raise error
        self._stored.clear()

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._connection.aclose()
