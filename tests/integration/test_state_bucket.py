"""`state_bucket`: each installation's state as a document in a bucket of a real NATS server."""

from __future__ import annotations

import itertools
import json
import threading
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import pytest
from support.nats import NatsServer, bucket, documents
from support.waiting import DEADLINE, wait_until
from support.world import CANARY, World, secret

from syncd import __version__
from syncd.config.settings import Nats
from syncd.consumers.state import StateWriter
from syncd.core.event_data import SECRET_ADOPTED, AdoptionData, ReplicaData
from syncd.core.events import Commit, Event
from syncd.core.model import Entry, Known, Scope, State

if TYPE_CHECKING:
    from pathlib import Path

_numbers = itertools.count(1)


@pytest.fixture
def name(nats: NatsServer) -> str:
    """A bucket of the test's own."""
    name = f"state-{next(_numbers)}"
    nats.ask(bucket(name))
    return name


def prepare(world: World, server: NatsServer, name: str, **more: Any) -> None:
    world.publish(a=secret("1"), b=secret("2"))
    world.map("a", "b")
    settings = {key: more.pop(key) for key in ("instance", "fingerprint_key_file") if key in more}
    consumer = {"name": "bus", "kind": "nats", "urls": [server.url], "subject": f"{name}.x"}
    world.configure(consumers=[{**consumer, "state_bucket": name, **more}], **settings)


def document(server: NatsServer, name: str, instance: str = "node.1") -> dict[str, Any]:
    found: dict[str, Any] = documents(server, name)[instance]
    return found


def test_the_state_of_an_installation(nats: NatsServer, name: str) -> None:
    """Written at the start and after a change; versions and states, and no value."""
    with World() as world:
        prepare(world, nats, name, instance="node.1")
        with world.daemon() as daemon:
            wait_until(lambda: documents(nats, name))
            before = document(nats, name)
            assert before["syncd"] == __version__
            assert before["ttl"] == 180
            assert before["secrets"].keys() == {"a", "b"}
            assert "changed_at" not in before["secrets"]["a"]  # it was so from the start
            world.publish(a=secret("3"))
            world.values.pop("b")
            world.publish()
            changed = "state.written"
            daemon.wait_for("secret.changed", secret="b")
            wait_until(lambda: document(nats, name)["secrets"]["b"].get("state") == "missing")
            now = document(nats, name)
            assert daemon.logged(changed)
            assert now["secrets"]["a"]["version"] != before["secrets"]["a"]["version"]
            assert now["secrets"]["a"]["changed_at"].endswith("Z")
            assert now["secrets"]["a"]["scope"] == [{"resource_type": "Client", "id": "a"}]
            assert "version" not in now["secrets"]["b"]
        (message,) = nats.stored(f"KV_{name}")
        assert message.subject == f"$KV.{name}.node=2E1"
        assert CANARY not in message.data


def test_scopes_are_respected(nats: NatsServer, name: str) -> None:
    """A document has the secrets that the consumer may see, and no others."""
    with World() as world:
        scope = [{"resource_type": "Client", "id": "b"}]
        prepare(world, nats, name, instance="node.1", scope=scope)
        with world.daemon():
            wait_until(lambda: documents(nats, name))
            assert document(nats, name)["secrets"].keys() == {"b"}


def test_the_heartbeat(nats: NatsServer, name: str) -> None:
    """Without a change the document is written again, with a ttl of three heartbeats."""
    with World() as world:
        prepare(world, nats, name, instance="node.1", state_heartbeat="300ms")
        with world.daemon() as daemon:
            daemon.wait_for("state.written", 3)
            assert document(nats, name)["ttl"] == pytest.approx(0.9)
            assert not daemon.logged("secret.changed")


def test_a_bucket_that_is_missing(nats: NatsServer) -> None:
    """It is reported with the remedy, and used once it is there."""
    name = f"late-{next(_numbers)}"
    with World() as world:
        prepare(world, nats, name, instance="node.1")
        with world.daemon() as daemon:
            failing = daemon.wait_for("state.failing", consumer="bus", bucket=name)
            assert f"there is no bucket {name}" in failing["reason"]
            assert "create it" in failing["reason"]
            nats.ask(bucket(name))
            daemon.wait_for("state.recovered")
            wait_until(lambda: documents(nats, name))


def test_a_new_key_is_in_the_document(nats: NatsServer, name: str, tmp_path: Path) -> None:
    """`key` names the key that made the versions: two documents with one can be compared."""
    key = tmp_path / "key"
    key.write_bytes(secret("a shared key"))
    with World() as one, World() as two:
        for number, world in enumerate((one, two), 1):
            prepare(world, nats, name, instance=f"n{number}", fingerprint_key_file=str(key))
        with one.daemon(), two.daemon():
            wait_until(lambda: len(documents(nats, name)) == 2)
            first, second = documents(nats, name).values()
            assert (first["key"], first["secrets"]) == (second["key"], second["secrets"])
            key.write_bytes(secret("another shared key"))
            wait_until(lambda: document(nats, name, "n1")["key"] != first["key"])
            wait_until(
                lambda: (
                    document(nats, name, "n1")["secrets"] == document(nats, name, "n2")["secrets"]
                )
            )
            assert document(nats, name, "n1")["secrets"] != first["secrets"]


