"""What a person can ask of a consumer: try now, send again. Requests of the API, for root alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from syncd.core.model import Grant
    from syncd.core.record import Record


class RetryReport(msgspec.Struct, frozen=True):
    """A consumer that is tried now.

    Attributes:
        consumer: Its name.
        pending: Events that it has not acknowledged.
    """

    consumer: str
    pending: Annotated[int, msgspec.Meta(ge=0)]


class ResendReport(msgspec.Struct, frozen=True):
    """A consumer that gets the present state again.

    Attributes:
        consumer: Its name.
        secrets: Names of the secrets that are sent.
    """

    consumer: str
    secrets: tuple[str, ...]


class TargetReport(msgspec.Struct, frozen=True):
    """One of several servers that were asked.

    Attributes:
        address: The server.
        status: The status of its answer, or null where there was none.
        problem: What is wrong with it, and what to do, or null.
    """

    address: str
    status: int | None
    problem: str | None


class TestReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of a ping.

    Attributes:
        consumer: Its name.
        event: Id of the event that was sent; for Aidbox, which gets none, that of the requests.
        acknowledged: Whether the consumer acknowledged it; for Aidbox, whether every replica
            accepted the credentials.
        address: Where it was sent.
        tls: Whether over TLS, which is always verified.
        status: The status of the answer, or null where there was none; of a command its exit code.
        seconds: From the request to the answer or failure.
        problem: Why it was not acknowledged, and what to do, or null.
        answer: What the server answered, for people; left out where the status says it.
        targets: Each server, of a consumer that has several; else left out.
    """

    __test__ = False  # to pytest, not a test

    consumer: str
    event: str
    acknowledged: bool
    address: str
    tls: bool
    status: int | None
    seconds: float
    problem: str | None
    answer: str | None = None
    targets: tuple[TargetReport, ...] = ()


class Actions(Protocol):
    """The consumers, for a person's requests. In the event loop only."""

    @property
    def grants(self) -> Mapping[str, Grant]:
        """What each consumer may see, by name."""

    def unwritten(self) -> Mapping[str, Sequence[Record]]:
        """Attempts to deliver that are not in the ledger yet, by consumer."""

    def retry(self, consumer: str) -> int:
        """Tries what waits now, regardless of the backoff; returns how many events are pending."""

    async def test(self, consumer: str) -> TestReport:
        """Sends a ping now, past the mailbox.

        Raises:
            RefusedError: The consumer takes none.
            StateError: The ledger cannot be used.
        """

    async def resend(self, consumer: str, secret: str | None) -> tuple[str, ...]:
        """Sends the newest state again; returns the names of the secrets.

        Args:
            consumer: The consumer.
            secret: One secret, or None for all that the consumer may see.

        Raises:
            RefusedError: There is nothing to send, or this installation has no state of its own.
            StateError: The ledger cannot be used.
        """
