"""The fleet: what the documents of all installations say, kept up to date.

It is pure. What that means for a secret is in `syncd.core.convergence`.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from syncd.core.convergence import Census
from syncd.core.installation import (
    ScopedSecret,
    checked_version,
    decode_scopes,
    decode_secrets,
    decode_secrets_and_scopes,
)
from syncd.core.member import Layout, Member

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from syncd.core.convergence import Convergence
    from syncd.core.installation import ReadInstallation, ReadSecret
    from syncd.core.model import Scope

_SPARE: Final = 1000
"""Texts that may be kept although no document has them any longer, beside as many as are in use."""


class Fleet:
    """All installations, by the documents that they wrote last.

    Args:
        scoped: Whether to keep the scopes of secrets, too.

    Attributes:
        members: By key in the bucket.
        unreadable: The installations whose newest document cannot be read, by key in the bucket.
    """

    def __init__(self, *, scoped: bool = False) -> None:
        self._scoped = scoped
        self._decode = decode_secrets_and_scopes if scoped else decode_secrets
        self.members: dict[str, Member] = {}
        self.unreadable: dict[str, str] = {}
        self._scopes: dict[str, bytes] = {}
        self._layouts: WeakValueDictionary[tuple[str, ...], Layout] = WeakValueDictionary()
        self._texts: dict[str, str] = {}
        self._versions: dict[str | None, str] = {}
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
        return Census(self.members.values(), self.unreadable.values(), now).of(secret, version)

    def convergences(self, secrets: Iterable[str], now: float) -> Iterator[Convergence]:
        """The convergence of several secrets, in less time; nothing may change meanwhile."""
        return map(Census(self.members.values(), self.unreadable.values(), now).of, secrets)

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
        names, items, known = tuple(secrets), secrets.values(), self._versions
        arrived = document.arrivals([item.changed_at for item in items], heard)
        written = [item.version for item in items]
        versions = [*map(known.get, written)]  # most are known: ten thousand have the same
        if None in versions:
            versions = [
                v if v is None else known.setdefault(checked_version(v), v) for v in written
            ]
        adopted = 0
        if any(states := [item.adopted for item in items]):
            for place, of_replicas in enumerate(states):
                if of_replicas and all(of_replicas.values()):
                    adopted |= 1 << place
        if self._scoped:
            self._keep_scopes(secrets)
        layout = self._layouts.get(names)
        if layout is None:
            places = {self._text(name): place for place, name in enumerate(names)}
            layout = self._layouts[tuple(places)] = Layout(places)
        if len(self._texts) + len(known) > self._room:
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

    def _keep_scopes(self, secrets: Mapping[str, ReadSecret]) -> None:
        scopes = {
            name: bytes(item.scope)
            for name, item in secrets.items()
            if isinstance(item, ScopedSecret)
        }
        if not scopes.items() <= self._scopes.items():
            for scope in scopes.values():
                decode_scopes(scope)
            self._scopes |= scopes

    def _text(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def _tidy(self) -> None:
        """Forgets texts that are in no document now."""
        members = self.members.values()
        versions = {text for member in members for text in member.versions if text is not None}
        names = set(self.names)
        self._versions = {version: version for version in versions}
        self._texts = {text: text for text in names | {member.key for member in members}}
        self._scopes = {name: scope for name, scope in self._scopes.items() if name in names}
        self._room = 2 * (len(self._texts) + len(versions)) + _SPARE


def _difference(before: Member | None, after: Member, heard: float) -> set[str]:
    places = after.layout.places
    if before is None or before.key != after.key or before.is_silent(heard):
        return {*places, *(before.layout.places if before else ())}
    old, new = before.states(), after.states()
    return {name for name in {**old, **new} if old.get(name) != new.get(name)}
