"""The refresh loop: its pace, its health, and how little one provider matters to another."""

from __future__ import annotations

import threading
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from structlog.testing import capture_logs
from support.waiting import DEADLINE

from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.payload import File, Payload
from syncd.provision.composite import CompositeProvider
from syncd.provision.publish import Publisher
from syncd.provision.refresh import BACKOFF_CAP, MAX_RETRY_AFTER, Refresher
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CANARY = b"CANARY-value"
FILES = (File("a", CANARY),)

Step = Payload | Exception


class FakeProvider:
    """Plays a script, then gives the last step for ever; blocks while told to."""

    def __init__(self, *script: Step, name: str = "fake") -> None:
        self.name = name
        self.script = list(script)
        self.fetches = 0
        self.threads: set[int] = set()
        self.blocked = threading.Event()
        self.blocked.set()
        self.interrupted = False
        self.closed = False

    def fetch(self) -> Payload:
        self.fetches += 1
        self.threads.add(threading.get_ident())
        assert self.blocked.wait(DEADLINE)
        if self.interrupted:
            raise TemporaryError("cannot fetch: interrupted")
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return step

    def interrupt(self) -> None:
        self.interrupted = True
        self.blocked.set()

    def resume(self) -> None:
        self.interrupted = False

    def close(self) -> None:
        self.closed = True


