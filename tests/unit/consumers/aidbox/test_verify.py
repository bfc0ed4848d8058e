"""Verifying adoption: what is tried, when it ends, and what it leaves behind."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from structlog.testing import capture_logs
from support.mail import NOW, Mail, change, sample, version
from support.waiting import DEADLINE, until

from syncd.consumers.aidbox import verify as adoption
from syncd.consumers.aidbox.session import Session
from syncd.consumers.aidbox.verify import Verifier
from syncd.core.adoption import NOT_VERIFIABLE, Adoption, AdoptionState
from syncd.core.errors import StateError, TemporaryError
from syncd.core.event_data import AdoptionData
from syncd.core.events import Stamp
from syncd.core.model import Grant, Scope
from syncd.net.replicas import Replica, Replicas
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from syncd.consumers.aidbox.logins import Cause
    from syncd.core.events import Event

BOX = "aidbox/verify"
VALUE = b"canary\n"
Answer = "Callable[[str, str, bytes], int]"


class Box(Session):
    """Answers as a function of replica, Client and value says, and records who was tried."""

    def __init__(self, answer: Callable[[str, str, bytes], int]) -> None:
        super().__init__("syncd", "/nowhere", use_token=False, timeout=5)
        self._answer = answer
        self.tried: list[tuple[str, str, bytes]] = []
        self.at_once = self.most = 0
        self.closed = False
        self.begun = anyio.Event()

    async def status_as(self, replica: Replica, client_id: str, value: bytes, event_id: str) -> int:
        assert event_id.startswith("epoch-")
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await anyio.lowlevel.checkpoint()
        self.at_once -= 1
        attempt = (str(replica), client_id, value)
        self.tried.append(attempt)
        self.begun.set()
        return self._answer(*attempt)

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path / "state"), {BOX: Grant()})
    yield mail
    mail.close()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Mail]:
    """With a mailbox for the drop of caches."""
    mail = Mail(str(tmp_path / "state"), {"aidbox": Grant(), BOX: Grant()})
    yield mail
    mail.close()


class Rig:
    """A verifier over a real mailbox, and what it published."""

    def __init__(
        self,
        mail: Mail,
        answer: Callable[[str, str, bytes], int],
        *,
        urls: Sequence[str] = ("http://one", "http://two"),
        resolve: Callable[[str, int], object] | None = None,
        timeout: float = 0.5,
        cause: Cause | None = None,
        values: Callable[[str, str, str], bytes | None] = lambda *_: VALUE,
    ) -> None:
        self.mail = mail
        self.box = Box(answer)
        self.metrics = Metrics()
        self.published: list[Event] = []
        self.refuse: list[Exception] = []
        self.verifier = Verifier(
            "aidbox",
            Grant(),
            timeout,
            replicas=Replicas(urls, expand=False),
            session=self.box,
            ledger=mail.ledger,
            read=values,
            publish=self.publish,
            stamp=Stamp("epoch", "/syncd/test"),
            cause=cause,
            metrics=self.metrics.adoption("aidbox"),
            rng=random.Random(7),
            clock=lambda: NOW + 1,
        )

    async def publish(self, event: Event) -> None:
        if self.refuse:
            raise self.refuse.pop()
        self.published.append(event)
        await anyio.to_thread.run_sync(self.mail.ledger.append, event, {})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.verifier.run)
            yield
            tasks.cancel_scope.cancel()
        assert self.box.closed

    async def drained(self) -> None:
        with anyio.fail_after(DEADLINE):
            await self.verifier.drained()

    @property
    def outcome(self) -> AdoptionData:
        (event,) = self.published
        assert isinstance(event.data, AdoptionData)
        return event.data


async def test_every_replica_must_take_it(mail: Mail) -> None:
    """Each is tried until it does; who has taken it is not asked again."""
    answers = {"http://one": [403], "http://two": [401, 401, 503, 401, 401, 200]}
    rig = Rig(mail, lambda replica, *_: answers[replica].pop(0), values=lambda *_: b"canary")
    await mail.put(change("app", 2, 1))
    async with rig.running():
        await rig.drained()
        assert rig.verifier.adoptions["app"].state is AdoptionState.ADOPTED
    assert rig.published[0].type == "io.syncd.secret.adopted"
    assert [item.adopted for item in rig.outcome.replicas] == [True, True]
    assert rig.outcome.version == version(2)
    assert rig.outcome.seconds == 2.667  # from the event's time to the clock's
    assert len(rig.box.tried) == 7
    assert await mail.left(BOX) == 0
    assert sample(rig.metrics, "syncd_adoption_seconds_count", {"consumer": "aidbox"}) == 1
    assert "canary" not in repr(rig.outcome)


@pytest.mark.parametrize("limit", [3600.0, 60.0])
async def test_a_reload_is_no_new_beginning(mail: Mail, limit: float) -> None:
    """The attempts go on as planned, unless the timeout is another one."""
    first = Rig(mail, lambda *_: 401, urls=["http://one"], timeout=3600.0, values=lambda *_: b"x")
    begun, later = first.verifier.progress, "http://one"
    await mail.put(change("app", 2, 1))
    async with first.running():
        await until(lambda: "app" in begun and later in begun["app"].trials)
        await until(lambda: begun["app"].trials[later].index == 1)
    trial = begun["app"].trials[later]
    second = Rig(mail, lambda *_: 401, urls=["http://one"], timeout=limit)
    second.verifier.follow(first.verifier)
    async with second.running():
        await until(lambda: second.verifier.adoptions and second.verifier.progress["app"].trials)
        went_on = second.verifier.progress["app"].trials[later] is trial
    assert went_on is (limit == 3600.0)
    assert not (went_on and second.box.tried)


async def test_a_newline_at_the_end_is_tried_both_ways(mail: Mail) -> None:
    """Aidbox does not say whether it trims."""
    rig = Rig(mail, lambda *attempt: 200 if attempt[2] == b"canary" else 401, urls=["http://one"])
    await mail.put(change("app", 2, 1))
    async with rig.running():
        await rig.drained()
    assert [value for _, _, value in rig.box.tried] == [b"canary\n", b"canary"]
    assert rig.outcome.replicas[0].adopted


async def test_it_ends_at_the_deadline(mail: Mail) -> None:
    """With the reason for each replica that has not taken it; others have been verified by then."""

    def answer(replica: str, client: str, _: bytes) -> int:
        if client == "other" or replica == "http://one":
            return 200
        return 401

    rig = Rig(mail, answer)
    other = Scope("Client", "other")
    with capture_logs() as logs:
        await mail.put(change("app", 2, 1), change("other", 2, 1, other))
        async with rig.running():
            await rig.drained()
    assert [event.subject for event in rig.published] == ["other", "app"]
    rejected = rig.published[1].data
    assert isinstance(rejected, AdoptionData)
    assert [item.reason for item in rejected.replicas] == [None, "it answers 401"]
    assert rig.verifier.adoptions["app"].problem == "http://two: it answers 401"
    assert [item["event"] for item in logs] == ["adoption.adopted", "adoption.rejected"]
    assert await mail.left(BOX) == 0


async def test_a_value_is_tried_ten_times(mail: Mail) -> None:
    """Each refused login is a warning in Aidbox's log; two ways to write it share the ten."""
    rig = Rig(mail, lambda *_: 401, urls=["http://one"], values=lambda *_: b"canary")
    await mail.put(change("app", 2, 1))
    async with rig.running():
        await rig.drained()
        assert len(rig.box.tried) == 10
    rig = Rig(mail, lambda *_: 401, urls=["http://one"])
    await mail.put(change("app", 3, 2))
    async with rig.running():
        await rig.drained()
        assert len(rig.box.tried) == 10


