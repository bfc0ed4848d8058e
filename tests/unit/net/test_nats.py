"""A connection's answers: each belongs to one message, whenever it comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import pytest
from nats.aio.msg import Msg
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

    async def publish(self, _subject: str, _payload: bytes, reply: str, _headers: object) -> None:
        self.replies.append(reply)
        self.published.set()
        self.published = anyio.Event()

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
