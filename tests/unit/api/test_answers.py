"""What answers cost: made once for many, sent in time, and never at the expense of other users."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from structlog.testing import capture_logs
from support.waiting import DEADLINE, until

from syncd.api import answers as answering
from syncd.api.answers import CHUNK, CROWD, SLOTS, THREADS, Answer, Answers, BusyError, Slot
from syncd.api.subscribers import Caller
from syncd.core.model import Grant

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

APP, OTHER = Caller(7, "app", Grant()), Caller(8, "other", Grant())
ROOT = Caller(0, "root", Grant(), privileged=True)


class Held:
    """Makes numbered bodies, each as soon as it is let go."""

    def __init__(self) -> None:
        self.prepared = 0
        self._go = threading.Semaphore(0)

    def prepare(self) -> Callable[[], tuple[bytes, str]]:
        self.prepared += 1
        number = self.prepared

        def make() -> tuple[bytes, str]:
            assert self._go.acquire(timeout=DEADLINE)
            return b"%d" % number, "text/plain"

        return make

    def release(self, count: int = 1) -> None:
        self._go.release(count)


async def test_one_body_for_all_who_ask() -> None:
    """Who asks before the making begins shares it; who asks later gets a newer one."""
    answers, held, got = Answers(), Held(), []

    async def ask() -> None:
        got.append((await answers.shared("key", held.prepare, Slot()))[0])

    async with anyio.create_task_group() as tasks:
        for number in range(1, THREADS + 1):
            tasks.start_soon(ask)
            await until(lambda number=number: held.prepared == number)  # type: ignore[misc] # one predicate per turn
        for _ in range(100):
            tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert held.prepared == THREADS
        held.release(THREADS + 1)
    assert sorted(got) == [b"1", b"2", *[b"3"] * 100]
    assert held.prepared == THREADS + 1


async def test_a_failure_is_not_shared() -> None:
    """Where the making fails or is cancelled, each of the others makes its own."""
    answers, held, failures = Answers(), Held(), itertools.count()

    def prepare() -> Callable[[], tuple[bytes, str]]:
        if next(failures) == 0:
            raise ValueError
        return lambda: (b"well", "")

    async def fail() -> None:
        with pytest.raises(ValueError, match=r"^$"):
            await answers.shared("key", prepare, Slot())

    async def succeed() -> None:
        assert (await answers.shared("key", prepare, Slot()))[0] == b"well"

    async with anyio.create_task_group() as tasks:
        for _ in range(THREADS):
            tasks.start_soon(answers.run, held.prepare())
        await anyio.wait_all_tasks_blocked()
        given_up = anyio.CancelScope()

        async def give_up() -> None:
            with given_up:
                await answers.shared("key", prepare, Slot())

        tasks.start_soon(give_up)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(fail)
        tasks.start_soon(succeed)
        await anyio.wait_all_tasks_blocked()
        given_up.cancel()
        await anyio.wait_all_tasks_blocked()
        held.release(THREADS)


async def test_threads_of_its_own() -> None:
    """Callers can block all threads of the API, and no other thread; nor do others block them."""
    answers, held = Answers(), Held()
    async with anyio.create_task_group() as tasks:
        for _ in range(THREADS + 5):
            tasks.start_soon(answers.run, held.prepare())
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(DEADLINE):
            assert await anyio.to_thread.run_sync(lambda: "a scan") == "a scan"
        held.release(THREADS + 5)
    limiter = anyio.to_thread.current_default_thread_limiter()
    async with anyio.create_task_group() as tasks:
        for _ in range(int(limiter.total_tokens)):
            tasks.start_soon(limiter.acquire_on_behalf_of, object())
    with anyio.fail_after(DEADLINE):
        assert await answers.run(lambda: "an answer") == "an answer"


async def test_slots_are_each_users_own() -> None:
    """Further requests of one user wait for the earlier ones; those of others do not."""
    answers, entered = Answers(), []
    release = anyio.Event()

    async def hold(caller: Caller) -> None:
        async with answers.slot(caller):
            entered.append(caller)
            await release.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(SLOTS + 3):
            tasks.start_soon(hold, APP)
        await anyio.wait_all_tasks_blocked()
        assert entered == [APP] * SLOTS
        tasks.start_soon(hold, OTHER)
        tasks.start_soon(hold, ROOT)
        await anyio.wait_all_tasks_blocked()
        assert entered == [*[APP] * SLOTS, OTHER, ROOT]
        release.set()
    assert len(entered) == SLOTS + 5


async def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is refused when earlier ones of its user take too long, with what to do."""
    monkeypatch.setattr(answering, "WAIT_TIMEOUT", 0.01)
    answers = Answers()
    async with answers.slot(APP), answers.slot(APP):
        with pytest.raises(BusyError, match="user 7 has 3 requests in progress; read the answers"):
            async with answers.slot(APP):
                raise AssertionError
    async with answers.slot(APP):
        pass


