"""The document in which an installation publishes its state, and the bucket's names for it.

A bucket of NATS is a stream of the subjects `$KV.<bucket>.<key>`; a subject's newest message is
the value of its key (https://docs.nats.io/nats-concepts/jetstream/key-value-store). It has
no value of a secret, only versions.
"""

from __future__ import annotations

from typing import Final

import msgspec

from syncd.core.model import Scope, State
from syncd.core.nats_binding import escape

SILENT_AFTER: Final = 3
"""Heartbeats after which an installation that wrote nothing is silent."""


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

    @property
    def is_adopted(self) -> bool:
        """Whether every replica that was verified accepts the version, and there is one."""
        return bool(self.adopted) and all(self.adopted.values())


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


decode_installation: Final = msgspec.json.Decoder(Installation).decode
"""The document of JSON.

Raises `msgspec.MsgspecError`, `UnicodeDecodeError` or `RecursionError` where it is none.
"""


def bucket_stream(bucket: str) -> str:
    """The stream of a bucket."""
    return f"KV_{bucket}"


def bucket_subject(bucket: str, instance: str) -> str:
    """The subject of an installation's document.

    A key has letters, digits, `-`, `_`, `=` and `/`: escapes are written with `=`.
    """
    return f"$KV.{bucket}.{escape(instance).replace('%', '=').replace('~', '/')}"
