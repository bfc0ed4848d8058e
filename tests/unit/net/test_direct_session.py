"""Exchanges with a server over http.client: real connections, kept alive, and none left open."""

from __future__ import annotations

import http.client
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.receiver import Receiver, close, close_in_mid_answer, garbage, hang, reply, reset
from support.waiting import DEADLINE, wait_until

from syncd.net import direct_session, interruption
from syncd.net.direct_session import DirectSession, Response
from syncd.net.interruption import TooLateError, TooLongError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.receiver import _Connection

PATIENT = (DEADLINE, DEADLINE)
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"


@pytest.fixture
def server() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


@pytest.fixture
def session(server: Receiver) -> Iterator[DirectSession]:
    session = DirectSession(server.url, None, keep=2)
    yield session
    session.close()


def get(
    session: DirectSession,
    server: Receiver,
    method: str = "GET",
    timeout: tuple[float, float] = PATIENT,
) -> Response:
    headers = {"X-Vault-Token": "t"}
    return session.request(method, server.url, headers=headers, timeout=timeout)


def raw(content: bytes, *, close: bool = True) -> Any:
    async def play(connection: _Connection) -> None:
        connection.writer.write(content)
        await connection.writer.drain()
        if close:
            connection.writer.close()

    return play


def test_a_request_and_its_answer(session: DirectSession, server: Receiver) -> None:
    """Path, query, headers and body arrive as they are; the answer's headers know no case."""
    server.script(reply(418, b"short", retry_after="7"))
    response = session.request(
        "POST",
        f"http://127.0.0.1:{server.port}/v1/a%2Fb?c=d",
        headers={"X-A": "1"},
        data=b"{}",
        timeout=PATIENT,
    )
    assert (response.status_code, response.content, response.ok) == (418, b"short", False)
    assert response.headers["RETRY-after"] == "7"
    assert repr(response) == "Response(418)"
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/v1/a%2Fb?c=d", b"{}")
    assert request.headers["x-a"] == "1"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (reply(200, b"whole"), b"whole"),
        (reply(200, b"x" * 300_000), b"x" * 300_000),
        (reply(204), b""),
        (reply(200), b""),
        (raw(b"HTTP/1.1 200 OK\r\n\r\nto the end"), b"to the end"),
        (raw(CHUNKED + b"4\r\npart\r\n1\r\ns\r\n0\r\n\r\n"), b"parts"),
    ],
)
def test_bodies_of_every_kind(
    session: DirectSession, server: Receiver, answer: Any, content: bytes
) -> None:
    """And the next request finds a connection in order."""
    for _ in range(2):
        server.script(answer)
        assert get(session, server).content == content
    server.script(reply(200))
    assert get(session, server, "HEAD").content == b""


def test_connections_are_used_again(
    session: DirectSession, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until they have been idle for too long, or the server says that it closes them."""
    for _ in range(3):
        get(session, server)
    assert server.connections == 1
    monkeypatch.setattr(direct_session, "KEEP_ALIVE", -1.0)
    get(session, server)
    assert server.connections == 2
    monkeypatch.undo()
    server.script(reply(200, connection="close"))
    get(session, server)
    get(session, server)
    assert server.connections == 3


def test_a_connection_that_ended_meanwhile_is_not_used(
    session: DirectSession, server: Receiver
) -> None:
    """A request on it would fail, and only a GET could be repeated."""
    server.script(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"))
    get(session, server)
    (link,) = session._idle
    wait_until(lambda: not link.is_usable, "the end has arrived")
    assert get(session, server, "POST").status_code == 204
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reset, OSError),
        (close, http.client.RemoteDisconnected),
        (garbage, http.client.BadStatusLine),
        (close_in_mid_answer, http.client.IncompleteRead),
        (raw(CHUNKED + b"4\r\npa"), http.client.IncompleteRead),
    ],
)
def test_no_answer(
    session: DirectSession, server: Receiver, answer: Any, error: type[Exception]
) -> None:
    """The connection is closed, and what had arrived is not in the error."""
    server.script(answer)
    with pytest.raises(error) as failure:
        get(session, server)
    assert "half" not in repr(failure.value)
    assert getattr(failure.value, "partial", b"") == b""
    assert session._idle == []


def test_an_answer_has_bounds(
    session: DirectSession, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of length and of time."""
    server.script(reply(200, b"x" * 11), reply(200, b"x" * 10), reply(200, b"x"))
    monkeypatch.setattr(interruption, "LONGEST_ANSWER", 10)
    with pytest.raises(TooLongError):
        get(session, server)
    assert get(session, server).content == b"x" * 10
    monkeypatch.setattr(interruption, "REQUEST_LIMIT", -1.0)
    with pytest.raises(TooLateError):
        get(session, server)


def test_a_server_that_does_not_answer(session: DirectSession, server: Receiver) -> None:
    """The limit is that of a read, not that of the connection."""
    server.script(hang)
    with pytest.raises(TimeoutError):
        get(session, server, timeout=(DEADLINE, 0.05))


def test_few_connections_stay_open(session: DirectSession, server: Receiver) -> None:
    """However many requests there were at a time; none of them after the session was closed."""
    together = threading.Barrier(5)

    def at_once() -> None:
        server.script(*[reply(200)] * 4)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        together.wait(DEADLINE)
        for thread in threads:
            thread.join(DEADLINE)

    def ask() -> None:
        together.wait(DEADLINE)
        get(session, server)

    at_once()
    assert 1 <= len(session._idle) <= 2
    server.script(reply(200, before=session.close))
    get(session, server)
    assert session._idle == []


def test_a_name_that_cannot_be_resolved() -> None:
    """The error is that of the resolver, for `reason_of`."""
    session = DirectSession("http://no-such-host.invalid:1", None, keep=1)
    with pytest.raises(socket.gaierror):
        session.request("GET", "http://no-such-host.invalid:1/", headers={}, timeout=PATIENT)
