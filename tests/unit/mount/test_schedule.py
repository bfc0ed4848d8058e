"""Turns: hints bring them forward, never back, and waiting for a file system is not work."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace
from support.waiting import DEADLINE

from syncd.mount.schedule import Schedule
from syncd.mount.watch import Hint

SWAP = Hint("inotify", True, frozenset({"/m"}))
WRITE = Hint("inotify", False, frozenset({"/m"}))
LOST = Hint("overflow", True, frozenset())
NEVER = 3600.0


async def turn(schedule: Schedule) -> str | None:
    with anyio.fail_after(DEADLINE):
        return await schedule.next()


async def waits(schedule: Schedule) -> bool:
    with anyio.move_on_after(0.05) as scope:
        await schedule.next()
    return scope.cancelled_caught


async def test_the_first_look_is_repeated_at_once() -> None:
    """What was looked at before it was watched may have changed in between."""
    schedule = Schedule(NEVER, NEVER)
    assert await turn(schedule) == "interval"
    schedule.retry = None
    assert await waits(schedule)


async def test_the_interval_is_the_safety_net() -> None:
    """Without any hint there is a turn all the same."""
    schedule = Schedule(0.01, NEVER)
    schedule.retry = None
    assert await turn(schedule) == "interval"


@pytest.mark.parametrize(
    ("hint", "reason"), [(SWAP, "inotify"), (WRITE, "inotify"), (LOST, "overflow")]
)
async def test_a_hint_is_a_turn_at_once(hint: Hint, reason: str) -> None:
    """Also one that came before anybody waited."""
    schedule = Schedule(NEVER, NEVER)
    schedule.retry = None
    schedule.notify(hint)
    assert await turn(schedule) == reason


async def test_writes_to_a_file_that_is_being_written_wait_for_its_rest() -> None:
    """The look that must be repeated has its time; only a swap is more urgent."""
    schedule = Schedule(NEVER, NEVER)
    schedule.retry = NEVER / 2
    schedule.notify(WRITE)
    assert await waits(schedule)
    schedule.notify(SWAP)
    assert await turn(schedule) == "inotify"


async def test_what_appears_while_a_mount_is_away_is_looked_at() -> None:
    """A retry that is far away does not hold up what happens before it."""
    schedule = Schedule(NEVER, 0.01)
    schedule.retry = NEVER / 2
    schedule.notify(WRITE)
    assert await turn(schedule) == "inotify"


async def test_a_retry_has_the_reason_of_the_look_before() -> None:
    """It continues that look."""
    schedule = Schedule(NEVER, NEVER)
    schedule.retry = None
    schedule.notify(LOST)
    assert await turn(schedule) == "overflow"
    schedule.retry = 0.01
    assert await turn(schedule) == "overflow"


async def test_a_look_knows_whether_there_was_only_a_swap() -> None:
    """Anything else, and a look that must be repeated, means that anything can have changed."""
    schedule = Schedule(NEVER, 0.01)
    schedule.retry = None
    swap, other = replace(SWAP, swap=True), Hint("inotify", True, frozenset({"/n"}), swap=True)
    for hints, expected in (
        ((swap,), {"/m"}),
        ((swap, other), {"/m", "/n"}),
        ((swap, WRITE), set()),
        ((swap, LOST), set()),
    ):
        for hint in hints:
            schedule.notify(hint)
        assert await turn(schedule) == hints[-1].reason
        assert schedule.swapped == expected
    schedule.retry = NEVER / 2
    schedule.notify(swap)
    assert await turn(schedule) == "inotify"
    assert not schedule.swapped


async def test_work_rests_and_waiting_does_not() -> None:
    """A look that took the processor for long is not repeated at once; one that waited is."""
    schedule = Schedule(NEVER, NEVER)
    schedule.retry = None
    schedule.looked(0.0)
    schedule.notify(SWAP)
    assert await turn(schedule) == "inotify"
    schedule.looked(NEVER)
    schedule.notify(SWAP)
    assert await waits(schedule)


async def test_a_look_that_was_begun_elsewhere_ends_the_wait() -> None:
    """There is no turn then; the next wait is as before."""
    schedule = Schedule(NEVER, NEVER)
    schedule.retry = None
    schedule.conclude()
    assert await turn(schedule) is None
    assert await waits(schedule)
    schedule.notify(SWAP)
    schedule.conclude()
    assert await turn(schedule) is None
    assert await turn(schedule) == "inotify"


async def test_a_hint_that_must_wait_has_its_turn_after_a_look_from_elsewhere() -> None:
    """It came after that look had begun."""
    schedule = Schedule(NEVER, 0.05)
    schedule.retry = NEVER / 2
    async with anyio.create_task_group() as tasks:

        async def first() -> None:
            assert await schedule.next() is None
            tasks.cancel_scope.cancel()

        schedule.notify(WRITE)
        tasks.start_soon(first)
        while schedule._hint is not None:
            await anyio.lowlevel.checkpoint()
        schedule.conclude()
    schedule.retry = None
    assert await turn(schedule) == "inotify"


async def test_a_turn_could_begin_only_while_one_is_waited_for() -> None:
    """Not before, not after, and not while something is put off."""
    schedule = Schedule(NEVER, NEVER)
    assert not schedule.is_open
    for retry, rest, hint, expected in (
        (None, 0.0, None, True),
        (NEVER / 2, 0.0, None, False),
        (None, NEVER / 2, None, False),
        (None, 0.0, SWAP, False),
    ):
        schedule = Schedule(NEVER, NEVER)
        schedule.retry = retry
        schedule.looked(rest)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(schedule.next)
            await anyio.lowlevel.checkpoint()
            if hint is not None:
                schedule._hint = hint
            assert schedule.is_open == expected
            tasks.cancel_scope.cancel()
        assert not schedule.is_open
