"""The delivery loop over a real mailbox, with a consumer of the test's making."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs
from support.mail import (
    Mail,
    Naps,
    change,
    delivery,
    drained,
    running,
    sample,
    subjects,
    version,
)
from support.waiting import DEADLINE, until

from syncd.consumers import delivery as engine
from syncd.consumers.delivery import Delivery
from syncd.core.errors import RefusedError, StateError, TemporaryError
from syncd.core.event_data import SecretData
from syncd.core.model import ChangeKind, Grant, Scope
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from syncd.core.events import Event


class Listener:
    """A consumer that remembers what it got; each planned outcome is used up by one attempt."""

    def __init__(
        self,
        *plan: Exception | None,
        name: str = "hook",
        max_batch: int = 1,
        max_in_flight: int = 1,
    ) -> None:
        self.name = name
        self.grant = Grant()
        self.max_batch = max_batch
        self.max_in_flight = max_in_flight
        self.plan = list(plan)
        self.got: list[list[Event]] = []
        self.begun = anyio.Event()
        self.gate: anyio.Event | None = None
        self.closed = False

    async def deliver(self, events: Sequence[Event]) -> None:
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        self.got.append(list(events))
        outcome = self.plan.pop(0) if self.plan else None
        if outcome is not None:
            raise outcome

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path / "state"), {"hook": Grant(), "other": Grant()})
    yield mail
    mail.close()


async def test_empties_the_mailbox_in_order(mail: Mail) -> None:
    """What waits is delivered oldest first, one by one, and leaves the mailbox."""
    listener = Listener()
    loop = delivery(listener, mail)
    await mail.put(change("a", 2, 1), change("b", 2, 1), change("c", 2, 1))
    async with running(loop):
        await drained(loop)
    assert [subjects(events) for events in listener.got] == [["a"], ["b"], ["c"]]
    assert await mail.left() == 0
    assert listener.closed


async def test_wakes_for_later_events(mail: Mail) -> None:
    """After `wake` the mailbox is looked at again, and `drained` waits for that."""
    listener = Listener(max_batch=10)
    loop = delivery(listener, mail)
    async with running(loop):
        await drained(loop)
        await mail.put(change("a", 2, 1), change("b", 2, 1))
        loop.wake()
        await drained(loop)
    assert [subjects(events) for events in listener.got] == [["a", "b"]]


async def test_batches_are_bounded(mail: Mail) -> None:
    """No attempt carries more than `max_batch` events."""
    listener = Listener(max_batch=2)
    loop = delivery(listener, mail)
    await mail.put(*(change(name, 2, 1) for name in "abcde"))
    async with running(loop):
        await drained(loop)
    assert [subjects(events) for events in listener.got] == [["a", "b"], ["c", "d"], ["e"]]


async def test_retries_with_growing_bounded_jittered_delays(mail: Mail) -> None:
    """Delays double from half a second and never exceed a minute."""
    listener = Listener(*(TemporaryError("cannot reach it") for _ in range(12)))
    naps = Naps()
    loop = delivery(listener, mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await drained(loop)
    bounds = [min(60.0, 0.5 * 2**n) for n in range(12)]
    assert len(naps.taken) == 12
    assert all(b / 2 <= nap <= b for nap, b in zip(naps.taken, bounds, strict=True))
    assert len(listener.got) == 13


@pytest.mark.parametrize(("asked", "waited"), [(7.0, 7.0), (90.0, 90.0), (1e9, 3600.0)])
async def test_honours_retry_after_up_to_an_hour(mail: Mail, asked: float, waited: float) -> None:
    """What the consumer asked for is waited for, beyond the cap, but not beyond an hour."""
    naps = Naps()
    loop = delivery(Listener(TemporaryError("busy", retry_after=asked)), mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await drained(loop)
    assert naps.taken == [waited]


async def test_what_waits_is_merged_to_the_newest(mail: Mail) -> None:
    """Five rotations while the consumer is away are one event, told against what it knows."""
    listener = Listener(TemporaryError("away"))
    naps = Naps(held=True)
    loop = delivery(listener, mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await naps.begun()
        for number in range(3, 8):
            await mail.put(change("a", number, number - 1))
            loop.wake()
        naps.end()
        await drained(loop)
    (first,), (last,) = listener.got
    assert isinstance(first.data, SecretData)
    assert isinstance(last.data, SecretData)
    assert (last.data.version, last.data.previous_version) == (version(7), version(1))
    assert last.sequence > first.sequence


async def test_added_and_removed_while_away(mail: Mail) -> None:
    """A secret that the consumer knows and that is gone at last is told as removed."""
    naps = Naps(held=True)
    listener = Listener(TemporaryError("away"))
    loop = delivery(listener, mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await naps.begun()
        await mail.put(change("a", None, 2))
        naps.end()
        await drained(loop)
    data = listener.got[-1][0].data
    assert isinstance(data, SecretData)
    assert (data.change, data.version) == (ChangeKind.REMOVED, None)
    assert data.previous_version == version(1)


async def test_newer_event_during_delivery_is_told_against_the_acknowledged(mail: Mail) -> None:
    """What changes while a delivery is in flight follows, against what was just acknowledged."""
    listener = Listener()
    listener.gate = anyio.Event()
    loop = delivery(listener, mail)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await listener.begun.wait()
        await mail.put(change("a", 3, 2), change("a", 4, 3))
        loop.wake()
        listener.gate.set()
        await drained(loop)
    versions = [e.data for (e,) in listener.got if isinstance(e.data, SecretData)]
    assert [(d.previous_version, d.version) for d in versions] == [
        (version(1), version(2)),
        (version(2), version(4)),
    ]


async def test_rejection_is_an_error_once_per_reason(mail: Mail) -> None:
    """A rejection is retried at the cap; its reason is an error in the log once."""
    plan = [RefusedError("cannot: 404"), RefusedError("cannot: 404"), RefusedError("cannot: 410")]
    naps = Naps()
    metrics = Metrics()
    loop = delivery(Listener(*plan), mail, naps=naps, metrics=metrics)
    await mail.put(change("a", 2, 1))
    with capture_logs() as logs:
        async with running(loop):
            await drained(loop)
    rejected = [(e["log_level"], e["reason"]) for e in logs if e["event"] == "delivery.rejected"]
    assert rejected == [
        ("error", "cannot: 404"),
        ("debug", "cannot: 404"),
        ("error", "cannot: 410"),
    ]
    assert all(30 <= nap <= 60 for nap in naps.taken)
    labels = {"consumer": "hook", "outcome": "rejected"}
    assert sample(metrics, "syncd_deliveries_total", labels) == 3


async def test_warnings_grow_rarer(mail: Mail) -> None:
    """Of many failures the 1st, 2nd, 4th, 8th… are warnings."""
    loop = delivery(Listener(*(TemporaryError("down") for _ in range(20))), mail)
    await mail.put(change("a", 2, 1))
    with capture_logs() as logs:
        async with running(loop):
            await drained(loop)
    warned = [e["failures"] for e in logs if e["log_level"] == "warning"]
    assert warned == [1, 2, 4, 8, 16]
    (done,) = [e for e in logs if e["event"] == "delivery.acknowledged"]
    assert done["after_failures"] == 20


async def test_a_bug_is_survived_and_its_text_not_logged(mail: Mail) -> None:
    """An unexpected exception is logged by class and place, and retried at the cap."""
    naps = Naps()
    loop = delivery(Listener(ValueError("canary-7f3a")), mail, naps=naps)
    await mail.put(change("a", 2, 1))
    with capture_logs() as logs:
        async with running(loop):
            await drained(loop)
    (failed,) = [entry for entry in logs if entry["event"] == "delivery.failed"]
    assert failed["log_level"] == "error"
    assert failed["error"].startswith("ValueError at test_delivery.py:")
    assert "canary" not in str(logs)
    assert 30 <= naps.taken[0] <= 60


async def test_a_shortage_is_no_bug(mail: Mail) -> None:
    """A machine that is short of memory is reported as such, and the event is tried again."""
    loop = delivery(Listener(MemoryError("canary-7f3a")), mail)
    await mail.put(change("a", 2, 1))
    with capture_logs() as logs:
        async with running(loop):
            await drained(loop)
    (failed,) = [entry for entry in logs if entry["event"] == "delivery.retry"]
    assert failed["log_level"] == "warning"
    assert failed["reason"].startswith("there is not enough memory; free memory")
    assert "canary" not in str(logs)


async def test_a_bug_is_an_error_once(mail: Mail) -> None:
    """As every failure that only a person can end; it is counted each time."""
    metrics = Metrics()
    loop = delivery(Listener(*[ValueError("canary")] * 3), mail, metrics=metrics)
    await mail.put(change("a", 2, 1))
    with capture_logs() as logs:
        async with running(loop):
            await drained(loop)
    levels = [entry["log_level"] for entry in logs if entry["event"] == "delivery.failed"]
    assert levels == ["error", "debug", "debug"]
    labels = {"consumer": "hook", "outcome": "retried"}
    assert sample(metrics, "syncd_deliveries_total", labels) == 3


async def test_one_consumer_delays_no_other(mail: Mail) -> None:
    """While one consumer hangs, fails or is broken, another gets everything."""
    stuck = Listener(name="other")
    stuck.gate = anyio.Event()
    healthy = Listener()
    loops = [delivery(stuck, mail), delivery(healthy, mail)]
    await mail.put(change("a", 2, 1), change("b", 2, 1))
    async with running(*loops):
        await stuck.begun.wait()
        await drained(loops[1])
        assert len(healthy.got) == 2
        assert stuck.got == []
        stuck.gate.set()
        await drained(loops[0])


async def test_acknowledgement_that_fails_is_recorded_later(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the ledger cannot record a delivery, that is tried again; the delivery is not."""
    acknowledge, failures = mail.ledger.acknowledge, iter([True, True])

    def failing(consumer: str, events: Sequence[Event], *more: Any, **options: Any) -> None:
        if next(failures, False):
            raise StateError("cannot use the ledger: disk full; free space in state_dir")
        acknowledge(consumer, events, *more, **options)

    monkeypatch.setattr(mail.ledger, "acknowledge", failing)
    listener, naps, metrics = Listener(), Naps(), Metrics()
    loop = delivery(listener, mail, naps=naps, metrics=metrics)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await drained(loop)
    assert len(listener.got) == 1
    assert await mail.left() == 0
    assert len(naps.taken) == 2
    labels = {"consumer": "hook", "outcome": "delivered"}
    assert sample(metrics, "syncd_deliveries_total", labels) == 1
    assert await tried(mail, 1) == [("delivered", 1, None)]  # and not lost meanwhile


