"""The connection below an event stream, as far as the stream must know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class Link(Protocol):
    """The connection under a stream.

    Attributes:
        on_lost: Called when the peer is gone.
        send_timeout: Seconds in which the client must take one write.
    """

    on_lost: Callable[[], None] | None
    send_timeout: float

    @property
    def lost(self) -> bool:
        """Whether the peer is gone."""

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not accepted yet."""

    def abort(self) -> None:
        """Closes at once; unsent bytes are dropped."""


class Blocked(msgspec.Struct):
    """A send that waits for the peer.

    Attributes:
        since: When the peer last read something, monotonic seconds.
        last: The newest event at that time.
        unsent: Unsent bytes at that time.
    """

    since: float
    last: int
    unsent: int
