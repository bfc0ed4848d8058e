"""Calls in threads that can be abandoned, because a system call on a dead mount may never return.

A hard NFS mount without its server, a stalled on-access scanner or a frozen disk holds a thread
inside the kernel, where nothing can interrupt it. anyio's worker threads are waited for: when their
task is cancelled, and again when the interpreter ends. The threads here are daemon threads. The
caller stops waiting when it wants to, and a call that never returns costs one sleeping thread.

A function that is abandoned may still return much later, so it must not act on its result without
asking whether that is still wanted.
"""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread, Timer, enumerate as enumerate_threads
from typing import TYPE_CHECKING, Final, Generic, NoReturn, Self, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeVarTuple, Unpack

    _A = TypeVarTuple("_A")
    _Queue = SimpleQueue[tuple[Future[object], Callable[..., object], tuple[object, ...]]]

_K = TypeVar("_K")
_T = TypeVar("_T")
_IDLE_LIMIT: Final = 10.0
"""Seconds until a thread without work ends; the last one stays, since starting one takes time."""

_idle: list[_Queue] = []


def start(function: Callable[[Unpack[_A]], _T], *arguments: *_A) -> Future[_T]:
    """Calls a function in a thread of its own; the result and any exception are in the future."""
    future: Future[_T] = Future()
    try:
        queue = _idle.pop()
    except IndexError:
        queue = SimpleQueue()
        Thread(target=_serve, args=(queue,), name="syncd call", daemon=True).start()
    queue.put((future, function, arguments))  # type: ignore[arg-type]
    return future


def gather(calls: Mapping[_K, Callable[[], _T]], limit: float) -> dict[_K, _T]:
    """Calls functions in threads of their own, and waits for all, at most so many seconds. Blocks.

    Returns:
        What those returned that were done in time. Raises what one of them raised.
    """
    started = {key: start(call) for key, call in calls.items()}
    wait(started.values(), timeout=limit)
    return {key: future.result() for key, future in started.items() if future.done()}


def spread(
    function: Callable[[_K], _T], items: Iterable[_K], width: int
) -> list[_T | Exception | None]:
    """Calls a function for each item, in a few threads, and waits for all of them. Blocks.

    After the first exception no further calls begin.

    Args:
        function: Must end by itself.
        items: Its arguments.
        width: How many calls at a time, at most; a single one is made in this thread.

    Returns:
        For each item what the call returned or raised, or None where it did not begin.
    """
    wanted = list(items)
    results: list[_T | Exception | None] = [None] * len(wanted)
    left = iter(enumerate(wanted))  # next() of an enumeration is one step of the interpreter
    failed = False

    def work() -> None:
        nonlocal failed
        for index, item in left:
            if failed:
                return
            try:
                results[index] = function(item)
            except Exception as error:  # noqa: BLE001 - it is the caller's
                results[index], failed = error, True

    width = min(width, len(wanted))
    if width == 1:
        work()
    else:
        wait([start(work) for _ in range(width)])
    return results


class Call(Generic[_T]):
    """A call in a thread, waited for in the event loop, again and again if need be."""

    def __init__(self, function: Callable[[Unpack[_A]], _T], *arguments: *_A) -> None:
        self._follow(start(function, *arguments))

    @classmethod
    def of(cls, future: Future[_T]) -> Self:
        """A call that was begun elsewhere."""
        call = cls.__new__(cls)
        call._follow(future)  # noqa: SLF001 - its own
        return call

    def _follow(self, future: Future[_T]) -> None:
        self._returned = anyio.Event()
        self._future = future
        # without a reference to itself: it would be garbage only the collector finds, and results
        # can be large
        notify = partial(_notify, asyncio.get_running_loop(), self._returned.set)
        self._future.add_done_callback(notify)

    @property
    def done(self) -> bool:
        """Whether it has returned or raised."""
        return self._future.done()

    async def wait(self, limit: float | None = None) -> bool:
        """Waits at most so many seconds; returns whether the call is done."""
        with anyio.move_on_after(limit):
            await self._returned.wait()
        return self.done

    def result(self) -> _T:
        """What a call that is done returned; raises what it raised."""
        return self._future.result(timeout=0)


def _notify(
    loop: asyncio.AbstractEventLoop, notify: Callable[[], None], _future: Future[_T]
) -> None:
    with suppress(RuntimeError):  # the loop is closed, so nothing waits
        loop.call_soon_threadsafe(notify)


class Turn(Generic[_T]):
    """Calls in threads, one at a time: a file system that hangs keeps one thread, not one a try."""

    def __init__(self) -> None:
        self._call: Call[_T] | None = None

    @property
    def is_taken(self) -> bool:
        """Whether a call has not returned yet."""
        return self._call is not None and not self._call.done

    async def run(self, function: Callable[[], _T], *, join: bool) -> _T:
        """Calls a function when the call before has returned; a cancellation abandons it.

        Args:
            function: What to call.
            join: Whether the result of a call that is going on will do.

        Returns:
            What the call returned; raises what it raised.
        """
        while (call := self._call) is not None and not call.done:
            await call.wait()
            if join:
                return call.result()
        self._call = call = Call(function)
        await call.wait()
        return call.result()


async def run(function: Callable[[Unpack[_A]], _T], *arguments: *_A) -> _T:
    """Calls a function in a thread and waits for it; a cancellation abandons the call."""
    call = Call(function, *arguments)
    await call.wait()
    return call.result()


def exit_within(seconds: float, report: Callable[[], object]) -> Timer:
    """Ends the process after so many seconds, with 1, unless the timer is cancelled before.

    Args:
        seconds: Until then.
        report: Is called before the end, to log the reason.
    """

    def end() -> None:
        report()
        os._exit(1)

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


def leave(code: int) -> NoReturn:
    """Ends the process now, also when a thread would be waited for that never returns.

    The interpreter waits for every thread that is not a daemon thread, such as anyio's.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    waiting = [thread for thread in enumerate_threads() if not thread.daemon]
    if len(waiting) > 1:
        os._exit(code)
    sys.exit(code)


def _serve(queue: _Queue) -> None:
    while True:
        try:
            future, function, arguments = queue.get(timeout=_IDLE_LIMIT)
        except Empty:
            if _retire(queue):
                return
            continue
        if future.set_running_or_notify_cancel():
            try:
                result = function(*arguments)
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                _idle.append(queue)
                future.set_exception(error)
            else:
                _idle.append(queue)  # before the caller goes on: its next call finds this thread
                future.set_result(result)
                del result
        else:
            _idle.append(queue)
        del future, function, arguments  # else they would live until the next call


def _retire(queue: _Queue) -> bool:
    if len(_idle) < 2:  # noqa: PLR2004 - the last one stays
        return False
    try:
        _idle.remove(queue)
    except ValueError:
        return False  # it was just given a call
    return True
