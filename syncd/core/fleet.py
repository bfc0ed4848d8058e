"""Convergence: from the documents of all installations to what each of them has of a secret.

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

It is pure. Ten thousand documents have the same names, keys and versions, so each is kept once:
a secret of an installation takes about 17 bytes.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from math import inf, isnan
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import msgspec

from syncd.core.installation import (
    ScopedSecret,
    checked_version,
    decode_scopes,
    decode_secrets,
    decode_secrets_and_scopes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from syncd.core.installation import ReadInstallation
    from syncd.core.model import Scope

_SPARE: Final = 1000
"""Texts that may be kept although no document has them any longer, beside as many as are in use."""


class Layout(msgspec.Struct, weakref=True, eq=False):
    """The secrets of an installation, shared by all that have the same.

    Attributes:
        places: The place of each secret in the columns of a `Member`, by name.
    """

    places: dict[str, int]


class Member(msgspec.Struct):
    """One installation; what it has of its secrets is in columns, see `Layout`.

    Attributes:
        instance: Its name.
        key: Names its fingerprint key.
        heard: When its document was stored, seconds since the epoch.
        ttl: Seconds after which it is silent.
        content: Distinguishes what it has from what it had.
        layout: Its secrets.
        versions: The version of each, or None.
        arrived: When it arrived, seconds since the epoch; NaN where it was there from the start.
        adopted: A bit for each: whether every replica that was verified accepts it, and one was.
    """

    instance: str
    key: str
    heard: float
    ttl: float
    content: int
    layout: Layout
    versions: tuple[str | None, ...]
    arrived: array[float]
    adopted: int

    def is_silent(self, now: float) -> bool:
        """Whether it should have written again by now (seconds since the epoch)."""
        return now - self.heard > self.ttl

    def states(self) -> dict[str, tuple[str | None, float | None, bool]]:
        """Version, arrival and adoption of each secret, by name."""
        return {
            name: (
                self.versions[place],
                None if isnan(self.arrived[place]) else self.arrived[place],
                bool(self.adopted >> place & 1),
            )
            for name, place in self.layout.places.items()
        }


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


class _Group(msgspec.Struct, eq=False):
    """Members with the same secrets and the same key; see `Layout`."""

    places: dict[str, int]
    key: str
    members: list[Member]


class Fleet:
    """All installations, by the documents that they wrote last.

    Args:
        scoped: Whether to keep the scopes of secrets, too.

    Attributes:
        members: By key in the bucket.
        unreadable: The installations whose newest document cannot be read, by key in the bucket.
    """

    def __init__(self, *, scoped: bool = False) -> None:
        self._decode = decode_secrets_and_scopes if scoped else decode_secrets
        self.members: dict[str, Member] = {}
        self.unreadable: dict[str, str] = {}
        self._scopes: dict[str, bytes] = {}
        self._layouts: WeakValueDictionary[tuple[str, ...], Layout] = WeakValueDictionary()
        self._texts: dict[str, str] = {}
        self._room = _SPARE
        self._next_silence = inf
        self._silenced_at = -inf

    def update(self, key: str, document: ReadInstallation, heard: float) -> set[str]:
        """Takes over a document; returns the secrets for which something may have changed.

        Raises one of `installation.UNUSABLE` where its secrets are none; the fleet is as before.
        """
        before = self.members.get(key)
        raw = bytes(document.secrets)
        content = hash((document.key, raw))
        if before is not None and before.content == content:
            touched = set(before.layout.places) if before.is_silent(heard) else set()
            before.heard, before.ttl = heard, document.ttl
        else:
            member = self._member(document, raw, content, heard)
            touched = _difference(before, member, heard)
            self.members[key] = member
        touched |= self._set_unreadable(key, None)
        self._next_silence = min(self._next_silence, heard + document.ttl)
        return touched

    def distrust(self, key: str, instance: str) -> set[str]:
        """Notes that the newest document of an installation cannot be read; as `update`."""
        return self._set_unreadable(key, instance)

    def forget(self, key: str) -> set[str]:
        """Drops an installation whose document was deleted; as `update`."""
        gone = self.members.pop(key, None)
        secrets = set(gone.layout.places) if gone else set()
        return secrets | self._set_unreadable(key, None)

    def expire(self, before: float) -> set[str]:
        """Drops installations whose document is older; as `update`."""
        gone = [key for key, member in self.members.items() if member.heard < before]
        return set().union(*(self.forget(key) for key in gone))

    def silenced(self, now: float) -> set[str]:
        """The secrets of installations that have become silent since this was last asked."""
        if now <= self._next_silence:
            return set()
        ends = [(member.heard + member.ttl, member) for member in self.members.values()]
        since, self._silenced_at = self._silenced_at, now
        self._next_silence = min((end for end, _ in ends if end >= now), default=inf)
        return set().union(*(m.layout.places for end, m in ends if since <= end < now))

    @property
    def names(self) -> list[str]:
        """The names of all secrets, sorted."""
        layouts = {id(m.layout): m.layout for m in self.members.values()}.values()
        return sorted(set().union(*(layout.places for layout in layouts)))

    def scopes(self, secret: str) -> tuple[Scope, ...]:
        """The resources that may use a secret, as of the last document; see `scoped`."""
        return decode_scopes(self._scopes.get(secret, b"[]"))

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
        return self._convergence(self._groups(), secret, now, version)

    def convergences(self, secrets: Iterable[str], now: float) -> Iterator[Convergence]:
        """The convergence of several secrets, in less time; nothing may change meanwhile."""
        groups = self._groups()
        for secret in secrets:
            yield self._convergence(groups, secret, now, None)

    def _groups(self) -> list[_Group]:
        groups: defaultdict[tuple[Layout, str], list[Member]] = defaultdict(list)
        for member in self.members.values():
            groups[member.layout, member.key].append(member)
        return [_Group(layout.places, key, members) for (layout, key), members in groups.items()]

    def _convergence(
        self, groups: list[_Group], secret: str, now: float, version: str | None
    ) -> Convergence:
        holders = [(group, group.places[secret]) for group in groups if secret in group.places]
        keys: Counter[str] = Counter()
        for group, _ in holders:
            keys[group.key] += len(group.members)
        key = max(keys, key=lambda item: (keys[item], item), default=None)
        comparable = [(group.members, place) for group, place in holders if group.key == key]
        held = [m.versions[place] for members, place in comparable for m in members]
        arrived = [m.arrived[place] for members, place in comparable for m in members]
        versions = Counter([version for version in held if version is not None])
        arrivals = _arrivals(held, arrived)
        newest = version or max(
            versions,
            key=lambda item: (max(arrivals[item], default=-inf), versions[item], item),
            default=None,
        )
        at, instances = arrivals[newest], keys.total()
        live = (
            []
            if newest is None
            else [
                m.adopted >> place & 1
                for members, place in comparable
                for m in members
                if m.versions[place] == newest and now - m.heard <= m.ttl
            ]
        )
        older: list[str] = []
        silent: list[str] = []
        incomparable: list[str] = []
        if len(live) < instances:
            for group, place in holders:
                silent += [m.instance for m in group.members if m.is_silent(now)]
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
            len(live),
            sum(live),
            tuple(sorted(older)),
            tuple(sorted(silent)),
            tuple(sorted(incomparable)),
            tuple(sorted(self.unreadable.values())),
            versions,
            min(at, default=None),
            max(at, default=None),
        )

    def _set_unreadable(self, key: str, instance: str | None) -> set[str]:
        """An installation that may have any secret concerns all."""
        if self.unreadable.get(key) == instance:
            return set()
        if instance is None:
            del self.unreadable[key]
        else:
            self.unreadable[key] = instance
        return set(self.names)

    def _member(self, document: ReadInstallation, raw: bytes, content: int, heard: float) -> Member:
        secrets = self._decode(raw)
        names, items, texts = tuple(secrets), secrets.values(), self._texts
        arrived = document.arrivals([item.changed_at for item in items], heard)
        versions = [
            None if version is None else texts.get(version) or self._text(checked_version(version))
            for version in [item.version for item in items]
        ]
        adopted = 0
        for place, states in enumerate([item.adopted for item in items]):
            if states and all(states.values()):
                adopted |= 1 << place
        scopes = {
            name: bytes(item.scope)
            for name, item in secrets.items()
            if isinstance(item, ScopedSecret)
        }
        if not scopes.items() <= self._scopes.items():
            for scope in scopes.values():
                decode_scopes(scope)
            self._scopes |= scopes
        layout = self._layouts.get(names)
        if layout is None:
            places = {self._text(name): place for place, name in enumerate(names)}
            layout = self._layouts[tuple(places)] = Layout(places)
        if len(self._texts) > self._room:
            self._tidy()
        return Member(
            document.instance,
            self._text(document.key),
            heard,
            document.ttl,
            content,
            layout,
            tuple(versions),
            arrived,
            adopted,
        )

    def _text(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def _tidy(self) -> None:
        """Lets go of texts that no document has any longer."""
        members = self.members.values()
        used = {text for member in members for text in member.versions if text is not None}
        used |= {member.key for member in members}
        names = set(self.names)
        self._texts = {text: text for text in used | names}
        self._scopes = {name: scope for name, scope in self._scopes.items() if name in names}
        self._room = 2 * len(self._texts) + _SPARE


def _difference(before: Member | None, after: Member, heard: float) -> set[str]:
    places = after.layout.places
    if before is None or before.key != after.key or before.is_silent(heard):
        return {*places, *(before.layout.places if before else ())}
    old, new = before.states(), after.states()
    return {name for name in {**old, **new} if old.get(name) != new.get(name)}


def _arrivals(held: list[str | None], arrived: list[float]) -> defaultdict[str | None, list[float]]:
    """When each version arrived; nothing of None, and nothing that was there from the start."""
    found: defaultdict[str | None, list[float]] = defaultdict(list)
    for version, at in zip(held, arrived, strict=True):
        if version is not None and at == at:  # noqa: PLR0124 - not NaN
            found[version].append(at)
    return found
