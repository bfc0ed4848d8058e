"""The AuditEvent of a change (FHIR R4, https://hl7.org/fhir/R4/auditevent.html).

An R4 AuditEvent has no `identifier`, so a retry is distinguished from a new change by the
resource's id: it is made of the event's id (or, where several installations record one change, of
the change), and `If-None-Exist: _id=…` finds it. Aidbox's own page
on init bundles does the same, and documents that a POST keeps the id in its body. The other search
parameters of an AuditEvent would need a modifier (`entity:identifier`) that a server may ignore,
and then any AuditEvent would match.

The scoped resource is a logical reference: a server that checks references would refuse a literal
one for a scope with a Client that does not exist yet.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from syncd.core.model import ChangeKind
from syncd.core.timing import seconds_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.core.event_data import AdoptionData, DestinationData, FleetData, SecretData
    from syncd.core.model import Scope

TYPE_SYSTEM: Final = "urn:syncd:audit-event-type"
SUBTYPE_SYSTEM: Final = "urn:syncd:audit-event-subtype"
EVENT_SYSTEM: Final = "urn:syncd:event"
SOURCE_SYSTEM: Final = "urn:syncd:source"
RESOURCE_SYSTEM: Final = "urn:syncd:resource"

_ACTIONS: Final = {ChangeKind.ADDED: "C", ChangeKind.MODIFIED: "U", ChangeKind.REMOVED: "D"}
_DAY: Final = 86400
_SUCCESS: Final = "0"
_FAILURE: Final = "8"
_EXECUTE: Final = "E"
_CONVERGED: Final = "converged"
_HL7: Final = "http://terminology.hl7.org/CodeSystem"


def _coding(system: str, code: str, display: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": display}


_APPLICATION: Final = _coding(
    "http://dicom.nema.org/resources/ontology/DCM", "110150", "Application"
)
_APPLICATION_SERVER: Final = _coding(f"{_HL7}/security-source-type", "4", "Application Server")
_SYSTEM_OBJECT: Final = _coding(f"{_HL7}/audit-entity-type", "2", "System Object")
_SECURITY_RESOURCE: Final = _coding(f"{_HL7}/object-role", "13", "Security Resource")
_SECURITY_USER: Final = _coding(f"{_HL7}/object-role", "11", "Security User Entity")


def audit_event_id(event_id: str) -> str:
    """The resource's id, from the event's."""
    return f"syncd-{event_id}"


def shared_audit_event_ids(time: str, group: str | None, *about: str | None) -> tuple[str, ...]:
    """The ids that a resource may have where several installations record the same change.

    They have one fingerprint key, so a version is the same at each of them, and the id is made of
    it. The same change can happen again, after the value went back, so the day is a part of the id,
    by UTC. Installations may see a change on both sides of midnight, hence the days beside it.

    Args:
        time: When this installation saw the change (RFC 3339, UTC).
        group: What tells installations apart that have one key and record at one server.
        about: What happened, to which secret, and its versions.

    Returns:
        The id to create it with, and those that it may have already.
    """
    day = int(seconds_of(time) // _DAY)
    return tuple(
        f"syncd-{hashlib.blake2b(repr((at, group, *about)).encode(), digest_size=16).hexdigest()}"
        for at in (day, day - 1, day + 1)
    )


def audit_event(data: SecretData, *, event_id: str, source: str, time: str) -> dict[str, Any]:
    """The resource for one change, from the data and attributes of its event."""
    versions = {"version": data.version, "previous_version": data.previous_version}
    scopes = data.scope if isinstance(data.scope, list) else [data.scope]
    return {
        **_resource_of(f"secret-{data.change}", event_id=event_id, source=source, time=time),
        "action": _ACTIONS[data.change],
        "outcome": _SUCCESS,
        "entity": [_secret(data.secret, versions, event_id), *map(_resource, scopes)],
    }


def adoption_audit_event(
    data: AdoptionData, *, adopted: bool, event_id: str, source: str, time: str
) -> dict[str, Any]:
    """The resource for the outcome of a verification, from the data and attributes of its event."""
    outcome = "adopted" if adopted else "rejected"
    return {
        **_resource_of(f"secret-{outcome}", event_id=event_id, source=source, time=time),
        "action": _EXECUTE,
        "outcome": _SUCCESS if adopted else _FAILURE,
        "entity": [
            _secret(data.secret, {"version": data.version}, event_id),
            _resource(data.scope),
        ],
    }


def fleet_audit_event(data: FleetData, *, event_id: str, source: str, time: str) -> dict[str, Any]:
    """The resource for a version that the whole fleet has, from its event."""
    versions = {
        "version": data.version,
        "previous_version": data.previous_version,
        "instances": str(data.instances),
        "first_at": data.first_at,
        "last_at": data.last_at,
    }
    scopes = data.scope if isinstance(data.scope, list) else [data.scope]
    return {
        **_resource_of(f"secret-{_CONVERGED}", event_id=event_id, source=source, time=time),
        "action": _EXECUTE,
        "outcome": _SUCCESS,
        "entity": [_secret(data.secret, versions, event_id), *map(_resource, scopes)],
    }


def destination_audit_event(
    data: DestinationData, *, event_id: str, source: str, time: str
) -> dict[str, Any]:
    """The resource for the outcome of a recreation, from the data and attributes of its event."""
    outcome = "recreated" if data.reason is None else "stale"
    return {
        **_resource_of(f"destination-{outcome}", event_id=event_id, source=source, time=time),
        "action": _EXECUTE,
        "outcome": _SUCCESS if data.reason is None else _FAILURE,
        **({} if data.reason is None else {"outcomeDesc": data.reason}),
        "entity": [
            _secret(data.secret, {"version": data.version}, event_id),
            _resource(data.scope),
        ],
    }


def _resource_of(subtype: str, *, event_id: str, source: str, time: str) -> dict[str, Any]:
    syncd = {"display": "syncd", "identifier": {"system": SOURCE_SYSTEM, "value": source}}
    return {
        "resourceType": "AuditEvent",
        "id": audit_event_id(event_id),
        "type": _coding(TYPE_SYSTEM, "secret", "Secret"),
        "subtype": [_coding(SUBTYPE_SYSTEM, subtype, subtype.replace("-", " ").capitalize())],
        "recorded": time,
        "agent": [
            {"type": {"coding": [_APPLICATION]}, "who": syncd, "name": "syncd", "requestor": False}
        ],
        "source": {"observer": syncd, "type": [_APPLICATION_SERVER]},
    }


def _entity(what: dict[str, Any], role: dict[str, str], name: str) -> dict[str, Any]:
    return {"what": {**what, "display": name}, "type": _SYSTEM_OBJECT, "role": role, "name": name}


def _secret(name: str, versions: Mapping[str, str | None], event_id: str) -> dict[str, Any]:
    what = {"identifier": {"system": EVENT_SYSTEM, "value": event_id}}
    detail = [{"type": key, "valueString": value} for key, value in versions.items() if value]
    return {**_entity(what, _SECURITY_RESOURCE, name), "detail": detail}


def _resource(scope: Scope) -> dict[str, Any]:
    identifier = {"system": RESOURCE_SYSTEM, "value": str(scope)}
    what = {"type": scope.resource_type, "identifier": identifier}
    return _entity(what, _SECURITY_USER, str(scope))
