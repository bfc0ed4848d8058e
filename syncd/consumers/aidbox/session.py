"""Requests to Aidbox as a Client: HTTP Basic or a token, renewed when it is not accepted.

Aidbox answers 401 to credentials that it does not know; for a request that no AccessPolicy permits
its documentation says 403, and one tutorial 401. After a 401 the credential file is read again and
the request is repeated once, at once: the Client's own secret may have been rotated a moment ago. A
token
(`POST /auth/token`, https://www.health-samurai.io/docs/aidbox/tutorials/security-access-control-tutorials/client-credentials-grant)
is a session in Aidbox's database, so one serves all replicas; it is kept until it expires, or for a
Client without `access_token_expiration`, until it is not accepted.
"""

from __future__ import annotations

import base64
import math
import os
import secrets
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Final

import anyio
import anyio.to_thread
import msgspec

from syncd import __version__
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.trace import trace_headers
from syncd.net.credentials import CredentialFiles, Keyring
from syncd.net.http import Connection
from syncd.net.reasons import CHECK_AIDBOX
from syncd.net.tls import RotatingContext, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from syncd.net.credentials import Credentials
    from syncd.net.http import Answer
    from syncd.net.http1 import Request
    from syncd.net.replicas import Replica

STALE: Final = 300.0
"""Seconds after a change of the credential file for which a 401 is ascribed to Aidbox's cache: its
time to live is short, but how short is not published."""

PROBE: Final = "/fhir/Patient?_count=0"
"""A request that changes nothing, and whose status shows whether credentials are accepted."""

_PARALLEL: Final = 16
_TOKEN_SIZE: Final = 64 << 10
_EARLY: Final = 0.9
_FORM: Final = {"content-type": "application/x-www-form-urlencoded"}
_ABOUT: Final = {"user-agent": f"syncd/{__version__}", "accept": "application/json"}


class _Token(msgspec.Struct):
    # what a header can carry: the error for anything else would quote it
    access_token: Annotated[str, msgspec.Meta(pattern=r"\A[\x21-\x7e]+\Z")]
    expires_in: float | None = None


