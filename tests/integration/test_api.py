"""The API of the real daemon: who may ask what, on which sockets; probes and metrics."""

from __future__ import annotations

import grp
import http.client
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support.receiver import Receiver
from support.subscriber import Subscription, ask
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

from syncd.api import server

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTRACT = (
    *("syncd_build_info", "syncd_secrets", "syncd_vault_config_valid"),
    *("syncd_last_scan_timestamp_seconds", "syncd_scans_total", "syncd_scan_duration_seconds"),
    *("syncd_changes_total", "syncd_deliveries_total", "syncd_delivery_pending"),
    *("syncd_delivery_latency_seconds", "syncd_subscribers", "syncd_provision_total"),
    "syncd_provision_last_success_timestamp_seconds",
)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
LISTED, UNLISTED = 4242, 4343


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        os.chmod(world.directory, 0o755)  # other users must reach the socket
        yield world


def path(world: World) -> str:
    return f"{world.directory}/syncd.sock"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def probe(port: int, target: str, accept: str = "*/*") -> tuple[int, str, str]:
    """Status, content type and body of a request to `api.listen`."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{target}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read().decode()


def ask_as(uid: int, world: World, target: str, *options: str) -> tuple[int, str]:
    """One request by another user's process; the status and the body."""
    done = subprocess.run(
        [
            *("curl", "-sS", "--max-time", "10", "--unix-socket", path(world)),
            *("-w", "\n%{http_code}", *options, f"http://syncd{target}"),
        ],
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@AS_ROOT
def test_every_caller_sees_its_scope_only(world: World) -> None:
    """A listed uid sees only its scope on every endpoint; an unlisted one sees nothing at all."""
    world.publish(mine=secret("0"), other=secret("0"))
    world.map(
        mine={"resource_type": "Client", "id": "x"}, other={"resource_type": "IdentityProvider"}
    )
    subscribers = [{"name": "app", "uid": LISTED, "scope": [{"resource_type": "Client"}]}]
    with Receiver() as receiver:
        world.configure(
            api={"socket": path(world), "socket_mode": "0666", "subscribers": subscribers},
            consumers=[{"name": "hook", "kind": "webhook", "url": receiver.url}],
        )
        with world.daemon() as daemon:
            world.publish(mine=secret("1"), other=secret("1"))
            world.map("late", mine={"resource_type": "Client", "id": "x"})
            daemon.wait_for("vault_config.loaded")
            receiver.wait(3)
            targets = ("/v1/secrets", "/v1/events?follow=false", "/v1/events?follow=false&after=x")
            assert '"other"' in ask_as(0, world, targets[1])[1]
            for target in targets:
                status, seen = ask_as(LISTED, world, target)
                assert status == 200
                assert '"mine"' in seen
                assert "other" not in seen, target
            status, seen = ask_as(LISTED, world, "/v1/status")
            assert status == 200
            assert json.loads(seen)["secrets"]["present"] == 1
            assert "other" not in seen
            for options in ((), ("-X", "POST"), ("-X", "DELETE")):
                for target in (*targets, "/v1/status", "/v1/refresh", "/", "/nothing"):
                    status, seen = ask_as(UNLISTED, world, target, *options)
                    assert status == 403
                    assert "mine" not in seen
                    assert "present" not in seen
            assert ask_as(LISTED, world, "/v1/refresh", "-X", "POST")[0] == 403
            assert ask_as(0, world, "/v1/refresh", "-X", "POST")[0] == 404
        denied = daemon.logged("api.denied", uid=UNLISTED)
    assert len(denied) == 1, "one line a minute for each uid"


def test_secrets_and_status(world: World) -> None:
    """They have state, version and problem of each secret, and for whom it is pending."""
    world.publish(a=secret("0"), b=secret("0"))
    world.map("a", "b", "absent")
    url = f"http://127.0.0.1:{free_port()}/"
    world.configure(
        api={"socket": path(world)},
        consumers=[
            {"name": "away", "kind": "webhook", "url": url},
            {"name": "others", "kind": "webhook", "url": url, "scope": [{"resource_type": "X"}]},
        ],
    )
    with world.daemon() as daemon:
        before = {item["secret"]: item for item in ask(path(world), "/v1/secrets")[1]["secrets"]}
        world.publish(a=secret("1"))
        daemon.wait_for("delivery.retry")
        daemon.wait_for("consumer.unusable", consumer="others")
        status, answer = ask(path(world), "/v1/secrets")
        found = {item["secret"]: item for item in answer["secrets"]}
        assert status == 200
        assert list(found) == ["a", "absent", "b"]
        assert found["a"]["consumers"] == {
            "away": {"acknowledged_version": before["a"]["version"], "pending": True}
        }
        assert found["a"]["version"] != before["a"]["version"]
        assert found["b"] == before["b"]
        assert found["absent"]["state"] == "missing"
        _, report = ask(path(world), "/v1/status")
        assert report["ready"]
        assert report["sequence"] == 1
        assert report["watch_mode"] == "inotify"
        assert report["secrets"] == {"present": 2, "missing": 1, "unreadable": 0}
        assert report["consumers"]["away"]["state"] == "failing"
        assert report["consumers"]["away"]["pending"] == 1
        assert report["consumers"]["others"]["state"] == "unproven"
        assert report["providers"] == {}
        secret_, failing, unusable = report["attention"]
        assert secret_.startswith("secret absent is missing")
        assert failing.startswith("consumer away has failed")
        assert unusable.startswith("consumer others is not usable: scope[0].resource_type")


def test_readiness(world: World) -> None:
    """/readyz turns 503 with a reason when the vault config breaks, and back when it is valid."""
    port = free_port()
    world.publish({"very-secret-name": secret("0")})
    world.map("very-secret-name")
    world.configure(api={"listen": f"127.0.0.1:{port}"})
    with world.daemon():
        assert probe(port, "/healthz")[0] == 200
        assert json.loads(probe(port, "/readyz")[2]) == {"ready": True, "reasons": []}
        world.write_vault_config('{"secret": {"very-secret-name": 1}}')
        wait_until(lambda: probe(port, "/readyz")[0] == 503, "not unready")
        _, type_, body = probe(port, "/readyz")
        assert type_ == "application/json"
        assert "vault config" in json.loads(body)["reasons"][0]
        assert "very-secret-name" not in body
        assert probe(port, "/healthz")[0] == 200
        assert "syncd_vault_config_valid 0.0" in probe(port, "/metrics")[2]
        world.map("very-secret-name")
        wait_until(lambda: probe(port, "/readyz")[0] == 200, "not ready again")
        assert probe(port, "/v1/secrets")[0] == 404, "the API must not be on a port"


@pytest.mark.parametrize("host", ["attacker.example.com", "127.0.0.1.example.com:9753", "syncd"])
def test_a_page_of_another_name_gets_nothing(world: World, host: str) -> None:
    """Its browser comes from this machine, and would read what syncd serves (DNS rebinding)."""
    port = free_port()
    world.publish(a=secret("0"))
    world.map("a")
    world.configure(api={"listen": f"127.0.0.1:{port}"})
    with world.daemon() as daemon:
        for target in ("/metrics", "/readyz", "/healthz", "/healthz/", "//example.com/healthz"):
            answer = request(port, target, host)
            assert answer.status == 421
            assert host not in str(answer.headers) + answer.body.replace("syncd's", "")
        for own in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
            assert request(port, "/healthz", own).status == 200
        world.configure(
            api={"listen": f"127.0.0.1:{port}", "allowed_hosts": [host.split(":", maxsplit=1)[0]]}
        )
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("daemon.reloaded")
        wait_until(lambda: request(port, "/healthz", host).status == 200, "still refused")


@pytest.mark.parametrize("target", ["/healthz/", "/metrics/", "/readyz/?x=1"])
def test_no_redirect_repeats_the_host(world: World, target: str) -> None:
    """A path with a slash at its end is not found."""
    port = free_port()
    world.publish(a=secret("0"))
    world.map("a")
    name = "a.example.com"
    world.configure(
        api={"listen": f"127.0.0.1:{port}", "socket": path(world), "allowed_hosts": [name]}
    )
    with world.daemon():
        answer = request(port, target, name)
        assert (answer.status, answer.headers["location"]) == (404, None)
        assert ask(path(world), "/v1/status/")[0] == 404


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: str


def request(port: int, target: str, host: str) -> Reply:
    """A request to `api.listen` that names another host."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.putrequest("GET", target, skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read().decode())
    finally:
        connection.close()


def test_metrics(world: World) -> None:
    """A scrape holds every name of the contract, and a secret's name only where asked for."""
    port = free_port()
    world.publish({"very-secret-name": secret("0")})
    world.map("very-secret-name")
    api: dict[str, Any] = {"listen": f"127.0.0.1:{port}", "socket": path(world)}
    consumer = {"name": "hook", "kind": "webhook", "url": f"http://127.0.0.1:{free_port()}/"}
    world.configure(api=api, consumers=[consumer])
    with world.daemon() as daemon:
        world.publish({"very-secret-name": secret("1")})
        daemon.wait_for("delivery.retry")
        with Subscription(path(world)):
            status, type_, text = probe(port, "/metrics")
        assert status == 200
        assert type_.startswith("text/plain; version=")
        exposed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
        assert set(CONTRACT) <= exposed
        assert "syncd_subscribers 1.0" in text
        assert 'syncd_changes_total{change="modified"} 1.0' in text
        assert 'syncd_delivery_pending{consumer="hook"} 1.0' in text
        assert "very-secret-name" not in text
        _, type_, text = probe(port, "/metrics", "application/openmetrics-text; version=1.0.0")
        assert type_.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")
        assert "very-secret-name" not in text
    world.configure(api={**api, "metrics_secret_names": True})
    with world.daemon():
        assert 'secret="very-secret-name"' in probe(port, "/metrics")[2]


def test_mode_and_group(world: World) -> None:
    """The socket has the configured mode and group, and goes with the daemon."""
    group = next(item.gr_name for item in grp.getgrall() if item.gr_gid != os.getegid())
    world.publish(a=secret("0"))
    world.map("a")
    world.configure(
        api={
            "socket": f"{world.directory}/made/syncd.sock",
            "socket_mode": "0620",
            "socket_group": group if os.geteuid() == 0 else str(os.getegid()),
        }
    )
    with world.daemon():
        found = os.stat(f"{world.directory}/made/syncd.sock")
        assert stat.S_IMODE(found.st_mode) == 0o620
        if os.geteuid() == 0:
            assert found.st_gid == grp.getgrnam(group).gr_gid
    assert not os.path.exists(f"{world.directory}/made/syncd.sock")


def test_a_stale_socket(world: World) -> None:
    """The socket that a killed daemon left behind is replaced."""
    world.publish(a=secret("0"))
    world.map("a")
    world.configure(api={"socket": path(world)})
    with world.daemon() as daemon:
        daemon.kill()
    assert os.path.exists(path(world))
    with world.daemon():
        assert ask(path(world), "/v1/status")[0] == 200


@pytest.mark.parametrize(
    ("api", "reason"),
    [
        ({"socket": "{live}"}, "another process listens there"),
        ({"socket": "{file}"}, "not a socket"),
        ({"socket": "/proc/nowhere/s"}, "cannot listen on"),
        ({"socket": "{dir}/" + "x" * 120}, "107 bytes"),
        ({"socket": "{dir}/s", "socket_group": "no-such-group"}, "no group no-such-group"),
        ({"listen": "127.0.0.1:{port}"}, "Address already in use"),
        ({"listen": "no-such-host.invalid:1"}, "has no address"),
    ],
)
def test_what_cannot_be_listened_on(world: World, api: dict[str, str], reason: str) -> None:
    """A live socket, a file in its place or a taken port stop the start with one clear line."""
    world.publish(a=secret("0"))
    world.map("a")
    pathlib.Path(f"{world.directory}/file").write_text("")
    with socket.socket(socket.AF_UNIX) as live, socket.socket() as taken:
        live.bind(f"{world.directory}/live")
        live.listen()
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        places = {
            "live": f"{world.directory}/live",
            "file": f"{world.directory}/file",
            "dir": world.directory,
            "port": taken.getsockname()[1],
        }
        world.configure(api={key: value.format(**places) for key, value in api.items()})
        done = world.run("run", "-c", world.config)
        assert done.returncode in (1, 2)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
        assert len(lines) == 1
        assert lines[0].startswith("syncd: ")
        assert reason in lines[0]
        assert os.path.exists(f"{world.directory}/file")
        assert os.path.exists(f"{world.directory}/live")


def test_socket_activation(world: World) -> None:
    """Sockets that systemd hands over are served, and stay when the daemon goes."""
    world.publish(a=secret("0"))
    world.map("a")
    world.configure()
    starter = (
        "import os, socket, sys\n"
        f"unix = socket.socket(socket.AF_UNIX); unix.bind({path(world)!r}); unix.listen()\n"
        "tcp = socket.socket(); tcp.bind(('127.0.0.1', 0)); tcp.listen()\n"
        "print(tcp.getsockname()[1], flush=True)\n"
        "for number, one in enumerate((unix, tcp)):\n"
        "    kept = os.dup(one.fileno()); one.close(); os.dup2(kept, 3 + number)\n"
        "    os.set_inheritable(3 + number, True)\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '2',\n"
        "               'LISTEN_FDNAMES': 'syncd.socket:probes'}\n"
        f"arguments = [sys.executable, '-m', 'syncd', 'run', '-c', {world.config!r}]\n"
        "os.execv(sys.executable, arguments)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        port = int(daemon.stdout.readline())
        status, answer = ask(path(world), "/v1/secrets")
        assert (status, len(answer["secrets"])) == (200, 1)
        assert probe(port, "/readyz")[0] == 200
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(DEADLINE) == 0
    assert os.path.exists(path(world))


def test_clients_that_dawdle_or_shout(world: World) -> None:
    """A request that is never finished is cut off, one that is too large is refused."""
    port = free_port()
    world.publish(a=secret("0"))
    world.map("a")
    world.configure(api={"socket": path(world), "listen": f"127.0.0.1:{port}"})
    with world.daemon():
        slow: list[socket.socket] = [socket.socket(socket.AF_UNIX), socket.socket()]
        slow[0].connect(path(world))
        slow[1].connect(("127.0.0.1", port))
        started = time.monotonic()
        for one in slow:
            one.settimeout(DEADLINE)
            one.sendall(b"GET /healthz HTTP/1.1\r\n")
        for target in (socket.socket(socket.AF_UNIX), socket.socket()):
            with target:
                target.settimeout(DEADLINE)
                target.connect(
                    path(world) if target.family == socket.AF_UNIX else ("127.0.0.1", port)
                )
                target.sendall(b"GET /" + b"x" * (server.LARGEST_HEAD * 2) + b" HTTP/1.1\r\n\r\n")
                assert b" 400 " in target.recv(1000).splitlines()[0] + b" "
        for one in slow:
            with one, suppress(ConnectionResetError):
                assert one.recv(1) == b""
        assert time.monotonic() - started > server.REQUEST_TIMEOUT - 1
