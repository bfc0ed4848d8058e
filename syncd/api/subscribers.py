"""The callers of the API and what they may see: peer credentials, grants and filters.

The kernel identifies the user that called `connect` (`SO_PEERCRED`, unix(7)). Root and the daemon's
own user can read the mount itself, so they see everything; other users see what `api.subscribers`
grants, and without an entry nothing.

In a user namespace one uid stands for all users that are not mapped into it
(`syncd.system.accounts`). It identifies no user, so it has no grant, also with an entry in the
configuration.
"""

from __future__ import annotations

import os
import socket
import struct
import time
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
UNMAPPED_REMEDY: Final = "run both in one user namespace, or map the caller's user into syncd's"
"""What to do about a caller whose user is not mapped."""

_LOG_AGAIN: Final = 60.0
_DENIALS: Final = 10
log = structlog.get_logger()


class Peer(msgspec.Struct, frozen=True):
    """The process at the other end, as of when it connected."""

    pid: int
    uid: int
    gid: int


class Caller(msgspec.Struct, frozen=True):
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


def unmapped_reason(uid: int) -> str:
    """Why the uid of unmapped users identifies none of them."""
    return (
        "the caller's user is not mapped into the user namespace of syncd, "
        f"where every unmapped user has uid {uid}"
    )


def peer_of(connection: socket.socket) -> Peer:
    """The peer of a connection (`SO_PEERCRED`: pid, uid and gid, in this order)."""
    size = _UCRED.size
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))


class Subscribers:
    """Identifies callers by their uid.

    Args:
        granted: Name and grant of the configured users, by uid.
        unmapped_uid: The uid that every unmapped user has, or None where all users are mapped.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        granted: Mapping[int, tuple[str, Grant]],
        unmapped_uid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callers = {uid: Caller(uid, name, grant) for uid, (name, grant) in granted.items()}
        for uid, name in ((os.geteuid(), "syncd"), (0, "root")):
            self._callers[uid] = Caller(uid, name, Grant(), privileged=True)
        self._unmapped_uid = unmapped_uid
        if unmapped_uid is not None:
            # also where it is this process's own: then it is not mapped itself
            self._callers.pop(unmapped_uid, None)
        self._clock = clock
        self._logged: dict[int, float] = {}
        self._left_out = 0

    def caller(self, peer: Peer) -> Caller | None:
        """The caller of a peer; None without a grant, which is logged.

        Logged at most once a minute for each uid, and for `_DENIALS` uids in all: a user can have
        many (user_namespaces(7)). Those that were left out are counted in the next line.
        """
        found = self._callers.get(peer.uid)
        if found is None:
            self._log_denied(peer)
        return found

    def _log_denied(self, peer: Peer) -> None:
        now = self._clock()
        self._logged = {uid: at for uid, at in self._logged.items() if now - at < _LOG_AGAIN}
        if peer.uid in self._logged:
            return
        if len(self._logged) >= _DENIALS:
            self._left_out += 1
            return
        self._logged[peer.uid] = now
        denied = log.bind(uid=peer.uid, gid=peer.gid, pid=peer.pid)
        if self._left_out:
            denied = denied.bind(left_out=self._left_out)
            self._left_out = 0
        if peer.uid == self._unmapped_uid:
            denied.warning("api.denied", reason=unmapped_reason(peer.uid), hint=UNMAPPED_REMEDY)
        else:
            denied.warning("api.denied", hint="add the uid to api.subscribers")

    def refusal(self, peer: Peer) -> str:
        """What a peer without a grant gets as an answer: why, and what to do."""
        if peer.uid == self._unmapped_uid:
            return f"{unmapped_reason(peer.uid)}; {UNMAPPED_REMEDY}"
        return f"uid {peer.uid} may not use this socket; add the uid to api.subscribers"

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
