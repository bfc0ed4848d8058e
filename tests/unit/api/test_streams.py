"""Signs of life: every stream gets its comment in time, and the position that goes with it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support.mail import APP, Mail, change
from support.waiting import DEADLINE

from syncd.api import streams as broadcasting
from syncd.api.answers import Slot
from syncd.api.streams import HEARTBEAT, Broadcast, Stream
from syncd.api.subscribers import Caller, View
from syncd.core.events import Stamp
from syncd.core.model import Grant, Scope
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
    from pathlib import Path

STAMP = Stamp("5f0c2a91", "/syncd/test")
CALLER = Caller(7, "test", Grant())


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
async def subscribed(mail: Mail, grant: Grant) -> AsyncIterator[tuple[Broadcast, Peer]]:
    """A running broadcast with one stream of it."""
    peer = Peer()
    broadcast = Broadcast(mail.ledger, STAMP, Metrics(), dict, 0)
    stream = Stream(broadcast, View(grant), peer, position=0, subscriber=CALLER, follow=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broadcast.run)
        tasks.start_soon(stream, {}, receive, peer.send)
        yield broadcast, peer
        tasks.cancel_scope.cancel()


async def test_a_sign_of_life(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens a comment comes again and again: every 15 s."""
    assert HEARTBEAT == 15
    monkeypatch.setattr(broadcasting, "HEARTBEAT", 0.02)
    async with subscribed(mail, Grant()) as (_, peer):
        await peer.wait(b": heartbeat\n\n", 3)
    assert peer.received.startswith(b": syncd\nretry: 1000\nid: 5f0c2a91-0\n\n: heartbeat\n\n")


async def test_the_position_of_events_that_are_not_shown(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with the next heartbeat, once: resuming there skips what is not shown."""
    monkeypatch.setattr(broadcasting, "HEARTBEAT", 0.02)
    async with subscribed(mail, Grant([Scope("Nobody")])) as (broadcast, peer):
        await peer.wait(b": heartbeat\n\n", 1)
        broadcast.publish(await mail.put(change("a", 1, None, APP)))
        await peer.wait(b": heartbeat\nid: 5f0c2a91-1\n\n", 1)
        await peer.wait(b": heartbeat\n\n", peer.received.count(b": heartbeat\n\n") + 1)
    assert peer.received.count(b"id: 5f0c2a91-1\n") == 1
    assert b"data:" not in peer.received


async def test_a_reset_stands_for_what_it_tells(mail: Mail) -> None:
    """An event that is committed but not published yet comes after the reset."""
    broadcast = Broadcast(mail.ledger, STAMP, Metrics(), dict, 0)
    events = await mail.put(change("a", 2, 1))
    broadcast.history.last = 1  # as the look at the ledger at each sign of life makes it
    _, position = await broadcast.reset(View(Grant()), Slot())
    assert position == 0
    broadcast.publish(events)
    _, position = await broadcast.reset(View(Grant()), Slot())
    assert position == 1
