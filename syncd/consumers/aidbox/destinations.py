"""Rules of recreating an AidboxTopicDestination: which may be, what its body is, its stand-in.

What is deleted must be recreated even if syncd is killed in between, so the body is kept outside of
Aidbox for a moment. A body that may hold a credential must not leave Aidbox: it is recreated only
if every text in it is a reference, or a parameter that the vendor documents as something else.

Creating a destination of some kinds exports all data that there is ("BigQuery
AidboxTopicDestination", initial export), unless it says `skipInitialExport`.

The stand-in has the same body and another id. It takes the events that are published while the
destination itself is missing. Only what delivers "at least once" gets one, since its receivers know
duplicates; and only if the vault config lets it use the secrets, because Aidbox refuses to publish
an event to a destination whose sender did not start ("Highly available Aidbox").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from syncd.consumers.aidbox.references import DESTINATION, references_in
from syncd.core.model import Scope
from syncd.core.timing import rfc3339

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from syncd.consumers.aidbox.resources import Resource, Sender

STAND_IN: Final = "-syncd"
"""What follows the id of a destination in that of its stand-in."""

_LONGEST_ID: Final = 64
"""Characters of a FHIR id."""
_EXPORTING: Final = ("bigquery", "clickhouse", "data-lakehouse")
_AT_LEAST_ONCE: Final = "-at-least-once"
_BEST_EFFORT: Final = "best-effort"
_PLAIN: Final = frozenset(
    {
        *("address", "awsRegion", "bootstrapServers", "compressionType", "connectionName"),
        *("credentialsFilePath", "databricksRegion", "databricksWarehouseId", "database"),
        *("databricksWorkspaceId", "databricksWorkspaceUrl", "dataset", "destinationTable"),
        *("detailType", "emulatorGrpcHost", "emulatorUrl", "endpoint", "endpointOverride"),
        *("eventBusName", "host", "kafkaTopic", "messageGroupId", "projectId", "region"),
        *("saslClientCallbackHandlerClass", "saslMechanism", "securityProtocol", "source"),
        *("sslContext", "stagingTablePath", "subject", "tableName", "topicArn", "topicId"),
        *("url", "viewDefinition", "writeMode"),
    }
)
"""Parameters that the vendor's pages document as text without a credential (release 2609)."""
_PLAIN_HEADER: Final = re.compile(
    r"(accept|cache-control|content|user-agent|x-correlation-id|x-request-id)[\w-]*:", re.IGNORECASE
)
_HOLDS_MORE: Final = re.compile(r"@|[?;]", re.ASCII)
"""What a URL has before or after its address when it carries credentials."""


def obstacle(resource: Resource) -> str | None:
    """Why a destination cannot be recreated, without what it holds, or None."""
    kind = str(resource.get("kind", ""))
    parameters = list(_parameters(resource))
    if kind.startswith(_EXPORTING) and not any(
        item.get("name") == "skipInitialExport" and item.get("valueBoolean") is True
        for item in parameters
    ):
        return f"a new {kind} destination exports all data again, unless skipInitialExport is true"
    for item in parameters:
        name = str(item.get("name", ""))
        if not _is_plain(name, item):
            known = name if name.isidentifier() else "one"
            return f"its parameter {known} may hold a secret, which is not copied out of Aidbox"
    return None


def _parameters(resource: Resource) -> Iterator[Mapping[str, object]]:
    listed = resource.get("parameter")
    for item in listed if isinstance(listed, list) else ():
        yield item if isinstance(item, dict) else {"value": item}


def _is_plain(name: str, parameter: Mapping[str, object]) -> bool:
    """Whether a parameter holds no credential itself."""
    for key, value in parameter.items():
        if key in ("name", "id") or key.startswith("_"):
            continue
        if isinstance(value, bool | int | float):
            continue
        if not (key.startswith("value") and isinstance(value, str)):
            return False
        if name == "header":
            if not _PLAIN_HEADER.match(value):
                return False
        elif name not in _PLAIN or _HOLDS_MORE.search(value):
            return False
    return True


def body_of(resource: Resource, id_: str | None = None) -> str:
    """What to POST for a destination like this one, as JSON; with another id for its stand-in."""
    body = {**resource, "resourceType": DESTINATION}
    meta = body.get("meta")
    if isinstance(meta, dict):
        # what the server adds; a profile, and the organization of a resource, are its own
        kept = {key: item for key, item in meta.items() if key not in ("lastUpdated", "versionId")}
        extensions = kept.get("extension")
        if isinstance(extensions, list):
            kept["extension"] = [item for item in extensions if not _is_created_at(item)]
        body["meta"] = kept
    if id_ is not None:
        body["id"] = id_
    return msgspec.json.encode(body).decode()


def _is_created_at(extension: object) -> bool:
    return isinstance(extension, dict) and str(extension.get("url", "")).endswith("/createdAt")


def stand_in_of(resource: Resource, scopes: Mapping[str, Collection[Scope]]) -> str | None:
    """The id that a stand-in of a destination may have, or None where there can be none.

    Args:
        resource: The destination.
        scopes: What the vault config lets use each secret, by name.
    """
    kind, id_ = str(resource.get("kind", "")), f"{resource.get('id', '')}{STAND_IN}"
    if not kind.endswith(_AT_LEAST_ONCE) or kind.startswith(_EXPORTING) or len(id_) > _LONGEST_ID:
        return None
    of = Scope(DESTINATION, id_)
    names = {reference.name for reference in references_in(resource, of)}
    usable = all(any(scope.covers(of) for scope in scopes.get(name, ())) for name in names)
    return id_ if usable else None


def is_current(sender: Sender, rotated: float) -> bool:
    """Whether a sender started after a rotation (seconds since the epoch)."""
    return sender.is_alive and sender.started is not None and sender.started >= rotated


def is_outdated(sender: Sender, rotated: float) -> bool:
    """Whether a sender has the value from before a rotation, as far as is known."""
    return sender.is_alive and not is_current(sender, rotated)


def unfinished(resource: Resource, senders: Collection[Sender]) -> str | None:
    """What is not delivered yet, one line, or None where a DELETE drops nothing."""
    alive = [sender for sender in senders if sender.is_alive]
    if not alive:
        return "no replica has a sender, so what waits is unknown"
    best_effort = _BEST_EFFORT in str(resource.get("kind", ""))
    for sender in alive:
        queued = 0 if sender.queued is None and best_effort else sender.queued
        if queued is None:
            return f"messagesQueued is unknown at {sender.replica}"
        if queued or sender.in_process:
            return f"messagesQueued is {queued + sender.in_process} at {sender.replica}"
    return None


def started_at(sender: Sender | None) -> str | None:
    """When a sender started, as events carry it."""
    if sender is None or sender.started is None:
        return None
    return rfc3339(sender.started)
