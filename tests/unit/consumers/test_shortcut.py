"""Events that are posted by the thread that committed them: once, in order, and never lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs
from support.mail import APP, Mail, Naps, change, delivery, drained, running, subjects
from support.waiting import until

from syncd.consumers.shortcut import Shortcut
from syncd.core.errors import TemporaryError
from syncd.core.model import Grant, Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from syncd.consumers.delivery import Delivery
    from syncd.core.events import Event

OTHER = Scope("Client", "other")


class Receiver:
    """Notes which events were posted and which were delivered the usual way."""

    name = "hook"
    grant = Grant((APP,))
    max_in_flight = 2

    def __init__(self, max_batch: int = 1) -> None:
        self.max_batch = max_batch
        self.posted: list[str] = []
        self.delivered: list[str] = []
        self.open = 0
        self.takes = True
        self.failure: Exception | None = None
        self.gate = anyio.Event()
        self.gate.set()

    def reserve(self) -> Post:
        self.open += 1
        return Post(self)

    async def deliver(self, events: Sequence[Event]) -> None:
        self.delivered += subjects(events)
        await self.gate.wait()

    async def aclose(self) -> None:
        assert self.open == 0


class Post:
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def post(self, events: Sequence[Event]) -> bool:
        if self._receiver.failure is not None and not self._receiver.takes:
            raise self._receiver.failure
        if self._receiver.takes:
            self._receiver.posted += subjects(events)
        return self._receiver.takes

    async def outcome(self) -> None:
        receiver = self._receiver
        receiver.open -= 1
        await receiver.gate.wait()
        failure, receiver.failure = receiver.failure, None
        if failure is not None:
            raise failure

    def withdraw(self) -> None:
        self._receiver.open -= 1


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path / "state"), {"hook": Grant((APP,))})
    yield mail
    mail.close()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def loop(mail: Mail, receiver: Receiver) -> AsyncIterator[Delivery]:
    """Idle, with its shortcut open."""
    made = delivery(receiver, mail)
    async with running(made):
        await drained(made)
        yield made
        await drained(made)
        assert await mail.left() == 0


async def test_what_is_posted_is_not_delivered_again(
    loop: Delivery, mail: Mail, receiver: Receiver
) -> None:
    """It is acknowledged like every event, and then the next one can be posted."""
    for number in range(2, 5):
        events = await mail.put(change("a", number, number - 1))
        loop.post(events)
        loop.wake(events)
        await drained(loop)
    assert receiver.posted == ["a"] * 3
    assert receiver.delivered == []


async def test_the_loop_wakes_for_something_else_first(
    loop: Delivery, mail: Mail, receiver: Receiver
) -> None:
    """Another thread's commit, a resend or a retry come between the post and its announcement."""
    receiver.gate = anyio.Event()
    first, second = await mail.put(change("a", 2, 1)), await mail.put(change("b", 2, 1))
    loop.post(first)
    loop.post(second)
    loop.wake(second)
    await until(lambda: receiver.delivered)
    loop.wake(first)
    receiver.gate.set()
    await drained(loop)
    third = await mail.put(change("a", 3, 2))
    loop.post(third)
    loop.retry()
    await until(lambda: not loop._woken)
    await drained(loop)
    loop.wake(third)
    await drained(loop)
    assert receiver.posted == ["a", "a"]
    assert receiver.delivered == ["b"]


async def test_a_commit_that_does_not_follow_is_not_posted(
    loop: Delivery, mail: Mail, receiver: Receiver
) -> None:
    """What was committed before it, and is not known yet, comes first."""
    first, second = await mail.put(change("a", 2, 1)), await mail.put(change("a", 3, 2))
    loop.post(second)
    loop.wake(first)
    loop.wake(second)
    await drained(loop)
    assert receiver.posted == []
    assert set(receiver.delivered) == {"a"}


async def test_a_busy_consumer_is_not_posted_to(
    loop: Delivery, mail: Mail, receiver: Receiver
) -> None:
    """The newest state waits in the mailbox."""
    receiver.gate = anyio.Event()
    for number in range(2, 5):
        events = await mail.put(change("a", number, number - 1))
        loop.post(events)
        loop.wake(events)
    receiver.gate.set()
    await drained(loop)
    assert receiver.posted == ["a"]
    assert receiver.delivered == ["a"]


