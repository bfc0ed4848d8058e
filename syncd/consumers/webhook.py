"""A webhook: CloudEvents by HTTP POST, over TCP, TLS or a Unix socket.

The wire is CloudEvents 1.0.2 (HTTP protocol binding: structured content mode for one event, batched
content mode where several are allowed), signed by the Standard Webhooks scheme
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).

Requests go through httpx2's transport, not through its client: what must not happen here
(following a redirect with credentials, cookies, a proxy or a `.netrc` from the environment, a log
line with the URL) is the client's doing, and the transport has none of it. It keeps one connection
alive.

A foreign exception never leaves: its class and error number become a short reason, its text, which
may quote what was sent or received, is dropped. Of an answer only status and `Retry-After` count;
its body is read to free the connection, up to a bound, and thrown away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as sockets
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Protocol

import anyio
import httpcore2  # noqa: F401 - httpx2 would import it in the event loop, at the first delivery
import httpx2

from syncd import __version__
from syncd.consumers.credentials import CredentialFiles, Keyring
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.events import BATCH, STRUCTURED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from syncd.consumers.credentials import Credentials
    from syncd.core.events import Event, Stamp
    from syncd.core.model import Grant

CONNECT_TIMEOUT: Final = 5.0
"""Seconds within which a connection must be accepted; less if the timeout is less."""

KEEP_ALIVE: Final = 60.0
"""Seconds for which an idle connection is used again."""

_DRAIN_TIME: Final = 1.0
_DRAIN_SIZE: Final = 64 << 10
_TRY_AGAIN: Final = frozenset((408, 425, 429))
_UNAUTHORIZED: Final = frozenset((401, 403))


class BasicAuth(Protocol):
    """HTTP Basic credentials."""

    @property
    def username(self) -> str:
        """Sent as it is."""

    @property
    def password_file(self) -> str:
        """Holds the password."""


class Endpoint(Protocol):
    """How to reach a webhook (`syncd.settings.Webhook`)."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    @property
    def url(self) -> str:
        """Where to POST; over a Unix socket it gives Host and path."""

    @property
    def socket(self) -> str | None:
        """Path of a Unix socket to connect to instead of the URL's host."""

    @property
    def signing_key_file(self) -> str | None:
        """Holds `whsec_<base64>`."""

    @property
    def headers(self) -> Mapping[str, str]:
        """More headers."""

    @property
    def basic_auth(self) -> BasicAuth | None:
        """Sent as HTTP Basic credentials."""

    @property
    def bearer_token_file(self) -> str | None:
        """Holds a bearer token."""

    @property
    def ca_file(self) -> str | None:
        """Certificates to trust instead of the system's."""

    @property
    def client_cert(self) -> str | None:
        """For mutual TLS."""

    @property
    def client_key(self) -> str | None:
        """Its private key."""

    @property
    def timeout(self) -> float:
        """Seconds an attempt may take, from reading the credentials to the answer."""

    @property
    def max_batch(self) -> int:
        """Events per request; above 1 batched content mode is used."""


