"""`syncd ui` over a real daemon: who may use the page, and what it passes on."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urlsplit

import pytest
from support.documents import commands
from support.receiver import Receiver, reply
from support.waiting import DEADLINE
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Page:
    """A `syncd ui` process, and requests to it as a browser sends them."""

    def __init__(self, socket: str) -> None:
        command = [sys.executable, "-m", "syncd", "ui", "--socket", socket]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        found = urlsplit(self.process.stdout.readline().strip())
        self.host, self.path, self.token = found.netloc, found.path, found.fragment
        self.cookie = ""
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection(self.host, timeout=DEADLINE)
        sent = {"cookie": self.cookie} if self.cookie else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(
                method, path if path.startswith("/") else self.path + path, body, sent
            )
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            stream = found.get("content-type", "").startswith("text/event-stream")
            return Reply(answer.status, found, answer.readline() if stream else answer.read())
        finally:
            connection.close()

    def log_in(self) -> str:
        """Exchanges the token; returns `Set-Cookie`."""
        answer = self.ask("session", "POST", self.token, origin=f"http://{self.host}")
        assert answer.status == 204
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer.headers["set-cookie"]


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish(a=secret("0"), b=secret("0"))
        world.map(a={"resource_type": "Client"}, b={"resource_type": "Other"})
        world.configure(api={"socket": path(world)})
        yield world


def path(world: World) -> str:
    return f"{world.directory}/syncd.sock"


def test_the_token_opens_the_page_once(world: World) -> None:
    """Without the cookie there is nothing; the cookie is for this page's own requests alone."""
    with world.daemon(), Page(path(world)) as page:
        assert page.ask("v1/status").status == 401
        wrong = page.ask("session", "POST", page.token[:-1], origin=f"http://{page.host}")
        assert wrong.status == 403
        cookie = page.log_in()
        assert cookie.endswith(f"; Path={page.path}; HttpOnly; SameSite=Strict")
        again = page.ask("session", "POST", page.token, origin=f"http://{page.host}")
        assert again.status == 403
        assert b"used already; run syncd ui again" in again.body
        assert json.loads(page.ask("v1/status").body)["ready"]
        names = [item["secret"] for item in json.loads(page.ask("v1/secrets").body)["secrets"]]
        assert names == ["a", "b"]
        assert page.ask("v1/events").headers["content-type"].startswith("text/event-stream")
        page.cookie = page.cookie[:-1]
        assert page.ask("v1/status").status == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.0.2.1", "", "a b"]
)
def test_other_hosts(world: World, host: str) -> None:
    """A name that a stranger can have is refused, even with the cookie (DNS rebinding)."""
    with world.daemon(), Page(path(world)) as page:
        page.log_in()
        for target in ("", "v1/status"):
            assert page.ask(target, host=host).status == 421


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:9", "LOCALHOST."])
def test_own_hosts(world: World, host: str) -> None:
    """Every name of loopback is served by every port, which ssh may forward."""
    with world.daemon(), Page(path(world)) as page:
        page.log_in()
        own = page.ask(
            "v1/status", host=host, origin=f"http://{host}", sec_fetch_site="same-origin"
        )
        assert own.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_other_origins(world: World, headers: dict[str, str]) -> None:
    """No other page may ask, also none of another server here; no CORS header is sent."""
    with world.daemon(), Page(path(world)) as page:
        taken = page.ask("session", "POST", page.token, **headers)
        assert taken.status == 403
        page.log_in()
        for target in ("v1/status", "v1/secrets", "v1/events"):
            refused = page.ask(target, **headers)
            assert refused.status == 403
            assert not [name for name in refused.headers if name.startswith("access-control")]


