"""Reading resources of a live Aidbox: pages, and the senders of destinations.

There is no search parameter for a secret reference, and whether `_elements` keeps the sibling of a
primitive is not documented; so whole resources are read. Of the link to the next page only path and
query are used: behind a proxy it can name another host, and credentials must not go there.

Every replica has a sender of its own for an AidboxTopicDestination ("Highly available Aidbox"), and
its `$status` is about that one, but for `messagesQueued`, which is read from the database ("Webhook
AidboxTopicDestination", counter semantics).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import anyio
import msgspec

from syncd.consumers.aidbox.references import DESTINATION
from syncd.consumers.aidbox.session import RejectedError
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.timing import rfc3339, seconds_of

if TYPE_CHECKING:
    from collections.abc import Container

    from syncd.consumers.aidbox.session import Session
    from syncd.net.http import Answer
    from syncd.net.replicas import Replica

Resource = Mapping[str, object]

PAGE: Final = 100
"""Resources in one page."""

_PAGE_SIZE: Final = 32 << 20
_MOST_PAGES: Final = 10_000
_URL: Final = "!#$%&'()*+,/:;=?@[]~"
"""Characters that a URL has besides letters and digits (RFC 3986)."""
_FAILED: Final = frozenset((HTTPStatus.INTERNAL_SERVER_ERROR,))
_NO_SENDER: Final = b"has no sender associated with it"
"""The documented text of `$status` where a sender failed to start on a replica (release 2603,
"Highly available Aidbox"); a new destination has none elsewhere for up to a second."""
_PROPAGATION: Final = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sender:
    """The `$status` of an AidboxTopicDestination at one replica.

    Attributes:
        replica: The replica's address.
        is_alive: Whether there is a sender at all.
        started: When it started, seconds since the epoch, or None if not reported.
        queued: Messages that are not delivered yet, or None if not reported.
        in_process: Messages that this sender is delivering now.
    """

    replica: str
    is_alive: bool = True
    started: float | None = None
    queued: int | None = None
    in_process: int = 0


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


class Reader:
    """Reads as one Client.

    Args:
        session: Makes the requests.
        event_id: The event that they are about, or None.
    """

    def __init__(self, session: Session, event_id: str | None = None) -> None:
        self._session = session
        self._event_id = event_id

    async def all(self, replica: Replica, type_: str) -> tuple[Resource, ...]:
        """All resources of a type; none where this Aidbox has no such type.

        Raises:
            TemporaryError: There was no answer, or a later one may differ.
            RefusedError: Any other failure.
        """
        target: str | None = f"/fhir/{type_}?_count={PAGE}"
        seen: set[str] = set()
        found: dict[str, Resource] = {}
        while target is not None and target not in seen and len(seen) < _MOST_PAGES:
            seen.add(target)
            try:
                page = await self.get(replica, target, _Bundle)
            except RejectedError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    break
                raise
            for entry in page.entry:
                if entry.resource.get("resourceType", type_) == type_:
                    found[str(entry.resource.get("id", ""))] = entry.resource
            target = _following(target, page)
        return tuple(found.values())

    async def sender(self, replica: Replica, id_: str, *, settled: bool = True) -> Sender:
        """The sender of a destination at one replica; errors as for `all`.

        Args:
            replica: Which one.
            id_: Of the destination.
            settled: Ask again where there is none: for a second that is not the last word.
        """
        target = f"{location(id_)}/$status"
        answer = await self._request(replica, target, accept=_FAILED)
        if settled and _is_dead(answer):
            await anyio.sleep(_PROPAGATION)
            answer = await self._request(replica, target, accept=_FAILED)
        if _is_dead(answer):
            return Sender(str(replica), is_alive=False)
        if not answer.is_success:
            raise TemporaryError(f"{_failed(target)} at {replica}: it answered {answer.status}")
        return _sender_of(str(replica), self._decode(replica, target, answer, _Parameters))

    async def get(self, replica: Replica, target: str, type_: type[T]) -> T:
        """What a GET answers, decoded; errors as for `all`."""
        return self._decode(replica, target, await self._request(replica, target), type_)

    async def _request(
        self, replica: Replica, target: str, *, accept: Container[int] = ()
    ) -> Answer:
        return await self._session.request(
            *(_failed(target), replica, "GET", target),
            body_limit=_PAGE_SIZE,
            accept=accept,
            event_id=self._event_id,
        )

    def _decode(self, replica: Replica, target: str, answer: Answer, type_: type[T]) -> T:
        try:
            return msgspec.json.decode(answer.body, type=type_)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RefusedError(
                f"{_failed(target)} at {replica}: the response is not what Aidbox documents",
                "correct the URL",
            ) from None


def location(id_: str) -> str:
    """Path of a destination."""
    return f"/fhir/{DESTINATION}/{quote(id_, safe='')}"


def _failed(target: str) -> str:
    return f"cannot read {urlsplit(target).path}"


def _following(target: str, page: _Bundle) -> str | None:
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


def _is_dead(answer: Answer) -> bool:
    return answer.status == HTTPStatus.INTERNAL_SERVER_ERROR and _NO_SENDER in answer.body


def _sender_of(replica: str, status: _Parameters) -> Sender:
    values = {item.name: item for item in status.parameter}
    started = values.get("startTimestamp", _Parameter()).value_date_time
    queued = values.get("messagesQueued", _Parameter()).value_decimal
    in_process = values.get("messagesInProcess", _Parameter()).value_decimal
    try:
        at = None if started is None else seconds_of(started)
        if at is not None:
            rfc3339(at)  # a time zone can lead out of the years that a date has
    except (ValueError, OverflowError):
        at = None
    return Sender(
        replica,
        started=at,
        queued=None if queued is None else int(queued),
        in_process=int(in_process or 0),
    )
