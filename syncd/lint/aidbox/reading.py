"""Reading a live Aidbox: pages of resources, `$status` of destinations, `/health` of replicas.

There is no search parameter for a secret reference, and whether `_elements` keeps the sibling of a
primitive is not documented; so whole resources are read. Of the link to the next page only path and
query are used: behind a proxy it can name another host, and credentials must not go there.
"""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import anyio
import msgspec

from syncd.consumers.aidbox.consumer import open_replicas, open_session
from syncd.consumers.aidbox.session import RejectedError
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.findings import finding
from syncd.core.model import Scope
from syncd.core.timing import rfc3339, seconds_of
from syncd.core.vault_config import RESOURCE_TYPES
from syncd.lint.aidbox.references import DESTINATION, references_in
from syncd.lint.aidbox.rules import Live, Sender
from syncd.net.reasons import CHECK_AIDBOX

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from syncd.config.settings import Aidbox
    from syncd.consumers.aidbox.session import Session
    from syncd.core.findings import Finding
    from syncd.lint.aidbox.rules import Resource
    from syncd.net.http import Answer
    from syncd.net.replicas import Replica

PAGE: Final = 100
"""Resources in one page."""

_PAGE_SIZE: Final = 32 << 20
_MOST_PAGES: Final = 10_000
_LONGEST_UPTIME: Final = 1e9
"""Seconds; more than 30 years are no uptime, and may be no date."""
_URL: Final = "!#$%&'()*+,/:;=?@[]~"
"""Characters that a URL has besides letters and digits (RFC 3986)."""
_FAILED: Final = frozenset((HTTPStatus.INTERNAL_SERVER_ERROR,))
_PARALLEL: Final = 8


_NO_SENDER: Final = b"has no sender associated with it"
"""The documented text of `$status` where a sender failed to start on a replica (release 2603,
"Highly available Aidbox"); a new destination has none elsewhere for up to a second."""
_PROPAGATION: Final = 1.0
_RELEASE: Final = re.compile(r"(?<!\d)\d\d(?:0[1-9]|1[0-2])(?!\d)")

T = TypeVar("T")


class _Entry(msgspec.Struct):
    resource: dict[str, object] = {}


class _Link(msgspec.Struct):
    relation: str = ""
    url: str = ""


class _Bundle(msgspec.Struct):
    entry: list[_Entry] = []
    link: list[_Link] = []


class _Parameter(msgspec.Struct, rename="camel"):
    name: str = ""
    value_decimal: float | None = None
    value_date_time: str | None = None


class _Parameters(msgspec.Struct):
    parameter: list[_Parameter] = []


class _Uptime(msgspec.Struct, rename="camel"):
    observed_value: Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_UPTIME)]


class _Checks(msgspec.Struct):
    uptime: Annotated[list[_Uptime], msgspec.Meta(min_length=1)]


class _About(msgspec.Struct, frozen=True):
    version: str = ""


class _Health(msgspec.Struct):
    checks: _Checks
    about: _About = _About()


async def read_live(settings: Aidbox) -> tuple[Live, list[Finding]]:
    """Reads what the rules need; resources from the first replica that answers.

    Returns:
        What was read, and a finding for each part that could not be.
    """
    replicas = await open_replicas(settings).current()
    session = open_session(settings, open_replicas(settings))
    reader = _Reader(session, replicas, settings.urls[0])
    try:
        return await reader.read(), reader.findings
    finally:
        await session.aclose()


def unreadable(source: str, error: SyncdError) -> Finding:
    """The finding that something of Aidbox, at the URL `source`, cannot be read."""
    hint = error.remedy or CHECK_AIDBOX
    return finding("aidbox-unreadable", source, "", error.problem, hint)


