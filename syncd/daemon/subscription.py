"""Events of other installations, from a stream of JetStream into the ledger.

A durable pull consumer with explicit acknowledgements: a message is acknowledged after the commit
that holds its event, so one that was on its way when anything failed comes again. What comes again
or late the ledger knows by its place in the stream (`Ledger.receive`), so nobody hears of it twice.

The consumer on the server can be lost (deleted, expired) and the stream can be made anew; both are
noticed by the failing request, and everything is looked up again. A consumer that is new begins
with what comes from now on, as every consumer of syncd's does. One in the place of a lost one
begins there as well: the ledger leaves out what it has.

What is no event of syncd's is logged, and terminated: it would come again for ever.
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

from syncd.core.errors import RefusedError, StateError, SyncdError, TemporaryError
from syncd.core.nats_binding import BindingError, decode
from syncd.core.timing import Backoff
from syncd.ledger.ledger import Arrival
from syncd.net.nats import Connection
from syncd.telemetry.log import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from syncd.config.settings import RelaySource
    from syncd.core.events import Event
    from syncd.core.model import Grant
    from syncd.ledger.ledger import Ledger

BATCH: Final = 256
"""Messages that one request asks for, and that one commit holds."""

PATIENCE: Final = 2.0
"""Seconds that a request waits for messages; a leader that died with it costs as much."""

MAX_ACK_PENDING: Final = 1024
"""Messages on their way at the most."""

_ACK_WAIT: Final = 30.0
_CAP: Final = 15.0
log = structlog.get_logger()


class Intake:
    """The loop that receives.

    Args:
        source: What to take from where.
        durable: Name of the consumer on the server.
        ledger: Where events are committed; used in worker threads only.
        consumers: Whose mailboxes to fill, and what each may see.
        on_received: Called in the event loop with each commit's events.

    Attributes:
        failure: Why nothing can be received, one line, or None.
        heard_at: When the stream was last heard of, seconds since the epoch, or None.
    """

    def __init__(
        self,
        source: RelaySource,
        durable: str,
        ledger: Ledger,
        consumers: Mapping[str, Grant],
        on_received: Callable[[Sequence[Event]], None],
    ) -> None:
        self._source = source
        self._durable = durable
        self._ledger = ledger
        self._consumers = consumers
        self._on_received = on_received
        self._connection = Connection(source, f"syncd relay {durable}")
        self._backoff = Backoff(cap=_CAP)
        self._rng = Random()  # noqa: S311 - jitter
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
                    await self._fail(self._connection.judge(error, self._source.subject))
                except Exception as error:  # noqa: BLE001 - a library's slip must not end the relay
                    text = f"{describe(error)}, a bug in syncd; please report it"
                    await self._fail(TemporaryError(text))
        finally:
            await self._connection.aclose()

    async def _fail(self, error: SyncdError) -> None:
        refused = isinstance(error, RefusedError)
        delay = self._backoff.next(self._rng)
        failures = self._backoff.failures
        if str(error) != self.failure or failures & (failures - 1) == 0:
            say = log.error if refused else log.warning
            say("relay.failing", reason=str(error), failures=failures, retry_in=round(delay, 1))
        self.failure = str(error)
        await anyio.sleep(delay)

    def _heard(self) -> None:
        if self._backoff.failures:
            log.info("relay.recovered", after_failures=self._backoff.failures)
        self._backoff.reset()
        self.failure, self.heard_at = None, time.time()

    async def _follow(self) -> None:
        """Finds the consumer on the server and takes what it has, until that fails."""
        js = await self._connection.jetstream()
        stream = self._source.stream or await self._find_stream(js)
        subscription = await self._bind(js, stream)
        self._heard()
        try:
            while True:
                messages: list[Msg] = []
                with self._connection.watched(), contextlib.suppress(TimeoutError):
                    messages = await subscription.fetch(BATCH, PATIENCE)
                if messages:
                    await self._take(messages)
                else:
                    await self._connection.check(PATIENCE)
                self._heard()
        finally:
            await self._connection.forget(subscription)

    async def _find_stream(self, js: JetStreamContext) -> str:
        subject = self._source.subject
        try:
            return await js.find_stream_name_by_subject(subject)
        except nats.js.errors.NotFoundError:
            raise self._connection.failed(
                f"no stream takes subject {subject}; create one that does, or mend --subject"
            ) from None

    async def _bind(self, js: JetStreamContext, stream: str) -> JetStreamContext.PullSubscription:
        """Finds or makes the consumer, and subscribes to what it delivers."""
        try:
            info = await js.stream_info(stream)
        except nats.js.errors.NotFoundError:
            raise self._connection.failed(
                f"stream {stream} does not exist; create it, or mend --stream"
            ) from None
        life = f"{stream} {info.created}"
        past = await anyio.to_thread.run_sync(self._ledger.follow, life, info.state.last_seq)
        try:
            known = await js.consumer_info(stream, self._durable)
        except nats.js.errors.NotFoundError:
            await js.add_consumer(stream, self._config(past + 1))
            log.info("relay.consumer_made", stream=stream, durable=self._durable, start=past + 1)
        else:
            self._require(known.config)
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

    def _require(self, config: ConsumerConfig) -> None:
        """Refuses a consumer that somebody else made for something else."""
        if config.filter_subject == self._source.subject and (
            config.ack_policy == AckPolicy.EXPLICIT
        ):
            return
        raise RefusedError(
            f"cannot use the durable consumer {self._durable}: it has another subject or does not "
            "await acknowledgements; delete it there, or set another --durable"
        )

    async def _take(self, messages: Sequence[Msg]) -> None:
        """Commits what messages hold, and only then acknowledges them."""
        arrivals = [self._read(message) for message in messages]
        try:
            events = await anyio.to_thread.run_sync(
                self._ledger.receive, list(filter(None, arrivals)), self._consumers
            )
        except StateError:
            # they come again soon, not only after the time that the server waits
            for message in messages:
                await message.nak(delay=1)
            raise
        if events:
            self._on_received(events)
        log.debug("relay.received", messages=len(messages), events=len(events))
        for message, arrival in zip(messages, arrivals, strict=True):
            await (message.term() if arrival is None else message.ack())

    def _read(self, message: Msg) -> Arrival | None:
        position = message.metadata.sequence.stream
        try:
            return Arrival(decode(message.headers, message.data), position)
        except BindingError as problem:
            said = f"a message {problem}; it is left out"
            log.error("relay.unusable", position=position, problem=said)
            return None
