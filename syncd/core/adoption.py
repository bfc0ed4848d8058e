"""Adoption: whether Aidbox uses the new value of a secret, decided from its responses.

The proof is the one of Aidbox's own tutorial: a request with HTTP Basic, the Client's id and the
new value. It is possible for a secret whose scope is one Client and no other. Whether Aidbox uses
the new secret of a TokenIntrospector or a destination cannot be verified.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from syncd.core.model import Known, Scope

CLIENT: Final = "Client"
_UNAUTHORIZED: Final = 401
_NOT_NOW: Final = frozenset((408, 425, 429))


class AdoptionState(enum.StrEnum):
    """How far the adoption of a secret's version is."""

    PENDING = "pending"
    ADOPTED = "adopted"
    REJECTED = "rejected"
    NOT_VERIFIABLE = "not_verifiable"


class Adoption(msgspec.Struct, frozen=True):
    """The adoption of a version.

    Attributes:
        state: How far it is.
        version: The version; None where it is not verifiable.
        seconds: From the scan that saw the change until the last replica adopted it, or until the
            deadline; None while pending.
        problem: Why it was rejected, one line, or None.
    """

    state: AdoptionState
    version: str | None = None
    seconds: float | None = None
    problem: str | None = None


NOT_VERIFIABLE: Final = Adoption(AdoptionState.NOT_VERIFIABLE)


def mailbox_of(consumer: str) -> str:
    """Name of the mailbox for what a consumer has to verify; a consumer's name has no slash."""
    return f"{consumer}/verify"


def client_of(scopes: Sequence[Scope]) -> str | None:
    """Id of the one Client that may use a secret, or None where adoption cannot be verified."""
    if len(scopes) != 1 or scopes[0].resource_type != CLIENT:
        return None
    return scopes[0].id


def adoption_of(known: Known, adoptions: Mapping[str, Adoption]) -> Adoption | None:
    """The adoption of the version that a secret has now, by the last one of each secret.

    None where it is not known yet.
    """
    if client_of(known.entry.scopes) is None:
        return NOT_VERIFIABLE
    found = adoptions.get(known.entry.name)
    return found if found is not None and found.version == known.version else None


def accepts(status: int) -> bool | None:
    """Whether a response proves that the credentials were accepted.

    Aidbox evaluates AccessPolicies after the credentials, so that a 403 proves these. A redirect, a
    server that is busy or broken, and the response of a proxy in its place prove nothing.

    Returns:
        None where the response proves neither.
    """
    if status == _UNAUTHORIZED:
        return False
    if status in _NOT_NOW or not (200 <= status < 300 or 400 <= status < 500):  # noqa: PLR2004
        return None
    return True