async def test_a_late_success_is_an_adoption(mail: Mail) -> None:
    """After the rejection, which has been reported by then, and from which nothing is pending."""
    accepting = anyio.Event()
    rig = Rig(mail, lambda *_: 200 if accepting.is_set() else 401, urls=["http://one"])
    await mail.put(change("app", 2, 1))
    async with rig.running():
        await rig.drained()
        assert rig.verifier.adoptions["app"].state is AdoptionState.REJECTED
        assert await mail.left(BOX) == 0
        accepting.set()
        await until(lambda: rig.verifier.adoptions["app"].state is AdoptionState.ADOPTED)
    types = [event.type.rpartition(".")[2] for event in rig.published]
    assert types == ["rejected", "adopted"]


async def test_an_aidbox_that_starts_has_all_of_its_time(mail: Mail) -> None:
    """While it does not answer there is no outcome; it is shown as unreachable, and waited for."""
    away = [True]

    def answer(*_: object) -> int:
        if away:
            raise TemporaryError("cannot verify at http://one: Connection refused; start it")
        return 401 if len(rig.box.tried) < before + 5 else 200

    rig, before = Rig(mail, answer, urls=["http://one"], values=lambda *_: b"canary"), 0
    await mail.put(change("app", 2, 1))
    with capture_logs() as logs:
        async with rig.running():
            await until(lambda: "app" in rig.verifier.adoptions)
            await until(lambda: rig.verifier.adoptions["app"].state is AdoptionState.UNREACHABLE)
            assert "Connection refused" in str(rig.verifier.adoptions["app"].problem)
            assert not rig.published
            assert await mail.left(BOX) == 1
            before = len(rig.box.tried)
            away.clear()
            await rig.drained()
    assert [event.type for event in rig.published] == ["io.syncd.secret.adopted"]
    assert [item["event"] for item in logs] == ["adoption.unreachable", "adoption.adopted"]


