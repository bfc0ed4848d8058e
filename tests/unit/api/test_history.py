"""What streams read: from memory, from pages of the ledger, and what is no longer there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest
from support.mail import APP, Mail, change

from syncd.api.answers import Answers
from syncd.api.history import PAGE, History, Item
from syncd.api.positions import AllPositions, GrantPositions
from syncd.api.subscribers import View
from syncd.core.event_data import VAULT_CONFIG_CHANGED, VaultConfigData
from syncd.core.events import Event, Stamp
from syncd.core.model import Grant, Scope
from syncd.ledger.numbering import Base

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

STAMP = Stamp("5f0c2a91", "/syncd/test")


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path))
    yield mail
    mail.close()


async def fill(mail: Mail, count: int) -> list[Event]:
    return await mail.put(*(change("a", number + 1, number) for number in range(count)))


def sequences(items: Sequence[Item] | None) -> list[int]:
    assert items is not None
    return [item.event.sequence for item in items]


async def all_after(history: History, position: int) -> list[int]:
    found: list[int] = []
    while items := await history.read(position):
        found += sequences(items)
        position = found[-1]
    return found


async def test_old_events_come_from_the_ledger(mail: Mail) -> None:
    """Every event after any position comes once and in order, over the borders of pages."""
    await fill(mail, PAGE * 2 + 10)
    history = History(mail.ledger, PAGE * 2 + 10, Answers())
    for position in (0, 1, PAGE - 2, PAGE - 1, PAGE, PAGE * 2 + 9, PAGE * 2 + 10):
        assert await all_after(history, position) == list(range(position + 1, PAGE * 2 + 11))


async def test_recent_events_come_from_memory(mail: Mail) -> None:
    """What joins on to what is in memory is read without the ledger; it is not there at all."""
    history = History(mail.ledger, 0, Answers())
    events = [Event(n, "t", "x", "a", change("a", n, n - 1).data) for n in (1, 2, 3)]
    history.add(events[:1], keep=True)
    history.add(events[1:], keep=True)
    assert await all_after(history, 0) == [1, 2, 3]
    history.forget(2)
    assert sequences(history.at_hand(2)) == [3]
    assert history.at_hand(1) is None


async def test_what_does_not_join_on_is_read_from_the_ledger(mail: Mail) -> None:
    """A gap between two commits (another writer of the ledger) loses nothing."""
    events = await fill(mail, 6)
    history = History(mail.ledger, 0, Answers())
    history.add(events[:2], keep=True)
    history.add(events[4:], keep=True)
    assert await all_after(history, 0) == [1, 2, 3, 4, 5, 6]


async def test_events_that_were_not_added(mail: Mail) -> None:
    """An event that is in the ledger and not announced yet is not read, and not lost either."""
    events = await fill(mail, 4)
    history = History(mail.ledger, 2, Answers())
    assert await all_after(history, 0) == [1, 2]
    history.add(events[2:], keep=False)
    assert await all_after(history, 2) == [3, 4]


async def test_a_pruned_position(mail: Mail) -> None:
    """A position before the pruned events is reported as gone, though a mailbox kept an event."""
    await fill(mail, 2)
    mail.grants = {}
    await fill(mail, 8)  # the mailbox keeps event 2
    await anyio.to_thread.run_sync(mail.ledger.prune, 4, "")
    history = History(mail.ledger, 10, Answers())
    for position in range(6):
        assert await history.read(position) is None
    assert await all_after(history, 6) == [7, 8, 9, 10]
    assert await history.read(10) == ()


async def test_a_page_is_read_once(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred streams that resume on one page cost one read of the ledger."""
    await fill(mail, PAGE)
    history, reads = History(mail.ledger, PAGE, Answers()), 0
    read = mail.ledger.events_after

    def counted(sequence: int, limit: int) -> list[Event]:
        nonlocal reads
        reads += 1
        return read(sequence, limit)

    monkeypatch.setattr(mail.ledger, "events_after", counted)
    async with anyio.create_task_group() as tasks:
        for position in range(100):
            tasks.start_soon(history.read, position)
    assert reads == 1
    history.free(PAGE)  # while another stream sends much
    await history.read(0)
    assert reads == 1


def test_an_event_is_encoded_once_for_each_view(mail: Mail) -> None:
    """Views that show the same share a frame; a limited one has no name that is not its own."""
    other = Scope("IdentityProvider")
    data = VaultConfigData(("mine", "other"), (), (), ())
    item = Item(
        Event(7, "t", VAULT_CONFIG_CHANGED, "/c", data, {"mine": (APP,), "other": (other,)})
    )
    everything, filtered = View(Grant()), View(Grant(), ["mine"])
    whole = AllPositions(STAMP, mail.ledger)
    assert item.frame(everything, whole, 7) is item.frame(View(Grant()), whole, 7)
    frame = item.frame(filtered, whole, 7)
    assert frame is not None
    assert frame.startswith(b"id: 5f0c2a91-7\nevent: io.syncd.vault_config.changed\ndata: {")
    assert b"other" not in frame
    grant = Grant([APP])
    part = GrantPositions(Base("e", 0, 0), grant, "/syncd/test", mail.ledger)
    limited = item.frame(View(grant), part, 3)
    assert limited is item.frame(View(Grant([APP])), part, 3)
    assert limited == frame.replace(b"5f0c2a91-7", b"e-3")
    assert item.frame(View(Grant([Scope("Nobody")])), part, 3) is None
