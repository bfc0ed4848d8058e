"""NATS as a consumer: real servers, what they store, what they refuse, and how that is told."""

from __future__ import annotations

import itertools
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec
import pytest
from support.mail import change
from support.nats import Key, NatsServer, Operator, free_port, stream
from support.tls import Authority, replace
from support.waiting import DEADLINE, until, wait_until
from support.world import CANARY, World, secret

from syncd.config.settings import Nats
from syncd.consumers.consumer import UndeliveredError
from syncd.consumers.nats import NatsConsumer
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.events import Stamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from syncd.core.events import Event
    from syncd.net.nats_login import Login

_numbers = itertools.count(1)
PASSWORD = secret("password").decode()


@pytest.fixture
def name() -> str:
    """A stream of the test's own, for subjects that begin with its name."""
    return f"s{next(_numbers)}"


@asynccontextmanager
async def consumer(server: NatsServer, **settings: Any) -> AsyncIterator[NatsConsumer]:
    chosen = {"name": "bus", "urls": (server.url,), "timeout": DEADLINE, **settings}
    for option, value in chosen.items():
        chosen[option] = str(value) if hasattr(value, "__fspath__") else value
    found = NatsConsumer(Nats(**chosen), Stamp("5f0c2a91", "/syncd/node-1"))
    try:
        yield found
    finally:
        await found.aclose()


def events(*names: str, first: int = 1) -> list[Event]:
    return [
        msgspec.structs.replace(change(one, 2, 1), sequence=number)
        for number, one in enumerate(names, first)
    ]


