"""Names that others chose, in every command and every format: nothing raw, no forged line."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from support.daemon import environment
from support.hostile import HOSTILE, NOT_UTF8, assert_safe
from support.nats import NatsServer, free_port, stream
from support.receiver import Receiver
from support.subscriber import UnixConnection, ask
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from nats.js import JetStreamContext

NAMES = {**HOSTILE, "bytes": NOT_UTF8}


def syncd(*arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "syncd", *arguments],
        env=environment(environ),
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("format_", ["text", "json", "sarif"])
def test_check_of_files_with_any_name(world: World, kind: str, format_: str) -> None:
    """A file that no entry names is one line, one object or one result."""
    name = NAMES[kind]
    world.write_plain("a", secret("1"))
    world.map("a")
    with open(f"{world.mount}/{name}", "w"):
        pass
    world.configure()
    done = syncd("check", "-c", world.config, "--format", format_)
    assert_safe(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr
    if format_ == "text":
        (line,) = [line for line in done.stdout.decode().splitlines() if "file-unmapped" in line]
        assert line.startswith(f"warning: {world.mount}/")
    elif format_ == "json":
        found = [f for f in json.loads(done.stdout)["findings"] if f["code"] == "file-unmapped"]
        expected = name if kind != "bytes" else r"caf\xe9\xff"
        assert [item["source"] for item in found] == [f"{world.mount}/{expected}"]
    else:
        (run,) = json.loads(done.stdout)["runs"]
        assert "file-unmapped" in [result["ruleId"] for result in run["results"]]


@pytest.mark.parametrize("kind", NAMES)
def test_errors_and_the_log(world: World, kind: str) -> None:
    """Of paths on the command line, in the environment and in the vault config."""
    path = f"{world.directory}/{NAMES[kind]}.yaml"
    for command in ("run", "wait", "check", "relay"):
        done = syncd(command, "-c", path)
        assert_safe(done.stdout + done.stderr)
        assert done.returncode == 2
        lines = (done.stdout + done.stderr).decode().splitlines()
        assert len([line for line in lines if "config-unreadable" in line]) == 1
        assert all(line.startswith(("syncd: ", "error: ", "1 error")) for line in lines)
    for command in ("status", "events"):
        done = syncd(command, "--socket", path)
        assert_safe(done.stderr)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    for format_ in ("json", "console"):
        done = syncd(
            "run",
            "--once",
            SYNCD_STATE_DIR=world.state,
            SYNCD_LOG_FORMAT=format_,
            BOX_VAULT_CONFIG=path,
        )
        assert_safe(done.stderr)
        assert b"Traceback" not in done.stderr
        assert b"internal error" not in done.stderr


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("format_", ["json", "console"])
def test_the_log_of_a_daemon(world: World, kind: str, format_: str) -> None:
    """A stray file in the mount is reported at the start; the log keeps its lines."""
    world.write_plain("a", secret("1"))
    world.map("a")
    with open(f"{world.mount}/{HOSTILE[kind]}", "w"):
        pass
    world.configure()
    with world.daemon(ready=False, SYNCD_LOG_FORMAT=format_, PYTHONIOENCODING="utf-8") as daemon:
        wait_until(
            lambda: any("file-unmapped" in line for line in daemon.output),
            lambda: "".join(daemon.output),
        )
    assert_safe("".join(daemon.output))
    if format_ == "json":
        assert len(daemon.log) == len(daemon.output)


def raw(socket: str, target: str) -> bytes:
    """The body of an answer, as it came."""
    connection = UnixConnection(socket)
    try:
        connection.request("GET", target)
        return connection.getresponse().read()
    finally:
        connection.close()


def event(number: int, name: str) -> bytes:
    return json.dumps(
        {
            "specversion": "1.0",
            "id": f"0a0a0a0a-{number}",
            "source": "/syncd/elsewhere",
            "type": "io.syncd.secret.changed",
            "subject": name,
            "time": "2026-11-23T20:40:28.333Z",
            "datacontenttype": "application/json",
            "data": {
                "secret": name,
                "change": "modified",
                "path": f"/m/{name}",
                "scope": {"resource_type": "Client", "id": name},
                "version": f"k1:{number:02x}",
                "previous_version": "k1:00",
            },
        }
    ).encode()


def test_events_and_status_survive_every_name(nats: NatsServer) -> None:
    """A relay takes names from the network; every client gets each of them, whole and escaped."""
    nats.ask(stream("hostile", "hostile.>"))
    names = list(HOSTILE.values())

    async def publish(js: JetStreamContext) -> None:
        for number, name in enumerate(names, 1):
            await js.publish("hostile.x", event(number, name))

    with World() as world, Receiver() as receiver:
        socket, port = f"{world.directory}/syncd.sock", free_port()
        relay = world.relay(
            relay={"urls": [nats.url], "subject": "hostile.>", "durable": "hostile"},
            api={"socket": socket, "listen": f"127.0.0.1:{port}", "metrics_secret_names": True},
            consumers=[{"name": "hook", "kind": "webhook", "url": receiver.url, "max_batch": 99}],
        )
        with relay:
            relay.wait_for("relay.following")
            nats.ask(publish)
            wait_until(
                lambda: len(ask(socket, "/v1/secrets")[1]["secrets"]) == len(names),
                lambda: str(ask(socket, "/v1/secrets")),
            )
            receiver.wait(1)
            for path in ("/v1/secrets", "/v1/status", "/v1/events?follow=false&after=start"):
                assert_safe(raw(socket, path))
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE
            ) as page:
                metrics = page.read()
            assert_safe(metrics)
            assert len([line for line in metrics.splitlines() if b"secret=" in line]) == len(names)
            text = syncd("events", "--socket", socket)
            lines = text.stdout.decode().splitlines()
            data = syncd("events", "--socket", socket, "--format", "json")
            found = [json.loads(line)["subject"] for line in data.stdout.decode().splitlines()]
            table = syncd("status", "--socket", socket)
            state: Any = syncd("status", "--socket", socket, "--format", "json")
            filtered = syncd("events", "--socket", socket, "--secret", "a\udcff")
        for done in (text, data, table, state, filtered):
            assert done.returncode in (0, 1, 2), done.stderr
            assert b"internal error" not in done.stderr
            assert_safe(done.stdout + done.stderr)
        assert len(lines) == len(names)
        assert found == names
        assert sorted(item["secret"] for item in json.loads(state.stdout)["secrets"]) == sorted(
            names
        )
        for request in receiver.requests:
            assert_safe(request.body)
        assert_safe("".join(relay.output))


def test_a_stream_of_an_older_daemon(tmp_path: Any) -> None:
    """It sends separators as they are; a line ends at LF only."""
    from syncd.commands.client import _lines

    chunks = ["data: a\u2028b\r\nda", "ta: \x85\n\nrest"]
    found = list(_lines(chunk.encode() for chunk in chunks))
    assert found == ["data: a\u2028b", "data: \x85", ""]
