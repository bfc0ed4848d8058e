"""What a delivery loop takes straight from a commit, and what it must not send any more."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from support.mail import APP, Mail, change, delivery, drained, running, subjects, version
from support.waiting import DEADLINE

from syncd.consumers.backlog import DOUBT, Backlog
from syncd.core.event_data import SecretData
from syncd.core.model import Grant, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from syncd.core.events import Event
    from syncd.ledger.ledger import Ledger

OTHER = Scope("Client", "other")


class Receiver:
    """Takes one event at a time; while it is held, it answers none."""

    name = "hook"
    max_batch = 1

    def __init__(self, *, held: bool = False, max_in_flight: int = 1) -> None:
        self.grant = Grant((APP,))
        self.max_in_flight = max_in_flight
        self.got: list[Event] = []
        self.gate = anyio.Event()
        if not held:
            self.gate.set()

    async def deliver(self, events: Sequence[Event]) -> None:
        self.got += events
        await self.gate.wait()

    async def aclose(self) -> None:
        """Has nothing to close."""

    async def has(self, count: int) -> None:
        with anyio.fail_after(DEADLINE):
            while len(self.got) < count:
                await anyio.lowlevel.checkpoint()


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path / "state"), {"hook": Grant((APP,))})
    yield mail
    mail.close()


def count_looks(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions from which the mailbox was read."""
    looks: list[int] = []
    take = ledger.take

    def counted(consumer: str, grant: Grant, limit: int, after: int = 0) -> list[Event]:
        looks.append(after)
        return take(consumer, grant, limit, after)

    monkeypatch.setattr(ledger, "take", counted)
    return looks


async def test_a_commit_is_delivered_without_a_look_at_the_mailbox(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events go from their commit to an idle consumer, also after some that it may not see."""
    looks = count_looks(mail.ledger, monkeypatch)
    receiver = Receiver()
    loop = delivery(receiver, mail)
    async with running(loop):
        await drained(loop)
        del looks[:]
        for number in range(2, 6):
            loop.wake(await mail.put(change("a", number, number - 1)))
            await drained(loop)
            loop.wake(await mail.put(change("b", number, number - 1, OTHER)))
            await drained(loop)
    assert subjects(receiver.got) == ["a"] * 4
    assert looks == []
    assert await mail.left() == 0


async def test_commits_that_are_announced_in_another_order(mail: Mail) -> None:
    """Threads commit one after the other, and may be heard the other way round."""
    receiver = Receiver(held=True)
    loop = delivery(receiver, mail)
    async with running(loop):
        await drained(loop)
        first, second = await mail.put(change("a", 2, 1)), await mail.put(change("b", 2, 1))
        loop.wake(second)
        loop.wake(first)
        receiver.gate.set()
        await drained(loop)
        third = await mail.put(change("a", 3, 2))
        loop.wake(third)
        await drained(loop)
    assert sorted(subjects(receiver.got)) == ["a", "a", "b"]
    assert await mail.left() == 0


async def test_a_commit_that_meets_a_busy_consumer_waits_in_the_mailbox(mail: Mail) -> None:
    """What comes while events are in flight is merged there, and told against what was known."""
    receiver = Receiver(held=True)
    loop = delivery(receiver, mail)
    async with running(loop):
        await drained(loop)
        loop.wake(await mail.put(change("a", 2, 1)))
        await receiver.has(1)
        loop.wake(await mail.put(change("a", 3, 2)))
        loop.wake(await mail.put(change("a", 4, 3)))
        receiver.gate.set()
        await drained(loop)
    data = [event.data for event in receiver.got if isinstance(event.data, SecretData)]
    told = [(item.previous_version, item.version) for item in data]
    assert told == [(version(1), version(2)), (version(2), version(4))]


def test_two_events_of_one_secret_in_one_commit_are_left_to_the_mailbox() -> None:
    """A relay receives several at once, and the mailbox keeps the newest."""
    backlog = Backlog(1, 1, Random(7))
    backlog.take([], 16, newest=4)
    older, newer = change("a", 2, 1), change("a", 3, 2)
    assert not backlog.offer([older, newer], 5, 6)
    assert backlog.offer([newer], 5, 5)


def test_what_is_posted_is_the_next_delivery() -> None:
    """So nothing is posted while the next delivery would be none, or a smaller one."""

    def idle() -> Backlog:
        backlog = Backlog(2, 2, Random(7))
        backlog.take([], 16, newest=4)
        return backlog

    backlog = idle()
    assert backlog.is_calm(0.0)
    backlog.halted = 1
    assert not backlog.is_calm(0.0)
    backlog = idle()
    backlog.resume = 5.0
    assert not backlog.is_calm(4.0)
    assert backlog.is_calm(5.0)
    backlog = idle()
    backlog._in_a_row = DOUBT
    assert not backlog.is_calm(0.0)
    backlog = idle()
    assert backlog.offer([change("a", 2, 1)], 5, 5)
    assert not backlog.is_calm(0.0)


@pytest.mark.parametrize("woken", [True, False])
async def test_what_left_the_scope_is_not_sent(mail: Mail, *, woken: bool) -> None:
    """An event that was fetched ahead is dropped, when its secret leaves the consumer's scope.

    That holds from the commit on, before the loop has heard of it.
    """
    receiver = Receiver(held=True)
    loop = delivery(receiver, mail)
    await mail.put(*(change(name, 2, 1) for name in "abc"))
    async with running(loop):
        await receiver.has(1)
        events = await mail.put(change("b", 3, 2, OTHER))
        if woken:
            loop.wake(events)
        receiver.gate.set()
        await drained(loop)
    assert subjects(receiver.got) == ["a", "c"]
    assert await mail.left() == 0
