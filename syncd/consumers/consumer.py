"""What delivery asks of a consumer, and what its failures mean.

An answer says something of the receiver or of the events that it was sent. Delivery waits with
everything for a receiver that is in trouble, and with nothing else for an event that is not taken:

- `TemporaryError`: no answer, or one that asks to wait. It is about the receiver.
- `UnusableError`: no request can be made until a person acts. It is about the receiver.
- `RefusedError`: the answer is about the events, all of them or one: which one is found by
  sending fewer.
- `UndeliveredError`: the same, where it is known which events were not taken, or where the answer
  may change by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.events import Event

if TYPE_CHECKING:
    from syncd.core.model import Grant


class Consumer(Protocol):
    """What events are delivered to."""

    @property
    def name(self) -> str:
        """Its name in the configuration, and that of its mailbox."""

    @property
    def grant(self) -> Grant:
        """What it may see."""

    @property
    def max_batch(self) -> int:
        """Events that one delivery carries, at most."""

    @property
    def max_in_flight(self) -> int:
        """Deliveries that it takes at the same time, at most."""

    async def deliver(self, events: Sequence[Event]) -> int | None:
        """Hands over events, oldest first; returns when the consumer has acknowledged them all.

        No two of the events concern one secret.

        Returns:
            The status of the answer, or None where there is none; errors have one, too.

        Raises:
            TemporaryError: The receiver accepts nothing now.
            UnusableError: Only a person can make a request possible.
            RefusedError: It rejects the events, or one of them.
            UndeliveredError: It has not accepted these events, and has acknowledged the others.
        """

    async def aclose(self) -> None:
        """Closes its connections."""


class Target(msgspec.Struct, frozen=True):
    """One of several servers that were asked.

    Attributes:
        address: The server.
        status: The status of its answer, or None where there was none.
        error: What is wrong with it, or None.
    """

    address: str
    status: int | None
    error: SyncdError | None


class Tested(msgspec.Struct, frozen=True):
    """The outcome of a ping.

    Attributes:
        address: Where it went.
        tls: Whether over TLS, which is always verified.
        status: The status of the answer, or None where there was none.
        error: Why it was not acknowledged, or None.
        answer: What the server answered, for people, or None where the status says it.
        targets: Of a consumer of several servers, each.
        is_proof: Whether an acknowledgement proves that events are accepted, too.
    """

    address: str
    tls: bool
    status: int | None
    error: SyncdError | None
    answer: str | None = None
    targets: tuple[Target, ...] = ()
    is_proof: bool = True


@runtime_checkable
class Testable(Protocol):
    """A consumer that takes a ping."""

    async def ping(self, ident: str, at: str) -> Tested:
        """Sends an `io.syncd.ping` event, past the mailbox; failures are in the outcome.

        Args:
            ident: Part of its id, used once.
            at: Its time (RFC 3339, UTC).
        """


class Posting(Protocol):
    """A delivery to an idle consumer that any thread can begin, once."""

    def post(self, events: Sequence[Event]) -> bool:
        """Sends events without waiting; returns whether that has begun. In any thread.

        Where it has not, nothing was sent, and they are to be delivered the usual way.
        """

    async def outcome(self) -> int | None:
        """What `Consumer.deliver` would return or raise, for the events that were posted."""

    def withdraw(self) -> None:
        """Gives it up; nothing was posted."""


@runtime_checkable
class Prompt(Protocol):
    """A consumer that events can be posted to."""

    def reserve(self) -> Posting | None:
        """Prepares one delivery, if that is possible now. In the event loop only."""


class UnusableError(RefusedError):
    """No event can be delivered until a person has changed something."""

    @classmethod
    def of(cls, error: RefusedError) -> UnusableError:
        """The same error, as one that is not about the events."""
        return cls(error.problem, error.remedy).answered(error.status)


class Undelivered(msgspec.Struct, frozen=True):
    """Events that failed together, by one answer.

    Attributes:
        events: At least one; with several it may be the fault of any.
        error: Why.
    """

    events: Sequence[Event]
    error: SyncdError


class UndeliveredError(SyncdError):
    """Some events of a delivery were not accepted, for reasons of their own.

    Attributes:
        groups: The events, as they failed; the others are acknowledged.
    """

    groups: tuple[Undelivered, ...] = ()


class _RetriedError(UndeliveredError, TemporaryError):
    """The answer may change by itself."""


class _RejectedError(UndeliveredError, RefusedError):
    """Only a person can change the answer."""


def undelivered(groups: Sequence[Undelivered]) -> UndeliveredError:
    """The error for events that were not accepted."""
    first = next((g for g in groups if isinstance(g.error, TemporaryError)), groups[0])
    more = f" (and {len(groups) - 1} more)" if len(groups) > 1 else ""
    kind = _RetriedError if isinstance(first.error, TemporaryError) else _RejectedError
    error = kind(f"{first.error.problem}{more}", first.error.remedy)
    error.groups = tuple(groups)
    return error.answered(first.error.status)
