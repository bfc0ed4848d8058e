"""A connection's answers: each belongs to one message, whenever it comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import nats.errors
import pytest
from nats.aio.msg import Msg
from nats.js.api import ClusterInfo, StreamConfig, StreamInfo, StreamState
from support.waiting import DEADLINE

from syncd.config.settings import NatsServer
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.net.nats import Connection

STORED = b'{"stream":"s","seq":1}'


@dataclass
class FakeClient:
    """As much of a client as publishing takes; answers come when the test says so."""

    replies: list[str] = field(default_factory=list)
    is_closed: bool = False
    is_connected: bool = True
    published: anyio.Event = field(default_factory=anyio.Event)
    silent: bool = False
    cluster: ClusterInfo | None = None

    async def publish(self, _subject: str, _payload: bytes, reply: str, _headers: object) -> None:
        self.replies.append(reply)
        self.published.set()
        self.published = anyio.Event()

    def jetstream(self, timeout: float) -> FakeClient:
        return self

    async def stream_info(self, name: str) -> StreamInfo:
        if self.silent:
            raise nats.errors.TimeoutError
        state = StreamState(messages=0, bytes=0, first_seq=0, last_seq=0, consumer_count=0)
        return StreamInfo(StreamConfig(name=name), state, cluster=self.cluster)

    async def force_close(self) -> None:
        self.is_closed, self.is_connected = True, False


class FakeConnection(Connection):
    """A connection over a fake client."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(NatsServer(urls=("nats://h:4222",), **settings), "test")
        self.fake = FakeClient()
        self._client = cast("Any", self.fake)
        self._inbox = "_INBOX.x"
        self._connected.set()

    async def answer(self, reply: str, data: bytes, **headers: str) -> None:
        await self._on_ack(Msg(cast("Any", None), reply, "", data, headers or None))


async def test_a_late_answer_is_none_to_the_next_message() -> None:
    """What was cut short by a lost connection is not taken for what came after it."""
    link = FakeConnection()
    answers: list[list[SyncdError | None]] = []

    async def publish(subject: str) -> None:
        answers.append(await link.publish([(subject, {}, b"")]))

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            published = link.fake.published
            tasks.start_soon(publish, "a")
            await published.wait()
            await link._on_disconnected()
        (lost,) = answers.pop()
        assert isinstance(lost, TemporaryError)
        assert "the connection was lost" in str(lost)
        await link._on_reconnected()
        async with anyio.create_task_group() as tasks:
            published = link.fake.published
            tasks.start_soon(publish, "b")
            await published.wait()
            await link.answer(link.fake.replies[0], STORED)
            await link.answer(link.fake.replies[1], b"", Status="503")
        (second,) = answers.pop()
    assert "no stream takes subject b" in str(second)


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b'{"error":{"code":503,"err_code":10077}}', TemporaryError, "is full or cannot store"),
        (b'{"error":{"code":500,"err_code":10047}}', TemporaryError, "no room or no quorum"),
        (b'{"error":{"code":503,"err_code":10076}}', RefusedError, "JetStream is not enabled"),
        (b'{"error":{"code":400,"err_code":10054}}', RefusedError, "max_msg_size"),
        (b'{"error":{"code":400,"err_code":1}}', TemporaryError, "answered 400, error 1"),
        (b"not json", TemporaryError, "subject a is answered by something other than"),
        (b"{}", TemporaryError, "subject a is answered by something other than"),
    ],
)
async def test_what_answers_mean(answer: bytes, kind: type[SyncdError], text: str) -> None:
    """A message is stored if JetStream says so, and by nothing else."""
    link = FakeConnection()
    found: list[SyncdError | None] = []

    async def publish() -> None:
        found.extend(await link.publish([("a", {}, b""), ("b", {}, b"")]))

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            published = link.fake.published
            tasks.start_soon(publish)
            await published.wait()
            while len(link.fake.replies) < 2:
                await link.fake.published.wait()
            await link.answer(link.fake.replies[1], STORED)
            await link.answer(link.fake.replies[0], answer)
    error, stored = found
    assert isinstance(error, kind)
    assert text in str(error)
    assert stored is None


@pytest.mark.parametrize("cluster", [ClusterInfo(name="c", leader="n1"), None])
async def test_a_stream_with_a_leader(cluster: ClusterInfo | None) -> None:
    """A server without a cluster names none."""
    connection = FakeConnection()
    connection.fake.cluster = cluster
    assert (await connection.stream("s")).config.name == "s"
    assert connection.is_connected


@pytest.mark.parametrize(
    ("silent", "text"),
    [
        (True, "JetStream does not answer within 3 s; check"),
        (False, "bucket b has no leader; wait if one is being elected"),
    ],
)
async def test_a_server_that_cannot_know(silent: bool, text: str) -> None:
    """One that is gone, or cut off from the others: the next connection may be to another."""
    connection = FakeConnection()
    connection.fake.silent, connection.fake.cluster = silent, ClusterInfo(name="c")
    with pytest.raises(TemporaryError, match=text):
        await connection.stream("KV_b", 3)
    assert not connection.is_connected