async def tried(mail: Mail, sequence: int) -> list[tuple[str, int, int | None]]:
    """The attempts at an event that the ledger has: outcome, how many, and status."""
    found = await anyio.to_thread.run_sync(mail.ledger.attempts, [sequence])
    return [(r.outcome, r.attempts, r.status) for r in found.get(sequence, {}).get("hook", [])]


async def test_attempts_are_recorded_with_the_acknowledgement(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No commit of their own: several that failed alike are one, and known before that."""
    commits = []
    acknowledge = mail.ledger.acknowledge

    def counting(consumer: str, events: Sequence[Event], *more: Any, **options: Any) -> None:
        commits.append(len(list(events)))
        acknowledge(consumer, events, *more, **options)

    monkeypatch.setattr(mail.ledger, "acknowledge", counting)
    away = TemporaryError("cannot deliver: it answered 503").answered(503)
    refused = RefusedError("cannot deliver: it answered 400", "correct it").answered(400)
    naps = Naps()
    loop = delivery(Listener(away, away, refused), mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await drained(loop)
    assert await tried(mail, 1) == [
        *(("retried", 2, 503), ("rejected", 1, 400), ("delivered", 1, None)),
    ]
    assert loop.unwritten() == ()
    assert sum(commits) == 1
    await mail.put(change("c", 2, 1))
    quick = delivery(Listener(), mail)
    before = len(commits)
    async with running(quick):
        await drained(quick)
    assert len(commits) == before + 1


async def test_attempts_before_the_end_are_recorded(mail: Mail) -> None:
    """At a shutdown while it waits for a consumer that fails."""
    naps = Naps(held=True)
    loop = delivery(Listener(TemporaryError("cannot deliver: away")), mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await until(loop.unwritten)
        assert [item.reason for item in loop.unwritten()] == ["cannot deliver: away"]
    assert await tried(mail, 1) == [("retried", 1, None)]


async def test_ledger_that_cannot_be_read_is_tried_again(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger failure while taking does not end the loop."""
    take, failures = mail.ledger.take, iter([True])

    def failing(consumer: str, grant: Grant, limit: int, after: int = 0) -> list[Event]:
        if next(failures, False):
            raise StateError("cannot use the ledger: ioerr; free space in state_dir")
        return take(consumer, grant, limit, after)

    monkeypatch.setattr(mail.ledger, "take", failing)
    listener, naps = Listener(), Naps()
    loop = delivery(listener, mail, naps=naps)
    await mail.put(change("a", 2, 1))
    with capture_logs() as logs:
        async with running(loop):
            await drained(loop)
    assert len(listener.got) == 1
    assert naps.taken[0] <= 0.5
    assert logs[0]["event"] == "delivery.retry"
    assert logs[0]["reason"].startswith("cannot use the ledger")


async def test_wake_during_the_last_look_is_not_lost(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed while the mailbox is being found empty still counts as not drained."""
    take = mail.ledger.take
    listener = Listener()
    loop = delivery(listener, mail)
    late = iter([True])

    def racing(consumer: str, grant: Grant, limit: int, after: int = 0) -> list[Event]:
        found = take(consumer, grant, limit, after)
        if next(late, False):
            mail.ledger.append(change("a", 2, 1), mail.grants)
            anyio.from_thread.run_sync(loop.wake)
        return found

    monkeypatch.setattr(mail.ledger, "take", racing)
    async with running(loop):
        await drained(loop)
        assert [subjects(events) for events in listener.got] == [["a"]]


async def test_shutdown_lets_a_delivery_in_flight_finish(mail: Mail) -> None:
    """A 2xx that comes within the grace is recorded although the daemon is going down."""
    listener = Listener()
    listener.gate = anyio.Event()
    await mail.put(change("a", 2, 1), change("b", 2, 1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(delivery(listener, mail).run)
        await listener.begun.wait()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
            listener.gate.set()
    assert [subjects(events) for events in listener.got] == [["a"]]
    assert await mail.left() == 1
    assert listener.closed


async def test_shutdown_lets_a_delivery_finish_that_was_only_handed_over(mail: Mail) -> None:
    """A task that has delivered before takes the next batch; its first step is still to come."""
    listener = Listener()
    loop = delivery(listener, mail)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop.run)
        await drained(loop)
        for name in "ab":
            loop.wake(await mail.put(change(name, 2, 1)))
            if name == "a":
                await drained(loop)
        tasks.cancel_scope.cancel()
    assert [subjects(events) for events in listener.got] == [["a"], ["b"]]
    assert await mail.left() == 0


async def test_shutdown_waits_no_longer_than_the_grace(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that hangs is given up after the grace; its event stays."""
    monkeypatch.setattr(engine, "SHUTDOWN_GRACE", 0.05)
    listener = Listener()
    listener.gate = anyio.Event()
    await mail.put(change("a", 2, 1))
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(delivery(listener, mail).run)
            await listener.begun.wait()
            tasks.cancel_scope.cancel()
    assert await mail.left() == 1
    assert listener.closed


async def test_shutdown_while_waiting_is_immediate(mail: Mail) -> None:
    """A backoff does not delay the shutdown."""
    naps = Naps(held=True)
    loop = delivery(Listener(TemporaryError("down")), mail, naps=naps)
    await mail.put(change("a", 2, 1))
    with anyio.fail_after(DEADLINE):
        async with running(loop):
            await naps.begun()


async def test_health_tells_what_is_going_on(mail: Mail) -> None:
    """Pending, failures, reason and next attempt show while waiting, the success afterwards."""
    naps = Naps(held=True)
    metrics = Metrics()
    loop = delivery(Listener(TemporaryError("cannot reach it")), mail, naps=naps, metrics=metrics)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await naps.begun()
        before = loop.health
        await mail.put(change("b", 2, 1))
        loop.wake()
        with anyio.fail_after(DEADLINE):
            while loop.health.pending < 2:
                await anyio.lowlevel.checkpoint()
        assert sample(metrics, "syncd_delivery_pending", {"consumer": "hook"}) == 2
        naps.end()
        await drained(loop)
        after = loop.health
    assert (before.pending, before.failures, before.last_error) == (1, 1, "cannot reach it")
    assert before.last_success_at is None
    assert before.next_attempt_at is not None
    assert before.next_attempt_at.startswith("2026-11-23T20:40:30")
    assert (after.pending, after.failures, after.last_error) == (0, 0, None)
    assert after.last_success_at is not None
    assert after.next_attempt_at is None
    assert sample(metrics, "syncd_delivery_pending", {"consumer": "hook"}) == 0


async def test_latency_is_measured_from_detection(mail: Mail) -> None:
    """The histogram gets the time from the scan to the acknowledgement."""
    metrics = Metrics()
    loop = delivery(Listener(), mail, metrics=metrics)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await drained(loop)
    total = sample(metrics, "syncd_delivery_latency_seconds_sum", {"consumer": "hook"})
    assert total is not None
    assert math.isclose(total, 1.667, abs_tol=1e-3)


async def test_long_mailboxes_are_not_counted_for_every_event(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting is not repeated while nothing but deliveries changes the number."""
    counted = 0
    count = mail.ledger.pending_count

    def counting(consumer: str) -> int:
        nonlocal counted
        counted += 1
        return count(consumer)

    monkeypatch.setattr(mail.ledger, "pending_count", counting)
    loop = delivery(Listener(), mail)
    await mail.put(*(change(f"s{n}", 2, 1) for n in range(20)))
    async with running(loop):
        await drained(loop)
    assert counted == 1
    assert loop.health.pending == 0


async def test_narrowed_grant_drops_what_may_not_be_seen(mail: Mail) -> None:
    """A consumer gets nothing beyond its scope, even if it was put into its mailbox earlier."""
    listener = Listener()
    listener.grant = Grant([Scope("AidboxTopicDestination")])
    loop = delivery(listener, mail)
    await mail.put(change("a", 2, 1), change("b", 2, 1, Scope("AidboxTopicDestination", "kafka")))
    async with running(loop):
        await drained(loop)
    assert [subjects(events) for events in listener.got] == [["b"]]


async def test_an_eager_loop_does_not_wait_with_what_is_new(mail: Mail) -> None:
    """After half a second of rest an event that comes ends the wait after a failure."""
    listener = Listener(TemporaryError("one replica", retry_after=3600.0), max_batch=10)
    naps = Naps(held=True)
    loop = Delivery(
        listener,
        mail.ledger,
        Metrics(),
        Random(7),
        eager=True,
        clock=naps.clock,
        monotonic=naps.clock,
        sleep=naps.sleep,
    )
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await naps.begun()
        await mail.put(change("b", 2, 1))
        loop.wake()
        await naps.begun(2)
        assert naps.taken == [3600.0, engine.EAGER_REST]
        naps.end()
        await drained(loop)
    assert sorted(subjects([*listener.got[1], *listener.got[-1]])) == ["a", "b"]


class Picky(Listener):
    """Rejects what holds one of some secrets."""

    def __init__(self, *bad: str, error: Exception | None = None, **options: int) -> None:
        super().__init__(**options)  # type: ignore[arg-type] # numbers
        self.bad = frozenset(bad)
        self.error = error or RefusedError("cannot: 400")
        self.taken: list[str] = []

    async def deliver(self, events: Sequence[Event]) -> None:
        self.got.append(list(events))
        if self.bad & set(subjects(events)):
            raise self.error
        self.taken += subjects(events)


@pytest.mark.parametrize("max_batch", [1, 7, 100])
@pytest.mark.parametrize("max_in_flight", [1, 4])
@pytest.mark.parametrize("bad", [{"s0"}, {"s7", "s8"}, {"s19"}])
@pytest.mark.parametrize("error", [RefusedError("cannot: 400"), ValueError("a bug")])
async def test_a_rejected_event_holds_up_no_other(
    mail: Mail, max_batch: int, max_in_flight: int, bad: set[str], error: Exception
) -> None:
    """Whichever it is, and in whatever batch: the others are delivered, and status says why."""
    listener = Picky(*bad, error=error, max_batch=max_batch, max_in_flight=max_in_flight)
    naps = Naps(held=True)
    loop = delivery(listener, mail, naps=naps)
    await mail.put(*(change(f"s{number}", 2, 1) for number in range(20)))
    async with running(loop):
        with anyio.fail_after(DEADLINE):
            while loop.health.pending != len(bad) or sum(loop.health.waiting.values()) != len(bad):
                await anyio.lowlevel.checkpoint()
        health = loop.health
        assert await mail.left() == len(bad)
    assert sorted(listener.taken) == sorted({f"s{number}" for number in range(20)} - bad)
    assert len(health.waiting) == 1
    assert health.failures >= 1
    assert health.next_attempt_at is not None


async def test_an_event_that_hangs_the_receiver_is_found(mail: Mail) -> None:
    """No answer is the receiver's trouble, until others get through."""
    listener = Picky("s3", error=TemporaryError("no answer in time"), max_batch=8)
    loop = delivery(listener, mail, naps=Naps())
    await mail.put(*(change(f"s{number}", 2, 1) for number in range(20)))
    async with running(loop):
        with anyio.fail_after(DEADLINE):
            while len(listener.taken) < 19:
                await anyio.lowlevel.checkpoint()
    assert "s3" not in listener.taken


async def test_the_receivers_trouble_stops_everything(mail: Mail) -> None:
    """After a 503 nothing else is tried until the wait is over, and then one delivery alone."""
    listener = Listener(TemporaryError("busy", retry_after=0.0), max_in_flight=1)
    naps = Naps(held=True)
    loop = delivery(listener, mail, naps=naps)
    await mail.put(*(change(f"s{number}", 2, 1) for number in range(5)))
    async with running(loop):
        await naps.begun()
        assert len(listener.got) == 1
        assert loop.health.waiting == {"busy": 5}
        naps.end()
        await drained(loop)
    assert len(listener.got) == 6


async def test_deliveries_overlap_but_not_of_one_secret(mail: Mail) -> None:
    """As many as allowed are in flight; what follows for a secret waits for its predecessor."""
    listener = Listener(max_in_flight=3)
    listener.gate = anyio.Event()
    waiting = 0

    class Counting(Listener):
        async def deliver(self, events: Sequence[Event]) -> None:
            nonlocal waiting
            waiting += 1
            await listener.deliver(events)
            waiting -= 1

    loop = delivery(Counting(max_in_flight=3), mail)
    await mail.put(*(change(name, 2, 1) for name in "abcde"))
    async with running(loop):
        with anyio.fail_after(DEADLINE):
            while waiting < 3:
                await anyio.lowlevel.checkpoint()
        await mail.put(change("a", 3, 2))
        loop.wake()
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        assert waiting == 3
        listener.gate.set()
        await drained(loop)
    order = [e.data.version for (e,) in listener.got if isinstance(e.data, SecretData)]
    assert len(order) == 6
    assert order.index(version(3)) > 0
    assert [subjects(events) for events in listener.got].count(["a"]) == 2