class WebhookConsumer:
    """A consumer of kind `webhook`.

    Args:
        endpoint: How to reach it.
        grant: What it may see.
        stamp: What is written on events.
        clock: Seconds since the epoch, for the signature.

    Raises:
        RefusedError: The URL cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        grant: Grant,
        stamp: Stamp,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = endpoint.name
        self.grant = grant
        self.max_batch = endpoint.max_batch
        self._stamp = stamp
        try:
            self._url = httpx2.URL(endpoint.url)
        except httpx2.InvalidURL:
            raise RefusedError(
                f"cannot use the url of consumer {self.name}: it is malformed; write "
                "http://host:port/path"
            ) from None
        self._socket = endpoint.socket
        # a path or query may hold a token of the receiver's: messages name the origin only
        self.address = self._socket or f"{self._url.scheme}://{self._url.netloc.decode()}"
        self._keyring = Keyring(_files(endpoint), tls=self._url.scheme == "https")
        self._headers = {
            "user-agent": f"syncd/{__version__}",
            **{name.lower(): value for name, value in endpoint.headers.items()},
            "content-type": STRUCTURED if self.max_batch == 1 else BATCH,
        }
        self._timeout = float(endpoint.timeout)
        self._clock = clock
        self._transport: httpx2.AsyncHTTPTransport | None = None
        self._tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"WebhookConsumer({self.name!r}, {self.address!r})"

    async def deliver(self, events: Sequence[Event]) -> None:
        """POSTs the events in one request; a 2xx acknowledges them.

        An answer of 401 or 403 has the credentials read again and the request made once more at
        once: they may have been rotated a moment ago.

        Raises:
            TemporaryError: No answer, one of 408, 425, 429 or 5xx, or a credential file is missing.
            RefusedError: Any other answer, or a credential file is malformed.
        """
        body = (
            self._stamp.encode(events[0])
            if self.max_batch == 1
            else self._stamp.encode_batch(events)
        )
        message_id = self._stamp.origin(events[-1]).id
        status, retry_after = await self._post(message_id, body)
        if status in _UNAUTHORIZED and self._keyring.secret_files:
            status, retry_after = await self._post(message_id, body, reread=True)
        error = self._judge(status, retry_after)
        if error is not None:
            raise error

    async def aclose(self) -> None:
        """Closes the connection."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def _post(
        self, message_id: str, body: bytes, *, reread: bool = False
    ) -> tuple[int, str | None]:
        """Makes one request.

        Returns:
            The status and `Retry-After`.

        Raises:
            TemporaryError: There was no answer, or a credential file is missing.
            RefusedError: A credential file is malformed.
        """
        try:
            with anyio.fail_after(self._timeout):
                credentials = await self._keyring.current(reread=reread)
                transport = await self._transport_with(credentials.tls)
                request = httpx2.Request(
                    "POST",
                    self._url,
                    headers=self._sign(message_id, body, credentials),
                    content=body,
                    extensions={"timeout": {"connect": min(CONNECT_TIMEOUT, self._timeout)}},
                )
                response = await transport.handle_async_request(request)
        except TimeoutError:
            reason = f"no answer within {self._timeout:g} s"
        except httpx2.TimeoutException:
            reason = f"no connection within {min(CONNECT_TIMEOUT, self._timeout):g} s"
        except (httpx2.TransportError, OSError) as error:
            reason = _reason(error)
        else:
            await _discard(response)
            return response.status_code, response.headers.get("retry-after")
        raise TemporaryError(f"cannot deliver to {self.address}: {reason}")

    async def _transport_with(self, tls: ssl.SSLContext | None) -> httpx2.AsyncHTTPTransport:
        """The transport; a new one when certificates changed, so that no old connection is used."""
        if self._transport is not None and tls is not self._tls:
            await self.aclose()
        if self._transport is None:
            # a context of our own where there is no TLS: the default loads every CA of the system
            self._transport = httpx2.AsyncHTTPTransport(
                verify=tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                uds=self._socket,
                limits=httpx2.Limits(max_keepalive_connections=1, keepalive_expiry=KEEP_ALIVE),
            )
            self._tls = tls
        return self._transport

    def _sign(self, message_id: str, body: bytes, credentials: Credentials) -> dict[str, str]:
        headers = dict(self._headers)
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

    def _judge(self, status: int, retry_after: str | None) -> SyncdError | None:
        """What an answer means (contract, "Events"); None acknowledges."""
        if 200 <= status < 300:  # noqa: PLR2004 - RFC 9110, section 15.3
            return None
        failed = f"cannot deliver to {self.address}: it answered {status}"
        if status in _TRY_AGAIN or status >= 500:  # noqa: PLR2004 - RFC 9110, section 15.6
            return TemporaryError(failed, retry_after=parse_retry_after(retry_after, self._clock()))
        if status in _UNAUTHORIZED:
            return RefusedError(f"{failed}; {self._credentials_hint()}")
        if 300 <= status < 400:  # noqa: PLR2004 - RFC 9110, section 15.4
            return RefusedError(f"{failed}, and redirects are not followed; set url to the target")
        return RefusedError(f"{failed}; see its log for the reason, and mend url or the receiver")

    def _credentials_hint(self) -> str:
        files = self._keyring.secret_files
        return (
            f"put what it accepts into {' or '.join(files)}" if files else "configure credentials"
        )


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait, from `Retry-After` (RFC 9110, section 10.2.3: seconds or a date).

    Args:
        value: The header's value.
        now: Seconds since the epoch.

    Returns:
        At least 0, or None for a missing or malformed value.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:15])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _files(endpoint: Endpoint) -> CredentialFiles:
    basic = endpoint.basic_auth
    return CredentialFiles(
        signing_key=endpoint.signing_key_file,
        username=basic.username if basic else None,
        password=basic.password_file if basic else None,
        bearer_token=endpoint.bearer_token_file,
        ca=endpoint.ca_file,
        client_cert=endpoint.client_cert,
        client_key=endpoint.client_key,
    )


async def _discard(response: httpx2.Response) -> None:
    """Reads what is left of an answer, which the verdict no longer depends on."""
    size = 0
    try:
        with anyio.move_on_after(_DRAIN_TIME), contextlib.suppress(httpx2.TransportError):
            async for chunk in response.stream:  # type: ignore[union-attr] # a transport's is async
                size += len(chunk)
                if size > _DRAIN_SIZE:
                    break
    finally:
        with contextlib.suppress(httpx2.TransportError):
            await response.aclose()


def _reason(error: BaseException) -> str:
    """What went wrong with a connection, in words of ours or of the system's."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}; mend it, or set ca_file"
        if isinstance(cause, ssl.SSLError):
            said = getattr(cause, "reason", None) or "unexpected end"
            return f"TLS failed: {said.lower().replace('_', ' ')}"
        if isinstance(cause, sockets.gaierror):
            return "its name cannot be resolved; mend url or the DNS"
        if isinstance(cause, OSError) and cause.errno is not None:
            hint = {errno.ENOENT: "; start it, or mend socket", errno.ECONNREFUSED: "; start it"}
            return os.strerror(cause.errno) + hint.get(cause.errno, "")
    return "the connection was closed before an answer"


def _causes(error: BaseException) -> list[BaseException]:
    """An exception and all that led to it, outermost first."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.append(one)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting += [cause for cause in (one.__context__, one.__cause__) if cause is not None]
    return found
