"""Secret references in Aidbox's resources, and secrets that are still stored in them.

A resource refers to a secret in an extension of the primitive that would hold it (release 2602,
"External Secrets"), and where that primitive stands depends on the resource type; so every branch
of a resource is walked. The value of a field is never kept, only its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.core.model import Scope

REFERENCE_URL: Final = "http://health-samurai.io/fhir/secret-reference"
DESTINATION: Final = "AidboxTopicDestination"

Steps = tuple[str | int, ...]

_FIELDS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "Client": (("secret",),),
    # `client.certificate` can be a reference too, but a certificate is not a secret
    "IdentityProvider": (("client", "secret"), ("client", "private-key")),
    "TokenIntrospector": (
        ("jwt", "secret"),
        ("jwt", "keys", "k"),
        ("introspection_endpoint", "authorization"),
    ),
}
_PARAMETERS: Final = frozenset(
    {
        "awsAccessKeyId",
        "awsSecretAccessKey",
        "saslJaasConfig",
        "serviceAccountKey",
        "sslKeystoreKey",
    }
)
_CONFIDENTIAL_HEADER: Final = re.compile(
    r"[^:]*(auth|cookie|credential|key|password|secret|signature|token)[^:]*:", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference.

    Attributes:
        name: Of the secret.
        resource: Type and id of the resource that refers to it.
        where: The path to the name inside the resource.
    """

    name: str
    resource: Scope
    where: Steps


def references_in(resource: Mapping[str, object], of: Scope) -> Iterator[Reference]:
    """Every reference in a resource, at any depth; `of` is the resource's type and id."""
    # not by recursion: how deep a resource is nested is up to the server
    pending: list[tuple[object, Steps]] = [(resource, ())]
    while pending:
        tree, at = pending.pop()
        if isinstance(tree, dict):
            name = tree.get("valueString")
            if tree.get("url") == REFERENCE_URL and isinstance(name, str):
                yield Reference(name, of, (*at, "valueString"))
            pending += reversed([(item, (*at, key)) for key, item in tree.items()])
        elif isinstance(tree, list):
            pending += reversed([(item, (*at, index)) for index, item in enumerate(tree)])


def stored_secrets(resource: Mapping[str, object], type_: str) -> Iterator[Steps]:
    """The places where a resource holds a secret itself, in a field that could be a reference.

    A header of a destination counts if its name is one of a credential: `User-Agent` is not.
    """
    for path in _FIELDS.get(type_, ()):
        yield from _values(resource, path)
    parameters = resource.get("parameter")
    if type_ != DESTINATION or not isinstance(parameters, list):
        return
    for index, item in enumerate(parameters):
        value = item.get("valueString") if isinstance(item, dict) else None
        if not isinstance(value, str) or not value:
            continue
        name = item.get("name")
        if name in _PARAMETERS or (name == "header" and _CONFIDENTIAL_HEADER.match(value)):
            yield ("parameter", index, "valueString")


def _values(resource: object, path: tuple[str, ...]) -> Iterator[Steps]:
    """The places that a path leads to, through every element of the lists on it."""
    pending: list[tuple[object, tuple[str, ...], Steps]] = [(resource, path, ())]
    while pending:
        tree, left, at = pending.pop()
        if isinstance(tree, list):
            pending += reversed([(item, left, (*at, index)) for index, item in enumerate(tree)])
        elif not left:
            if isinstance(tree, str) and tree:
                yield at
        elif isinstance(tree, dict) and left[0] in tree:
            pending.append((tree[left[0]], left[1:], (*at, left[0])))


def field_of(reference: Reference, resource: Mapping[str, object]) -> str:
    """The field that a reference is in: a destination's parameter, or a primitive."""
    where = reference.where
    parameters = resource.get("parameter")
    if where[0] == "parameter" and isinstance(where[1], int) and isinstance(parameters, list):
        item = parameters[where[1]]
        return str(item.get("name", "")) if isinstance(item, dict) else ""
    steps = [step for step in where if isinstance(step, str) and step.startswith("_")]
    return steps[-1][1:] if steps else ""
