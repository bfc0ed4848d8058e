"""The document in which an installation publishes its state, and the bucket's names for it.

A bucket of NATS is a stream of the subjects `$KV.<bucket>.<key>`; a subject's newest message is
the value of its key (https://docs.nats.io/nats-concepts/jetstream/key-value-store). It has
no value of a secret, only versions.

Documents are read in two steps. Most are heartbeats, whose secrets are those of the document
before: they are recognised by the bytes, and not decoded.
"""

from __future__ import annotations

import re
from array import array
from datetime import datetime
from math import inf, nan
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import unquote

import msgspec

from syncd.core.model import Scope, State
from syncd.core.nats_binding import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

SILENT_AFTER: Final = 3
"""Heartbeats after which an installation that wrote nothing is silent."""

_SKEW: Final = 5.0
"""Seconds by which a clock may differ from the server's without a correction."""

_STEP: Final = 86400.0
"""Seconds by which a clock may have been set back between a change and the document."""

_VERSION: Final = re.compile(r"k[0-9]+:[0-9a-f]+")
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class InstalledSecret(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One secret of an installation.

    Attributes:
        version: The version that it has; None where it has none.
        state: What the last scan found.
        changed_at: When the version arrived (RFC 3339, UTC); None where it has not changed since
            the installation's first scan.
        scope: The resources that may use it.
        adopted: By `<consumer> <replica>`, whether the replica accepts this version, as far as that
            was verified.
    """

    version: str | None = None
    state: State = State.PRESENT
    changed_at: str | None = None
    scope: tuple[Scope, ...] = ()
    adopted: dict[str, bool] = {}


class Installation(msgspec.Struct, frozen=True):
    """The state of an installation.

    Attributes:
        instance: Its name.
        syncd: The version of syncd.
        time: When it wrote this (RFC 3339, UTC).
        key: Names the fingerprint key: versions are comparable where this is equal.
        ttl: Seconds after which the installation is silent unless it writes again.
        secrets: What the consumer may see, by name.
    """

    instance: str
    syncd: str
    time: str
    key: str
    ttl: float
    secrets: dict[str, InstalledSecret]


class ReadSecret(msgspec.Struct, gc=False):
    """What is read of an `InstalledSecret`."""

    version: str | None = None
    changed_at: str | None = None
    adopted: dict[str, bool] | None = None


class ScopedSecret(ReadSecret, gc=False):
    """The same with the scope, as JSON."""

    scope: msgspec.Raw = msgspec.Raw(b"[]")


class ReadInstallation(msgspec.Struct, gc=False):
    """What is read of an `Installation`; `secrets` is JSON."""

    instance: str
    time: _Moment
    key: str
    ttl: float
    secrets: msgspec.Raw

    def arrivals(self, moments: Sequence[str | None], stored: float) -> array[float]:
        """When versions arrived, seconds since the epoch by the server's clock; NaN for None.

        The clock of an installation may be wrong, and must not decide which version is the newest.

        Args:
            moments: The times by the clock of the installation (RFC 3339); what one scan found has
                one time.
            stored: When the server stored the document, seconds since the epoch.

        Raises:
            ValueError: Nothing of the document can have happened at such a time.
            msgspec.ValidationError: One of them is not a time.
        """
        skew = self.time.timestamp() - stored
        skew = skew if abs(skew) > _SKEW else 0.0
        times = {
            moment: msgspec.convert(moment, _Moment).timestamp() - skew
            for moment in set(moments)
            if moment is not None
        }
        if times and (min(times.values()) < 0 or max(times.values()) > stored + _STEP):
            raise ValueError("not between 1970 and the time of the document")
        if times and max(times.values()) > stored:
            times = {moment: min(time, stored) for moment, time in times.items()}
        return array("d", [nan if moment is None else times[moment] for moment in moments])


_decode_document: Final = msgspec.json.Decoder(ReadInstallation).decode
decode_secrets: Final = msgspec.json.Decoder(dict[str, ReadSecret]).decode
"""The secrets of a document, from JSON."""

decode_secrets_and_scopes: Final = msgspec.json.Decoder(dict[str, ScopedSecret]).decode
"""The same with their scopes."""

decode_scopes: Final = msgspec.json.Decoder(tuple[Scope, ...]).decode
"""The scopes of a secret, from JSON."""

UNUSABLE: Final = (ValueError, msgspec.MsgspecError, RecursionError)
"""What reading a document that is none may raise."""


def read_document(content: bytes) -> ReadInstallation:
    """The document of JSON; raises one of `UNUSABLE` where it is none."""
    document = _decode_document(content)
    if not 0 < document.ttl < inf:
        raise ValueError("a document that is never or always too old")
    return document


def checked_version(version: str) -> str:
    """The version, if it is one.

    Raises:
        ValueError: It is not.
    """
    if not _VERSION.fullmatch(version):
        raise ValueError("not a version")
    return version


def bucket_stream(bucket: str) -> str:
    """The stream of a bucket."""
    return f"KV_{bucket}"


def bucket_subject(bucket: str, instance: str) -> str:
    """The subject of an installation's document.

    A key has letters, digits, `-`, `_`, `=` and `/`: escapes are written with `=`.
    """
    return f"$KV.{bucket}.{escape(instance).replace('%', '=').replace('~', '/')}"


def instance_of(subject: str) -> str:
    """The installation that a bucket's subject names; of a long name, what the subject has."""
    return unquote(subject.split(".", 2)[-1].replace("=", "%").replace("/", "~"))
