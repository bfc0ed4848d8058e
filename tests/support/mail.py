"""Real mailboxes to deliver from, and a loop to deliver with."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
from support.waiting import DEADLINE

from syncd.consumers.delivery import Consumer, Delivery
from syncd.core.event_data import SECRET_CHANGED, SecretData, scope_data
from syncd.core.events import Event
from syncd.core.model import ChangeKind, Grant, Scope
from syncd.ledger.ledger import Ledger
from syncd.ledger.state_dir import StateDir
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

TIME = "2026-11-23T20:40:28.333Z"
NOW = 1795466430.0
APP = Scope("Client", "app")


def version(number: int) -> str:
    return f"k1:{number:032x}"


def change(name: str, now: int | None, before: int | None, scope: Scope = APP) -> Event:
    """A secret went from one numbered version to another; None is no secret at all."""
    kind = ChangeKind.MODIFIED
    if before is None:
        kind = ChangeKind.ADDED
    elif now is None:
        kind = ChangeKind.REMOVED
    data = SecretData(
        name,
        kind,
        f"/run/vault-secrets/{name}",
        scope_data((scope,)),
        None if now is None else version(now),
        None if before is None else version(before),
    )
    return Event(0, TIME, SECRET_CHANGED, name, data)


class Mail:
    """A ledger whose mailboxes tests fill; made and closed outside the event loop."""

    def __init__(self, directory: str, grants: Mapping[str, Grant] | None = None) -> None:
        self.grants = dict(grants or {"hook": Grant()})
        self._state = StateDir.open(directory)
        self.ledger = Ledger.open(self._state, "boot")

    def close(self) -> None:
        self.ledger.close()
        self._state.close()

    async def put(self, *changes: Event) -> list[Event]:
        """Commits changes, as the reconcile loop does."""
        return [
            await anyio.to_thread.run_sync(self.ledger.append, one, self.grants) for one in changes
        ]

    async def left(self, consumer: str = "hook") -> int:
        return await anyio.to_thread.run_sync(self.ledger.pending_count, consumer)


class Naps:
    """A clock that stands still but for naps, which take no time and are recorded.

    With `held`, naps end only when `end` is called.
    """

    def __init__(self, *, held: bool = False) -> None:
        self.taken: list[float] = []
        self.now = NOW
        self.held = held
        self._begun = anyio.Event()
        self._ended = anyio.Event()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.taken.append(seconds)
        self._begun.set()
        self._begun = anyio.Event()
        if self.held:
            await self._ended.wait()
            self._ended = anyio.Event()
        self.now += seconds
        await anyio.lowlevel.checkpoint()

    async def begun(self, count: int = 1) -> None:
        """Waits until that many naps have begun in all."""
        with anyio.fail_after(DEADLINE):
            while len(self.taken) < count:
                await self._begun.wait()

    def end(self) -> None:
        self._ended.set()


def delivery(
    consumer: Consumer, mail: Mail, *, naps: Naps | None = None, metrics: Metrics | None = None
) -> Delivery:
    """A loop whose chance is fixed, and whose waiting takes no time unless `naps` are held."""
    naps = naps or Naps()
    return Delivery(
        consumer,
        mail.ledger,
        metrics or Metrics(),
        random.Random(7),
        clock=naps.clock,
        monotonic=naps.clock,
        sleep=naps.sleep,
    )


@asynccontextmanager
async def running(*deliveries: Delivery) -> AsyncIterator[None]:
    """Runs loops while the block does."""
    async with anyio.create_task_group() as tasks:
        for one in deliveries:
            tasks.start_soon(one.run)
        yield
        tasks.cancel_scope.cancel()


async def drained(*deliveries: Delivery) -> None:
    """Waits, with a deadline, until mailboxes are empty."""
    with anyio.fail_after(DEADLINE):
        for one in deliveries:
            await one.drained()


def sample(metrics: Metrics, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    return metrics.registry.get_sample_value(name, dict(labels or {}))


def subjects(events: Sequence[Event]) -> list[str]:
    return [event.subject for event in events]
