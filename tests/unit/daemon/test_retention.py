"""The event log stays within its bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from support.mail import Mail, change
from support.waiting import DEADLINE

from syncd.config.settings import EventLog
from syncd.core.decode import Duration
from syncd.core.errors import StateError
from syncd.core.events import Commit
from syncd.daemon.retention import Retention, prune

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path))
    mail.grants = {}
    yield mail
    mail.close()


async def test_number_and_age(mail: Mail) -> None:
    """Events beyond the number, and those older than the age, go."""
    await mail.put(*(change("a", n + 1, n) for n in range(5)))
    decade = 10 * 365 * 86400.0
    bounds = EventLog(max_events=3, max_age=Duration(decade))
    await anyio.to_thread.run_sync(prune, mail.ledger, bounds)
    assert await anyio.to_thread.run_sync(mail.ledger.span) == (2, 5)
    bounds = EventLog(max_events=3, max_age=Duration(-decade))
    await anyio.to_thread.run_sync(prune, mail.ledger, bounds)
    assert await anyio.to_thread.run_sync(mail.ledger.span) == (5, 5)


async def test_it_prunes_after_commits(mail: Mail) -> None:
    """A commit is followed by a pruning, after the pause."""
    bounds = EventLog(
        max_events=1, max_age=Duration(10 * 365 * 86400.0), prune_interval=Duration(0.01)
    )
    retention = Retention(mail.ledger, lambda: bounds)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(retention.run)
        for count in (2, 4):
            events = await mail.put(change("a", 1, 0), change("a", 2, 1))
            retention.committed(Commit(tuple(events), {}, 0.0))
            with anyio.fail_after(DEADLINE):
                while await anyio.to_thread.run_sync(mail.ledger.span) != (count - 1, count):
                    pass
        tasks.cancel_scope.cancel()


async def test_a_failed_pruning_is_tried_again(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another commit: a full disk takes none, and pruning is what makes room."""
    again, attempts = anyio.Event(), []

    def prune_or_fail(*limits: object) -> int:
        attempts.append(limits)
        if len(attempts) == 1:
            raise StateError("cannot use the ledger: the disk is full", "free space in state_dir")
        anyio.from_thread.run_sync(again.set)
        return 0

    monkeypatch.setattr(mail.ledger, "prune", prune_or_fail)
    bounds = EventLog(prune_interval=Duration(0.01))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Retention(mail.ledger, lambda: bounds).run)
        with anyio.fail_after(DEADLINE):
            await again.wait()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("cause", ["full", "bounds"])
async def test_what_no_commit_tells_is_noticed(
    mail: Mail, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """A volume that is full takes no commits, and bounds may be lowered to make room."""
    pruned, bounds = [anyio.Event(), anyio.Event()], [EventLog(prune_interval=Duration(0.01))]
    calls: list[object] = []

    def count(*limits: object) -> int:
        calls.append(limits)
        anyio.from_thread.run_sync(pruned[min(len(calls), 2) - 1].set)
        return 0

    monkeypatch.setattr(mail.ledger, "prune", count)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Retention(mail.ledger, lambda: bounds[0]).run)
        with anyio.fail_after(DEADLINE):
            await pruned[0].wait()
            if cause == "full":
                monkeypatch.setattr(mail.ledger._room, "is_full", True)
            else:
                bounds[0] = EventLog(max_events=1, prune_interval=Duration(0.01))
            await pruned[1].wait()
        tasks.cancel_scope.cancel()