def test_what_is_not_passed_on(world: World) -> None:
    """Only what the page needs: nothing else of the API, and nothing outside the page's path."""
    with world.daemon(), Page(path(world)) as page:
        page.log_in()
        own = f"http://{page.host}"
        for target, method, status in (
            ("v1/refresh", "POST", 404),
            ("v1/consumers/x/resend", "POST", 404),
            ("v1/status", "POST", 405),
            ("v1/status/../refresh", "GET", 404),
            ("/v1/status", "GET", 404),
            ("/", "GET", 404),
        ):
            assert page.ask(target, method, origin=own).status == status, target
        for action in ("retry", "test"):
            target = f"v1/consumers/x/{action}"
            assert page.ask(target, "POST", origin=own).status == 404
            assert page.ask(target, "POST").status == 403
            assert page.ask(target, origin=own).status == 405
        assert page.ask("session", "POST", "x" * 10_000, origin=own).status == 413


def test_retry_and_test(world: World) -> None:
    """What waits is tried when the page asks for it, and so is the way to a consumer."""
    with Receiver() as receiver:
        receiver.script(reply(503, retry_after="3600"))
        hook = {"name": "hook", "kind": "webhook", "url": receiver.url}
        world.configure(api={"socket": path(world)}, consumers=[hook])
        with world.daemon(), Page(path(world)) as page:
            world.publish(a=secret("1"))
            receiver.wait(1)
            page.log_in()
            asked = page.ask("v1/consumers/hook/retry", "POST", origin=f"http://{page.host}")
            assert asked.status == 202
            receiver.wait(2)
            asked = page.ask("v1/consumers/hook/test", "POST", origin=f"http://{page.host}")
            assert (asked.status, json.loads(asked.body)["acknowledged"]) == (200, True)
            assert receiver.wait(3)[2].events[0]["type"] == "io.syncd.ping"


def test_the_headers_of_the_page(world: World) -> None:
    """Nothing but its own style and script; no frame, no cache, no referrer."""
    with world.daemon(), Page(path(world)) as page:
        shown = page.ask("")
        policy = shown.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert "*" not in policy
        assert shown.headers["referrer-policy"] == "no-referrer"
        assert shown.headers["cache-control"] == "no-store"
        text = shown.body.decode()
        assert not re.search(r"https?://|\son\w+=|\sstyle=|innerHTML|insertAdjacent|eval\(", text)


def test_without_a_daemon(world: World) -> None:
    """At the start it is exit code 2; later the page gets the reason, and the daemon may return."""
    done = world.run("ui", "--socket", path(world))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"syncd: cannot reach the daemon at {path(world)}: ")
    with world.daemon() as daemon, Page(path(world)) as page:
        page.log_in()
        assert page.ask("v1/status").status == 200
        daemon.stop()
        for target in ("v1/status", "v1/events"):
            lost = page.ask(target)
            assert lost.status == 502
            assert b"cannot reach the daemon" in lost.body
        daemon.start()
        daemon.wait_for("daemon.ready", 2)
        assert page.ask("v1/status").status == 200


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "192.0.2.1:80", "example.org:80", "127.0.0.1", "[::]:0", ":0", "x"]
)
def test_addresses_beyond_loopback(world: World, address: str) -> None:
    """They are refused, since the page has no password."""
    done = world.run("ui", "--socket", path(world), "--listen", address)
    assert done.returncode == 2
    assert "not an address of this machine alone; use 127.0.0.1:0" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end(world: World, number: signal.Signals) -> None:
    """A signal ends it, with exit code 0, and with it the address."""
    with world.daemon(), Page(path(world)) as page:
        page.log_in()
        page.process.send_signal(number)
        assert page.process.wait(DEADLINE) == 0
        with pytest.raises(ConnectionRefusedError):
            page.ask("")


def test_the_command_of_the_guide(world: World) -> None:
    """It prints one line: the address."""
    (command,) = commands("docs/ui.md", "ui")
    assert command == "syncd ui --socket /run/syncd/syncd.sock\n"
    with world.daemon(), Page(path(world)) as page:
        assert re.fullmatch(r"127\.0\.0\.1:\d+", page.host)
        assert len(page.token) >= 43
