"""Who asks, and what they may see: credentials of a Unix socket's peer, grants and filters.

The kernel vouches for the user behind a connection (`SO_PEERCRED`, unix(7)): it is whoever called
`connect`, at that time. Root and the daemon's own user could read the mount itself and see
everything; everybody else sees what `api.subscribers` grants, and without an entry nothing.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from syncd.core.model import Grant, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Protocol

    from syncd.core.events import Event

    class Socket(Protocol):
        """As much of a socket as it takes to ask for its peer."""

        def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
            """One of its options."""


MOST_FILTERS: Final = 20
"""Secrets, and resources, that one stream can be narrowed to."""

MOST_STRANGERS: Final = 64
"""Connections at a time of all users together that are not granted anything."""

_UCRED: Final = struct.Struct("iII")
_SAY_AGAIN: Final = 60.0
_REMEMBERED: Final = 256
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end when it connected."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Caller:
    """A user who may use the API.

    Attributes:
        name: What log lines call them.
        grant: What they may see.
        privileged: Root or the daemon's own user.
    """

    name: str
    grant: Grant
    privileged: bool = False


def peer_of(connection: Socket) -> Peer:
    """Who connected (`SO_PEERCRED`: pid, uid and gid, in this order)."""
    size = _UCRED.size
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))


class Subscribers:
    """Tells callers by their uid.

    Args:
        granted: Name and grant of the configured users, by uid.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        granted: Mapping[int, tuple[str, Grant]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callers = {uid: Caller(name, grant) for uid, (name, grant) in granted.items()}
        for uid, name in ((os.geteuid(), "syncd"), (0, "root")):
            self._callers[uid] = Caller(name, Grant(), privileged=True)
        self._clock = clock
        self._said: dict[int, float] = {}

    def caller(self, peer: Peer) -> Caller | None:
        """Who the peer is, or None with a log line: at the most one a minute for each uid."""
        found = self._callers.get(peer.uid)
        if found is None:
            now = self._clock()
            if now - self._said.get(peer.uid, -_SAY_AGAIN) >= _SAY_AGAIN:
                if len(self._said) >= _REMEMBERED:
                    self._said.clear()
                self._said[peer.uid] = now
                hint = "add the uid to api.subscribers"
                log.warning("api.denied", uid=peer.uid, gid=peer.gid, pid=peer.pid, hint=hint)
        return found

    def share(self, connection: Socket, most: int) -> tuple[int | None, int]:
        """Whose a connection counts as, and how many of `most` at a time they may have.

        A granted user gets half, so that none can crowd out the others; users that are not
        granted anything share a few, for anybody can have many uids (user_namespaces(7)).
        """
        uid = peer_of(connection).uid
        found = self._callers.get(uid)
        if found is None:
            return None, min(MOST_STRANGERS, most)
        return uid, most if found.privileged else max(1, most // 2)


class View:
    """What one request shows: what its caller may see, as far as its filters ask for it.

    Args:
        grant: What the caller may see.
        secrets: Names asked for; empty for all.
        resources: Resources asked for; empty for all. A secret matches if the resource may use it:
            `Client/app` matches a secret for all Clients too, and `Client` one of any Client.
    """

    __slots__ = ("_all", "_grant", "_resources", "_secrets")

    def __init__(
        self, grant: Grant, secrets: Iterable[str] = (), resources: Iterable[Scope] = ()
    ) -> None:
        self._grant = grant
        self._secrets = frozenset(secrets)
        self._resources = tuple(resources)
        self._all = grant.scopes is None and not self._secrets and not self._resources

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
        """The event as far as it is shown, or None."""
        if self._all:
            return event
        return event.about(
            name for name, scopes in event.audience.items() if self.shows(name, scopes)
        )


def resource(text: str) -> Scope | None:
    """Reads `Type` or `Type/id`; None if it is neither."""
    type_, slash, id_ = text.partition("/")
    if not type_ or (slash and not id_):
        return None
    return Scope(type_, id_ or None)