async def ask(question: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(question)


async def test_a_retry_is_stored_once(nats: NatsServer, name: str) -> None:
    """An event whose acknowledgement was lost is sent again, also by another process."""
    await ask(lambda: nats.ask(stream(name, f"{name}.>")))
    sent = events("a", "b")
    for _ in range(2):
        async with consumer(nats, subject=f"{name}.<secret>") as bus:
            await bus.deliver(sent)
            await bus.deliver(sent)
    stored = await ask(lambda: nats.stored(name))
    assert [message.subject for message in stored] == [f"{name}.a", f"{name}.b"]
    assert stored[0].headers["Nats-Msg-Id"] == f"/syncd/node-1/5f0c2a91-1/{name}.a"


async def test_many_on_their_way(nats: NatsServer, name: str) -> None:
    """A whole batch is stored in order, over one connection."""
    await ask(lambda: nats.ask(stream(name, f"{name}.>")))
    async with consumer(nats, subject=f"{name}.<secret>") as bus:
        assert bus.max_batch == 256
        await bus.deliver(events(*(f"n{number}" for number in range(256))))
    stored = await ask(lambda: nats.stored(name))
    assert [message.json["id"].rpartition("-")[2] for message in stored] == [
        str(number + 1) for number in range(256)
    ]


async def test_what_is_stored_of_a_failed_batch_is_not_sent_again(
    nats: NatsServer, name: str
) -> None:
    """Even after the server has forgotten its id."""
    await ask(lambda: nats.ask(stream(name, f"{name}.a", duplicate_window=0.1)))
    async with consumer(nats, subject=f"{name}.<secret>") as bus:
        for attempt in range(2):
            with pytest.raises(TemporaryError, match=f"no stream takes subject {name}.b;"):
                await bus.deliver(events("a", "b"))
            if attempt == 0:
                await anyio.sleep(0.3)  # the window itself; nothing is waited for
        await ask(lambda: nats.ask(stream(name, f"{name}.*", duplicate_window=0.1)))
        await bus.deliver(events("a", "b"))
    stored = await ask(lambda: nats.stored(name))
    assert [message.subject for message in stored] == [f"{name}.a", f"{name}.b"]


async def test_a_message_that_is_not_stored_holds_up_no_other(nats: NatsServer, name: str) -> None:
    """Subjects have streams of their own; where all have one subject, its trouble is everyone's."""
    await ask(lambda: nats.ask(stream(name, f"{name}.a", f"{name}.c")))
    async with consumer(nats, subject=f"{name}.<secret>") as bus:
        with pytest.raises(UndeliveredError) as caught:
            await bus.deliver(sent := events("a", "b", "c"))
    assert [group.events for group in caught.value.groups] == [(sent[1],)]
    stored = await ask(lambda: nats.stored(name))
    assert [message.subject for message in stored] == [f"{name}.a", f"{name}.c"]
    async with consumer(nats, subject=f"{name}.other") as bus:
        with pytest.raises(TemporaryError) as whole:
            await bus.deliver(events("a", "b"))
    assert not isinstance(whole.value, UndeliveredError)


async def test_no_stream(nats: NatsServer, name: str) -> None:
    """The message names the subject; creating a stream is enough."""
    async with consumer(nats, subject=f"{name}.<secret>") as bus:
        with pytest.raises(TemporaryError) as caught:
            await bus.deliver(events("a"))
        assert str(caught.value) == (
            f"cannot use NATS at 127.0.0.1:{nats.port}: no stream takes subject {name}.a; create "
            "one that does, or wait if the stream is electing a leader"
        )
        await ask(lambda: nats.ask(stream(name, f"{name}.>")))
        await bus.deliver(events("a"))


@pytest.mark.parametrize("limit", [{"max_msgs": 1}, {"max_bytes": 700}])
async def test_a_full_stream(nats: NatsServer, name: str, limit: dict[str, int]) -> None:
    """The message has the remedy, and the remedy works."""
    await ask(lambda: nats.ask(stream(name, f"{name}.>", discard="new", **limit)))
    async with consumer(nats, subject=f"{name}.<secret>") as bus:
        with pytest.raises(TemporaryError, match=r"is full or cannot store.*; raise its limits"):
            await bus.deliver(events("a", "b", "c"))
        await ask(lambda: nats.ask(stream(name, f"{name}.>", discard="new")))
        await bus.deliver(events("a", "b", "c"))
    assert len(await ask(lambda: nats.stored(name))) == 3


async def test_a_message_that_is_too_large(nats: NatsServer, name: str) -> None:
    """Waiting does not make it smaller."""
    await ask(lambda: nats.ask(stream(name, f"{name}.>", max_msg_size=100)))
    async with consumer(nats, subject=f"{name}.<secret>") as bus:
        with pytest.raises(RefusedError, match="raise its max_msg_size"):
            await bus.deliver(events("a"))


async def test_no_server_listens() -> None:
    """One line, and no waiting for the timeout."""
    server = NatsServer()
    async with consumer(server) as bus:
        with anyio.fail_after(DEADLINE / 2), pytest.raises(TemporaryError) as caught:
            await bus.deliver(events("a"))
    assert str(caught.value) == (
        f"cannot use NATS at 127.0.0.1:{server.port}: Connection refused; check that the server is "
        "up and reachable"
    )


async def test_jetstream_is_off(tmp_path: Path) -> None:
    """Nothing can take the event then; that is told as the lack of a stream."""
    with ExitStack() as stack:
        server = NatsServer(jetstream=False)
        await ask(lambda: stack.enter_context(server))
        async with consumer(server) as bus:
            with pytest.raises(TemporaryError, match="no stream takes subject"):
                await bus.deliver(events("a"))


USERS: dict[str, Any] = {
    "accounts": {
        "A": {
            "jetstream": "enabled",
            "users": [
                {"user": "admin", "password": "admin"},
                {
                    "user": "limited",
                    "password": PASSWORD,
                    "permissions": {
                        "publish": ["ok.>", "$JS.API.>"],
                        "subscribe": ["_INBOX.>"],
                    },
                },
                {
                    "user": "deaf",
                    "password": PASSWORD,
                    "permissions": {"publish": [">"], "subscribe": ["nothing"]},
                },
            ],
        }
    }
}


@pytest.fixture(scope="module")
def guarded() -> Iterator[NatsServer]:
    """A server with users; one may publish to `ok.>` only, one may hear no answers."""
    with NatsServer(login={"user": "admin", "password": "admin"}, **USERS) as server:
        server.ask(stream("ok", "ok.>", "no.>"))
        yield server


@pytest.mark.parametrize(
    ("user", "subject", "password", "reason"),
    [
        ("limited", "no.<secret>", PASSWORD, "may not publish to no.a; grant this"),
        ("deaf", "ok.<secret>", PASSWORD, "may not subscribe to _INBOX.>; grant this"),
        ("limited", "ok.<secret>", secret("wrong").decode(), "the credentials are not accepted"),
        ("nobody", "ok.<secret>", PASSWORD, "the credentials are not accepted"),
    ],
)
async def test_what_is_not_allowed_is_told_at_once(
    guarded: NatsServer, tmp_path: Path, *, user: str, subject: str, password: str, reason: str
) -> None:
    """By its name, with the remedy, and without the credentials."""
    replace(tmp_path / "password", password)
    chosen = {"subject": subject, "user": user, "password_file": tmp_path / "password"}
    async with consumer(guarded, timeout=2 * DEADLINE, **chosen) as bus:
        for _ in range(2):
            with anyio.fail_after(DEADLINE), pytest.raises(RefusedError) as caught:
                await bus.deliver(events("a"))
            assert reason in str(caught.value)
            assert CANARY.decode() not in str(caught.value)
            if "credentials" in reason:
                assert f"replace them in {tmp_path / 'password'}" in str(caught.value)
    assert CANARY.decode() not in repr(bus)


async def test_without_credentials(guarded: NatsServer) -> None:
    """A server that asks for some says so."""
    async with consumer(guarded, subject="ok.x") as bus:
        with pytest.raises(
            RefusedError, match="the credentials are not accepted; configure credentials"
        ):
            await bus.deliver(events("a"))


def password_login(path: Path, generation: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A server's settings and a consumer's, for a login whose secret is in a file."""
    value = secret(f"password-{generation}").decode()
    replace(path, value + "\n")
    user = {"user": "syncd", "password": value}
    return {"authorization": {"users": [user]}}, {"user": "syncd", "password_file": path}


def token_login(path: Path, generation: int) -> tuple[dict[str, Any], dict[str, Any]]:
    value = secret(f"token-{generation}").decode()
    replace(path, value)
    return {"authorization": {"token": value}}, {"token_file": path}


def nkey_login(path: Path, _: int) -> tuple[dict[str, Any], dict[str, Any]]:
    key = Key("U")
    replace(path, key.seed)
    return {"authorization": {"users": [{"nkey": key.public}]}}, {"nkey_seed_file": path}


@pytest.mark.parametrize("login", [password_login, token_login, nkey_login])
async def test_credentials_are_rotated(
    tmp_path: Path, login: Callable[[Path, int], tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """The server takes new ones only; the client finds them in its file by itself.

    The stream is the server's system of record here, so the tests' client reads it afterwards
    without a login.
    """
    path = tmp_path / "credential"
    accepted, own = login(path, 0)
    with ExitStack() as stack:
        server = NatsServer()
        await ask(lambda: stack.enter_context(server))
        await ask(lambda: server.ask(stream("s", "s.>")))
        await ask(lambda: server.reload(**accepted))
        async with consumer(server, subject="s.<secret>", **own) as bus:
            await bus.deliver(events("a", first=1))
            accepted, _ = login(path, 1)
            await ask(lambda: server.reload(**accepted))
            await bus_delivers(bus, events("a", first=2))
            await bus.aclose()
            old = path.read_bytes()
            accepted, _ = login(path, 2)
            new = path.read_bytes()
            replace(path, old)  # the server is ahead of the file
            await ask(lambda: server.reload(**accepted))
            with pytest.raises(RefusedError, match="the credentials are not accepted"):
                await bus.deliver(events("a", first=3))
            replace(path, new)
            await bus.deliver(events("a", first=3))
        server._more.pop("authorization")
        await ask(server.reload)
        assert len(await ask(lambda: server.stored("s"))) == 3


async def bus_delivers(bus: NatsConsumer, sent: list[Event]) -> None:
    """Tries for as long as the reason is one that may heal, as the delivery loop does."""
    with anyio.fail_after(DEADLINE):
        while True:
            try:
                return await bus.deliver(sent)
            except TemporaryError:
                await anyio.sleep(0.1)  # its pause between attempts


async def test_credentials_that_change_in_this_moment(guarded: NatsServer, tmp_path: Path) -> None:
    """Refused credentials are read again at once: they may have been rotated meanwhile."""
    path = tmp_path / "password"
    replace(path, secret("old"))
    async with consumer(guarded, subject="ok.x", user="limited", password_file=path) as bus:
        read = bus._connection._files.read

        async def read_and_rotate(*, again: bool = False) -> Login:
            login = await read(again=again)
            await ask(lambda: replace(path, PASSWORD))
            return login

        bus._connection._files.read = read_and_rotate  # type: ignore[method-assign]
        await bus.deliver(events("a"))


async def test_a_credentials_file_is_renewed(tmp_path: Path) -> None:
    """A JWT that ends closes the connection; the next one presents what the file holds then."""
    operator = Operator()
    path = tmp_path / "user.creds"
    with ExitStack() as stack:
        server = NatsServer(login={"user_credentials": None}, **operator.settings)
        await ask(lambda: stack.enter_context(server))
        replace(path, operator.credentials(lasting=5.0))  # long enough for one delivery
        async with consumer(server, subject="s.<secret>", credentials_file=path) as bus:
            with pytest.raises(TemporaryError, match=r"no stream takes subject s\.a"):
                await bus.deliver(events("a"))
            await until(lambda: not bus._connection.is_connected)
            with pytest.raises(RefusedError, match="the credentials are not accepted"):
                await bus.deliver(events("a"))
            replace(path, operator.credentials())
            with pytest.raises(TemporaryError, match=r"no stream takes subject s\.a"):
                await bus.deliver(events("a"))


async def test_tls_and_client_certificates(tmp_path: Path) -> None:
    """The server is verified, both ways where it asks; a rotated certificate is presented."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    ours.write_client("syncd", cert, key)
    ours.write_server(tmp_path / "server.pem", tmp_path / "server.key")
    tls = {
        "cert_file": str(tmp_path / "server.pem"),
        "key_file": str(tmp_path / "server.key"),
        "ca_file": str(ours.file),
        "verify": True,
    }
    with ExitStack() as stack:
        server = NatsServer(tls=tls)
        server.url = server.url.replace("nats://", "tls://")
        await ask(lambda: stack.enter_context(server))
        presented = {"client_cert": cert, "client_key": key}
        async with consumer(server, subject="s.x", ca_file=ours.file, **presented) as bus:
            for _ in range(2):
                with pytest.raises(TemporaryError, match=r"no stream takes subject s\.x"):
                    await bus.deliver(events("a"))
                await bus.aclose()
                ours.write_client("syncd-2", cert, key)
            theirs.write_client("syncd", cert, key)
            with pytest.raises(TemporaryError, match="TLS failed"):
                await bus.deliver(events("a"))
        async with consumer(server, subject="s.x", ca_file=theirs.file) as bus:
            with pytest.raises(
                TemporaryError, match=r"signed by a CA that is not trusted; set ca_file to its CA"
            ):
                await bus.deliver(events("a"))


async def test_tls_is_insisted_on(nats: NatsServer, tmp_path: Path) -> None:
    """A server that offers none gets neither credentials nor events."""
    replace(tmp_path / "token", secret("token"))
    urls = (nats.url.replace("nats://", "tls://"),)
    async with consumer(nats, urls=urls, token_file=tmp_path / "token") as bus:
        with pytest.raises(RefusedError, match="the server does not offer TLS; enable TLS there"):
            await bus.deliver(events("a"))


async def test_one_of_several_servers_is_enough(nats: NatsServer, name: str) -> None:
    """Those that are down are passed over."""
    await ask(lambda: nats.ask(stream(name, f"{name}.>")))
    urls = (f"nats://127.0.0.1:{free_port()}", nats.url, f"nats://127.0.0.1:{free_port()}")
    async with consumer(nats, subject=f"{name}.<secret>", urls=urls) as bus:
        await bus.deliver(events("a"))


def test_a_daemon_publishes_what_its_consumer_may_see(nats: NatsServer, name: str) -> None:
    """Binary mode, template, scope, a vault config's change; retried until there is a stream."""
    with World() as world:
        world.publish({"a": secret("1"), "d.x": secret("1")})
        world.map("a", "d.x")
        bus: dict[str, Any] = {
            "name": "bus",
            "kind": "nats",
            "urls": [nats.url],
            "subject": f"{name}.<instance>.<resource_type>.<resource_id>.<secret>",
            "content_mode": "binary",
        }
        narrow = {**bus, "name": "narrow", "subject": f"narrow-{name}.<secret>"}
        narrow["scope"] = [{"resource_type": "Client", "id": "a"}]
        world.configure(consumers=[bus, narrow], instance="prod/node.1")
        with world.daemon() as daemon:
            world.publish({"a": secret("2"), "d.x": secret("2")})
            problem = daemon.wait_for("delivery.retry", consumer="bus")
            assert "no stream takes subject" in problem["reason"]
            nats.ask(stream(name, f"{name}.>", f"narrow-{name}.>"))
            daemon.wait_for("delivery.acknowledged", consumer="bus")
            daemon.wait_for("delivery.acknowledged", consumer="narrow")
            wait_until(lambda: len(nats.stored(name)) == 3)
            world.map("a")  # one more for the vault config, and one for the removed secret
            wait_until(lambda: len(nats.stored(name)) == 5)
        stored = nats.stored(name)
        by_subject = {message.subject: message for message in stored}
        assert set(by_subject) == {
            f"{name}.prod%2Fnode%2E1.Client.a.a",
            f"{name}.prod%2Fnode%2E1.Client.d%2Ex.d%2Ex",
            f"{name}.prod%2Fnode%2E1.~vault_config.~.~",
            f"narrow-{name}.a",
        }
        message = by_subject[f"{name}.prod%2Fnode%2E1.Client.a.a"]
        assert message.headers["ce-source"] == "/syncd/prod/node.1"
        assert message.headers["ce-type"] == "io.syncd.secret.changed"
        assert message.json["change"] == "modified"
        assert CANARY not in b"".join(one.data for one in stored)


def test_who_uses_no_bus_does_not_pay_for_one() -> None:
    """nats-py is imported when a consumer of that kind is configured."""
    code = (
        "import sys, syncd.daemon.daemon, syncd.daemon.engine;"
        "print(any(name.split('.')[0] == 'nats' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
