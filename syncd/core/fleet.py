"""Convergence: from the documents of all installations to what each of them has of a secret.

The rules:

- Versions are compared among installations with one fingerprint key, the one that most have; an
  installation with another key is lagging, since what it has is not known.
- The newest version is the one that arrived last anywhere (`changed_at`). One that has not changed
  since an installation's first scan is no arrival: a replica that starts with yesterday's secret
  does not make that the newest. Where nothing arrived, it is the one that most have.
- An installation is silent when its document is older than its `ttl`. A silent one has proven
  nothing, also where it had the newest version.
- A secret has converged when every installation that has it in its vault config has the newest
  version, and none is silent.

It is pure, and holds about 150 bytes for each secret of each installation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from syncd.core.timing import seconds_of

if TYPE_CHECKING:
    from syncd.core.installation import Installation, InstalledSecret
    from syncd.core.model import Scope


class Held(msgspec.Struct, frozen=True, gc=False):
    """What an installation has of one secret.

    Attributes:
        version: The version, or None.
        arrived: When it arrived, seconds since the epoch; None where it was there from the start.
        adopted: Whether every replica that was verified accepts it, and one was.
    """

    version: str | None
    arrived: float | None
    adopted: bool


class Member(msgspec.Struct):
    """One installation.

    Attributes:
        instance: Its name.
        key: Names its fingerprint key.
        heard: When its document was stored, seconds since the epoch.
        ttl: Seconds after which it is silent.
        secrets: What it has, by name.
    """

    instance: str
    key: str
    heard: float
    ttl: float
    secrets: dict[str, Held]

    def is_silent(self, now: float) -> bool:
        """Whether it should have written again by now (seconds since the epoch)."""
        return now - self.heard > self.ttl


class Convergence(msgspec.Struct, frozen=True):
    """How far a secret has spread.

    Attributes:
        secret: Its name.
        version: The newest version, or the one that was asked for; None where there is none.
        key: Names the key of the versions that were compared.
        instances: How many installations have the secret in their vault config.
        have: How many of them have the version, and are not silent.
        adopted: How many of these have proven that their replicas accept it.
        older: Installations that have another version or none, sorted.
        silent: Installations that are silent, sorted.
        incomparable: Installations that have another key, sorted.
        versions: How many installations have which version, silent ones included.
        first: When the version arrived first, seconds since the epoch, or None.
        last: When it arrived last.
    """

    secret: str
    version: str | None
    key: str | None
    instances: int
    have: int
    adopted: int
    older: tuple[str, ...]
    silent: tuple[str, ...]
    incomparable: tuple[str, ...]
    versions: Mapping[str, int]
    first: float | None
    last: float | None

    @property
    def converged(self) -> bool:
        """Whether all have it."""
        return self.version is not None and 0 < self.instances == self.have

    @property
    def is_adopted(self) -> bool:
        """Whether all have it, and all have proven adoption."""
        return self.converged and self.adopted == self.instances

    @property
    def lagging(self) -> tuple[str, ...]:
        """Installations that do not have it, or have not proven that they do, sorted."""
        return tuple(sorted({*self.older, *self.silent, *self.incomparable}))

    @property
    def seconds(self) -> float | None:
        """How long the version took from the first installation to the last; None if unknown."""
        if self.first is None or self.last is None:
            return None
        return round(self.last - self.first, 3)


class Fleet:
    """All installations, by the documents that they wrote last.

    Attributes:
        members: By key in the bucket.
        scopes: The resources that may use a secret, by its name, as of the last document.
    """

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.scopes: dict[str, tuple[Scope, ...]] = {}
        self._names: dict[str, str] = {}

    def update(self, key: str, document: Installation, heard: float) -> set[str]:
        """Takes over a document; returns the secrets for which something may have changed."""
        before = self.members.get(key)
        secrets = {self._intern(name): self._held(item) for name, item in document.secrets.items()}
        self.members[key] = Member(
            document.instance, self._intern(document.key), heard, document.ttl, secrets
        )
        for name, item in document.secrets.items():
            if self.scopes.get(name) != item.scope:
                self.scopes[self._intern(name)] = item.scope
        if before is None or before.key != document.key or before.is_silent(heard):
            return {*secrets, *(before.secrets if before else ())}
        return {
            name
            for name in {**secrets, **before.secrets}
            if secrets.get(name) != before.secrets.get(name)
        }

    def forget(self, key: str) -> set[str]:
        """Drops an installation whose document was deleted; returns its secrets."""
        gone = self.members.pop(key, None)
        return set(gone.secrets) if gone else set()

    def expire(self, before: float) -> set[str]:
        """Drops installations whose document is older; returns their secrets."""
        gone = [key for key, member in self.members.items() if member.heard < before]
        return set().union(*(self.forget(key) for key in gone))

    @property
    def names(self) -> list[str]:
        """The names of all secrets, sorted."""
        return sorted({name for member in self.members.values() for name in member.secrets})

    def silent(self, now: float) -> list[str]:
        """The installations that are silent, sorted."""
        return sorted(m.instance for m in self.members.values() if m.is_silent(now))

    def convergence(self, secret: str, now: float, version: str | None = None) -> Convergence:
        """How far a secret has spread.

        Args:
            secret: Its name.
            now: Seconds since the epoch.
            version: What counts as the newest version; found by the rules if not given.
        """
        holders = [(m, m.secrets[secret]) for m in self.members.values() if secret in m.secrets]
        keys = Counter(member.key for member, _ in holders)
        key = max(keys, key=lambda item: (keys[item], item)) if keys else None
        comparable = [(member, held) for member, held in holders if member.key == key]
        versions = Counter(held.version for _, held in comparable if held.version is not None)
        newest = version or _newest([held for _, held in comparable], versions)
        having = [
            (member, held)
            for member, held in comparable
            if held.version == newest and newest is not None
        ]
        live = [held for member, held in having if not member.is_silent(now)]
        arrivals = [held.arrived for _, held in having if held.arrived is not None]
        return Convergence(
            secret,
            newest,
            key,
            len(holders),
            len(live),
            sum(held.adopted for held in live),
            tuple(sorted(m.instance for m, h in comparable if h.version != newest or not newest)),
            tuple(sorted(m.instance for m, _ in holders if m.is_silent(now))),
            tuple(sorted(m.instance for m, _ in holders if m.key != key)),
            dict(versions),
            min(arrivals, default=None),
            max(arrivals, default=None),
        )

    def _intern(self, text: str) -> str:
        # ten thousand documents have the same names, keys and versions
        return self._names.setdefault(text, text)

    def _held(self, item: InstalledSecret) -> Held:
        version = None if item.version is None else self._intern(item.version)
        return Held(version, _seconds(item.changed_at), item.is_adopted)


def _newest(held: list[Held], versions: Mapping[str, int]) -> str | None:
    arrived: dict[str, float] = {}
    for item in held:
        if item.version is not None and item.arrived is not None:
            arrived[item.version] = max(item.arrived, arrived.get(item.version, item.arrived))
    return max(
        versions, key=lambda v: (arrived.get(v, float("-inf")), versions[v], v), default=None
    )


def _seconds(moment: str | None) -> float | None:
    return None if moment is None else seconds_of(moment)
