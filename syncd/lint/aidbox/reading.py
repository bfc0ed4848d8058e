"""Reading a live Aidbox: all resources that can use secrets, every sender, every replica's health.

What cannot be read is a finding, and the rest is read.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Final

import anyio
import msgspec

from syncd.consumers.aidbox.consumer import open_replicas, open_session
from syncd.consumers.aidbox.references import DESTINATION, references_in
from syncd.consumers.aidbox.resources import Reader
from syncd.core.errors import SyncdError
from syncd.core.findings import finding
from syncd.core.model import Scope
from syncd.core.vault_config import RESOURCE_TYPES
from syncd.lint.aidbox.rules import Live
from syncd.net.reasons import CHECK_AIDBOX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.config.settings import Aidbox
    from syncd.consumers.aidbox.resources import Resource, Sender
    from syncd.consumers.aidbox.session import Session
    from syncd.core.findings import Finding
    from syncd.net.replicas import Replica

_LONGEST_UPTIME: Final = 1e9
"""Seconds; more than 30 years are no uptime, and may be no date."""
_PARALLEL: Final = 8


_RELEASE: Final = re.compile(r"(?<!\d)\d\d(?:0[1-9]|1[0-2])(?!\d)")


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
        self._reader = Reader(session)
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
                resources[type_] = await self._reader.all(self._first, type_)
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
                health = await self._reader.get(replica, "/health", _Health)
            except SyncdError as error:
                self._report(f"{replica}/health", error)
            else:
                found[str(replica)] = time.time() - health.checks.uptime[0].observed_value
                release = _RELEASE.search(health.about.version)
                if release is not None:
                    self._releases[str(replica)] = int(release[0])
        return found

    async def _senders(
        self, resources: Sequence[Resource], replicas: Sequence[Replica]
    ) -> dict[str, list[Sender]]:
        """The senders of each destination that refers to a secret, by id, one per replica."""
        found: dict[tuple[str, Replica], Sender] = {}
        limiter = anyio.CapacityLimiter(_PARALLEL)

        async def ask(id_: str, replica: Replica) -> None:
            async with limiter:
                try:
                    found[id_, replica] = await self._reader.sender(replica, id_)
                except SyncdError as error:
                    self._report(f"{replica}/fhir/{DESTINATION}/{id_}/$status", error)

        ids = [str(resource.get("id", "")) for resource in resources if _uses_secret(resource)]
        async with anyio.create_task_group() as tasks:
            for id_ in ids:
                for replica in replicas:
                    tasks.start_soon(ask, id_, replica)
        return {id_: [found[id_, r] for r in replicas if (id_, r) in found] for id_ in ids}


def _uses_secret(resource: Resource) -> bool:
    return any(references_in(resource, Scope(DESTINATION)))
