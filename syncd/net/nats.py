"""A connection to NATS. No exception of nats-py and no text of a server's leaves this module.

nats-py keeps the connection: it reconnects by itself, to any server of the cluster, for ever. Here
is what it leaves to its user, and its traps (nats-py 2.16):

- Files that hold credentials are read again, in a worker thread, when a connection is lost or
  refused; the library's next attempt presents what they hold by then.
- A server that sends `-ERR` (credentials expired, revoked) makes the client close for good, and
  some failures in the middle of a reconnect end its attempts without a callback. So a client that
  is closed, or that has not reconnected within the timeout, is replaced by a new one.
- `connect` tries for ever; here every server gets one try, then the caller gets the reason.
- It sends a ping behind its credentials. A server that refuses them closes with the ping unread,
  so the reset competes with the refusal; in verbose mode the library awaits the answer first. The
  `+OK` that each later message gets is the price.
- A publication that is not permitted is never acknowledged; the server's complaint comes on its
  own, and ends the wait.
- Its `publish_async` does not report most refusals (it raises them where only the error callback
  gets them), and its `publish` waits for one message at a time. So acknowledgements are received
  here.

The client and its traps are in `syncd.net.nats_client`, and what errors mean is in
`syncd.net.nats_errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from random import Random
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import anyio
import msgspec
import nats.errors

from syncd.core.errors import RefusedError, SyncdError
from syncd.net.nats_client import CLOSE_TIMEOUT, NatsClient
from syncd.net.nats_errors import NatsErrors
from syncd.net.nats_login import LoginFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js import JetStreamContext
    from nats.js.api import StreamInfo

    from syncd.config.settings import NatsServer
    from syncd.net.nats_login import Login

CONNECT_TIMEOUT: Final = 5.0
"""Seconds within which one server must accept a connection; less where several share less."""

PING_INTERVAL: Final = 10
"""Seconds between two pings; a connection with three of them unanswered is closed."""

_RECONNECT_WAIT: Final = (1.0, 3.0)
_NO_RESPONDERS: Final = "503"


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0


class PubAck(msgspec.Struct):
    """JetStream's answer to a publication; without an error, the message is stored.

    Attributes:
        stream: The stream that stores it.
        seq: Its position there.
        duplicate: Whether it was stored before.
        error: Why it is not stored.
    """

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _ApiError | None = None


_decode_ack: Final = msgspec.json.Decoder(PubAck).decode


class _StopConnectingError(Exception):
    """Ends `connect`, from the callback that it calls when a server could not be connected to."""


class Connection:
    """A connection that is made when it is first needed, and again whenever it was lost.

    Not for several tasks at once.

    Args:
        server: Addresses and login.
        name: The client's name in the server's monitoring.

    Attributes:
        address: Hosts and ports, for messages.
        errors: Makes errors about this connection.
        timeout: Seconds that an attempt may take.
        interrupted_by: Why the last `publish` ended before every message was answered, or None.
        stored: The last answer for a message that is stored, or None.
    """

    def __init__(self, server: NatsServer, name: str) -> None:
        self._urls = list(server.urls)
        self._name = name
        self._files = LoginFiles(server)
        self.address = ", ".join(urlsplit(url).netloc for url in self._urls)
        self.errors = NatsErrors(self.address, self._files.paths)
        self.timeout = float(server.timeout)
        self._connect_timeout = min(CONNECT_TIMEOUT, self.timeout / len(self._urls))
        self.interrupted_by: SyncdError | None = None
        self.stored: PubAck | None = None
        self._client: NatsClient | None = None
        self._connected = anyio.Event()
        self._last_error: SyncdError | None = None
        self._connecting = False
        self._connect_failures = 0
        self._operation: anyio.CancelScope | None = None
        self._subjects: tuple[str, ...] = ()
        self._inbox = ""
        self._tokens = itertools.count()
        self._pending_acks: dict[str, tuple[asyncio.Future[SyncdError | None], str]] = {}

    def __repr__(self) -> str:
        return f"Connection({self.address!r})"

    @property
    def is_connected(self) -> bool:
        """Whether it is connected now."""
        return self._client is not None and self._client.is_connected

    @property
    def is_encrypted(self) -> bool:
        """Whether it is connected over TLS now."""
        return self._client is not None and self._client.is_encrypted

    async def jetstream(self) -> JetStreamContext:
        """JetStream's API over a connection that is open.

        Raises:
            TemporaryError: No server answers, or a file with credentials is missing.
            RefusedError: Credentials are not accepted, or cannot be used.
        """
        return (await self.client()).jetstream(timeout=self.timeout)

    async def client(self) -> NatsClient:
        """The library's client, connected; raises as `jetstream`."""
        with anyio.move_on_after(self.timeout):
            if self._client is not None and self._client.is_closed:
                await self.aclose()
            if self._client is None:
                return await self._open()
            await self._connected.wait()
            return self._client
        # the client may have ended its attempts without a callback: the next call makes a new one
        await self.aclose()
        raise self._last_error or self.errors.temporary(f"no connection within {self.timeout:g} s")

    async def publish(
        self, messages: Sequence[tuple[str, dict[str, str], bytes]]
    ) -> list[SyncdError | None]:
        """Publishes messages, in order, and waits for JetStream's acknowledgement of each.

        Args:
            messages: Subject, headers and payload.

        Returns:
            For each message None if it is stored, or why it may not be.

        Raises:
            TemporaryError: As for `jetstream`.
            RefusedError: As for `jetstream`.
        """
        client = await self.client()
        self._subjects = tuple(subject for subject, _, _ in messages)
        loop = asyncio.get_running_loop()
        # a token is never used again: a late answer to an earlier message must not count for this
        pending = {str(next(self._tokens)): loop.create_future() for _ in messages}
        futures = list(pending.values())
        self._pending_acks = dict(
            zip(pending, zip(futures, self._subjects, strict=True), strict=True)
        )
        timeout = anyio.move_on_after(self.timeout)
        try:
            with timeout, anyio.CancelScope() as self._operation:
                # a refusal that came between two operations concerns this one, too
                if isinstance(self._last_error, RefusedError):
                    self._cancel_operation()
                for token, (subject, headers, payload) in zip(pending, messages, strict=True):
                    await client.publish(subject, payload, f"{self._inbox}.{token}", headers)
                await asyncio.wait(futures)
        except (nats.errors.Error, OSError) as error:
            self._last_error = self._error_of(client.reason(error))
        finally:
            self._operation, self._pending_acks = None, {}
        silence = self.errors.temporary(f"no acknowledgement within {self.timeout:g} s")
        reason = silence if timeout.cancelled_caught else self._last_error or silence
        if timeout.cancelled_caught or isinstance(reason, RefusedError):
            # it may be dead without having noticed; and a new one may be permitted more
            await self.aclose()
        self.interrupted_by = None if all(future.done() for future in futures) else reason
        # answers that came before the failure count: those messages are stored
        return [future.result() if future.done() else reason for future in futures]

    async def _on_ack(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        if token not in self._pending_acks:
            return
        future, subject = self._pending_acks.pop(token)
        if (message.headers or {}).get("Status") == _NO_RESPONDERS:
            future.set_result(self.errors.no_stream(subject))
            return
        try:
            ack = _decode_ack(message.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            ack = PubAck()
        if ack.error is not None:
            future.set_result(self.errors.of_api(ack.error.code, ack.error.err_code, subject))
        elif not ack.stream:
            problem = f"subject {subject} is answered by something other than JetStream"
            future.set_result(self.errors.temporary(problem, "use a subject of a stream alone"))
        else:
            self.stored = ack
            future.set_result(None)

    async def aclose(self) -> None:
        """Closes the connection; another one can be opened afterwards."""
        client, self._client = self._client, None
        if client is not None:
            await client.force_close()

    async def stream(self, name: str, timeout: float | None = None) -> StreamInfo:  # noqa: ASYNC109 - nats-py's own
        """What a stream is, from a server that has its leader or hears of it.

        To be asked in silence, too: it may be the silence of a server that is gone, or of one that
        is cut off from the others. That one goes on serving its clients what it has, and the
        consumers with one replica; but after about 20 seconds no stream has a leader there. The
        connection is closed in both cases: another server may know more.

        Args:
            name: Of the stream.
            timeout: Seconds that the server has to answer; `self.timeout` if not given.

        Raises:
            TemporaryError: There is no answer, or no leader; and as for `jetstream`.
            RefusedError: As for `jetstream`.
            nats.errors.Error: The request failed.
        """
        limit = timeout or self.timeout
        js = (await self.client()).jetstream(timeout=limit)
        try:
            info = await js.stream_info(name)
        except nats.errors.TimeoutError:
            await self.aclose()
            problem = f"JetStream does not answer within {limit:g} s"
            raise self.errors.temporary(problem) from None
        if info.cluster is not None and not info.cluster.leader:
            await self.aclose()
            raise self.errors.no_leader(name)
        return info

    @contextlib.contextmanager
    def cancel_when_lost(self) -> Iterator[None]:
        """Cancels the block when the connection is lost or something is not permitted.

        Raises:
            TemporaryError: It was lost.
            RefusedError: Something is not permitted.
        """
        with anyio.CancelScope() as self._operation:
            yield
        self._operation = None
        if not self.is_connected or isinstance(self._last_error, RefusedError):
            raise self._last_error or self.errors.lost()

    async def unsubscribe(
        self, subscription: JetStreamContext.PullSubscription | Subscription
    ) -> None:
        """Ends a subscription, as far as there is a connection to end it on."""
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True), contextlib.suppress(Exception):
            await subscription.unsubscribe()

    async def _open(self) -> NatsClient:
        """Makes a connection; credentials that are refused are read again and tried once more."""
        client = await self._connect(await self._files.read())
        if client is None and isinstance(self._last_error, RefusedError):
            # they may have been rotated between the reading and the answer
            client = await self._connect(await self._files.read(again=True))
        if client is None:
            raise self._last_error or self.errors.lost()
        return client

    async def _connect(self, login: Login) -> NatsClient | None:
        client = NatsClient(login, requires_tls=self._files.tls)
        self._last_error, self._connect_failures, self._connected = None, 0, anyio.Event()
        self._connecting = True

        async def on_error(error: Exception) -> None:
            await self._on_error(client.reason(error))

        async def on_disconnected() -> None:
            await self._on_disconnected(client.ended_by)

        try:
            await client.connect(
                self._urls,
                name=self._name,
                error_cb=on_error,
                disconnected_cb=on_disconnected,
                reconnected_cb=self._on_reconnected,
                tls=login.tls,
                verbose=True,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                connect_timeout=self._connect_timeout,  # type: ignore[arg-type] # seconds, not only whole
                reconnect_time_wait=Random().uniform(*_RECONNECT_WAIT),  # type: ignore[arg-type] # noqa: S311 - jitter
                ping_interval=PING_INTERVAL,
                **client.login_options(),
            )
            self._connecting = False
            self._last_error = None  # it is about a server that was tried before this one
            client.options["allow_reconnect"] = False  # it would forget why the server ended this
            self._inbox = client.new_inbox()
            await client.subscribe(f"{self._inbox}.*", cb=self._on_ack)
            # a refusal of the subscription comes before the answer to the ping
            await client.flush(self._connect_timeout)  # type: ignore[arg-type] # seconds, not only whole
        except _StopConnectingError:
            pass
        except (nats.errors.Error, OSError, ValueError) as error:
            self._last_error = self.errors.of_connection(client.reason(error), self._subjects)
        finally:
            self._connecting = False
            if client.ended_by is not None:
                self._last_error = self._error_of(client.ended_by)
            # in `finally`: when cancelled, too, the client is either kept or closed
            if client.is_connected and self._last_error is None:
                client.options["allow_reconnect"] = True
                self._client = client
                self._connected.set()
            else:
                await client.force_close()
        return self._client

    async def _on_error(self, error: BaseException) -> None:
        """Called by the client with every error, while it connects and later."""
        self._last_error = self._error_of(error)
        self._connect_failures += 1
        refused = isinstance(self._last_error, RefusedError)
        if self._connecting:
            # the library would go round its servers for ever
            if refused or self._connect_failures >= len(self._urls):
                raise _StopConnectingError
        elif refused and self.is_connected:
            self._cancel_operation()  # what is not permitted is never acknowledged
        else:
            await self._reload_login()

    def _error_of(self, error: BaseException) -> SyncdError:
        established = self._connected.is_set()
        return self.errors.of_connection(error, self._subjects, established=established)

    async def _on_disconnected(self, ended_by: BaseException | None = None) -> None:
        """Called by the client before it begins to reconnect, and when it closes for good."""
        if self._connected.is_set():
            if ended_by is not None:
                self._last_error = self._error_of(ended_by)
            self._connected = anyio.Event()
            self._last_error = self._last_error or self.errors.lost()
            # acknowledgements of what was sent will not come over another connection
            self._cancel_operation()
            await self._reload_login()

    async def _on_reconnected(self) -> None:
        self._last_error = None
        self._connected.set()

    def _cancel_operation(self) -> None:
        if self._operation is not None:
            self._operation.cancel()

    async def _reload_login(self) -> None:
        """Makes the client's next attempt present what the files hold now."""
        client = self._client
        if client is None:
            return
        try:
            client.login = await self._files.read(again=True)
        except SyncdError as error:
            self._last_error = error
        else:
            if client.login.tls is not None:
                client.options["tls"] = client.login.tls