@pytest.mark.parametrize("failure", [None, RuntimeError("a bug")])
async def test_what_cannot_be_posted_is_delivered(
    loop: Delivery, mail: Mail, receiver: Receiver, failure: Exception | None
) -> None:
    """A connection that the receiver has closed, or a mistake in the consumer's code."""
    receiver.takes, receiver.failure = False, failure
    events = await mail.put(change("a", 2, 1))
    loop.post(events)
    loop.wake(events)
    await drained(loop)
    assert receiver.delivered == ["a"]


async def test_a_failure_of_what_was_posted_is_one_of_a_delivery(
    mail: Mail, receiver: Receiver
) -> None:
    """It is reported, waits, and is tried again; nothing is posted meanwhile."""
    naps = Naps(held=True)
    loop = delivery(receiver, mail, naps=naps)
    async with running(loop):
        await drained(loop)
        receiver.failure = TemporaryError("no answer")
        first, second = await mail.put(change("a", 2, 1)), await mail.put(change("b", 2, 1))
        with capture_logs() as logs:
            loop.post(first)
            loop.wake(first)
            await naps.begun()
            loop.post(second)
            loop.wake(second)
            naps.end()
            await drained(loop)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["delivery.retry"]
    assert receiver.posted == ["a"]
    assert sorted(receiver.delivered) == ["a", "b"]
    assert await mail.left() == 0


async def test_what_left_the_scope_is_not_posted(
    loop: Delivery, mail: Mail, receiver: Receiver
) -> None:
    """That is decided from the commit on that withdrew it."""
    first = await mail.put(change("a", 2, 1))
    second = await mail.put(change("a", 3, 2, OTHER))
    loop.post(first)
    loop.wake(first)
    loop.wake(second)
    await drained(loop)
    assert receiver.posted == receiver.delivered == []


async def test_a_configuration_that_was_replaced_posts_nothing(
    loop: Delivery, mail: Mail, receiver: Receiver
) -> None:
    """What was posted before is waited for, also where the loop had not heard of it."""
    receiver.gate = anyio.Event()
    first, second = await mail.put(change("a", 2, 1)), await mail.put(change("a", 3, 2))
    loop.post(first)
    loop.end()
    receiver.gate.set()
    await until(lambda: not receiver.open)
    loop.post(second)
    loop.wake(second)
    await drained(loop)
    assert receiver.posted == ["a"]


async def test_a_stop_waits_for_what_was_posted(mail: Mail, receiver: Receiver) -> None:
    """The answer is recorded, so that the next start delivers nothing twice."""
    loop = delivery(receiver, mail)
    async with running(loop):
        await drained(loop)
        loop.post(await mail.put(change("a", 2, 1)))
    assert receiver.posted == ["a"]
    assert await mail.left() == 0


def test_only_what_fits_into_one_delivery_is_posted() -> None:
    """Not too many, none twice, and at least one that the consumer may see."""
    receiver = Receiver(max_batch=2)

    def posted(*events: Event, most: int = 2) -> list[str]:
        shortcut = Shortcut(receiver.grant, most)
        shortcut.open(receiver.reserve(), 0)
        receiver.posted = []
        shortcut.post([_at(number, event) for number, event in enumerate(events, 1)])
        shortcut.post([_at(1, change("again", 2, 1))])
        return receiver.posted

    assert posted(change("a", 2, 1), change("b", 2, 1)) == ["a", "b"]
    assert posted(change("a", 2, 1), change("b", 2, 1, OTHER)) == ["a"]
    assert posted(change("a", 2, 1), change("b", 2, 1), change("c", 2, 1)) == ["again"]
    assert posted(change("a", 2, 1), change("a", 3, 2)) == ["again"]
    assert posted(change("b", 2, 1, OTHER)) == ["again"]
    assert posted(*(change(f"s{n}", 2, 1) for n in range(101)), most=1000) == ["again"]


def _at(sequence: int, event: Event) -> Event:
    return replace(event, sequence=sequence)
