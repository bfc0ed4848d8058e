"""A connection to NATS, from which nothing foreign leaves.

nats-py keeps it: it reconnects by itself, to any server of the cluster, for ever. What is done here
is what it leaves to its user, and its traps:

- Files that hold credentials are read again, in a worker thread, when a connection is lost or
  refused; the library's next attempt presents what they hold by then.
- A server that says `-ERR` (credentials expired, revoked) makes the client close for good, and some
  failures in the middle of a reconnect end its attempts without a word. So a client that is closed,
  or that has not come back within an attempt's time, is thrown away for a new one.
- It would speak plain text to a server that offers no TLS although TLS was asked for, and send
  passwords over it. `_Client` refuses.
- `connect` tries for ever; here every server gets one try, then the caller hears why. Cut short in
  a bad moment, it believes itself closed with its socket open.
- It sends a ping behind its credentials. A server that refuses them closes with the ping unread,
  so the reset can overtake the refusal; in verbose mode the library awaits the verdict first. The
  `+OK` that each later message gets is the price.
- A publication that is not permitted is never answered; the server's complaint comes on its own,
  and cuts the wait short.
- Its `publish_async` never tells of most refusals (it raises them where only the error callback
  hears), and its `publish` waits for one message at a time. So answers are received here.
- Texts of its errors are the server's and may hold anything, so each becomes one of ours by class
  or by the known phrase that it contains.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
from random import Random
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import anyio
import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.net.nats_login import Login, LoginFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from syncd.config.settings import NatsServer

CONNECT_TIMEOUT: Final = 5.0
"""Seconds within which one server must accept a connection; less where several share less."""

PING_INTERVAL: Final = 10
"""Seconds between two pings; a connection with three of them unanswered is given up."""

_RECONNECT_WAIT: Final = (1.0, 3.0)
_CLOSING: Final = 1.0
_AUTH_PHRASES: Final = ("authorization violation", "authentication", "user not found", "revoked")
_LIMIT_PHRASES: Final = ("maximum connections exceeded", "maximum account active connections")
_NO_RESPONDERS: Final = "503"
_STREAM_FULL: Final = 10077
_NO_ROOM: Final = frozenset((10002, 10023, 10028, 10047))
_TOO_LARGE: Final = 10054
_NO_JETSTREAM: Final = frozenset((10035, 10039, 10076))

_REASONS: Final = {
    TimeoutError: "it does not answer",
    nats.errors.UnexpectedEOF: "the connection was lost",
    nats.errors.StaleConnectionError: "it no longer answers pings",
    nats.errors.ConnectionClosedError: "the connection was lost",
}


class _Client(Client):
    """A client that presents the login of the moment, and only over TLS where that was asked for.

    Attributes:
        login: What to present.
        demands_tls: Whether a server without TLS is refused.
    """

    def __init__(self, login: Login, *, demands_tls: bool) -> None:
        super().__init__()
        self.login = login
        self.demands_tls = demands_tls

    def presented(self) -> dict[str, Any]:
        """The options of `connect` that ask for the login of the moment, again each time."""
        login = self.login
        return {
            **({"user": login.user, "password": lambda: self.login.password} if login.user else {}),
            **({"token": lambda: self.login.token} if login.token else {}),
            **({"signature_cb": lambda nonce: self.login.sign(nonce)} if login.seed else {}),  # noqa: PLW0108 - the login of then
            **({"user_jwt_cb": lambda: str(self.login.jwt).encode()} if login.jwt else {}),
        }

    async def abandon(self) -> None:
        """Closes it, in whatever state it is."""
        # whatever is wrong with it, it goes
        with anyio.move_on_after(_CLOSING, shield=True), contextlib.suppress(Exception):
            await self.close()
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call] # it lacks annotations

    def _connect_command(self) -> bytes:
        """Makes the first message, the one with the credentials (called for each connection)."""
        if self.demands_tls and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        login = self.login
        if login.seed is not None:
            self._public_nkey = None if login.jwt is not None else login.public_key()
        return super()._connect_command()


class _ApiError(msgspec.Struct):
    """Why JetStream does not do something (its `ApiError`)."""

    code: int = 0
    err_code: int = 0


class _PubAck(msgspec.Struct):
    """What JetStream says to a publication; without an error, the message is stored."""

    stream: str = ""
    error: _ApiError | None = None


_decode_ack: Final = msgspec.json.Decoder(_PubAck).decode


class _EnoughError(Exception):
    """Ends `connect`, from the callback that it calls when a server could not be connected to."""


class Connection:
    """A connection that is made when it is first needed, and again whenever it was lost.

    Not for several tasks at once.

    Args:
        server: Where and as whom.
        name: What the server's monitoring calls it.

    Attributes:
        address: Hosts and ports, for messages.
        timeout: Seconds that an attempt may take.
    """

    def __init__(self, server: NatsServer, name: str) -> None:
        self._urls = list(server.urls)
        self._name = name
        self._files = LoginFiles(server)
        self.address = ", ".join(urlsplit(url).netloc for url in self._urls)
        self.timeout = float(server.timeout)
        self._patience = min(CONNECT_TIMEOUT, self.timeout / len(self._urls))
        self._client: _Client | None = None
        self._up = anyio.Event()
        self._trouble: SyncdError | None = None
        self._failures = 0
        self._connecting = False
        self._work: anyio.CancelScope | None = None
        self._subjects: tuple[str, ...] = ()
        self._inbox = ""
        self._tokens = itertools.count()
        self._awaited: dict[str, tuple[asyncio.Future[SyncdError | None], str]] = {}

    def __repr__(self) -> str:
        return f"Connection({self.address!r})"

    @property
    def is_up(self) -> bool:
        """Whether it is connected now."""
        return self._client is not None and self._client.is_connected

    async def jetstream(self) -> JetStreamContext:
        """JetStream's API over a connection that is up.

        Raises:
            TemporaryError: No server answers, or a file with credentials is missing.
            RefusedError: Credentials are not accepted, or cannot be used.
        """
        return (await self._connected()).jetstream(timeout=self.timeout)

    async def _connected(self) -> _Client:
        with anyio.move_on_after(self.timeout):
            if self._client is not None and self._client.is_closed:
                await self.aclose()
            if self._client is None:
                return await self._open()
            await self._up.wait()
            return self._client
        await self.aclose()  # it may never come back by itself
        raise self._trouble or self.failed(f"no connection within {self.timeout:g} s")

    async def publish(
        self, messages: Sequence[tuple[str, dict[str, str], bytes]]
    ) -> list[SyncdError | None]:
        """Publishes messages, in order, and waits for what JetStream says to each.

        Args:
            messages: Subject, headers and payload.

        Returns:
            For each message None if it is stored, or why it may not be.

        Raises:
            TemporaryError: As for `jetstream`.
            RefusedError: As for `jetstream`.
        """
        client = await self._connected()
        self._subjects = tuple(subject for subject, _, _ in messages)
        loop = asyncio.get_running_loop()
        # a token is never used again: what was said late to another message is no answer to this
        awaited = {str(next(self._tokens)): loop.create_future() for _ in messages}
        futures = list(awaited.values())
        self._awaited = dict(zip(awaited, zip(futures, self._subjects, strict=True), strict=True))
        timeout = anyio.move_on_after(self.timeout)
        try:
            with timeout, anyio.CancelScope() as self._work:
                if isinstance(self._trouble, RefusedError):  # the server said so just now
                    self._interrupt()
                for token, (subject, headers, payload) in zip(awaited, messages, strict=True):
                    await client.publish(subject, payload, f"{self._inbox}.{token}", headers)
                await asyncio.wait(futures)
        except (nats.errors.Error, OSError) as error:
            self._trouble = self._classify(error)
        finally:
            self._work, self._awaited = None, {}
        waited = self.failed(f"no acknowledgement within {self.timeout:g} s")
        reason = waited if timeout.cancelled_caught else self._trouble or waited
        if timeout.cancelled_caught or isinstance(reason, RefusedError):
            await self.aclose()  # it may be dead, or a new one be allowed more
        return [future.result() if future.done() else reason for future in futures]

    async def _on_answer(self, message: Msg) -> None:
        """Called by the client with what JetStream says to a publication."""
        token = message.subject.rpartition(".")[2]
        if token not in self._awaited:
            return
        future, subject = self._awaited.pop(token)
        if (message.headers or {}).get("Status") == _NO_RESPONDERS:
            future.set_result(self._no_stream(subject))
            return
        try:
            ack = _decode_ack(message.data)
        except msgspec.MsgspecError:
            ack = _PubAck()
        if ack.error is not None:
            future.set_result(self._judge_api(ack.error.code, ack.error.err_code, subject))
        elif not ack.stream:
            future.set_result(self.failed(f"something else than JetStream takes {subject}"))
        else:
            future.set_result(None)

    async def aclose(self) -> None:
        """Closes the connection; another one can be opened afterwards."""
        client, self._client = self._client, None
        if client is not None:
            await client.abandon()

    async def check(self, within: float) -> None:
        """Makes sure that the server is there: a silent one looks like one with nothing to say.

        Args:
            within: Seconds that it has to answer.

        Raises:
            TemporaryError: It does not; the connection is given up.
        """
        try:
            if self._client is not None:
                await self._client.flush(within)  # type: ignore[arg-type] # seconds, not only whole
        except (nats.errors.Error, OSError):
            await self.aclose()
            raise self.failed("it no longer answers") from None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Cuts the block short when the connection is lost or something is not permitted.

        Raises:
            TemporaryError: It was lost.
            RefusedError: Something is not permitted.
        """
        with anyio.CancelScope() as self._work:
            yield
        self._work = None
        if not self.is_up or isinstance(self._trouble, RefusedError):
            raise self._trouble or self.failed("the connection was lost")

    async def forget(self, subscription: JetStreamContext.PullSubscription) -> None:
        """Ends a subscription, as far as there is a connection to end it on."""
        with anyio.move_on_after(_CLOSING, shield=True), contextlib.suppress(Exception):
            await subscription.unsubscribe()

    def failed(self, reason: str) -> TemporaryError:
        """An error that may heal, about this connection."""
        return TemporaryError(f"cannot use NATS at {self.address}: {reason}")

    def judge(self, error: BaseException, subject: str) -> SyncdError:
        """What an answer of JetStream's means, in words of ours.

        Args:
            error: An exception of nats-py.
            subject: What it was about.
        """
        if isinstance(error, nats.js.errors.APIError):
            return self._judge_api(error.code or 0, error.err_code or 0, subject)
        if isinstance(error, nats.errors.NoRespondersError):
            return self.failed("JetStream does not answer; enable it there, or start its servers")
        return self._classify(error)

    def _no_stream(self, subject: str) -> TemporaryError:
        return self.failed(
            f"no stream takes subject {subject}; create one that does, unless it is just electing "
            "a leader"
        )

    def _judge_api(self, status: int, code: int, subject: str) -> SyncdError:
        if code == _STREAM_FULL:
            return self.failed(
                f"the stream of subject {subject} is full or cannot store; raise its limits or let "
                "it discard old messages"
            )
        if code in _NO_ROOM:
            return self.failed("JetStream has no room or no quorum; add storage or start servers")
        if code in _NO_JETSTREAM:
            return RefusedError(
                f"cannot use NATS at {self.address}: JetStream is not enabled; enable it for this "
                "account"
            )
        if code == _TOO_LARGE:
            return RefusedError(
                f"cannot publish to {subject}: the message is larger than the stream allows; raise "
                "its max_msg_size"
            )
        return self.failed(f"JetStream answered {status}, error {code}; see its log")

    async def _open(self) -> _Client:
        """Makes a connection; credentials that are refused are read again and tried once more."""
        client = await self._attempt(await self._files.read())
        if client is None and isinstance(self._trouble, RefusedError):
            client = await self._attempt(await self._files.read(again=True))
        if client is None:
            raise self._trouble or self.failed("the connection was closed")
        return client

    async def _attempt(self, login: Login) -> _Client | None:
        client = _Client(login, demands_tls=self._files.tls)
        self._trouble, self._failures, self._up = None, 0, anyio.Event()
        self._connecting = True
        try:
            await client.connect(
                self._urls,
                name=self._name,
                error_cb=self._on_error,
                disconnected_cb=self._on_lost,
                reconnected_cb=self._on_up,
                tls=login.tls,
                verbose=True,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                connect_timeout=self._patience,  # type: ignore[arg-type] # seconds, not only whole
                reconnect_time_wait=Random().uniform(*_RECONNECT_WAIT),  # type: ignore[arg-type] # noqa: S311 - jitter
                ping_interval=PING_INTERVAL,
                **client.presented(),
            )
            self._connecting = False
            self._trouble = None  # another server would not have us, but this one does
            self._inbox = client.new_inbox()
            await client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
            # what the server has against it comes before the answer
            await client.flush(self._patience)  # type: ignore[arg-type] # seconds, not only whole
        except _EnoughError:
            pass
        except (nats.errors.Error, OSError, ValueError) as error:
            self._trouble = self._classify(error)
        finally:
            self._connecting = False
            if client.is_connected and self._trouble is None:
                self._client = client
                self._up.set()
            else:
                await client.abandon()
        return self._client

    async def _on_error(self, error: Exception) -> None:
        """Called by the client with whatever goes wrong, while it connects and later."""
        self._trouble = self._classify(error)
        self._failures += 1
        refused = isinstance(self._trouble, RefusedError)
        if self._connecting:
            if refused or self._failures >= len(self._urls):
                raise _EnoughError
        elif refused and self.is_up:
            self._interrupt()  # nothing comes of waiting for what is not permitted
        else:
            await self._refresh()

    async def _on_lost(self) -> None:
        """Called by the client before it begins to reconnect, and when it closes for good."""
        if self._up.is_set():
            self._up = anyio.Event()
            self._trouble = self._trouble or self.failed("the connection was lost")
            self._interrupt()
            await self._refresh()

    async def _on_up(self) -> None:
        self._trouble = None
        self._up.set()

    def _interrupt(self) -> None:
        if self._work is not None:
            self._work.cancel()

    async def _refresh(self) -> None:
        """Lets the client's next attempt present what the files hold now."""
        client = self._client
        if client is None:
            return
        try:
            client.login = await self._files.read(again=True)
        except SyncdError as error:
            self._trouble = error
        else:
            if client.login.tls is not None:
                client.options["tls"] = client.login.tls

    def _classify(self, error: BaseException) -> SyncdError:
        """What went wrong, by class or known phrase."""
        said = str(error).lower() if isinstance(error, nats.errors.Error) else ""
        if isinstance(error, nats.errors.AuthorizationError) or any(
            phrase in said for phrase in _AUTH_PHRASES
        ):
            files = " or ".join(self._files.paths)
            remedy = f"put what it accepts into {files}" if files else "configure some"
            return RefusedError(
                f"cannot use NATS at {self.address}: it does not accept the credentials; {remedy}"
            )
        if "permissions violation" in said:
            own = [subject for subject in self._subjects if f'"{subject.lower()}"' in said]
            what = "subscribe to _INBOX.>" if "subscription" in said else "publish to its subject"
            what = f"publish to {own[0]}" if own else what
            return RefusedError(
                f"cannot use NATS at {self.address}: this user may not {what}; grant it that "
                "permission"
            )
        if isinstance(error, nats.errors.SecureConnRequiredError):
            return RefusedError(
                f"cannot use NATS at {self.address}: it offers no TLS; turn it on there, or write "
                "nats:// and no certificates"
            )
        return self.failed(_reason(error, said))


def _reason(error: BaseException, said: str) -> str:
    """Why a connection failed, in words of ours or of the system's."""
    if any(phrase in said for phrase in _LIMIT_PHRASES):
        return "it has too many connections; raise max_connections"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}; mend it, or set ca_file"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or 'unexpected end').lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.errno is not None:
        unknown = isinstance(error, socket.gaierror)
        return "its name is unknown; mend urls or the DNS" if unknown else os.strerror(error.errno)
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    return f"the connection failed ({type(error).__name__})"