class _Reader:
    def __init__(self, session: Session, replicas: Sequence[Replica], url: str) -> None:
        self._url = url.rstrip("/")
        self._session = session
        self._replicas = replicas
        self._first = replicas[0]
        self._releases: dict[str, int] = {}
        self.findings: list[Finding] = []

    async def read(self) -> Live:
        url = self._url
        started = await self._started()
        answering = [replica for replica in self._replicas if str(replica) in started]
        if not answering:
            return Live(url, {})
        self._first = answering[0]
        resources: dict[str, tuple[Resource, ...]] = {}
        for type_ in RESOURCE_TYPES:
            try:
                resources[type_] = await self._all(type_)
            except SyncdError as error:
                self._report(f"{url}/fhir/{type_}", error)
        senders = await self._senders(resources.get(DESTINATION, ()), answering)
        return Live(url, resources, senders, started, self._releases)

    def _report(self, source: str, error: SyncdError) -> None:
        self.findings.append(unreadable(source, error))

    async def _started(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for replica in self._replicas:
            try:
                health = await self._get(replica, "/health", _Health)
            except SyncdError as error:
                self._report(f"{replica}/health", error)
            else:
                found[str(replica)] = time.time() - health.checks.uptime[0].observed_value
                release = _RELEASE.search(health.about.version)
                if release is not None:
                    self._releases[str(replica)] = int(release[0])
        return found

    async def _all(self, type_: str) -> tuple[Resource, ...]:
        """All resources of a type; none where this Aidbox has no such type."""
        target: str | None = f"/fhir/{type_}?_count={PAGE}"
        seen: set[str] = set()
        found: dict[str, Resource] = {}
        while target is not None and target not in seen and len(seen) < _MOST_PAGES:
            seen.add(target)
            try:
                page = await self._get(self._first, target, _Bundle)
            except RejectedError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    break
                raise
            for entry in page.entry:
                if entry.resource.get("resourceType", type_) == type_:
                    found[str(entry.resource.get("id", ""))] = entry.resource
            target = self._following(target, page)
        return tuple(found.values())

    def _following(self, target: str, page: _Bundle) -> str | None:
        following = next((link.url for link in page.link if link.relation == "next"), None)
        if not following:
            return None
        try:
            parts = urlsplit(urljoin(target, following))
        except ValueError:
            problem = f"{_failed(target)}: the link to its next page is not a URL"
            raise RefusedError(problem, "correct the URL") from None
        path = parts.path[parts.path.rfind("/fhir/") :] if "/fhir/" in parts.path else parts.path
        return quote(f"{path}?{parts.query}" if parts.query else path, safe=_URL)

    async def _senders(
        self, resources: Sequence[Resource], replicas: Sequence[Replica]
    ) -> dict[str, list[Sender]]:
        """The senders of each destination that refers to a secret, by id, one per replica."""
        found: dict[tuple[str, Replica], Sender] = {}
        limiter = anyio.CapacityLimiter(_PARALLEL)

        async def ask(id_: str, replica: Replica) -> None:
            async with limiter:
                try:
                    found[id_, replica] = await self._sender(id_, replica)
                except SyncdError as error:
                    self._report(f"{replica}/fhir/{DESTINATION}/{id_}/$status", error)

        ids = [str(resource.get("id", "")) for resource in resources if _uses_secret(resource)]
        async with anyio.create_task_group() as tasks:
            for id_ in ids:
                for replica in replicas:
                    tasks.start_soon(ask, id_, replica)
        return {id_: [found[id_, r] for r in replicas if (id_, r) in found] for id_ in ids}

    async def _sender(self, id_: str, replica: Replica) -> Sender:
        target = f"/fhir/{DESTINATION}/{quote(id_, safe='')}/$status"
        answer = await self._request(replica, target, accept=_FAILED)
        if _is_dead(answer):
            await anyio.sleep(_PROPAGATION)
            answer = await self._request(replica, target, accept=_FAILED)
        if _is_dead(answer):
            return Sender(str(replica), is_alive=False)
        if not answer.is_success:
            raise TemporaryError(f"{_failed(target)} at {replica}: it answered {answer.status}")
        return _sender_of(str(replica), self._decode(replica, target, answer, _Parameters))

    async def _get(self, replica: Replica, target: str, type_: type[T]) -> T:
        answer = await self._request(replica, target)
        return self._decode(replica, target, answer, type_)

    async def _request(
        self, replica: Replica, target: str, *, accept: Container[int] = ()
    ) -> Answer:
        return await self._session.request(
            _failed(target), replica, "GET", target, body_limit=_PAGE_SIZE, accept=accept
        )

    def _decode(self, replica: Replica, target: str, answer: Answer, type_: type[T]) -> T:
        try:
            return msgspec.json.decode(answer.body, type=type_)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RefusedError(
                f"{_failed(target)} at {replica}: the response is not what Aidbox documents",
                "correct the URL",
            ) from None


def _failed(target: str) -> str:
    return f"cannot read {urlsplit(target).path}"


def _uses_secret(resource: Resource) -> bool:
    return any(references_in(resource, Scope(DESTINATION)))


def _is_dead(answer: Answer) -> bool:
    return answer.status == HTTPStatus.INTERNAL_SERVER_ERROR and _NO_SENDER in answer.body


def _sender_of(replica: str, status: _Parameters) -> Sender:
    values = {item.name: item for item in status.parameter}
    started = values.get("startTimestamp", _Parameter()).value_date_time
    queued = values.get("messagesQueued", _Parameter()).value_decimal
    try:
        at = None if started is None else seconds_of(started)
        if at is not None:
            rfc3339(at)  # a time zone can lead out of the years that a date has
    except (ValueError, OverflowError):
        at = None
    return Sender(replica, started=at, queued=None if queued is None else int(queued))
