"""Reading a key-value bucket of NATS: everything that it has, then every change.

An ordered pull consumer without acknowledgements, which the server forgets by itself: a gap or a
lost connection means that everything is read again, and since a bucket holds the newest state, that
loses nothing. A value that the bucket's own limit (`max_age`) deletes goes without a message: the
caller gets the limit.
"""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors
import nats.js.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from syncd.core.installation import bucket_stream
from syncd.net.nats import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from syncd.config.settings import NatsServer

BATCH: Final = 256
"""Values that one request asks for."""

FETCH_TIMEOUT: Final = 1.0
"""Seconds that a request waits for a change."""

_INACTIVE: Final = 60.0
_REMOVED: Final = frozenset(("DEL", "PURGE"))


class Value(msgspec.Struct, frozen=True):
    """What a key has now.

    Attributes:
        subject: Names the key.
        content: The value, or None where the key was deleted.
        stored_at: When the server stored it, seconds since the epoch.
    """

    subject: str
    content: bytes | None
    stored_at: float


class Page(msgspec.Struct, frozen=True):
    """Some values.

    Attributes:
        values: The newest of some keys; none where nothing changed for a second.
        first: Whether these are the first of all: what was read before is out of date.
        current: Whether everything has been read by now.
        max_age: Seconds after which the server deletes a value; 0 for never.
    """

    values: list[Value]
    first: bool
    current: bool
    max_age: float


class BucketReader:
    """Reads a bucket over a connection of its own.

    Args:
        server: Addresses and login.
        bucket: Its name.
        name: The client's name in the server's monitoring.
    """

    def __init__(self, server: NatsServer, bucket: str, name: str) -> None:
        self._bucket = bucket
        self._subject = f"$KV.{bucket}.>"
        self._connection = Connection(server, name)

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._connection.aclose()

    async def pages(self) -> AsyncGenerator[Page]:
        """Everything, and then changes for ever. A new call begins anew.

        Raises:
            TemporaryError: The bucket does not exist, or the server cannot be reached.
            RefusedError: The login or a permission is missing.
        """
        try:
            async for page in self._pages():
                yield page
        except (nats.errors.Error, OSError) as error:
            raise self._connection.errors.of_request(error, self._subject) from None

    async def _pages(self) -> AsyncGenerator[Page]:
        js, stream = await self._connection.jetstream(), bucket_stream(self._bucket)
        try:
            with self._connection.cancel_when_lost():
                info = await js.stream_info(stream)
                consumer = await js.add_consumer(stream, self._config())
        except nats.js.errors.NotFoundError:
            raise self._connection.errors.no_stream(self._subject) from None
        max_age = float(info.config.max_age or 0)
        current, first, expected = not consumer.num_pending, True, 1
        subscription = await js.pull_subscribe_bind(consumer=consumer.name, stream=stream)
        try:
            if current:
                yield Page([], first, current, max_age)
                first = False
            while True:
                messages = await self._fetch(subscription)
                for message in messages:
                    sequence = message.metadata.sequence.consumer
                    if sequence != expected:
                        raise self._connection.errors.lost()
                    expected += 1
                current = current or any(not m.metadata.num_pending for m in messages)
                yield Page(list(map(_value, messages)), first, current, max_age)
                first = False
        finally:
            await self._connection.unsubscribe(subscription)

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> list[Msg]:
        messages: list[Msg] = []
        with self._connection.cancel_when_lost(), contextlib.suppress(TimeoutError):
            messages = await subscription.fetch(BATCH, FETCH_TIMEOUT)
        if not messages:
            # no messages, or no server or consumer: a fetch cannot distinguish them
            with self._connection.cancel_when_lost():
                await subscription.consumer_info()
        return messages

    def _config(self) -> ConsumerConfig:
        return ConsumerConfig(
            name=f"syncd-{secrets.token_hex(8)}",
            description="syncd",
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
            ack_policy=AckPolicy.NONE,
            filter_subject=self._subject,
            inactive_threshold=_INACTIVE,
            mem_storage=True,
            num_replicas=1,
        )


def _value(message: Msg) -> Value:
    removed = (message.headers or {}).get("KV-Operation") in _REMOVED
    stored_at = message.metadata.timestamp.timestamp()
    return Value(message.subject, None if removed else message.data, stored_at)
