"""Events of other installations, from a stream of JetStream into the ledger.

A durable pull consumer with explicit acknowledgements: a message is acknowledged after the commit
that holds its event, so one that was in flight when anything failed is delivered again. The ledger
recognizes a message that comes again or late by its position in the stream (`Ledger.receive`), so
no consumer gets its event twice.

The consumer on the server can be lost (deleted, expired) and the stream can be created anew; the
failing request reveals both, and everything is looked up again. A new consumer begins with the
messages published from now on, as every consumer of syncd does. One that replaces a lost one begins
there as well: the ledger ignores events that it has.

A message that is not an event of syncd's is logged and terminated: it would come again for ever.
"""

from __future__ import annotations

import contextlib
import time
from random import Random
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import nats.errors
import nats.js.errors
import structlog
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from syncd.core.attempts import Attempts
from syncd.core.errors import RefusedError, StateError, SyncdError
from syncd.core.nats_binding import BindingError, PingError, decode
from syncd.core.timing import Backoff
from syncd.ledger.received import Arrival
from syncd.net.nats import Connection
from syncd.telemetry.unexpected import unexpected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from syncd.config.settings import RelaySource
    from syncd.core.model import Grant
    from syncd.ledger.ledger import Ledger
    from syncd.ledger.received import Receipt

BATCH: Final = 256
"""Messages that one request asks for, and that one commit holds."""

FETCH_TIMEOUT: Final = 2.0
"""Seconds that a request waits for messages, and so the delay when its leader dies."""

MAX_ACK_PENDING: Final = 1024
"""Messages that the server sends ahead of their acknowledgements."""

_ACK_WAIT: Final = 30.0
_BACKOFF_CAP: Final = 15.0
_REDELIVERY_DELAY: Final = 1
_REPORT_AGAIN: Final = 60.0
log = structlog.get_logger()


