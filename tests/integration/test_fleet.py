"""`syncd fleet`: four installations with one key, real daemons, a real NATS server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from support.daemon import environment
from support.documents import blocks, document, run
from support.fleet import Fleet
from support.nats import bucket
from support.waiting import DEADLINE, wait_until
from support.world import secret

from syncd.config.settings import NatsServer as Server
from syncd.core.errors import TemporaryError
from syncd.core.timing import rfc3339
from syncd.net.fleet_bucket import FleetBucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from support.nats import NatsServer


@pytest.fixture
def fleet(nats: NatsServer, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(nats, tmp_path / "key", stack)


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_for(fleet: Fleet, count: int, old: str) -> None:
    """Waits until so many have another version."""

    def have() -> bool:
        found = fleet.secret()
        return bool(found["have"] == count and found["version"] != old)

    wait_until(have)


def test_waiting_ends_with_the_last(fleet: Fleet) -> None:
    """Four installations rotate one after the other; `wait` says who is missing until the last."""
    names = ("n1", "n2", "n3", "n4")
    fleet.start(*names)
    old = fleet.secret()["version"]
    with fleet.waiting("--from", old, "--timeout", f"{DEADLINE:g}s") as process:
        assert next_line(process) == f"no installation has another version than {old}"
        for count, name in enumerate(names[:-1], 1):
            fleet.rotate("2", name)
            wait_for(fleet, count, old)
            assert process.poll() is None
        lines = [next_line(process) for _ in range(3)]
        assert lines[-1].endswith("waiting for n4")
        assert lines[0].startswith("1 of 4 installations have k1:")
        fleet.rotate("2", "n4")
        assert process.wait(DEADLINE) == 0
        assert next_line(process).startswith("4 of 4 installations have k1:")
    found = fleet.secret()
    assert (found["have"], found["older"], found["adopted"]) == (4, [], 0)
    assert found["seconds"] > 0


def test_one_that_dies_is_named(fleet: Fleet) -> None:
    """Silent after three heartbeats, and again a part of the fleet when it writes."""
    fleet.start("n1", "n2")
    assert fleet.secret()["converged"]
    fleet.daemons["n2"].kill()
    wait_until(lambda: fleet.secret()["silent"] == ["n2"])
    code, text = fleet.status()
    assert code == 1
    assert "2 installations in bucket" in text
    assert "db: silent: n2" in text
    fleet.daemons["n2"].start()
    wait_until(lambda: fleet.secret()["converged"])


def test_a_different_value_is_named(fleet: Fleet) -> None:
    """Whoever has another version than the newest is listed, and the time limit ends the wait."""
    fleet.start("n1", "n2", "n3")
    fleet.rotate("2", "n1", "n2")
    wait_until(lambda: fleet.secret()["have"] == 2)
    assert fleet.secret()["older"] == ["n3"]
    with fleet.waiting("--timeout", "1s") as process:
        _, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 1
        assert "2 of 3 installations have k1:" in errors
        assert "waiting for n3; see syncd fleet status" in errors


def test_a_new_key_is_no_rotation(fleet: Fleet) -> None:
    """While keys differ nothing is compared; afterwards all is as it was, without an event."""
    fleet.start("n1", "n2", "n3")
    fleet.rotate("2", "n1", "n2", "n3")
    wait_until(lambda: fleet.secret()["converged"])
    before = fleet.secret()
    new = fleet.key.with_name("new")
    new.write_bytes(secret("another key of the fleet"))
    os.rename(new, fleet.key)
    wait_until(
        lambda: fleet.secret()["version"] != before["version"] and fleet.secret()["converged"]
    )
    found = fleet.secret()
    assert (found["first_at"], found["last_at"]) == (before["first_at"], before["last_at"])
    for world in fleet.worlds.values():
        assert len(world.events()) == 1


def test_one_without_the_key_is_named(fleet: Fleet) -> None:
    """It cannot be compared, and nobody claims that it has the secret."""
    fleet.start("n1", "n2")
    key, fleet.key = fleet.key, fleet.key.with_name("other")
    fleet.key.write_bytes(secret("not the key of the fleet"))
    fleet.start("n3")
    fleet.key = key
    found = fleet.secret()
    assert (found["incomparable"], found["have"], found["converged"]) == (["n3"], 2, False)


def test_what_cannot_be_asked(fleet: Fleet) -> None:
    """Exit code 2 and one line: no server, no bucket, no option."""
    fleet.start("n1")
    world = fleet.worlds["n1"]
    for options, problem in {
        ("--nats", fleet.server.url, "--bucket", "none"): "there is no bucket none",
        ("--nats", "nats://127.0.0.1:1", "--bucket", "x"): "127.0.0.1:1",
        ("--nats", fleet.server.url): "no bucket is given; add --bucket",
    }.items():
        done = world.run("fleet", "status", *options)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert problem in line
    done = world.run("fleet", "wait", *fleet.options, "--secret", "x", "--timeout", "1s")
    assert done.returncode == 1
    assert "no installation has secret x" in done.stderr


async def test_documents_that_are_large(nats: NatsServer) -> None:
    """More of them than one request may deliver are read whole, and in parts that are not long."""
    name = "large"
    secrets = {f"secret-{number:04}": {"version": "k1:" + "0" * 32} for number in range(10_000)}
    content = {"time": rfc3339(time.time()), "key": "k", "ttl": 180, "secrets": secrets}

    async def write(js: Any) -> None:
        for number in range(40):
            document = json.dumps({"instance": f"n{number}", **content}).encode()
            await js.publish(f"$KV.{name}.n{number}", document)

    await anyio.to_thread.run_sync(nats.ask, bucket(name))
    await anyio.to_thread.run_sync(nats.ask, write)
    reader = FleetBucket(Server(urls=(nats.url,)), name, "test")
    with anyio.fail_after(DEADLINE):
        async with aclosing(reader.changes()) as changes:
            assert await anext(changes) == secrets.keys()
    await reader.aclose()
    assert len(reader.fleet.members) == 40


async def test_a_gap_is_noticed(nats: NatsServer) -> None:
    """A message that is missing, or a consumer that is gone, means that all is read again."""
    await anyio.to_thread.run_sync(nats.ask, bucket("gap"))
    reader = FleetBucket(Server(urls=(nats.url,)), "gap", "test")
    with anyio.fail_after(DEADLINE):
        async with aclosing(reader.changes()) as changes:
            await anext(changes)

            async def delete(js: Any) -> None:
                for info in await js.consumers_info("KV_gap"):
                    await js.delete_consumer("KV_gap", info.name)

            await anyio.to_thread.run_sync(nats.ask, delete)
            with pytest.raises(TemporaryError):
                await until_it_fails(changes)
        async with aclosing(reader.changes()) as changes:
            assert await anext(changes) == set()
    await reader.aclose()


async def test_a_document_that_looks_like_an_answer_of_the_server(nats: NatsServer) -> None:
    """One installation, which may write its own key only, cannot stop the reading of all."""
    good = {"instance": "n1", "time": rfc3339(time.time()), "key": "k", "ttl": 180, "secrets": {}}

    async def write(js: Any) -> None:
        forged = {"Status": "409", "Description": "Consumer Deleted"}
        await js.publish("$KV.forged.n2", b"", headers=forged)
        await js.publish("$KV.forged.n1", json.dumps(good).encode())

    await anyio.to_thread.run_sync(nats.ask, bucket("forged"))
    await anyio.to_thread.run_sync(nats.ask, write)
    reader = FleetBucket(Server(urls=(nats.url,)), "forged", "test")
    with anyio.fail_after(DEADLINE):
        async with aclosing(reader.changes()) as changes:
            await anext(changes)
    await reader.aclose()
    assert [member.instance for member in reader.fleet.members.values()] == ["n1"]
    assert list(reader.fleet.unreadable.values()) == ["n2"]


async def test_a_marker_is_a_deletion(nats: NatsServer) -> None:
    """What the server stores when `max_age` deletes a document is not an unreadable document."""
    content = {"time": rfc3339(time.time()), "key": "k", "ttl": 180, "secrets": {}}

    async def write(js: Any) -> None:
        await js.publish("$KV.marked.n1", json.dumps({"instance": "n1", **content}).encode())

    more = {"max_age": 1.0, "subject_delete_marker_ttl": 3600.0}
    await anyio.to_thread.run_sync(nats.ask, bucket("marked", **more))
    reader = FleetBucket(Server(urls=(nats.url,)), "marked", "test")
    with anyio.fail_after(DEADLINE):
        async with aclosing(reader.changes()) as changes:
            await anext(changes)
            await anyio.to_thread.run_sync(nats.ask, write)
            while not reader.fleet.members:
                await anext(changes)

            async def is_marked(js: Any) -> bool:
                last = await js.get_last_msg("KV_marked", "$KV.marked.n1")
                return "Nats-Marker-Reason" in (last.headers or {})

            while not await anyio.to_thread.run_sync(nats.ask, is_marked):
                await anext(changes)
        async with aclosing(reader.changes()) as changes:
            await anext(changes)
    await reader.aclose()
    assert (reader.fleet.members, reader.fleet.unreadable) == ({}, {})


async def until_it_fails(changes: AsyncIterator[set[str]]) -> None:
    async for _ in changes:
        pass


def test_the_pipeline_of_the_guide(fleet: Fleet, tmp_path: Path) -> None:
    """What retires the old secret runs when the last installation has rotated."""
    page = document("docs/fleet.md")
    who = page[page.index("## Who has") : page.index("## Announcements")]
    ask, pipeline = (content for _, content in blocks(who))
    fleet.start("n1", "n2")
    relay = {"urls": [fleet.server.url], "subject": "syncd.>", "state_bucket": fleet.bucket}
    (tmp_path / "relay.yaml").write_text(json.dumps({"relay": relay}))
    for name in ("rotate-the-secret", "retire-the-old-one"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/{name}.done\n")
        (tmp_path / name).chmod(0o755)
    jq = "import json, sys; print(json.load(sys.stdin)['secrets'][0]['version'])"
    pipeline = pipeline.replace("jq -r '.secrets[0].version'", f'{sys.executable} -c "{jq}"')
    pipeline = pipeline.replace("client-secret", "db")
    path = f"{tmp_path}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    with subprocess.Popen(["sh", "-euc", pipeline], cwd=tmp_path, env=environment({"PATH": path})):
        wait_until((tmp_path / "rotate-the-secret.done").exists)
        for name in fleet.worlds:
            assert not (tmp_path / "retire-the-old-one.done").exists()
            fleet.rotate("2", name)
        wait_until((tmp_path / "retire-the-old-one.done").exists)
    done = run(ask.replace("nats.example.org:4222", "127.0.0.1:1"), tmp_path)
    assert done.returncode == 2
    assert "admin.creds" in done.stderr


def test_a_document_that_is_nested_too_deeply(fleet: Fleet) -> None:
    """It is reported, as any other that is none, and what that installation has is not known."""
    fleet.start("n1")

    async def forge(js: Any) -> None:
        deep = b"[" * 50_000 + b"]" * 50_000
        await js.publish(f"$KV.{fleet.bucket}.n2", b'{"instance": "n2", "x": ' + deep + b"}")

    fleet.server.ask(forge)
    done = fleet.worlds["n1"].run("fleet", "status", *fleet.options, "--secret", "db")
    assert done.returncode == 1
    assert "fleet.unusable" in done.stderr
    assert "1 of 1" in done.stdout
    assert "documents that cannot be read: n2" in done.stdout


def test_a_document_under_the_key_of_another(fleet: Fleet) -> None:
    """It is reported: with a key of its own each, none speaks for another."""
    fleet.start("n1")

    async def forge(js: Any) -> None:
        await js.publish(f"$KV.{fleet.bucket}.n2", b'{"instance": "n1"}')

    fleet.server.ask(forge)
    done = fleet.worlds["n1"].run("fleet", "status", *fleet.options, "--secret", "db")
    assert done.returncode == 1
    assert "fleet.unusable" in done.stderr
    assert "1 of 1" in done.stdout
    code, output = fleet.status("--format", "json")
    assert (code, json.loads(output)["unreadable"]) == (1, ["n2"])
    fleet.server.ask(
        lambda js: js.purge_stream(f"KV_{fleet.bucket}", subject=f"$KV.{fleet.bucket}.n2")
    )
    assert fleet.status()[0] == 0
