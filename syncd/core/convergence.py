"""Convergence: what each installation has of a secret, and whether that is the newest version.

The rules:

- Versions are compared among installations with one fingerprint key, the one that most have; an
  installation with another key is lagging, since what it has is not known.
- The newest version is the one that arrived last anywhere (`changed_at`). One that has not changed
  since an installation's first scan is no arrival: a replica that starts with yesterday's secret
  does not make that the newest. Where nothing arrived, it is the one that most have.
- An installation is silent when its document is older than its `ttl`. A silent one has proven
  nothing, also where it had the newest version.
- An installation whose newest document cannot be read is unreadable: which secrets it has is not
  known, so none has converged. What it had before counts until it is silent.
- A secret has converged when every installation that has it in its vault config has the newest
  version, and none is silent or unreadable.

It is pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from syncd.core.member import Layout, Member


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
        unreadable: Installations whose document cannot be read, sorted.
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
    unreadable: tuple[str, ...]
    versions: Mapping[str, int]
    first: float | None
    last: float | None

    @property
    def converged(self) -> bool:
        """Whether all have it."""
        known = self.version is not None and not self.unreadable
        return known and 0 < self.instances == self.have

    @property
    def is_adopted(self) -> bool:
        """Whether all have it, and all have proven adoption."""
        return self.converged and self.adopted == self.instances

    @property
    def lagging(self) -> tuple[str, ...]:
        """Installations that do not have it, or have not proven that they do, sorted."""
        return tuple(sorted({*self.older, *self.silent, *self.incomparable, *self.unreadable}))

    @property
    def deviates(self) -> str | None:
        """The version of all but one installation, which alone has the newest; None otherwise.

        Where nothing changes any longer, it is that one whose value is another, and not the others
        that have missed a rotation.
        """
        others = [version for version in self.versions if version != self.version]
        if self.version is None or self.versions.get(self.version) != 1 or len(others) != 1:
            return None
        return others[0] if self.versions[others[0]] > 1 else None

    @property
    def seconds(self) -> float | None:
        """How long the version took from the first installation to the last; None if unknown."""
        if self.first is None or self.last is None:
            return None
        return round(self.last - self.first, 3)


class _Group:
    """Members with the same secrets and the same key; see `Layout`."""

    def __init__(self, places: dict[str, int], key: str, members: list[Member], now: float) -> None:
        self.places = places
        self.key = key
        self.members = members
        self.live = [member for member in members if now - member.heard <= member.ttl]
        self.silent: list[str] = []
        if len(self.live) < len(members):
            self.silent = [member.instance for member in members if member.is_silent(now)]
        self.has_adopted = any(member.adopted for member in self.live)

    def have(self, place: int, version: str) -> int:
        """How many have a version, and are not silent."""
        return [member.versions[place] for member in self.live].count(version)

    def adopted(self, place: int, version: str) -> int:
        """How many of these have proven adoption."""
        if not self.has_adopted:
            return 0
        return sum(m.adopted >> place & 1 for m in self.live if m.versions[place] == version)


class Census:
    """All installations, as they are at one moment.

    Args:
        members: Those whose documents were read; they must not change while this is used.
        unreadable: Those whose newest document cannot be read.
        now: The moment, seconds since the epoch.
    """

    def __init__(self, members: Iterable[Member], unreadable: Iterable[str], now: float) -> None:
        alike: defaultdict[tuple[Layout, str], list[Member]] = defaultdict(list)
        for member in members:
            alike[member.layout, member.key].append(member)
        self._groups = [
            _Group(layout.places, key, found, now) for (layout, key), found in alike.items()
        ]
        self._unreadable = tuple(sorted(unreadable))

    def of(self, secret: str, version: str | None = None) -> Convergence:
        """How far a secret has spread.

        Args:
            secret: Its name.
            version: What counts as the newest version; found by the rules if not given.
        """
        holders = [(g, g.places[secret]) for g in self._groups if secret in g.places]
        keys: Counter[str] = Counter()
        for group, _ in holders:
            keys[group.key] += len(group.members)
        key = max(keys, key=lambda item: (keys[item], item), default=None)
        comparable = [(group, place) for group, place in holders if group.key == key]
        held = [m.versions[place] for group, place in comparable for m in group.members]
        versions = Counter(filter(None, held))
        arrivals = _arrivals(
            held, [m.arrived[place] for group, place in comparable for m in group.members]
        )
        newest = version or max(
            versions,
            key=lambda item: (max(arrivals[item], default=-inf), versions[item], item),
            default=None,
        )
        at, instances, have, adopted = arrivals[newest], keys.total(), 0, 0
        if newest is not None:
            have = sum(group.have(place, newest) for group, place in comparable)
            adopted = sum(group.adopted(place, newest) for group, place in comparable)
        older: list[str] = []
        silent: list[str] = []
        incomparable: list[str] = []
        if have < instances:
            for group, place in holders:
                silent += group.silent
                if group.key != key:
                    incomparable += [m.instance for m in group.members]
                else:
                    older += [
                        m.instance
                        for m in group.members
                        if newest is None or m.versions[place] != newest
                    ]
        return Convergence(
            secret,
            newest,
            key,
            instances,
            have,
            adopted,
            tuple(sorted(older)),
            tuple(sorted(silent)),
            tuple(sorted(incomparable)),
            self._unreadable,
            versions,
            min(at, default=None),
            max(at, default=None),
        )


def _arrivals(held: list[str | None], arrived: list[float]) -> defaultdict[str | None, list[float]]:
    """When each version arrived; nothing of None, and nothing that was there from the start."""
    found: defaultdict[str | None, list[float]] = defaultdict(list)
    if held and held[0] is not None and held.count(held[0]) == len(held):  # mostly, and faster
        found[held[0]] = [at for at in arrived if at == at]  # noqa: PLR0124 - not NaN
        return found
    for version, at in zip(held, arrived, strict=True):
        if version is not None and at == at:  # noqa: PLR0124 - not NaN
            found[version].append(at)
    return found
