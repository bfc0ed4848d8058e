"""Signs of life: every stream gets its comment in time, and the position that goes with it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace
from support.mail import APP, Mail, change, version
from support.waiting import DEADLINE

from syncd.api import history as histories, streams as broadcasting
from syncd.api.answers import Slot
from syncd.api.history import PAGE
from syncd.api.link import Blocked
from syncd.api.positions import GrantPositions, Place
from syncd.api.streams import BACKLOG, HEARTBEAT, STALLED, Broadcast, Stream
from syncd.api.subscribers import Caller, View
from syncd.core.events import Stamp
from syncd.core.model import Entry, Grant, Known, Scope, State
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
    from pathlib import Path

STAMP = Stamp("5f0c2a91", "/syncd/test")
OTHER = Scope("IdentityProvider", "x")


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path))
    yield mail
    mail.close()


class Peer:
    """A subscriber that takes everything at once."""

    def __init__(self) -> None:
        self.on_lost: Callable[[], None] | None = None
        self.lost = False
        self.send_timeout = 0.0
        self.unsent = 0
        self.received = b""
        self._arrived = anyio.Event()

    def abort(self) -> None:
        self.lost = True

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.received += message.get("body", b"")
        self._arrived.set()
        self._arrived = anyio.Event()

    async def wait(self, text: bytes, count: int) -> None:
        """Waits until a text has come that many times."""
        with anyio.fail_after(DEADLINE):
            while self.received.count(text) < count:
                await self._arrived.wait()


async def receive() -> MutableMapping[str, Any]:
    await anyio.sleep_forever()
    raise AssertionError


@asynccontextmanager
async def subscribed(
    mail: Mail,
    grant: Grant,
    *secrets: str,
    inventory: Mapping[str, Known] | None = None,
) -> AsyncIterator[tuple[Broadcast, Peer]]:
    """A running broadcast with one stream of it."""
    peer = Peer()
    limited = {}
    if grant.scopes is not None:
        bases = await anyio.to_thread.run_sync(mail.ledger.number, [grant])
        limited = {
            key: GrantPositions(base, grant, STAMP.source, mail.ledger)
            for key, base in bases.items()
        }
    broadcast = Broadcast(
        mail.ledger, STAMP, Metrics(), lambda: inventory or {}, 0, limited=limited
    )
    stream = Stream(
        broadcast,
        View(grant, secrets),
        peer,
        positions=broadcast.positions(grant),
        place=Place(0, 0),
        subscriber=Caller(7, "test", grant),
        follow=True,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broadcast.run)
        tasks.start_soon(stream, {}, receive, peer.send)
        await anyio.wait_all_tasks_blocked()
        yield broadcast, peer
        tasks.cancel_scope.cancel()


async def test_a_sign_of_life(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens a comment comes again and again: every 15 s."""
    assert HEARTBEAT == 15
    monkeypatch.setattr(broadcasting, "HEARTBEAT", 0.02)
    async with subscribed(mail, Grant()) as (_, peer):
        await peer.wait(b": heartbeat\n\n", 3)
    assert peer.received.startswith(b": syncd\nretry: 1000\nid: 5f0c2a91-0\n\n: heartbeat\n\n")