async def test_who_keeps_it_busy_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an answer that took long to make, the slot rests; root's does not."""
    naps = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    answers = Answers()
    for caller in (APP, ROOT):
        for cost in (0.0, 0.01, 100.0):
            async with answers.slot(caller) as slot:
                slot.cost = cost
    assert naps == [0.0, 0.04, 0.5]


class Link:
    """A connection that takes so many messages."""

    def __init__(self, takes: float = float("inf")) -> None:
        self.takes = takes
        self.sent: list[MutableMapping[str, Any]] = []
        self.aborted = False
        self.lost = False
        self.unsent = 5

    def abort(self) -> None:
        self.aborted = True

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if len(self.sent) >= self.takes:
            await anyio.sleep_forever()
        self.sent.append(message)


def answer(link: Link, body: bytes, answers: Answers | None = None) -> Answer:
    async def obtain(_slot: Slot) -> tuple[bytes, str]:
        return body, "text/plain"

    return Answer(answers or Answers(), link, obtain, APP)  # type: ignore[arg-type] # as far as it is used


async def test_an_answer_is_sent_in_chunks() -> None:
    """So a client that does not read holds one chunk; the length is known from the beginning."""
    for body in (b"", b"x", b"x" * CHUNK, b"x" * (2 * CHUNK + 1)):
        link = Link()
        await answer(link, body)({}, None, link.send)
        start, *chunks = link.sent
        assert (b"content-length", b"%d" % len(body)) in start["headers"]
        assert b"".join(item["body"] for item in chunks) == body
        assert max(len(item["body"]) for item in chunks) <= CHUNK
        assert [item["more_body"] for item in chunks] == [True] * (len(chunks) - 1) + [False]


async def test_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is aborted after a time, and its slot is free again."""
    monkeypatch.setattr(answering, "SEND_TIMEOUT", 0.01)
    answers = Answers()
    for _ in range(SLOTS + 1):
        link = Link(takes=2)
        with capture_logs() as lines:
            await answer(link, b"x" * (5 * CHUNK), answers)({}, None, link.send)
        assert link.aborted
        (line,) = lines
        assert (line["event"], line["caller"]) == ("caller.stalled", "app")
    assert answers.in_progress == 0


async def test_nothing_is_made_for_who_has_gone() -> None:
    """A client that closed its connection while it waited gets no answer made."""
    link = Link()
    link.lost = True
    await answer(link, b"x")({}, None, link.send)
    assert link.sent == []


async def test_nothing_is_sent_to_who_has_gone() -> None:
    """Sending stops when the connection breaks."""
    link = Link()

    async def send(message: MutableMapping[str, Any]) -> None:
        link.sent.append(message)
        link.lost = len(link.sent) == 2

    await answer(link, b"x" * (9 * CHUNK))({}, None, send)
    assert len(link.sent) == 2
    assert not link.aborted


async def test_a_crowd_gets_what_was_just_made() -> None:
    """While many scrape, a body that is a moment old is sent again; else each gets a new one."""
    answers, made = Answers(), itertools.count()

    def make() -> tuple[bytes, str]:
        return b"%d" % next(made), ""

    for wanted in (b"0", b"1"):
        assert (await answers.recent("key", make))[0] == wanted
    answers.in_progress = CROWD + 1
    assert (await answers.recent("key", make))[0] == b"1"
    for number in range(20):
        assert (await answers.recent(number, make))[0] == b"%d" % (number + 2)
