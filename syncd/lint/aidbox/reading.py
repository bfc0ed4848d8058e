"""Reading a live Aidbox: pages of resources, `$status` of destinations, `/health` of replicas.

There is no search parameter for a secret reference, and whether `_elements` keeps the sibling of a
primitive is not documented; so whole resources are read. Of the link to the next page only path and
query are used: behind a proxy it can name another host, and credentials must not go there.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from urllib.parse import urljoin, urlsplit

import anyio
import msgspec

from syncd.consumers.aidbox.consumer import open_replicas, open_session
from syncd.consumers.aidbox.session import RejectedError
from syncd.core.errors import RefusedError, SyncdError
from syncd.core.findings import finding
from syncd.core.model import Scope
from syncd.core.timing import seconds_of
from syncd.core.vault_config import RESOURCE_TYPES
from syncd.lint.aidbox.references import DESTINATION, references_in
from syncd.lint.aidbox.rules import Destination, Live

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.config.settings import Aidbox
    from syncd.consumers.aidbox.session import Session
    from syncd.core.findings import Finding
    from syncd.lint.aidbox.rules import Resource
    from syncd.net.replicas import Replica

PAGE: Final = 100
"""Resources in one page."""

_PAGE_SIZE: Final = 32 << 20
_MOST_PAGES: Final = 10_000
_PARALLEL: Final = 8


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
    observed_value: float


class _Checks(msgspec.Struct):
    uptime: Annotated[list[_Uptime], msgspec.Meta(min_length=1)]


class _Health(msgspec.Struct):
    checks: _Checks


async def read_live(settings: Aidbox) -> tuple[Live, list[Finding]]:
    """Reads what the rules need; resources from the first replica.

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
    hint = error.remedy or "start Aidbox, or correct the URL"
    return finding("aidbox-unreadable", source, "", error.problem, hint)


class _Reader:
    def __init__(self, session: Session, replicas: Sequence[Replica], url: str) -> None:
        self._url = url.rstrip("/")
        self._session = session
        self._replicas = replicas
        self._first = replicas[0]
        self.findings: list[Finding] = []

    async def read(self) -> Live:
        url = self._url
        started = await self._started()
        if str(self._first) not in started:
            return Live(url, {}, started=started)
        resources: dict[str, tuple[Resource, ...]] = {}
        for type_ in RESOURCE_TYPES:
            try:
                resources[type_] = await self._all(type_)
            except SyncdError as error:
                self._report(f"{url}/fhir/{type_}", error)
        destinations = await self._destinations(resources.get(DESTINATION, ()))
        return Live(url, resources, destinations, started)

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
        return found

    async def _all(self, type_: str) -> tuple[Resource, ...]:
        """All resources of a type; none where this Aidbox has no such type."""
        target: str | None = f"/fhir/{type_}?_count={PAGE}"
        seen: set[str] = set()
        found: dict[object, Resource] = {}
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
                    found[entry.resource.get("id")] = entry.resource
            target = self._following(target, page)
        return tuple(found.values())

    def _following(self, target: str, page: _Bundle) -> str | None:
        following = next((link.url for link in page.link if link.relation == "next"), None)
        if not following:
            return None
        parts = urlsplit(urljoin(target, following))
        path = parts.path[parts.path.rfind("/fhir/") :] if "/fhir/" in parts.path else parts.path
        return f"{path}?{parts.query}" if parts.query else path

    async def _destinations(self, resources: Sequence[Resource]) -> dict[str, Destination]:
        """The state of each destination that refers to a secret, by id."""
        found: dict[str, Destination] = {}
        limiter = anyio.CapacityLimiter(_PARALLEL)

        async def ask(id_: str) -> None:
            async with limiter:
                try:
                    target = f"/fhir/{DESTINATION}/{id_}/$status"
                    status = await self._get(self._first, target, _Parameters)
                except SyncdError as error:
                    self._report(f"{self._url}/fhir/{DESTINATION}/{id_}/$status", error)
                else:
                    found[id_] = _destination(status)

        async with anyio.create_task_group() as tasks:
            for resource in resources:
                id_ = str(resource.get("id", ""))
                if any(references_in(resource, Scope(DESTINATION, id_))):
                    tasks.start_soon(ask, id_)
        return found

    async def _get(self, replica: Replica, target: str, type_: type[T]) -> T:
        failed = f"cannot read {urlsplit(target).path}"
        answer = await self._session.request(failed, replica, "GET", target, body_limit=_PAGE_SIZE)
        try:
            return msgspec.json.decode(answer.body, type=type_)
        except msgspec.DecodeError:
            raise RefusedError(
                f"{failed} at {replica}: the response is not what Aidbox documents",
                "correct the URL",
            ) from None


def _destination(status: _Parameters) -> Destination:
    values = {item.name: item for item in status.parameter}
    started = values.get("startTimestamp", _Parameter()).value_date_time
    queued = values.get("messagesQueued", _Parameter()).value_decimal
    try:
        at = None if started is None else seconds_of(started)
    except ValueError:
        at = None
    return Destination(at, None if queued is None else int(queued))