class Subscription:
    """The loop that receives.

    Args:
        source: Server, stream and subject.
        durable: Name of the consumer on the server.
        ledger: Where events are committed; used in worker threads only.
        consumers: Consumers whose mailboxes to fill, and what each may see.
        on_received: Called in the event loop with what each commit received.

    Attributes:
        failure: Why nothing can be received, one line, or None.
        heard_at: When the server last answered, seconds since the epoch, or None.
    """

    def __init__(
        self,
        source: RelaySource,
        durable: str,
        ledger: Ledger,
        consumers: Mapping[str, Grant],
        on_received: Callable[[Receipt], None],
    ) -> None:
        self._source = source
        self._durable = durable
        self._ledger = ledger
        self._consumers = consumers
        self._on_received = on_received
        self._connection = Connection(source, f"syncd relay {durable}")
        self._attempts = Attempts(Backoff(cap=_BACKOFF_CAP))
        self._rng = Random()  # noqa: S311 - jitter
        self._refused = 0
        self._refused_at = -_REPORT_AGAIN
        self.failure: str | None = "the stream is not followed yet"
        self.heard_at: float | None = None

    async def run(self) -> None:
        """Receives until cancelled."""
        try:
            while True:
                try:
                    await self._follow()
                except SyncdError as error:
                    await self._fail(error)
                except (nats.errors.Error, OSError) as error:
                    await self._fail(
                        self._connection.errors.of_request(error, self._source.subject)
                    )
                except Exception as error:  # noqa: BLE001 - a bug of the library must not end the relay
                    await self._fail(unexpected(error))
        finally:
            await self._connection.aclose()

    async def _fail(self, error: SyncdError) -> None:
        self.failure = str(error)
        failure = self._attempts.fail(error, self._rng)
        if failure.is_news:
            report = log.error if self._attempts.is_refused else log.warning
            report(
                "relay.failing",
                reason=self.failure,
                failures=self._attempts.failures,
                retry_in=round(failure.delay, 1),
            )
        await anyio.sleep(failure.delay)

    def _succeed(self) -> None:
        now = time.time()
        failures = self._attempts.succeed(now)
        if failures:
            log.info("relay.recovered", after_failures=failures)
        self.failure, self.heard_at = None, now

    async def _follow(self) -> None:
        """Finds the consumer on the server and takes what it has, until that fails."""
        js = await self._connection.jetstream()
        stream = self._source.stream or await self._find_stream(js)
        subscription = await self._bind(js, stream)
        self._succeed()
        try:
            while True:
                messages: list[Msg] = []
                with self._connection.cancel_when_lost(), contextlib.suppress(TimeoutError):
                    messages = await subscription.fetch(BATCH, FETCH_TIMEOUT)
                if messages:
                    await self._take(messages)
                else:
                    # there are no messages, or none can arrive: a fetch cannot distinguish them
                    with self._connection.cancel_when_lost():
                        await self._connection.stream(stream, FETCH_TIMEOUT)
                self._succeed()
        finally:
            await self._connection.unsubscribe(subscription)

    async def _find_stream(self, js: JetStreamContext) -> str:
        subject = self._source.subject
        try:
            return await js.find_stream_name_by_subject(subject)
        except nats.js.errors.NotFoundError:
            raise self._connection.errors.temporary(
                f"no stream takes subject {subject}",
                "create one that does, or correct relay.subject",
            ) from None

    async def _bind(self, js: JetStreamContext, stream: str) -> JetStreamContext.PullSubscription:
        """Finds or creates the consumer, and subscribes to what it delivers."""
        try:
            info = await self._connection.stream(stream)
        except nats.js.errors.NotFoundError:
            raise self._connection.errors.temporary(
                f"stream {stream} does not exist", "create it, or correct relay.stream"
            ) from None
        # positions count within one life of a stream: one of the same name may have been deleted
        life = f"{stream} {info.created}"
        past = await anyio.to_thread.run_sync(self._ledger.follow, life, info.state.last_seq)
        try:
            known = await js.consumer_info(stream, self._durable)
        except nats.js.errors.NotFoundError:
            await js.add_consumer(stream, self._config(past + 1))
            log.info("relay.consumer_made", stream=stream, durable=self._durable, start=past + 1)
        else:
            self._require_own(known.config)
        log.info("relay.following", stream=stream, durable=self._durable)
        return await js.pull_subscribe_bind(consumer=self._durable, stream=stream)

    def _config(self, start: int) -> ConsumerConfig:
        return ConsumerConfig(
            name=self._durable,
            durable_name=self._durable,
            description="syncd relay",
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=_ACK_WAIT,
            max_ack_pending=MAX_ACK_PENDING,
            filter_subject=self._source.subject,
        )

    def _require_own(self, config: ConsumerConfig) -> None:
        if config.filter_subject == self._source.subject and (
            config.ack_policy == AckPolicy.EXPLICIT
        ):
            return
        raise RefusedError(
            f"cannot use the durable consumer {self._durable}: it has another subject or does not "
            "await acknowledgements",
            "delete it on the server, or set another relay.durable",
        )

    async def _take(self, messages: Sequence[Msg]) -> None:
        """Commits the events of messages, and only then acknowledges the messages.

        The other way round a crash in between would lose them; this way it makes them come again,
        and the ledger leaves out those that it has.
        """
        arrivals = [self._decode(message) for message in messages]
        try:
            receipt = await anyio.to_thread.run_sync(
                self._ledger.receive,
                list(filter(None, arrivals)),
                self._consumers,
                self._source.max_secrets,
            )
        except StateError:
            # else the server would wait for `_ACK_WAIT` before it sends them again
            for message in messages:
                await message.nak(delay=_REDELIVERY_DELAY)
            raise
        if receipt.events:
            self._on_received(receipt)
        self._report_refused(receipt)
        log.debug("relay.received", messages=len(messages), events=len(receipt.events))
        for message, arrival in zip(messages, arrivals, strict=True):
            await (message.term() if arrival is None else message.ack())

    def _report_refused(self, receipt: Receipt) -> None:
        self._refused += receipt.refused
        now = time.monotonic()
        if receipt.refused and now - self._refused_at >= _REPORT_AGAIN:
            log.error(
                "relay.full",
                secrets=self._source.max_secrets,
                refused=self._refused,
                hint="raise relay.max_secrets, or narrow relay.subject",
            )
            self._refused_at = now

    def _decode(self, message: Msg) -> Arrival | None:
        position = message.metadata.sequence.stream
        try:
            return Arrival(decode(message.headers, message.data), position)
        except PingError:
            log.debug("relay.pinged", position=position)
            return None
        except BindingError as error:
            log.error("relay.unusable", position=position, problem=f"the message {error}; ignored")
            return None
