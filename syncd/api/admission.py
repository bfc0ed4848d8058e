"""Which connections a server keeps: limits by owner, and who gives way when they are reached.

A connection takes a descriptor that a scan or a delivery needs, so every server has a limit. What
happens at the limit depends on who the callers are:

- `Shares`, for the Unix socket, where the kernel names the user: each user has a share, and a
  connection beyond it is refused. A share also bounds new connections in a second, so that a user
  who connects and closes in a loop costs next to nothing (and see `syncd.api.floods`). Users who
  may do everything have room that the others cannot take.
- `Newest`, for probes, where every user may connect: the newest connection is served and another
  one is closed for it, an idle one first. The kubelet counts a refused probe as a failed one, and
  restarts a container for it.

`Gate` applies the limits while connections are accepted. A refusal there takes a few microseconds;
a tenth of what it takes to make a protocol object, notice the limit, and close it again. Otherwise
one user could fill the queue of the listening socket faster than it is emptied, and the calls of
all the others would fail (`connect` returns EAGAIN for a full queue, unix(7)).
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Hashable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
"""The answer to a connection above the limit."""

RATE: Final = 200.0
"""New connections in a second that a user may make for long; a share at once."""

RESERVED: Final = 64
"""Connections of the total that only users who may do everything can have."""

_REFUSALS: Final = 512
_SAMPLE: Final = 8
_REFUSED: Final = 1 / 16
_NOW: Final = socket.MSG_DONTWAIT


class Share(msgspec.Struct, frozen=True):
    """What one owner of connections may have.

    Attributes:
        uid: The user at the other end.
        owner: Whose share it is; connections with equal owners share it.
        most: Simultaneous connections.
        privileged: Whether only the total bounds them, and nothing bounds new ones.
    """

    uid: int
    owner: Hashable
    most: int
    privileged: bool = False


class Occupant(Protocol):
    """A connection that was admitted."""

    @property
    def idle(self) -> bool:
        """Whether no request of it is being answered."""

    @property
    def since(self) -> float:
        """When it connected or was last answered, monotonic seconds."""

    def abort(self) -> None:
        """Closes at once; unsent bytes are dropped."""


class Admission(Protocol):
    """Decides which connections a server keeps."""

    def refuses(self, accepted: socket.socket) -> bool:
        """Whether `take` would refuse a connection, before anything is made of it."""

    def vain(self, accepted: socket.socket, count: float) -> None:
        """Notes connections in vain: closed by the peer at once, or refused.

        Called only while they arrive faster than they are refused.

        Args:
            accepted: One of them.
            count: How many it stands for. One that was refused counts less: its client waits for
                the answer, and so connects only as often as it has descriptors.
        """

    def take(self, connection: Occupant, accepted: socket.socket) -> bool:
        """Counts a connection; returns False, without counting it, if that exceeds a limit."""

    def release(self, connection: Occupant) -> None:
        """Stops counting a connection; it may have been refused."""


class Shares:
    """Refuses what exceeds the total, or the share of an owner.

    Args:
        most: Connections in total.
        share_of: Returns the share that a connection belongs to.
        flood: Called with a user, and a number of connections in vain.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        most: int,
        share_of: Callable[[socket.socket], Share],
        flood: Callable[[int, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._share_of = share_of
        self._flood = flood
        self._clock = clock
        self._owners: dict[Occupant, Hashable] = {}
        self._taken: Counter[Hashable] = Counter()
        # new connections that an owner may make at once, and when that was counted
        self._allowance: dict[Hashable, tuple[float, float]] = {}

    def refuses(self, accepted: socket.socket) -> bool:
        """See `Admission`."""
        return self._exceeds(self._share_of(accepted))

    def vain(self, accepted: socket.socket, count: float) -> None:
        """See `Admission`."""
        share = self._share_of(accepted)
        if not share.privileged:
            self._flood(share.uid, count)

    def take(self, connection: Occupant, accepted: socket.socket) -> bool:
        """See `Admission`."""
        share = self._share_of(accepted)
        if self._exceeds(share):
            return False
        self._owners[connection] = share.owner
        self._taken[share.owner] += 1
        if not share.privileged:
            self._allowance[share.owner] = (self._allowed(share) - 1, self._clock())
        return True

    def release(self, connection: Occupant) -> None:
        """See `Admission`."""
        if connection in self._owners:
            owner = self._owners.pop(connection)
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]

    def _exceeds(self, share: Share) -> bool:
        if share.privileged:
            return len(self._owners) >= self._most
        return (
            len(self._owners) >= self._most - min(RESERVED, self._most // 2)
            or self._taken[share.owner] >= share.most
            or self._allowed(share) < 1
        )

    def _allowed(self, share: Share) -> float:
        left, at = self._allowance.get(share.owner, (share.most, 0.0))
        return min(share.most, left + (self._clock() - at) * RATE)


class Newest:
    """Refuses nothing: at the limit, another connection is closed for the newest one.

    An idle one goes first, and among those one of the address that has the most, the oldest. So an
    address with few connections (the kubelet's) keeps them, however many another one has.

    Args:
        most: Connections in total.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._addresses: dict[Occupant, Hashable] = {}

    def refuses(self, accepted: socket.socket) -> bool:  # noqa: ARG002 - the protocol's
        """See `Admission`."""
        return False

    def vain(self, accepted: socket.socket, count: float) -> None:
        """See `Admission`: an address that gives no user away is not denied."""

    def take(self, connection: Occupant, accepted: socket.socket) -> bool:
        """See `Admission`."""
        if len(self._addresses) >= self._most:
            counts = Counter(self._addresses.values())
            victim = min(
                self._addresses,
                key=lambda item: (not item.idle, -counts[self._addresses[item]], item.since),
            )
            del self._addresses[victim]
            victim.abort()
        self._addresses[connection] = _address(accepted)
        return True

    def release(self, connection: Occupant) -> None:
        """See `Admission`."""
        self._addresses.pop(connection, None)


def _address(accepted: socket.socket) -> Hashable:
    try:
        peer = accepted.getpeername()
    except OSError:  # it is gone already
        return None
    return peer[0] if isinstance(peer, tuple) else None


class Gate(socket.socket):
    """A listening socket whose `accept` returns admitted connections only.

    Connections whose peer has gone, and those above a limit, are closed here.

    Args:
        listening: The socket to duplicate.
        admission: The limits.
    """

    def __init__(self, listening: socket.socket, admission: Admission) -> None:
        kind = (listening.family, listening.type, listening.proto)
        super().__init__(*kind, fileno=listening.dup().detach())
        self._admission = admission
        self._streak = 0  # of refusals, since the queue was empty or descriptors were short

    def accept(self) -> tuple[socket.socket, object]:
        """The next admitted connection, and its address.

        Raises:
            BlockingIOError: There is none, or so many were refused that it is others' turn.
            OSError: Descriptors are short.
        """
        for _ in range(_REFUSALS):
            try:
                accepted, address = super().accept()
            except OSError:
                self._streak = 0
                raise
            gone = _is_gone(accepted)
            if not gone:
                if not self._admission.refuses(accepted):
                    return accepted, address
                with suppress(OSError):
                    accepted.send(FULL, _NOW)
            self._streak += 1
            # looking up the user takes as long as all the rest
            if self._streak > _REFUSALS and self._streak % _SAMPLE == 0:
                self._admission.vain(accepted, _SAMPLE if gone else _SAMPLE * _REFUSED)
            accepted.close()
        raise BlockingIOError


def _is_gone(accepted: socket.socket) -> bool:
    try:
        return not accepted.recv(1, socket.MSG_PEEK | _NOW)
    except BlockingIOError:
        return False
    except OSError:
        return True
