"""Requests as a Client: tokens, credentials that rotate, and what is said of a refusal."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING

import pytest
from support.receiver import Receiver, reply
from support.tls import replace

from syncd.consumers.aidbox.session import RejectedError, Session
from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.replicas import Replica
from syncd.net.url import Url

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "hunter2-canary"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(CANARY)
    os.utime(path, (0, 0))
    return path


def write_in_place(file: Path, text: str) -> None:
    """Writes as much as was there, and puts the times back."""
    status = file.stat()
    with file.open("r+") as opened:
        opened.write(text)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def session(secret: Path, clock: Clock | None = None, *, use_token: bool = False) -> Session:
    return Session("syncd", str(secret), use_token=use_token, timeout=5, clock=clock or Clock())


def replica(receiver: Receiver) -> Replica:
    return Replica(Url.parse(f"http://127.0.0.1:{receiver.port}"))


def token(name: str, **more: object) -> bytes:
    return json.dumps({"token_type": "Bearer", "access_token": name, **more}).encode()


async def ask(session: Session, receiver: Receiver) -> None:
    await session.request("cannot try", replica(receiver), "GET", "/fhir/Client")


async def test_a_token_is_kept_until_it_expires(secret: Path, receiver: Receiver) -> None:
    """A little less long than Aidbox says; one without an end, for ever."""
    clock = Clock()
    asked = session(secret, clock, use_token=True)
    receiver.script(reply(200, token("one", expires_in=100)), reply(200), reply(200))
    await ask(asked, receiver)
    clock.now = 89
    await ask(asked, receiver)
    clock.now = 91
    receiver.script(reply(200, token("two")), reply(200), reply(200))
    await ask(asked, receiver)
    clock.now = 1e9
    await ask(asked, receiver)
    await asked.aclose()
    got = [(r.target, r.headers["authorization"].split()[-1]) for r in receiver.requests]
    basic = base64.b64encode(f"syncd:{CANARY}".encode()).decode()
    assert got == [
        ("/auth/token", basic),
        ("/fhir/Client", "one"),
        ("/fhir/Client", "one"),
        ("/auth/token", basic),
        ("/fhir/Client", "two"),
        ("/fhir/Client", "two"),
    ]
    assert receiver.requests[0].body == b"grant_type=client_credentials"
    assert CANARY not in repr(asked)


async def test_a_token_that_is_not_accepted_is_replaced(secret: Path, receiver: Receiver) -> None:
    """Once, and the request made again at once."""
    asked = session(secret, use_token=True)
    receiver.script(reply(200, token("one")), reply(401), reply(200, token("two")), reply(200))
    await ask(asked, receiver)
    receiver.script(reply(401), reply(200, token("three")), reply(401))
    with pytest.raises(RejectedError) as error:
        await ask(asked, receiver)
    assert error.value.status == 401
    await asked.aclose()


@pytest.mark.parametrize("use_token", [False, True])
async def test_a_rotated_secret_is_read(
    secret: Path, receiver: Receiver, *, use_token: bool
) -> None:
    """Even where the file's times do not tell: after a 401 it is read again in any case."""
    asked = session(secret, use_token=use_token)
    receiver.script(reply(200, token("one")), *[reply(200)] * use_token)
    await ask(asked, receiver)
    write_in_place(secret, CANARY[::-1])
    receiver.script(reply(401), reply(200, token("two")), reply(200))
    await ask(asked, receiver)
    await asked.aclose()
    basic = base64.b64encode(f"syncd:{CANARY[::-1]}".encode()).decode()
    assert f"Basic {basic}" in [r.headers["authorization"] for r in receiver.requests]


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, RefusedError, "write the secret of Client/syncd into {secret}"),
        (403, RefusedError, "give Client/syncd an AccessPolicy"),
        (404, RefusedError, "this is not an Aidbox"),
        (422, RefusedError, "see Aidbox's log"),
        (302, RefusedError, "see Aidbox's log"),
        (429, TemporaryError, "it answered 429"),
        (500, TemporaryError, "it answered 500"),
    ],
)
async def test_what_is_said_of_an_answer(
    secret: Path, receiver: Receiver, status: int, kind: type[Exception], said: str
) -> None:
    """Who, what, and what to do; never what was sent or what came back."""
    receiver.default = reply(status, CANARY.encode())
    asked = session(secret)
    with pytest.raises(kind) as error:
        await ask(asked, receiver)
    await asked.aclose()
    text = str(error.value)
    assert text.startswith(f"cannot try at http://127.0.0.1:{receiver.port}: it answered {status}")
    assert said.format(secret=secret) in text
    assert CANARY not in text
    assert len(receiver.requests) == 1 + (status == 401)


async def test_a_401_just_after_a_rotation_may_heal(secret: Path, receiver: Receiver) -> None:
    """Aidbox can have the old secret in its cache; then waiting is enough."""
    replace(secret, "new-secret")
    receiver.default = reply(401)
    asked = session(secret)
    with pytest.raises(TemporaryError, match="may still have the old secret of Client/syncd"):
        await ask(asked, receiver)
    await asked.aclose()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b'{"access_token": 1}', b"<html>"),
        *(token(text) for text in ("", "two words", "line\n", "t\xf6ken")),
        b'{"access_token": "\xff"}',
        b'{"x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    ],
)
async def test_no_token(secret: Path, receiver: Receiver, body: bytes) -> None:
    """An answer without one is for a person to look at."""
    receiver.script(reply(200, body))
    asked = session(secret, use_token=True)
    with pytest.raises(RefusedError, match="the answer holds no token"):
        await ask(asked, receiver)
    await asked.aclose()


async def test_an_answer_without_end(secret: Path, receiver: Receiver) -> None:
    """It is given up at the limit."""
    receiver.default = reply(200, b"x" * 3000)
    asked = session(secret)
    with pytest.raises(TemporaryError, match="the answer is larger than 2 KiB"):
        await asked.request("cannot try", replica(receiver), "GET", "/", body_limit=2048)
    answer = await asked.request("cannot try", replica(receiver), "GET", "/", body_limit=3000)
    assert answer.body == b"x" * 3000
    assert "xxx" not in repr(answer)
    await asked.aclose()


async def test_trying_a_value(secret: Path, receiver: Receiver) -> None:
    """As the Client, by HTTP Basic, whatever bytes it is; any answer is told."""
    receiver.script(reply(401))
    asked = session(secret, use_token=True)
    assert await asked.status_as(replica(receiver), "app", b"\xff:\n", "e-1") == 401
    await asked.aclose()
    (request,) = receiver.requests
    assert request.target == "/fhir/Patient?_count=0"
    pair = base64.b64decode(request.headers["authorization"].removeprefix("Basic "))
    assert pair == b"app:\xff:\n"
    assert request.headers["x-correlation-id"] == "e-1"
    assert request.headers["traceparent"].startswith("00-")
