"""The callers of the API and what they may see: peer credentials, grants and filters.

The kernel identifies the user that called `connect` (`SO_PEERCRED`, unix(7)). Root and the daemon's
own user can read the mount itself, so they see everything; other users see what `api.subscribers`
grants, and without an entry nothing.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from syncd.api.admission import Share
from syncd.core.model import Grant, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from syncd.core.events import Event

MOST_FILTERS: Final = 20
"""Secrets, and resources, that one request can filter by."""

MOST_GRANTED: Final = 256
"""Simultaneous connections of one granted user."""

MOST_UNGRANTED: Final = 64
"""Simultaneous connections of all users without a grant together, who can have many uids
(user_namespaces(7))."""

_UCRED: Final = struct.Struct("iII")
_LOG_AGAIN: Final = 60.0
_REMEMBERED: Final = 256
log = structlog.get_logger()


class Peer(msgspec.Struct, frozen=True):
    """The process at the other end, as of when it connected."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Caller:
    """A user who may use the API.

    Attributes:
        uid: The user.
        name: The user's name in the log.
        grant: What the user may see.
        privileged: Whether this is root or the daemon's own user.
    """

    uid: int
    name: str
    grant: Grant
    privileged: bool = False


def peer_of(connection: socket.socket) -> Peer:
    """The peer of a connection (`SO_PEERCRED`: pid, uid and gid, in this order)."""
    size = _UCRED.size
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))


class Subscribers:
    """Identifies callers by their uid.

    Args:
        granted: Name and grant of the configured users, by uid.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        granted: Mapping[int, tuple[str, Grant]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callers = {uid: Caller(uid, name, grant) for uid, (name, grant) in granted.items()}
        for uid, name in ((os.geteuid(), "syncd"), (0, "root")):
            self._callers[uid] = Caller(uid, name, Grant(), privileged=True)
        self._clock = clock
        self._logged: dict[int, float] = {}

    def caller(self, peer: Peer) -> Caller | None:
        """The caller of a peer; None without a grant, logged at most once a minute for each uid."""
        found = self._callers.get(peer.uid)
        if found is None:
            now = self._clock()
            if now - self._logged.get(peer.uid, -_LOG_AGAIN) >= _LOG_AGAIN:
                if len(self._logged) >= _REMEMBERED:
                    self._logged.clear()
                self._logged[peer.uid] = now
                hint = "add the uid to api.subscribers"
                log.warning("api.denied", uid=peer.uid, gid=peer.gid, pid=peer.pid, hint=hint)
        return found

    def share(self, connection: socket.socket) -> Share:
        """What the user of a connection may have."""
        uid = peer_of(connection).uid
        found = self._callers.get(uid)
        if found is None:
            return Share(uid, None, MOST_UNGRANTED)
        return Share(uid, uid, MOST_GRANTED, found.privileged)


class View:
    """The secrets that one request shows: those of its caller's grant that match its filters.

    Args:
        grant: What the caller may see.
        secrets: Names to show; empty for all.
        resources: Resources to show; empty for all. A secret matches if the resource may use it:
            `Client/app` also matches a secret for all Clients, and `Client` one of any Client.

    Attributes:
        shows_all: Whether every secret is shown.
    """

    __slots__ = ("_grant", "_resources", "_secrets", "shows_all")

    def __init__(
        self, grant: Grant, secrets: Iterable[str] = (), resources: Iterable[Scope] = ()
    ) -> None:
        self._grant = grant
        self._secrets = frozenset(secrets)
        self._resources = tuple(resources)
        self.shows_all = grant.scopes is None and not self._secrets and not self._resources

    @property
    def key(self) -> object:
        """Views with equal keys show the same."""
        return (self._grant.scopes, self._secrets, frozenset(self._resources))

    def shows(self, name: str, scopes: Iterable[Scope]) -> bool:
        """Whether a secret is shown."""
        scopes = tuple(scopes)
        if not self._grant.sees(scopes) or (self._secrets and name not in self._secrets):
            return False
        return not self._resources or any(
            wanted.covers(scope) or scope.covers(wanted)
            for wanted in self._resources
            for scope in scopes
        )

    def see(self, event: Event) -> Event | None:
        """The part of an event that is shown, or None."""
        if self.shows_all:
            return event
        return event.about(
            name for name, scopes in event.audience.items() if self.shows(name, scopes)
        )


def resource(text: str) -> Scope | None:
    """Parses `Type` or `Type/id`; None if it is neither."""
    type_, slash, id_ = text.partition("/")
    if not type_ or (slash and not id_):
        return None
    return Scope(type_, id_ or None)