class Sleeper:
    """Records how long the loop wants to rest, and lets it go on when told."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self._send, self._receive = anyio.create_memory_object_stream[None](100)
        self._asked_send, self._asked = anyio.create_memory_object_stream[float](100)

    async def __call__(self, delay: float) -> None:
        self.delays.append(delay)
        self._asked_send.send_nowait(delay)
        await self._receive.receive()

    async def asked(self) -> float:
        """The next delay that the loop asks for."""
        with anyio.fail_after(DEADLINE):
            return await self._asked.receive()

    def go_on(self) -> None:
        self._send.send_nowait(None)

    def close(self) -> None:
        for stream in (self._send, self._receive, self._asked_send, self._asked):
            stream.close()


class Loop:
    """A refresher with everything around it."""

    def __init__(self, target: Path, provider: FakeProvider, interval: float = 100.0) -> None:
        self.provider = provider
        self.metrics = Metrics()
        self.sleeper = Sleeper()
        self.now = 1_000_000.0
        self.refresher = Refresher(
            provider,
            Publisher(str(target)),
            interval,
            self.metrics,
            Random(1),
            clock=lambda: self.now,
            sleep=self.sleeper,
            monotonic=lambda: self.now,
        )

    async def rounds(self, count: int) -> list[float | None]:
        """Runs until the loop has rested `count` times; the delays."""
        delays: list[float | None] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.refresher.run)
            for number in range(count):
                if number:
                    self.sleeper.go_on()
                delays.append(await self.sleeper.asked())
            tasks.cancel_scope.cancel()
        self.sleeper.close()
        return delays

    def counted(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value(
            "syncd_provision_total", {"provider": "fake", "outcome": outcome}
        )


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Loop]:
    def make(*script: Step, **options: Any) -> Loop:
        return Loop(tmp_path / "target", FakeProvider(*script), **options)

    return make


async def test_it_fetches_publishes_and_rests_for_the_interval(
    make: Callable[..., Loop], tmp_path: Path
) -> None:
    """± 10 %, so that a fleet does not arrive at once."""
    loop = make(Payload(FILES))
    with capture_logs() as logs:
        delays = await loop.rounds(20)
    assert all(90 <= (delay or 0) <= 110 for delay in delays)
    assert len(set(delays)) == 20
    assert (tmp_path / "target" / "a").read_bytes() == CANARY
    assert loop.counted("success") == 20
    events = [line["event"] for line in logs if line["event"].startswith("provision.")]
    assert events.count("provision.published") == 1
    assert events.count("provision.unchanged") == 19
    health = loop.refresher.health
    assert (health.files, health.failures, health.last_error) == (1, 0, None)
    assert health.last_success_at == health.last_change_at == "1970-01-12T13:46:40.000Z"
    assert "CANARY" not in repr(logs) + repr(health)


@pytest.mark.parametrize(
    ("interval", "took", "least", "most"),
    [(100.0, 60.0, 30, 50), (100.0, 300.0, 1, 1), (0.5, 0.1, 0.5, 0.5)],
)
async def test_the_interval_counts_from_the_start_of_a_pass(
    make: Callable[..., Loop], interval: float, took: float, least: float, most: float
) -> None:
    """A slow vault does not make it longer; a pass that takes longer is followed by a rest."""
    loop = make(Payload(FILES), interval=interval)
    fetch = loop.provider.fetch

    def slowly() -> Payload:
        loop.now += took
        return fetch()

    loop.provider.fetch = slowly  # type: ignore[method-assign] # a slow vault
    delays = await loop.rounds(5)
    assert all(least <= (delay or 0) <= most for delay in delays)


@pytest.mark.parametrize(
    ("due", "expected"), [(30.0, 30.0), (0.0, 1.0), (-50.0, 1.0), (1000.0, None)]
)
async def test_a_lease_brings_the_next_fetch_forward(
    make: Callable[..., Loop], due: float, expected: float | None
) -> None:
    """But never closer than a second, and never back."""
    (delay,) = await make(Payload(FILES, due)).rounds(1)
    assert delay == expected if expected is not None else 90 <= (delay or 0) <= 110


async def test_failures_back_off_and_recover(make: Callable[..., Loop]) -> None:
    """Doubling with jitter up to five minutes; the first success starts anew."""
    error = TemporaryError("cannot read a: the server is away; wait")
    loop = make(*[error] * 12, Payload(FILES))
    with capture_logs() as logs:
        delays = await loop.rounds(13)
    for index, delay in enumerate(delays[:12]):
        step = min(BACKOFF_CAP, 2.0**index)
        assert step / 2 <= (delay or 0) <= step
    assert 90 <= (delays[12] or 0) <= 110
    assert loop.counted("failed") == 12
    assert loop.counted("success") == 1
    warnings = [line for line in logs if line["log_level"] == "warning"]
    failed = [line["failures"] for line in warnings if line["event"] == "provision.failed"]
    assert failed == [1, 2, 4, 8]  # rarer as it lasts
    (published,) = [line for line in logs if line["event"] == "provision.published"]
    assert published["after_failures"] == 12


async def test_health_shows_the_failure_and_the_last_success(
    make: Callable[..., Loop], tmp_path: Path
) -> None:
    """The files stay, their age can be told, and the reason is one line."""
    loop = make(Payload(FILES), TemporaryError("cannot read a: away; wait"))
    await loop.rounds(3)
    health = loop.refresher.health
    assert health.last_error == "cannot read a: away; wait"
    assert health.failures == 2
    assert health.last_success_at is not None
    assert (tmp_path / "target" / "a").read_bytes() == CANARY
    labels = {"provider": "fake"}
    name = "syncd_provision_last_success_timestamp_seconds"
    assert (loop.metrics.registry.get_sample_value(name, labels) or 0) > 0


@pytest.mark.parametrize(("asked", "expected"), [(700.0, 700.0), (1e9, MAX_RETRY_AFTER)])
async def test_retry_after_is_honoured_within_reason(
    make: Callable[..., Loop], asked: float, expected: float
) -> None:
    """Beyond the cap of the backoff, but not for ever."""
    loop = make(TemporaryError("cannot read a: slow down; wait", retry_after=asked))
    assert await loop.rounds(1) == [expected]


async def test_a_refusal_is_an_error_once_per_reason(make: Callable[..., Loop]) -> None:
    """It is repeated with backoff: after the correction no restart is needed."""
    denied = RefusedError("cannot read a: denied; allow it")
    loop = make(denied, denied, RefusedError("cannot read b: denied; allow it"), Payload(FILES))
    with capture_logs() as logs:
        await loop.rounds(4)
    errors = [line["reason"] for line in logs if line["log_level"] == "error"]
    assert errors == ["cannot read a: denied; allow it", "cannot read b: denied; allow it"]
    assert loop.counted("refused") == 3
    assert loop.refresher.health.last_error is None


async def test_a_bug_does_not_stop_the_loop_or_show_its_text(make: Callable[..., Loop]) -> None:
    """The text of an unexpected exception may hold a value."""
    loop = make(ValueError("CANARY"), Payload(FILES))
    with capture_logs() as logs:
        await loop.rounds(2)
    (error,) = [line for line in logs if line["log_level"] == "error"]
    assert "ValueError" in error["reason"]
    assert "CANARY" not in repr(logs)


async def test_an_interval_of_zero_fetches_until_it_has_succeeded_once(
    make: Callable[..., Loop],
) -> None:
    """Failures are repeated; after the first success only a wake-up fetches again."""
    loop = make(TemporaryError("cannot read a: away; wait"), Payload(FILES, 5.0), interval=0.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop.refresher.run)
        await loop.sleeper.asked()
        loop.sleeper.go_on()
        with anyio.fail_after(DEADLINE):
            while loop.refresher.health.last_success_at is None:
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert loop.provider.fetches == 2
        assert loop.refresher.health.next_attempt_at is None
        loop.refresher.wake()
        with anyio.fail_after(DEADLINE):
            while loop.provider.fetches < 3:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    loop.sleeper.close()
    assert len(loop.sleeper.delays) == 1


async def test_a_wake_up_cuts_the_rest_short(make: Callable[..., Loop]) -> None:
    """`attempted` is set by then, and `next_attempt_at` says when it would have been."""
    loop = make(Payload(FILES))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop.refresher.run)
        await loop.sleeper.asked()
        await loop.refresher.attempted()
        assert (loop.refresher.health.next_attempt_at or "") > "1970-01-12T13:48"
        loop.refresher.wake()
        await loop.sleeper.asked()
        assert loop.provider.fetches == 2
        tasks.cancel_scope.cancel()
    loop.sleeper.close()


async def test_cancelling_interrupts_a_fetch_that_hangs_and_counts_no_failure(
    make: Callable[..., Loop],
) -> None:
    """Shutdown waits for no vault; a later run works again."""
    loop = make(Payload(FILES))
    loop.provider.blocked.clear()
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(loop.refresher.run)
            with anyio.fail_after(DEADLINE):
                while not loop.provider.fetches:
                    await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert loop.provider.interrupted
    assert loop.counted("failed") == 0
    assert not [line for line in logs if line["event"] == "provision.failed"]
    await loop.rounds(1)
    assert loop.counted("success") == 1


async def test_a_provider_that_hangs_delays_no_other(tmp_path: Path) -> None:
    """Each has a worker thread of its own."""
    hanging = [Loop(tmp_path / str(n), FakeProvider(Payload(FILES))) for n in range(50)]
    other = Loop(tmp_path / "other", FakeProvider(Payload(FILES)))
    for loop in hanging:
        loop.provider.blocked.clear()
    async with anyio.create_task_group() as tasks:
        for loop in hanging:
            tasks.start_soon(loop.refresher.run)
        tasks.start_soon(other.refresher.run)
        await other.sleeper.asked()
        assert await anyio.to_thread.run_sync(lambda: True)  # nor do they take others' threads
        tasks.cancel_scope.cancel()
    for loop in [*hanging, other]:
        loop.sleeper.close()


@pytest.mark.parametrize(
    ("script", "succeeds", "fetches"),
    [
        ((Payload(FILES),), True, 1),
        ((TemporaryError("cannot a"), TemporaryError("cannot b"), Payload(FILES)), True, 3),
        ((RefusedError("cannot a"), Payload(FILES)), False, 1),
        ((TemporaryError("cannot a"), RefusedError("cannot b"), Payload(FILES)), False, 2),
    ],
)
async def test_once_tries_again_only_what_may_heal(
    make: Callable[..., Loop], script: tuple[Step, ...], succeeds: bool, fetches: int
) -> None:
    """A refusal ends it: it will not be corrected while `ExecStartPre=` waits."""
    loop = make(*script)
    for _ in script:
        loop.sleeper.go_on()
    with anyio.fail_after(DEADLINE):
        assert await loop.refresher.run_once() is succeeds
    assert loop.provider.fetches == fetches
    loop.sleeper.close()


async def test_a_target_on_a_disk_is_warned_about_once(
    make: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets outlive a power cut there."""
    monkeypatch.setattr("syncd.provision.refresh.filesystem", lambda _path: "ext4")
    with capture_logs() as logs:
        await make(Payload(FILES)).rounds(3)
    (warning,) = [line for line in logs if line["event"] == "provision.target_on_disk"]
    assert warning["filesystem"] == "ext4"


def test_several_classes_are_one_payload() -> None:
    """All files, the earliest due; interrupting and closing reaches each."""
    one = FakeProvider(Payload((File("a", b"1"),), 50.0))
    two = FakeProvider(Payload((File("b", b"2"),), 20.0))
    three = FakeProvider(Payload((File("c", b"3"),)))
    combined = CompositeProvider("all", [one, two, three])
    payload = combined.fetch()
    assert [file.path for file in payload.files] == ["a", "b", "c"]
    assert payload.due == 20.0
    assert CompositeProvider("none", [three]).fetch().due is None
    combined.interrupt()
    assert one.interrupted
    assert two.interrupted
    with pytest.raises(TemporaryError):
        combined.fetch()
    combined.resume()
    combined.close()
    assert one.closed
    assert not one.interrupted
