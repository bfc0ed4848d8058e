"""NATS JetStream as a consumer: events published to a stream, acknowledged when they are stored.

`syncd.core.nats_binding` defines the messages, `syncd.net.nats` keeps the connection.

An event is delivered when JetStream acknowledges it (`PubAck`); "duplicate" is an acknowledgement,
too. Several events are in flight at a time, over one connection and in order: a delivery is what is
published ahead of its acknowledgements. If one event of it fails, those that are acknowledged are
not published again while this process runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncd.config.settings import grant_of
from syncd.consumers.consumer import Tested, Undelivered, UnusableError, undelivered
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.nats_binding import MESSAGE_ID, encode, encode_ping, render, render_ping
from syncd.net.nats import Connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.config.settings import Nats
    from syncd.core.events import Event, Stamp


class NatsConsumer:
    """A consumer of kind `nats`."""

    def __init__(self, settings: Nats, stamp: Stamp) -> None:
        self.name = settings.name
        self.grant = grant_of(settings)
        self.max_batch = settings.max_in_flight
        self.max_in_flight = 1
        self._subject = settings.subject
        self._has_subjects = "<" in settings.subject
        self._mode = settings.content_mode
        self._stamp = stamp
        self._settings = settings
        self._connection = Connection(settings, f"syncd {self.name}")
        self._stored: set[str] = set()

    def __repr__(self) -> str:
        return f"NatsConsumer({self.name!r}, {self._connection.address!r})"

    async def deliver(self, events: Sequence[Event]) -> None:
        """Publishes the events; returns when JetStream has stored every one.

        Raises:
            TemporaryError: NATS cannot be reached, or JetStream cannot store them now.
            UnusableError: Credentials or permissions are missing.
            UndeliveredError: Some events cannot be stored: a message is too large, or its subject
                has no stream or no permission.
        """
        messages, sent = [], []
        for event in events:
            subject = render(self._subject, event, self._stamp.origin(event).source)
            headers, payload = encode(event, self._stamp, subject, self._mode)
            if headers[MESSAGE_ID] not in self._stored:
                messages.append((subject, headers, payload))
                sent.append(event)
        try:
            answers = await self._connection.publish(messages) if messages else []
        except RefusedError as error:
            raise UnusableError.of(error) from None
        self._stored |= {
            headers[MESSAGE_ID]
            for (_, headers, _), error in zip(messages, answers, strict=True)
            if error is None
        }
        failed = [(e, why) for e, why in zip(sent, answers, strict=True) if why is not None]
        if failed:
            raise self._error_of(failed)
        self._stored.clear()

    def _error_of(self, failed: Sequence[tuple[Event, SyncdError]]) -> SyncdError:
        """Whose trouble it is: where all events have one subject, its trouble is that of all."""
        whole = self._connection.interrupted_by
        for _, why in failed:
            if isinstance(why, TemporaryError) and (why is whole or not self._has_subjects):
                return why
        groups = [Undelivered((event,), why) for event, why in failed if why is not whole]
        rest = [event for event, why in failed if why is whole]
        if rest and whole is not None:
            if isinstance(whole, RefusedError) and not self._has_subjects:
                return UnusableError.of(whole)
            groups.append(Undelivered(rest, whole))
        return undelivered(groups)

    async def ping(self, ident: str, at: str) -> Tested:
        """Publishes an `io.syncd.ping` event over a connection of its own; see `Testable`.

        Its subject has `~ping` as resource type, and its message id makes JetStream drop what it
        has stored before.
        """
        event = self._stamp.ping(self.name, ident, at)
        subject = render_ping(self._subject, event.source)
        headers, payload = encode_ping(event, subject, self._mode)
        connection = Connection(self._settings, f"syncd {self.name} test")
        tls = any(url.startswith("tls:") for url in self._settings.urls)
        answer, error = None, None
        try:
            (error,) = await connection.publish([(subject, headers, payload)])
            tls = connection.is_encrypted
            stored = connection.stored
        except SyncdError as failure:
            error, stored = failure, None
        finally:
            await connection.aclose()
        if stored is not None:
            answer = f"stream {stored.stream} stored {subject} as message {stored.seq}"
        return Tested(connection.address, tls, None, error, answer)

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._connection.aclose()
