"""Reading a key-value bucket of NATS: everything that it has, then every change.

An ordered pull consumer without acknowledgements, which the server forgets by itself: a gap or a
lost connection means that everything is read again, and since a bucket holds the newest state, that
loses nothing. A value that the bucket's own limit (`max_age`) deletes goes without a message, where
the bucket has no markers (`subject_delete_marker_ttl`): the caller gets the limit.

nats-py's `fetch` waits for each message on its own, which takes three times as long as to receive
one. Here requests are sent ahead of what they deliver, and what has arrived is taken at once.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import msgspec
import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from syncd.core.installation import bucket_stream
from syncd.net.nats import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from syncd.config.settings import NatsServer

BATCH: Final = 1000
"""Values that one request asks for."""

PAGE: Final = 64
"""Values in a page, at most: to take them over must not keep the event loop for long."""

_MOST_BYTES: Final = 16 << 20
"""What one request may deliver: documents may have a megabyte."""

FETCH_TIMEOUT: Final = 1.0
"""Seconds that a request waits for a change."""

_INACTIVE: Final = 60.0
_REMOVED: Final = frozenset(("DEL", "PURGE"))
_MARKER: Final = "Nats-Marker-Reason"
"""Header of what the server stores in place of a value that it has deleted (ADR-43)."""

_VALUE: Final = "$JS.ACK."
_TIMED_OUT: Final = "408"
_ENDS: Final = frozenset(("batch completed", "message size exceeds maxbytes"))
_HEARTBEAT: Final = "100"
_TOKENS: Final = 9


class Value(msgspec.Struct, frozen=True, gc=False):
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
        life: Identifies the bucket: one that was deleted and made again has another.
    """

    values: list[Value]
    first: bool
    current: bool
    max_age: float
    life: str


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
        client, stream = await self._connection.client(), bucket_stream(self._bucket)
        js = client.jetstream(timeout=self._connection.timeout)
        with self._connection.cancel_when_lost():
            info = await self._connection.stream(stream)
            consumer = await js.add_consumer(stream, self._config())
        age, life = float(info.config.max_age or 0), f"{stream} {info.created}"
        current, first = not consumer.num_pending, True
        inbox = _Inbox(client, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer.name}")
        await inbox.open()
        try:
            if current:
                yield Page([], first, current, age, life)
                first = False
            while True:
                await inbox.request()
                with self._connection.cancel_when_lost(), anyio.move_on_after(2 * FETCH_TIMEOUT):
                    await inbox.wait()
                if inbox.is_lost:
                    raise self._connection.errors.no_consumer()
                arrivals = inbox.take(PAGE)
                if not arrivals:
                    # nothing changed, or there is no consumer, or nothing new can reach it
                    with self._connection.cancel_when_lost():
                        await self._connection.stream(stream)
                        await js.consumer_info(stream, consumer.name)
                current = current or any(not arrival.pending for arrival in arrivals)
                values = [arrival.value for arrival in arrivals]
                yield Page(values, first, current, age, life)
                first = False
        finally:
            await self._connection.unsubscribe(inbox.subscription)

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


class _Arrival(msgspec.Struct, frozen=True, gc=False):
    """A value, and how many there are behind it."""

    value: Value
    pending: int


class _Inbox:
    """What the consumer has delivered and was not taken yet.

    Attributes:
        is_lost: Whether the consumer or one of its messages is gone.
    """

    def __init__(self, client: Client, subject: str) -> None:
        self.is_lost = False
        self.subscription: Subscription
        self._client = client
        self._subject = subject
        self._address = client.new_inbox()
        self._bytes = max(_MOST_BYTES, 2 * client.max_payload)  # one value must always fit
        self._arrived: deque[_Arrival] = deque()
        self._news = anyio.Event()
        self._expected = 1
        self._asked = 0

    async def open(self) -> None:
        # what may arrive is bounded by the requests; what the library drops would be a gap
        self.subscription = await self._client.subscribe(
            self._address, cb=self._receive, pending_bytes_limit=0
        )

    async def request(self) -> None:
        """Asks for more, unless something is to come: also while there is something to take."""
        if self._asked:
            return
        self._asked = BATCH
        wanted = {
            "batch": BATCH,
            "max_bytes": self._bytes,
            "expires": int(FETCH_TIMEOUT * 1e9),
        }
        await self._client.publish(self._subject, msgspec.json.encode(wanted), self._address)

    async def wait(self) -> None:
        """Returns when there is something to take, or the request has ended."""
        if self._arrived or not self._asked or self.is_lost:
            await anyio.lowlevel.checkpoint()
            return
        self._news = anyio.Event()
        await self._news.wait()

    def take(self, most: int) -> list[_Arrival]:
        """What has arrived; nothing where the request has ended without, or without an end."""
        if not self._arrived:
            self._asked = 0
        return [self._arrived.popleft() for _ in range(min(most, len(self._arrived)))]

    async def _receive(self, message: Msg) -> None:
        headers = message.headers or {}
        # what was stored has an address for acknowledgements; its headers are the writer's, and a
        # `Status` among them must not pass for the server's
        if message.reply.startswith(_VALUE):
            self._add(message, headers)
        elif (status := headers.get("Status")) != _HEARTBEAT:
            self._asked = 0
            ended = status == _TIMED_OUT or headers.get("Description", "").lower() in _ENDS
            self.is_lost = self.is_lost or not ended
        self._news.set()

    def _add(self, message: Msg, headers: Mapping[str, str]) -> None:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<position>.<number>.<time>.<pending>; two
        # tokens more before the stream, and one at the end, where there are domains
        tokens = message.reply.split(".")
        number, nanoseconds, pending = tokens[6:9] if len(tokens) == _TOKENS else tokens[8:11]
        if int(number) != self._expected:
            self.is_lost = True
        self._expected += 1
        self._asked -= 1
        removed = headers.get("KV-Operation") in _REMOVED or _MARKER in headers
        content = None if removed else message.data
        value = Value(message.subject, content, int(nanoseconds) / 1e9)
        self._arrived.append(_Arrival(value, int(pending)))