def test_one_pass_writes_it(nats: NatsServer, name: str) -> None:
    """`syncd run --once` ends when the document is written."""
    with World() as world:
        prepare(world, nats, name, instance="node.1")
        done = world.run("run", "--once", "-c", world.config, "--timeout", "20s")
        assert done.returncode == 0, done.stderr
        assert document(nats, name)["secrets"].keys() == {"a", "b"}


def test_one_pass_that_cannot_write_it(nats: NatsServer) -> None:
    """The state stays undelivered, so `syncd run --once` fails, and says why."""
    with World() as world:
        prepare(world, nats, "nowhere", instance="node.1")
        done = world.run("run", "--once", "-c", world.config, "--timeout", "2s")
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if "state.unfinished" in line]
        assert "there is no bucket nowhere" in line
        assert "delivery.unfinished" not in done.stderr


async def test_a_large_document_is_not_made_in_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten thousand secrets take tens of milliseconds, in which deliveries and probes go on."""
    threads = set()

    class Fresh:
        def events_of(self, _types: object) -> list[Event]:
            return []

        def baseline(self) -> str:
            return ""

    writer = StateWriter(
        Nats(name="bus", urls=("nats://127.0.0.1:1",), state_bucket="b"),
        instance="i",
        ledger=Fresh(),  # type: ignore[arg-type] # what is asked of one
        inventory=dict,
        key_id=lambda: "key",
        rng=Random(1),
    )
    encoded = anyio.Event()
    make = writer.document

    def document(*arguments: Any) -> Any:
        threads.add(threading.get_ident())
        anyio.from_thread.run_sync(encoded.set)
        return make(*arguments)

    monkeypatch.setattr(writer, "document", document)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run)
        with anyio.fail_after(DEADLINE):
            await encoded.wait()
        tasks.cancel_scope.cancel()
    assert threading.get_ident() not in threads


def test_a_relay_has_no_state_of_its_own(nats: NatsServer) -> None:
    """The option is refused there, with where the relay's own is."""
    with World() as world:
        bus = {"name": "bus", "kind": "nats", "urls": [nats.url], "state_bucket": "x"}
        relay = {"urls": [nats.url], "subject": "syncd.>"}
        path = f"{world.directory}/relay.yaml"
        with open(path, "w") as file:
            json.dump({"state_dir": world.state, "relay": relay, "consumers": [bus]}, file)
        done = world.run("relay", "-c", path)
        assert done.returncode == 2
        assert "consumers[0].state_bucket: is not possible in a relay" in done.stderr


def test_adoption_is_of_the_version_that_is_there() -> None:
    """By consumer and replica; what was verified of another version is left out."""
    entry = Entry("a", "/s/a", (Scope("Client", "a"),))
    known = {"a": Known(entry, State.PRESENT, "k1:2", None, "2026-11-23T20:00:00.000Z")}

    class NoEvents:
        def events_of(self, _types: object) -> list[Event]:
            return []

    writer = StateWriter(
        Nats(name="bus", urls=("nats://127.0.0.1:1",), state_bucket="b"),
        instance="i",
        ledger=NoEvents(),  # type: ignore[arg-type] # what is asked of one
        inventory=lambda: known,
        key_id=lambda: "key",
        rng=Random(1),
    )
    for version, adopted in (("k1:1", True), ("k1:2", False)):
        replicas = (
            ReplicaData("http://r1", True, 0.1, None),
            ReplicaData("http://r2", adopted, None, None),
        )
        data = AdoptionData("a", entry.scopes[0], version, "aidbox", 1.0, replicas)
        event = Event(1, "2026-11-23T20:00:01.000Z", SECRET_ADOPTED, "a", data)
        writer.committed(Commit((event,), known, 0.0))
        found = writer.document(known, 0.0).secrets["a"]
        assert not found.adopted or not all(found.adopted.values())
    assert found.adopted == {"aidbox http://r1": True, "aidbox http://r2": False}


async def test_a_bug_does_not_end_the_daemon(capfd: pytest.CaptureFixture[str]) -> None:
    """It is reported by class and place, without its text, and writing is tried again."""
    again, planted = anyio.Event(), "text of a foreign error"
    failures = [RuntimeError(planted)]

    def inventory() -> dict[str, Known]:
        if failures:
            raise failures.pop()
        again.set()
        return {}

    class Fresh:
        def events_of(self, _types: object) -> list[Event]:
            return []

        def baseline(self) -> str:
            return ""

    writer = StateWriter(
        Nats(name="bus", urls=("nats://127.0.0.1:1",), state_bucket="b"),
        instance="i",
        ledger=Fresh(),  # type: ignore[arg-type] # what is asked of one
        inventory=inventory,
        key_id=lambda: "key",
        rng=Random(1),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.run)
        with anyio.fail_after(DEADLINE):
            await again.wait()
        tasks.cancel_scope.cancel()
    said = capfd.readouterr().out
    assert "RuntimeError" in said
    assert planted not in said
