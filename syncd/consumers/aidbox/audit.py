"""Where AuditEvents go: to Aidbox itself, or to another FHIR server (`audit_url`).

What is POSTed to Aidbox is a row in that box: it does not reach Aidbox's own audit topic (release
2609, "Audit and logging"). Auditbox, the vendor's product, takes `POST /AuditEvent` with a bearer
token, and gives resources ids of its own, so a retry after a lost answer can make a duplicate
there.

A server whose FHIR version is not R4 or R4B refuses every AuditEvent of syncd with 422. A retry
cannot change that, so it is logged once, and the record is given up.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import structlog

from syncd import __version__
from syncd.consumers.aidbox.session import FailedError, RejectedError
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.trace import trace_headers
from syncd.net.credentials import CredentialFiles, Keyring
from syncd.net.http import Connection
from syncd.net.http1 import Request
from syncd.net.tls import RotatingContext, Trust
from syncd.net.url import Url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.config.settings import Aidbox
    from syncd.consumers.aidbox.session import Session
    from syncd.net.credentials import Credentials
    from syncd.net.replicas import Replicas

_EXISTS: Final = frozenset((HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED))
_FAILED: Final = "cannot record an AuditEvent"
_FHIR: Final = {"content-type": "application/fhir+json"}
_HINT: Final = "AuditEvents need FHIR R4 or R4B: set audit_url to such a server"

log = structlog.get_logger()


class AuditTrail:
    """Creates resources, each once where the server keeps their ids.

    Args:
        settings: Of the consumer.
        session: Makes requests to Aidbox as the consumer's Client.
        replicas: Those of Aidbox.

    Raises:
        RefusedError: `audit_url` cannot be used.
    """

    def __init__(self, settings: Aidbox, session: Session, replicas: Replicas) -> None:
        self._session = session
        self._replicas = replicas
        self._elsewhere = _Server(settings) if settings.audit_url is not None else None
        self._is_refused = False

    async def aclose(self) -> None:
        """Closes the connections that are its own."""
        if self._elsewhere is not None:
            await self._elsewhere.aclose()

    async def create(self, event_id: str, ids: Sequence[str], content: bytes) -> None:
        """Creates the AuditEvent of an event, unless the server never takes any.

        Args:
            event_id: The event.
            ids: The ids that the resource may have already, in any of which cases it is there.
            content: The resource.

        Raises:
            TemporaryError: There was no answer, or a later one may differ.
            RefusedError: The server refused, for another reason than its FHIR version.
        """
        headers = {**_FHIR, "if-none-exist": f"_id={','.join(ids)}"}
        try:
            if self._elsewhere is not None:
                await self._elsewhere.post(headers, content, event_id)
            else:
                await self._post(headers, content, event_id)
        except RejectedError as error:
            if error.status in _EXISTS:
                return  # another installation was faster
            if error.status != HTTPStatus.UNPROCESSABLE_ENTITY:
                raise
            report = log.debug if self._is_refused else log.error
            report("audit.refused", problem=error.problem, hint=_HINT)
            self._is_refused = True
        else:
            self._is_refused = False

    async def _post(self, headers: dict[str, str], content: bytes, event_id: str) -> None:
        """Creates it at the first replica that can be reached: they share a database."""
        failure: TemporaryError | None = None
        for replica in await self._replicas.current():
            try:
                await self._session.request(
                    *(_FAILED, replica, "POST", "/fhir/AuditEvent"),
                    headers=headers,
                    content=content,
                    event_id=event_id,
                )
            except TemporaryError as error:
                failure = error
            else:
                return
        if failure is not None:
            raise failure


class _Server:
    """The FHIR server at `audit_url`."""

    def __init__(self, settings: Aidbox) -> None:
        assert settings.audit_url is not None
        try:
            self._url = Url.parse(f"{settings.audit_url.rstrip('/')}/AuditEvent")
        except ValueError:
            message = "cannot use audit_url: it is malformed"
            raise RefusedError(message, "write https://host/fhir") from None
        basic = settings.audit_basic_auth
        self._keyring = Keyring(
            CredentialFiles(
                username=basic.username if basic else None,
                password=basic.password_file if basic else None,
                bearer_token=settings.audit_bearer_token_file,
            )
        )
        self._connection = Connection(
            self._keyring,
            RotatingContext(Trust(ca_file=settings.ca_file))
            if self._url.scheme == "https"
            else None,
            timeout=float(settings.timeout),
            url_option="audit_url",
            parallel=settings.max_in_flight,
        )

    async def aclose(self) -> None:
        await self._connection.aclose()

    async def post(self, headers: dict[str, str], content: bytes, event_id: str) -> None:
        def make(credentials: Credentials) -> Request:
            sent = {"user-agent": f"syncd/{__version__}", **trace_headers(event_id), **headers}
            if credentials.authorization is not None:
                sent["authorization"] = credentials.authorization
            return Request("POST", self._url, sent, content)

        failed = f"{_FAILED} at {self._url.origin}"
        answer = await self._connection.exchange(failed, make)
        if answer.status == HTTPStatus.UNAUTHORIZED and self._keyring.secret_files:
            answer = await self._connection.exchange(failed, make, reread=True)
        if answer.is_success:
            return
        problem = f"{failed}: it answered {answer.status}"
        if answer.is_temporary:
            kind = TemporaryError if answer.is_about_server else FailedError
            raise kind(problem, retry_after=answer.wait)
        remedy = "correct audit_url, its credentials, or what they are allowed there"
        raise RejectedError(problem, remedy, status=answer.status)