async def test_a_server_in_trouble_proves_nothing(mail: Mail) -> None:
    """A proxy that answers 503 for an Aidbox that starts is not Aidbox."""
    rig = Rig(mail, lambda *_: 503, urls=["http://one"])
    await mail.put(change("app", 2, 1))
    async with rig.running():
        await until(
            lambda: (
                "app" in rig.verifier.adoptions
                and rig.verifier.adoptions["app"].state is AdoptionState.UNREACHABLE
            )
        )
    assert not rig.published


class Drops:
    """Says up to which event caches were dropped."""

    def __init__(self) -> None:
        self.until: dict[str, int] = {}

    def dropped_until(self, replica: Replica) -> int:
        return self.until.get(str(replica), -1)


async def test_it_begins_when_the_caches_are_dropped(both: Mail) -> None:
    """At each replica by itself: before, a refusal says nothing, and would only be logged there."""
    drops = Drops()
    rig = Rig(both, lambda *_: 200, timeout=DEADLINE, cause=drops)
    await both.put(change("app", 2, 1))
    async with rig.running():
        drops.until["http://two"] = 1
        with anyio.fail_after(DEADLINE):
            await rig.box.begun.wait()
        assert {replica for replica, *_ in rig.box.tried} == {"http://two"}
        drops.until["http://one"] = 1
        await rig.drained()
    assert rig.outcome.replicas[0].adopted


async def test_caches_that_were_dropped_before_a_restart(mail: Mail) -> None:
    """The delivery is acknowledged, so there is nothing to wait for."""
    rig = Rig(mail, lambda *_: 200, timeout=DEADLINE, cause=Drops())
    await mail.put(change("app", 2, 1))
    async with rig.running():
        await rig.drained()
    assert rig.outcome.replicas[0].adopted


async def test_caches_that_cannot_be_dropped(both: Mail) -> None:
    """Do not keep the outcome away for ever."""
    rig = Rig(both, lambda *_: 200, cause=Drops())
    await both.put(change("app", 2, 1))
    async with rig.running():
        await rig.drained()
    assert rig.outcome.replicas[0].adopted


async def test_a_file_that_has_moved_on(mail: Mail) -> None:
    """Its value is not tried."""
    moved = Rig(mail, lambda *_: 200, urls=["http://one"], values=lambda *_: None)
    await mail.put(change("app", 3, 2))
    async with moved.running():
        await moved.drained()
    assert moved.outcome.replicas[0].reason == "the file no longer holds this version"
    assert not moved.box.tried


