"""Calls that can be abandoned: results, errors, waiting with limits, and the end of the process."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import anyio
import pytest
from support.waiting import DEADLINE, until, wait_until

from syncd.system import threads
from syncd.system.threads import Call, exit_within, gather, run, spread, start

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """What holds a call; released at the end, so that no thread is left behind."""
    event = threading.Event()
    yield event
    event.set()


def test_results_and_errors_come_back_and_threads_are_used_again() -> None:
    """One thread is enough for one call after the other."""
    assert start(divmod, 7, 2).result(DEADLINE) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        start(divmod, 7, 0).result(DEADLINE)
    names = {start(threading.get_ident).result(DEADLINE) for _ in range(5)}
    assert len(names) == 1


def test_idle_threads_end_but_for_one(
    held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of calls leaves no crowd of threads."""
    monkeypatch.setattr(threads, "_IDLE_LIMIT", 0.01)
    calls = [start(held.wait) for _ in range(5)]
    held.set()
    for call in calls:
        call.result(DEADLINE)
    wait_until(lambda: len(threads._idle) <= 1)
    wait_until(lambda: sum(t.name == "syncd call" for t in threading.enumerate()) <= 1)
    assert start(divmod, 7, 2).result(DEADLINE) == (3, 1)


def test_calls_are_spread_over_a_few_threads() -> None:
    """Results keep their order; no more calls run at a time than asked for."""
    running, together = threading.Semaphore(3), threading.Barrier(3)

    def call(number: int) -> int:
        assert running.acquire(blocking=False)
        if number < 3:
            together.wait(DEADLINE)  # the three of them run at once
        running.release()
        return number * number

    assert spread(call, range(20), 3) == [number * number for number in range(20)]
    assert spread(call, [5], 3) == [25]
    assert spread(call, [], 3) == []
    assert spread(lambda _: threading.get_ident(), [1], 3) == [threading.get_ident()]


def test_after_an_exception_no_further_call_begins() -> None:
    """It is a result like the others, and what did not begin is None."""

    def call(number: int) -> float:
        return 1 / number

    one, error, *rest = spread(call, [1, 0, 2, 3], 1)
    assert (one, rest) == (1.0, [None, None])
    assert isinstance(error, ZeroDivisionError)


def test_gathering_leaves_out_what_does_not_return(held: threading.Event) -> None:
    """The others' results are there; an error is raised."""
    assert gather({"a": lambda: 1, "b": held.wait}, 0.05) == {"a": 1}
    with pytest.raises(ZeroDivisionError):
        gather({"a": lambda: 1 // 0}, DEADLINE)


async def test_a_call_is_waited_for_again_and_again(held: threading.Event) -> None:
    """A limit ends the waiting, not the call."""
    call = Call(held.wait)
    assert not await call.wait(0.01)
    held.set()
    assert await call.wait(DEADLINE)
    assert call.result() is True


class Large:
    """A result."""


async def test_a_result_is_freed_with_its_call() -> None:
    """It can be large, and the collector may not look at it for a long time."""
    results: list[weakref.ref[Large]] = []

    def large() -> Large:
        result = Large()
        results.append(weakref.ref(result))
        return result

    gc.disable()
    try:
        call = Call(large)
        assert await call.wait(DEADLINE)
        assert call.result() is results[0]()
        del call
        await until(lambda: results[0]() is None)
    finally:
        gc.enable()


async def test_a_cancellation_abandons_the_call(held: threading.Event) -> None:
    """The task ends although the thread is held."""
    with anyio.move_on_after(0.01) as scope:
        await run(held.wait)
    assert scope.cancelled_caught


def test_a_process_ends_although_calls_never_return() -> None:
    """Neither threads of ours nor anyio's are waited for."""
    script = """
import sys, threading
from syncd.system.threads import leave, start
start(threading.Event().wait)
threading.Thread(target=threading.Event().wait).start()
print("output")
leave(3)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "output\n")


def test_a_stop_that_takes_too_long_is_forced() -> None:
    """The reason is reported before."""
    script = """
import threading
from syncd.system.threads import exit_within
exit_within(0.01, lambda: print("reported", flush=True))
threading.Event().wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "reported\n")


def test_a_stop_in_time_is_not_forced() -> None:
    """The timer is cancelled."""
    timer = exit_within(DEADLINE, lambda: None)
    timer.cancel()
    timer.join(DEADLINE)
    assert not timer.is_alive()