async def test_what_is_not_shown_leaves_no_trace(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream with a limited scope gets the same bytes, whatever happens outside of that scope."""
    monkeypatch.setattr(broadcasting, "HEARTBEAT", 0.02)
    async with subscribed(mail, Grant([APP])) as (broadcast, peer):
        await peer.wait(b": heartbeat\n\n", 1)
        broadcast.publish(await mail.put(*(change("x", n, n - 1, OTHER) for n in range(1, 50))))
        await peer.wait(b": heartbeat\n\n", peer.received.count(b": heartbeat\n\n") + 2)
        assert set(peer.received.partition(b"\n\n")[2].splitlines()) == {b": heartbeat", b""}
        broadcast.publish(await mail.put(change("a", 1, None, APP)))
        broadcast.publish(await mail.put(change("x", 51, 50, OTHER), change("a", 2, 1, APP)))
        await peer.wait(b"data:", 2)
        stamp = broadcast.positions(Grant([APP])).stamp
        assert stamp.epoch != STAMP.epoch
        ids = [line for line in peer.received.splitlines() if line.startswith(b"id: ")]
        assert ids == [f"id: {stamp.id(number)}".encode() for number in (0, 1, 2)]
        assert peer.received.count(f'"id":"{stamp.id(2)}"'.encode()) == 1


async def test_the_position_of_events_that_are_filtered(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with the next heartbeat, once: resuming there skips what is not wanted."""
    monkeypatch.setattr(broadcasting, "HEARTBEAT", 0.02)
    async with subscribed(mail, Grant(), "b") as (broadcast, peer):
        await peer.wait(b": heartbeat\n\n", 1)
        broadcast.publish(await mail.put(change("a", 1, None, APP)))
        await peer.wait(b": heartbeat\nid: 5f0c2a91-1\n\n", 1)
        await peer.wait(b": heartbeat\n\n", peer.received.count(b": heartbeat\n\n") + 1)
    assert peer.received.count(b"id: 5f0c2a91-1\n") == 1
    assert b"data:" not in peer.received


async def test_a_secret_that_has_moved_away(mail: Mail) -> None:
    """Its older events are not sent any longer; the numbers of the others stay as they are."""
    events = await mail.put(change("a", 1, None, APP), change("b", 1, None, APP))
    moved = Known(Entry("a", "/a", (OTHER,)), State.PRESENT, version(1), None, None)
    async with subscribed(mail, Grant([APP]), inventory={"a": moved}) as (broadcast, peer):
        broadcast.publish(events)
        await peer.wait(b"data:", 1)
        stamp = broadcast.positions(Grant([APP])).stamp
    assert b'"subject":"a"' not in peer.received
    assert f"id: {stamp.id(2)}\n".encode() in peer.received


async def test_pruned_while_nothing_was_read(mail: Mail) -> None:
    """A stream goes on without a reset where only events were pruned that it would not show."""
    events = await mail.put(*(change("x", n, n - 1, OTHER) for n in range(1, 6)))
    await anyio.to_thread.run_sync(mail.ledger.prune, 2, "2000-01-01T00:00:00.000Z")
    async with subscribed(mail, Grant([APP])) as (broadcast, peer):
        broadcast.history.last = events[-1].sequence
        broadcast.publish(await mail.put(change("a", 1, None, APP)))
        await peer.wait(b"data:", 1)
    assert b"io.syncd.reset" not in peer.received


async def test_who_sees_less_is_not_cut_off_sooner(mail: Mail) -> None:
    """How long a reader may stand still does not depend on events that it does not see."""
    for grant, overdue in ((Grant(), True), (Grant([APP]), False)):
        async with subscribed(mail, grant) as (broadcast, peer):
            stream = next(iter(broadcast._streams))
            stream._blocked = Blocked(anyio.current_time() - 2, 0, 10)
            peer.unsent = 10
            broadcast.history.last = BACKLOG + 1
            assert stream.overdue(anyio.current_time()) is overdue
            assert stream.overdue(anyio.current_time() + STALLED)


async def test_a_reset_stands_for_what_it_tells(mail: Mail) -> None:
    """An event that is committed but not published yet comes after the reset."""
    broadcast = Broadcast(mail.ledger, STAMP, Metrics(), dict, 0)
    events = await mail.put(change("a", 2, 1))
    broadcast.history.last = 1  # as the look at the ledger at each sign of life makes it
    everything = broadcast.positions(Grant())
    _, place = await broadcast.reset(View(Grant()), everything, Slot())
    assert place.sequence == 0
    broadcast.publish(events)
    _, place = await broadcast.reset(View(Grant()), everything, Slot())
    assert place.sequence == 1


async def test_many_events_of_one_commit_are_sent_from_memory(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read them back takes longer; what all streams have sent is freed on the way.

    A subscriber that has just begun to wait keeps what it needs, and one that is held does not.
    """
    few = 2 * PAGE
    for module in (broadcasting, histories):
        monkeypatch.setattr(module, "FEW", few)
    monkeypatch.setattr(mail.ledger, "events_after", None)
    count = 5 * few
    events = [replace(change(f"s{n}", 2, 1), sequence=n) for n in range(1, count + 1)]
    async with subscribed(mail, Grant()) as (broadcast, peer):
        broadcast.publish(events)
        await peer.wait(b"\ndata: ", count)
        assert len(broadcast.history._recent) <= few
        stream, now = next(iter(broadcast._streams)), anyio.current_time()
        stream.position = count - 3
        for since, needed in ((now, count - 3), (now - 2, count)):
            stream._blocked = Blocked(since, count, 10)
            assert broadcast._needed() == needed