class Session:
    """Requests to Aidbox as one Client.

    Args:
        client_id: Id of the Client.
        secret_file: The file that holds its secret (`client_secret_file`).
        trust: The TLS configuration; None where no replica is reached over TLS.
        use_token: Ask for a token instead of sending the secret with each request.
        timeout: Seconds that a request may take.
        clock: Monotonic, seconds.
    """

    def __init__(
        self,
        client_id: str,
        secret_file: str,
        trust: Trust | None = None,
        *,
        use_token: bool,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client_id = client_id
        self._id = f"syncd-{secrets.token_hex(8)}"  # of requests that are about no event
        self._secret_file = secret_file
        files = CredentialFiles(
            username=client_id,
            password=secret_file,
            password_option="client_secret_file",  # noqa: S106 - the name of an option
        )
        self._connection = Connection(
            Keyring(files),
            None if trust is None else RotatingContext(trust),
            timeout=timeout,
            url_option="urls",
            parallel=_PARALLEL,
            check=CHECK_AIDBOX,
        )
        self._use_token = use_token
        self._clock = clock
        self._token: str | None = None
        self._expires = 0.0
        self._asking = anyio.Lock()

    def __repr__(self) -> str:
        return f"Session({self._client_id!r})"

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._connection.aclose()

    async def request(
        self,
        failed: str,
        replica: Replica,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        body_limit: int = 0,
        accept: Container[int] = (),
        event_id: str | None = None,
    ) -> Answer:
        """Makes one request as the Client.

        Args:
            failed: How an error's message begins, such as `cannot read Client`.
            replica: Where to send it.
            method: HTTP method.
            target: Path and query.
            headers: Besides those that every request has.
            content: The body.
            body_limit: Bytes that the answer may have; with 0 it is dropped.
            accept: Statuses other than 2xx that are answers, too.
            event_id: The event that the request is about, for Aidbox's log and audit.

        Returns:
            The answer, a 2xx or one of `accept`.

        Raises:
            TemporaryError: There was no answer, a later one may differ, or the credential file is
                missing.
            RefusedError: Any other answer.
        """
        failed = f"{failed} at {replica}"

        async def attempt(*, reread: bool) -> Answer:
            token = await self._current_token(failed, replica, reread=reread)

            def make(credentials: Credentials) -> Request:
                authorization = credentials.authorization if token is None else f"Bearer {token}"
                sent = {
                    **_ABOUT,
                    **trace_headers(event_id or self._id),
                    **(headers or {}),
                    "authorization": authorization or "",
                }
                return replica.request(method, target, sent, content)

            return await self._connection.exchange(
                failed, make, reread=reread, body_limit=body_limit
            )

        answer = await attempt(reread=False)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            answer = await attempt(reread=True)
        if answer.status not in accept:
            await self._require_success(failed, answer)
        return answer

    async def status_as(self, replica: Replica, client_id: str, value: bytes, event_id: str) -> int:
        """The status that a request as another Client gets, by HTTP Basic with a value.

        The request carries the id of the event that it is about.
        """
        pair = client_id.encode() + b":" + value
        authorization = "Basic " + base64.b64encode(pair).decode()

        def make(_: Credentials) -> Request:
            headers = {**_ABOUT, **trace_headers(event_id), "authorization": authorization}
            return replica.request("GET", PROBE, headers)

        failed = f"cannot verify at {replica}"
        return (await self._connection.exchange(failed, make)).status

    async def _current_token(self, failed: str, replica: Replica, *, reread: bool) -> str | None:
        if not self._use_token:
            return None
        async with self._asking:
            if self._token is None or reread or self._clock() >= self._expires:
                self._token = None
                self._token = await self._ask_for_token(failed, replica, reread=reread)
            return self._token

    async def _ask_for_token(self, failed: str, replica: Replica, *, reread: bool) -> str:
        def make(credentials: Credentials) -> Request:
            headers = {
                **_ABOUT,
                **_FORM,
                **trace_headers(self._id),
                "authorization": credentials.authorization or "",
            }
            content = b"grant_type=client_credentials"
            return replica.request("POST", "/auth/token", headers, content)

        started = self._clock()
        answer = await self._connection.exchange(
            failed, make, reread=reread, body_limit=_TOKEN_SIZE
        )
        if answer.status == HTTPStatus.UNAUTHORIZED and not reread:
            answer = await self._connection.exchange(
                failed, make, reread=True, body_limit=_TOKEN_SIZE
            )
        await self._require_success(f"{failed}, asking for a token", answer)
        try:
            token = msgspec.json.decode(answer.body, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RefusedError(
                f"{failed}: the answer holds no token", "set grant_type: basic"
            ) from None
        lasts = math.inf if token.expires_in is None else token.expires_in * _EARLY
        self._expires = started + lasts
        return token.access_token

    async def _require_success(self, failed: str, answer: Answer) -> None:
        if answer.is_success:
            return
        status = answer.status
        problem = f"{failed}: it answered {status}"
        if answer.is_temporary:
            kind = TemporaryError if answer.is_about_server else FailedError
            raise kind(problem, retry_after=answer.wait).answered(status)
        client = f"Client/{self._client_id}"
        if status == HTTPStatus.UNAUTHORIZED:
            age = await anyio.to_thread.run_sync(_age, self._secret_file)
            if age < STALE:
                raise TemporaryError(
                    f"{problem}, and may still have the old secret of {client} in its cache "
                    f"({self._secret_file} changed {age:.0f} s ago)",
                    "wait some minutes, then check the secret: how long Aidbox caches is not "
                    "documented",
                ).answered(status)
            remedy = (
                f"write the secret of {client} into {self._secret_file}, and allow its grant type"
            )
        elif status == HTTPStatus.FORBIDDEN:
            remedy = f"give {client} an AccessPolicy for this request, as docs/aidbox.md shows"
        elif status == HTTPStatus.NOT_FOUND:
            remedy = "correct urls: this is not an Aidbox, or one that lacks this operation"
        else:
            remedy = "see Aidbox's log, and correct urls or Aidbox"
        raise RejectedError(problem, remedy, status=status)


class FailedError(TemporaryError):
    """Aidbox failed at a request, which may be about what it was asked."""


class RejectedError(RefusedError):
    """Aidbox answered that it does not accept a request.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, problem: str, remedy: str, *, status: int) -> None:
        super().__init__(problem, remedy)
        self.status = status


def _age(path: str) -> float:
    """Seconds since a file changed; blocks."""
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return math.inf
