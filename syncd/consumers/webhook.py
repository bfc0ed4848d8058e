"""A webhook: CloudEvents by HTTP POST, over TCP, TLS or a Unix socket.

The wire is CloudEvents 1.0.2 (HTTP protocol binding: structured content mode for one event, batched
content mode where several are allowed), signed by the Standard Webhooks scheme
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).

How a request is made is `syncd.net.http`'s part. Of an answer only status and `Retry-After`
count; its body is dropped.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from syncd import __version__
from syncd.config.settings import grant_of
from syncd.consumers.consumer import Tested, Undelivered, UnusableError, undelivered
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.events import BATCH, STRUCTURED
from syncd.core.trace import trace_headers
from syncd.net.credentials import CredentialFiles, Credentials, Keyring
from syncd.net.http import Connection
from syncd.net.http1 import Request
from syncd.net.tls import RotatingContext, Trust
from syncd.net.url import Url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from syncd.config.settings import Webhook
    from syncd.consumers.consumer import Posting
    from syncd.core.events import Event, Stamp
    from syncd.net.http import Answer
    from syncd.net.pool import Reserved

_NOT_ACCEPTED: Final = frozenset((401, 403))


class WebhookConsumer:
    """A consumer of kind `webhook`.

    Args:
        settings: An element of `consumers`.
        stamp: Makes the wire form of events.
        clock: Seconds since the epoch, for the signature.

    Raises:
        RefusedError: The URL cannot be used.
    """

    def __init__(
        self,
        settings: Webhook,
        stamp: Stamp,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = settings.name
        self.grant = grant_of(settings)
        self.max_batch = settings.max_batch
        self.max_in_flight = settings.max_in_flight
        self._stamp = stamp
        try:
            self._url = Url.parse(settings.url)
        except ValueError:
            raise RefusedError(
                f"cannot use the url of consumer {self.name}: it is malformed",
                "write http://host:port/path",
            ) from None
        # path and query may hold a token of the receiver's: messages name the origin only
        self.address = settings.socket or self._url.origin
        self._keyring = Keyring(_files(settings))
        self._connection = Connection(
            self._keyring,
            RotatingContext(Trust.of(settings)) if self._url.scheme == "https" else None,
            timeout=float(settings.timeout),
            socket=settings.socket,
            parallel=settings.max_in_flight,
        )
        self._headers = {
            "user-agent": f"syncd/{__version__}",
            **{name.lower(): value for name, value in settings.headers.items()},
            "content-type": STRUCTURED if self.max_batch == 1 else BATCH,
        }
        self._clock = clock

    def __repr__(self) -> str:
        return f"WebhookConsumer({self.name!r}, {self.address!r})"

    async def deliver(self, events: Sequence[Event]) -> int:
        """POSTs the events in one request; a 2xx acknowledges them.

        After an answer of 401 or 403 the credentials are read again and the request is repeated
        once, at once: they may have been rotated a moment ago.

        Raises:
            TemporaryError: No answer, one of 408, 425, 429, 502, 503 or 504, a 5xx with
                `Retry-After`, or a credential file is missing.
            UnusableError: A credential file is malformed.
            UndeliveredError: Any other 5xx.
            RefusedError: Any other answer.
        """
        message = self._message(events)
        answer = await self._post(*message)
        if answer.status in _NOT_ACCEPTED and self._keyring.secret_files:
            answer = await self._post(*message, reread=True)
        return self._acknowledged(events, answer)

    def reserve(self) -> Posting | None:
        """Keeps a connection for the next events; see `Prompt`."""
        reserved = self._connection.reserve(self._url)
        if reserved is None:
            return None
        return _Posting(reserved, self._plain_request, partial(self._outcome, reserved))

    def _plain_request(self, events: Sequence[Event]) -> Request:
        return self._request(*self._message(events), Credentials())

    async def _outcome(self, reserved: Reserved, events: Sequence[Event]) -> int:
        return self._acknowledged(events, await self._connection.answer(self._failed, reserved))

    def _message(self, events: Sequence[Event]) -> tuple[str, bytes]:
        """The id and the body."""
        if self.max_batch == 1:
            body = self._stamp.encode(events[0])
        else:
            body = self._stamp.encode_batch(events)
        return self._stamp.origin(events[-1]).id, body

    def _acknowledged(self, events: Sequence[Event], answer: Answer) -> int:
        """The status of an acknowledgement; raises as `deliver` for every other answer."""
        error = self._judge(answer)
        if isinstance(error, TemporaryError) and not answer.is_about_server:
            # an internal error, for instance, is most often about what was sent
            raise undelivered([Undelivered(events, error)])
        if error is not None:
            raise error
        return answer.status

    async def ping(self, ident: str, at: str) -> Tested:
        """POSTs an `io.syncd.ping` event, signed and with all credentials; see `Testable`."""
        body = self._stamp.encode_ping(self.name, ident, at)
        if self.max_batch > 1:
            body = b"[" + body + b"]"
        message_id = self._stamp.ping_id(ident)
        tls = self._url.scheme == "https"
        try:
            answer = await self._post(message_id, body, reread=True)
        except SyncdError as error:
            return Tested(self.address, tls, None, error)
        return Tested(self.address, tls, answer.status, self._judge(answer))

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._connection.aclose()

    async def _post(self, message_id: str, body: bytes, *, reread: bool = False) -> Answer:
        make = partial(self._request, message_id, body)
        try:
            return await self._connection.exchange(self._failed, make, reread=reread)
        except RefusedError as error:
            raise UnusableError.of(error) from None

    @property
    def _failed(self) -> str:
        return f"cannot deliver to {self.address}"

    def _request(self, message_id: str, body: bytes, credentials: Credentials) -> Request:
        return Request("POST", self._url, self._sign(message_id, body, credentials), body)

    def _sign(self, message_id: str, body: bytes, credentials: Credentials) -> dict[str, str]:
        headers = {**trace_headers(message_id), **self._headers}
        if credentials.authorization is not None:
            headers["authorization"] = credentials.authorization
        if credentials.signer is not None:
            at = int(self._clock())
            headers["webhook-id"] = message_id
            headers["webhook-timestamp"] = str(at)
            headers["webhook-signature"] = credentials.signer.sign(
                message_id, datetime.fromtimestamp(at, UTC), body.decode()
            )
        return headers

    def _judge(self, answer: Answer) -> SyncdError | None:
        """The error that an answer stands for; None for an acknowledgement."""
        if answer.is_success:
            return None
        status = answer.status
        problem = f"{self._failed}: it answered {status}"
        if answer.is_temporary:
            return TemporaryError(problem, retry_after=answer.wait).answered(status)
        if status in _NOT_ACCEPTED:
            files = " or ".join(self._keyring.secret_files)
            remedy = f"replace the credentials in {files}" if files else "configure credentials"
        elif 300 <= status < 400:  # noqa: PLR2004 - RFC 9110, section 15.4
            problem += ", and redirects are not followed"
            remedy = "set url to the target of the redirect"
        else:
            remedy = "see the receiver's log, and correct url or the receiver"
        return RefusedError(problem, remedy).answered(status)


class _Posting:
    """One delivery; see `Posting`.

    Args:
        reserved: The connection.
        make: The request.
        outcome: Waits for the answer.
    """

    def __init__(
        self,
        reserved: Reserved,
        make: Callable[[Sequence[Event]], Request],
        outcome: Callable[[Sequence[Event]], Awaitable[int]],
    ) -> None:
        self._reserved = reserved
        self._make = make
        self._outcome = outcome
        self._events: Sequence[Event] = ()

    def post(self, events: Sequence[Event]) -> bool:
        self._events = events
        return self._reserved.post(self._make(events))

    async def outcome(self) -> int:
        return await self._outcome(self._events)

    def withdraw(self) -> None:
        self._reserved.give_back()


def _files(settings: Webhook) -> CredentialFiles:
    basic = settings.basic_auth
    return CredentialFiles(
        signing_key=settings.signing_key_file,
        username=basic.username if basic else None,
        password=basic.password_file if basic else None,
        bearer_token=settings.bearer_token_file,
    )
