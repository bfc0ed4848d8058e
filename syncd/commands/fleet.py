"""`syncd fleet`: has every installation got the new secret?

It reads the documents in the bucket and nothing else, so it can be run from anywhere, also while a
relay is down.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from syncd.commands.text import listed
from syncd.core.errors import TemporaryError
from syncd.core.text import escape_json, visible
from syncd.core.timing import rfc3339
from syncd.net.fleet_bucket import FleetBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from syncd.commands.table import Screen
    from syncd.config.settings import NatsServer
    from syncd.core.convergence import Convergence
    from syncd.core.fleet import Fleet

_RETRY: Final = 1.0


class SecretStatus(msgspec.Struct, frozen=True):
    """One secret in the output of `--format json`.

    Attributes:
        secret: Its name.
        version: The newest version.
        converged: Whether every installation has it.
        instances: How many installations have the secret in their vault config.
        have: How many of these have the version.
        adopted: How many have proven that their replicas accept it.
        older: Installations with another version, or none.
        silent: Installations that no longer write.
        incomparable: Installations with another fingerprint key.
        unreadable: Installations whose document cannot be read; they may have any secret.
        versions: How many installations have which version.
        first_at: When the version arrived first (RFC 3339, UTC); null if it was there from the
            start.
        last_at: When it arrived last.
        seconds: Between these two.
    """

    secret: str
    version: str | None
    converged: bool
    instances: int
    have: int
    adopted: int
    older: tuple[str, ...]
    silent: tuple[str, ...]
    incomparable: tuple[str, ...]
    unreadable: tuple[str, ...]
    versions: dict[str, int]
    first_at: str | None
    last_at: str | None
    seconds: float | None


class FleetStatus(msgspec.Struct, frozen=True):
    """The output of `--format json`."""

    bucket: str
    instances: int
    silent: list[str]
    unreadable: list[str]
    converged: bool
    secrets: list[SecretStatus]


async def status(server: NatsServer, bucket: str, secret: str | None) -> FleetStatus:
    """Reads the state of the fleet; of one secret, or of all.

    Raises:
        TemporaryError: The bucket does not exist, or the server cannot be reached.
        RefusedError: The login or a permission is missing.
    """
    reader = FleetBucket(server, bucket, "syncd fleet status")
    try:
        async with aclosing(reader.changes()) as changes:
            await anext(changes)
            return _status(reader.fleet, bucket, secret, time.time())
    finally:
        await reader.aclose()


def _status(fleet: Fleet, bucket: str, secret: str | None, now: float) -> FleetStatus:
    names = fleet.names if secret is None else [secret]
    found = [_secret_status(item) for item in fleet.convergences(names, now)]
    converged = bool(found) and all(item.converged for item in found)
    unreadable = sorted(fleet.unreadable.values())
    converged = converged and not unreadable
    return FleetStatus(bucket, len(fleet.members), fleet.silent(now), unreadable, converged, found)


def _secret_status(found: Convergence) -> SecretStatus:
    return SecretStatus(
        found.secret,
        found.version,
        found.converged,
        found.instances,
        found.have,
        found.adopted,
        found.older,
        found.silent,
        found.incomparable,
        found.unreadable,
        dict(found.versions),
        None if found.first is None else rfc3339(found.first),
        None if found.last is None else rfc3339(found.last),
        found.seconds,
    )


def as_json(found: FleetStatus) -> str:
    """For scripts."""
    return msgspec.json.format(escape_json(msgspec.json.encode(found)), indent=2).decode()


def as_text(found: FleetStatus, screen: Screen) -> str:
    """For people: a row for each secret, and what is behind."""
    unreadable = f", {len(found.unreadable)} unreadable" if found.unreadable else ""
    counts = f"{found.instances} installations in bucket {found.bucket}"
    lines = [f"{counts}, {len(found.silent)} silent{unreadable}"]
    rows: list[Sequence[str]] = [
        (
            *(item.secret, _short(item.version), f"{item.have} of {item.instances}"),
            *(str(len(names)) for names in (item.older, item.silent, item.incomparable)),
            *(str(item.adopted), "-" if item.seconds is None else f"{item.seconds:.1f} s"),
        )
        for item in found.secrets
    ]
    if rows:
        head = ("SECRET", "NEWEST", "HAVE IT", "OLDER", "SILENT", "OTHER KEY", "ADOPTED", "TOOK")
        lines += ["", *screen.table(head, rows)]
    behind = [
        visible(f"  {item.secret}: {reason}")
        for item in found.secrets
        if not item.converged
        for reason in _reasons(item)
    ]
    if found.unreadable:
        behind.append(visible(f"  documents that cannot be read: {listed(found.unreadable)}"))
    if behind:
        lines += ["", "needs attention:", *behind]
    return "\n".join(lines)


def _reasons(item: SecretStatus) -> list[str]:
    if not item.instances:
        return ["no installation has this secret"]
    kinds = {
        "an older version or none": item.older,
        "silent": item.silent,
        "another fingerprint key": item.incomparable,
    }
    return [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]


def _short(version: str | None) -> str:
    return "-" if version is None else version[:15]


class Goal(msgspec.Struct, frozen=True):
    """What `fleet wait` waits for.

    Attributes:
        secret: Name of the secret.
        version: The version that all must have; None for the newest.
        before: The version before the rotation, which is not it; or None.
        adopted: Whether all must have proven adoption, too.
    """

    secret: str
    version: str | None = None
    before: str | None = None
    adopted: bool = False

    def left(self, found: Convergence) -> str | None:
        """What is missing, one line, or None."""
        if not found.instances:
            return f"no installation has secret {self.secret}"
        if self.before is not None and found.version == self.before:
            return f"no installation has another version than {self.before}"
        if not found.converged:
            behind = listed(found.lagging)
            return (
                f"{found.have} of {found.instances} installations have {found.version}; "
                f"waiting for {behind}"
            )
        if self.adopted and not found.is_adopted:
            return f"{found.adopted} of {found.instances} installations have proven adoption"
        return None


async def wait(
    server: NatsServer, bucket: str, goal: Goal, limit: float, report: Callable[[str], None]
) -> str | None:
    """Waits until the fleet has what is asked for, at most so many seconds.

    Args:
        server: Addresses and login.
        bucket: Name of the bucket.
        goal: What to wait for.
        limit: Seconds.
        report: Is called with each new line of progress.

    Returns:
        None when that is so, else what is missing, one line.

    Raises:
        TemporaryError: The bucket could not be read even once.
        RefusedError: The login or a permission is missing.
    """
    reader = FleetBucket(server, bucket, "syncd fleet wait")
    missing: str | None = None
    failure: TemporaryError | None = None
    try:
        with anyio.move_on_after(limit):
            while True:
                try:
                    async with aclosing(reader.changes()) as changes:
                        async for _ in changes:
                            found = reader.fleet.convergence(goal.secret, time.time(), goal.version)
                            left = goal.left(found)
                            if left is None:
                                report(
                                    f"{found.have} of {found.instances} installations have "
                                    f"{found.version}"
                                )
                                return None
                            if left != missing:
                                report(left)
                            missing = left
                except TemporaryError as error:
                    failure = error
                    await anyio.sleep(_RETRY)
    finally:
        with anyio.CancelScope(shield=True):
            await reader.aclose()
    if missing is None:
        raise failure or TemporaryError(
            f"cannot read bucket {bucket}: no answer within {limit:g} s", "raise --timeout"
        )
    return missing