async def test_a_name_without_addresses_is_asked_again(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that is not in the DNS yet may be there in a moment."""
    answers = [TemporaryError("cannot resolve aidbox: it is not there")]
    current = Replicas.current

    async def flaky(self: Replicas) -> tuple[Replica, ...]:
        if answers:
            raise answers.pop()
        return await current(self)

    monkeypatch.setattr(Replicas, "current", flaky)
    rig = Rig(mail, lambda *_: 200)
    await mail.put(change("app", 2, 1))
    async with rig.running():
        await rig.drained()
    assert rig.outcome.replicas[1].adopted


async def test_a_newer_change_ends_an_older_verification(mail: Mail) -> None:
    """Only the newest version is told of."""
    newer = version(3).encode()
    rig = Rig(
        mail,
        lambda *attempt: 200 if attempt[2].startswith(newer) else 401,
        timeout=DEADLINE,
        urls=["http://one"],
        values=lambda *wanted: wanted[2].encode(),
    )
    await mail.put(change("app", 2, 1))
    async with rig.running():
        with anyio.fail_after(DEADLINE):
            await rig.box.begun.wait()
        assert rig.verifier.adoptions["app"] == Adoption(AdoptionState.PENDING, version(2))
        await mail.put(change("app", 3, 2))
        rig.verifier.wake()
        await rig.drained()
    assert rig.outcome.version == version(3)


async def test_what_has_no_value_to_try(mail: Mail) -> None:
    """A removal ends the matter; another scope is not verifiable, which is said once."""
    rig = Rig(mail, lambda *_: 200)
    token = Scope("TokenIntrospector", "t")
    await mail.put(change("app", None, 1), change("t", 2, 1, token))
    with capture_logs() as logs:
        async with rig.running():
            await rig.drained()
            await mail.put(change("t", 3, 2, token))
            rig.verifier.wake()
            await rig.drained()
    assert rig.verifier.adoptions == {"t": NOT_VERIFIABLE}
    assert [item["event"] for item in logs] == ["adoption.not_verifiable"]
    assert not rig.published
    assert not rig.box.tried
    assert await mail.left(BOX) == 0


async def test_what_was_found_out_before_is_known(mail: Mail) -> None:
    """From the event log, the newest for each secret and of this consumer only."""
    first = Rig(mail, lambda *_: 200)
    await mail.put(change("app", 2, 1))
    async with first.running():
        await first.drained()
    foreign = msgspec.structs.replace(first.outcome, consumer="else", secret="x")
    event = msgspec.structs.replace(first.published[0], data=foreign, subject="x")
    await mail.put(event)
    second = Rig(mail, lambda *_: 200)
    async with second.running():
        await second.drained()
    adopted = Adoption(AdoptionState.ADOPTED, version(2), 2.667)
    assert second.verifier.adoptions == {"app": adopted}


async def test_many_are_verified_a_few_at_a_time(mail: Mail) -> None:
    """Aidbox does not get all requests at once."""
    rig = Rig(mail, lambda *_: 200, urls=["http://one"])
    await mail.put(*(change(f"s{number}", 2, 1) for number in range(80)))
    async with rig.running():
        await rig.drained()
    assert len(rig.published) == 80
    assert 1 < rig.box.most <= 16


@pytest.mark.parametrize("error", [StateError("cannot use the ledger"), KeyError("canary")])
async def test_what_fails_is_verified_again(
    mail: Mail, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a full disk or a bug: it stays in the mailbox, and needs no other change to come."""
    monkeypatch.setattr(adoption, "RETRY", 0.01)
    rig = Rig(mail, lambda *_: 200)
    rig.refuse.append(error)
    await mail.put(change("app", 2, 1))
    with capture_logs() as logs:
        async with rig.running():
            await rig.drained()
    assert await mail.left(BOX) == 0
    assert rig.outcome.secret == "app"
    assert [item["event"] for item in logs][1:] == ["adoption.adopted"]
    assert logs[0]["log_level"] in ("warning", "error")
    assert "canary" not in str(logs)
