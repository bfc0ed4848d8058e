"""What a NATS server says before it closes a connection is reported, however it closes it.

A server that resets the connection, or leaves unread what was sent to it, makes writes fail while
its reason waits to be read. The scripted server does so each time; the real one at times.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import struct
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import anyio.to_thread
import pytest
from support.nats import NatsServer, Operator, stream
from support.tls import Authority
from support.waiting import DEADLINE

from syncd.config.settings import NatsServer as Settings
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.net.nats import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPEATED = 20
RESET = struct.pack("ii", 1, 0)
"""`SO_LINGER`: the close is a reset (socket(7))."""


class Script:
    """A server that says something at one moment, and resets the connection with data unread.

    Args:
        says: The text of its `-ERR`.
        after: The command after which it says so; `INFO` for its own greeting.
        tls: To speak TLS with.
    """

    def __init__(self, says: str, after: str, tls: ssl.SSLContext | None = None) -> None:
        self._farewell = f"-ERR '{says}'\r\n".encode()
        self._after = after
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"nats://localhost:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(DEADLINE)
                with contextlib.suppress(OSError):
                    self._talk(connection)
                connection.close()

    def _talk(self, connection: socket.socket) -> None:
        info = {"max_payload": 1 << 20, "tls_required": self._tls is not None, "headers": True}
        greeting = f"INFO {json.dumps(info)}\r\n".encode()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # nothing waits for an ACK
        if self._after == "INFO":
            connection.sendall(greeting + self._farewell)
            connection.recv(1)  # and no more of what is sent
            return
        connection.sendall(greeting)
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection:
            heard = b""
            while True:
                command, end, rest = heard.partition(b"\r\n")
                if not end:
                    heard += connection.recv(64)
                    continue
                heard = rest
                name = command.split(b" ")[0].decode().upper()
                if name == self._after:
                    connection.sendall(self._farewell)
                    return  # with most of what was sent unread
                connection.sendall(b"PONG\r\n" if name == "PING" else b"+OK\r\n")


def connection(url: str, **settings: str) -> Connection:
    return Connection(Settings(urls=(url,), timeout=DEADLINE, **settings), "test")  # type: ignore[arg-type]


async def failure(tested: Connection) -> SyncdError:
    """Publishes more than a server reads at once; the error."""
    messages = [("s.x", {"n": str(number)}, bytes(100_000)) for number in range(20)]
    try:
        answers = await tested.publish(messages)
    except SyncdError as error:
        return error
    finally:
        await tested.aclose()
    assert answers[-1] is not None
    return answers[-1]


@pytest.mark.parametrize(
    ("says", "after", "kind", "reason"),
    [
        ("Authorization Violation", "CONNECT", RefusedError, "the credentials are not accepted"),
        ("Authentication Timeout", "INFO", RefusedError, "the credentials are not accepted"),
        ("maximum connections exceeded", "INFO", TemporaryError, "too many connections"),
        ("maximum connections exceeded", "CONNECT", TemporaryError, "too many connections"),
        ("User Authentication Expired", "HPUB", TemporaryError, "are no longer accepted"),
        ("User Authentication Revoked", "HPUB", TemporaryError, "are no longer accepted"),
        # whether the login counts as accepted by then is left open
        ("Authorization Violation", "SUB", SyncdError, "the credentials are (not|no longer) accep"),
    ],
)
async def test_the_reason_survives_a_reset(
    says: str, after: str, kind: type[SyncdError], reason: str
) -> None:
    """A refused login is a refusal; one that ends later is tried again with what the files hold."""
    with Script(says, after) as server:
        for _ in range(REPEATED):
            error = await failure(connection(server.url))
            assert re.search(reason, str(error))
            assert isinstance(error, kind)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.mark.parametrize("after", ["CONNECT", "HPUB"])
async def test_the_reason_survives_a_reset_of_tls(
    tmp_path: Path, authority: Authority, after: str
) -> None:
    """It is encrypted, and so has to be decrypted before the connection is given up."""
    authority.write_server(tmp_path / "server.pem", tmp_path / "server.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with Script("User Authentication Expired", after, context) as server:
        for _ in range(REPEATED):
            error = await failure(connection(server.url, ca_file=str(authority.file)))
            longer = "no longer" if after == "HPUB" else "not"
            assert f"the credentials are {longer} accepted" in str(error)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    """A real server that knows one user."""
    users = [{"user": "syncd", "password": "right"}]
    login = {"user": "syncd", "password": "right"}
    with NatsServer(login=login, authorization={"users": users}) as server:
        server.ask(stream("s", "s.>"))
        yield server


async def test_a_real_server_that_refuses(guarded: NatsServer, tmp_path: Path) -> None:
    """Each time, and never as a broken connection."""
    (tmp_path / "password").write_text("wrong")
    login = {"user": "syncd", "password_file": str(tmp_path / "password")}
    for _ in range(REPEATED):
        error = await failure(connection(guarded.url, **login))
        assert isinstance(error, RefusedError)
        assert "the credentials are not accepted" in str(error)


async def test_a_real_server_that_ends_a_login(tmp_path: Path) -> None:
    """A JWT expires while much is on its way: the connection was not merely lost."""
    operator, path = Operator(), tmp_path / "user.creds"
    with ExitStack() as stack:
        server = NatsServer(login={"user_credentials": None}, **operator.settings)
        await anyio.to_thread.run_sync(lambda: stack.enter_context(server))
        path.write_text(operator.credentials(lasting=3.0))
        tested = connection(server.url, credentials_file=str(path))
        error = None
        while error is None or "no stream takes" in str(error):
            (error, *_) = await publish(tested)
        await tested.aclose()
    # or of the next connection, where the login ended between two messages
    assert re.search("the credentials are (no longer|not) accepted", str(error))


async def publish(tested: Connection) -> list[SyncdError | None]:
    try:
        return await tested.publish([("s.x", {}, bytes(10_000))] * 50)
    except SyncdError as error:
        return [error]


async def test_a_real_server_with_a_certificate_that_it_does_not_trust(
    tmp_path: Path, authority: Authority
) -> None:
    """In TLS 1.3 the client learns of it after its handshake, when it has sent its login."""
    theirs = Authority(tmp_path, "theirs")
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    theirs.write_client("syncd", cert, key)
    authority.write_server(tmp_path / "server.pem", tmp_path / "server.key")
    tls = {
        "cert_file": str(tmp_path / "server.pem"),
        "key_file": str(tmp_path / "server.key"),
        "ca_file": str(authority.file),
        "verify": True,
    }
    with ExitStack() as stack:
        server = await anyio.to_thread.run_sync(lambda: stack.enter_context(NatsServer(tls=tls)))
        files = {"ca_file": authority.file, "client_cert": cert, "client_key": key}
        chosen = {option: str(path) for option, path in files.items()}
        for _ in range(REPEATED):
            error = await failure(connection(server.url.replace("nats:", "tls:"), **chosen))
            assert "TLS failed" in str(error)
            assert "configure a client certificate that the server accepts" in str(error)
