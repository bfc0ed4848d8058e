"""A relay that watches a fleet: what it announces, with real daemons and a real NATS server."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from support.aidbox_clients import OWN, box, consumer
from support.faults import hook
from support.fleet import Fleet
from support.nats import bucket, documents, free_port, stream
from support.receiver import Receiver
from support.subscriber import ask
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.nats import NatsServer
    from support.world import DaemonProcess


class Watched(Fleet):
    """A fleet with a relay, whose webhook gets what it announces."""

    def __init__(self, server: NatsServer, key: Path, stack: ExitStack) -> None:
        super().__init__(server, key, stack)
        server.ask(stream(self.bucket, f"{self.bucket}.>"))
        self.world = stack.enter_context(World())
        self.receiver = stack.enter_context(Receiver())

    def relay(self, within: str = "10m", *more: dict[str, Any], **api: Any) -> DaemonProcess:
        source = {"urls": [self.server.url], "subject": f"{self.bucket}.>", "durable": "d"}
        source |= {"state_bucket": self.bucket, "converge_within": within}
        relay = self.world.relay(relay=source, consumers=[hook(self.receiver), *more], api=api)
        self._stack.enter_context(relay)
        relay.wait_for("fleet.following")
        return relay

    def events(self, count: int) -> list[dict[str, Any]]:
        """So many events, with their short types; exactly these have arrived."""
        self.receiver.wait(count)
        events = [request.events[0] for request in self.receiver.requests]
        assert len(events) == count
        return [{**event, "type": event["type"].rpartition(".")[2]} for event in events]


@pytest.fixture
def fleet(nats: NatsServer, tmp_path: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(nats, tmp_path / "key", stack)


def test_what_a_relay_announces(fleet: Watched) -> None:
    """Four installations: `converged` after the last, once, whatever is restarted meanwhile;
    `diverged` names the one with another value; a new key produces nothing."""
    names = ("n1", "n2", "n3", "n4")
    fleet.start(*names)
    old = fleet.secret()["version"]
    relay = fleet.relay("2s")
    fleet.rotate("2", *names[:-1])
    wait_until(lambda: fleet.secret()["have"] == 3)
    (late,) = fleet.events(1)
    assert (late["type"], late["data"]["lagging"], late["data"]["have"]) == ("diverged", ["n4"], 3)
    assert relay.stop() == 0
    fleet.rotate("2", "n4")
    wait_until(lambda: fleet.secret()["converged"])
    relay.start()
    _, whole = fleet.events(2)
    assert (whole["type"], whole["subject"]) == ("converged", "db")
    data = whole["data"]
    assert (data["previous_version"], data["version"]) == (old, fleet.secret()["version"])
    assert (data["instances"], data["have"], data["lagging"]) == (4, 4, [])
    assert data["scope"] == {"resource_type": "Client", "id": "db"}
    assert data["seconds"] > 0
    relay.wait_for("delivery.acknowledged", 2)
    relay.kill()
    relay.start()
    relay.wait_for("fleet.following", 3)
    fleet.rotate("3", "n2")
    *_, wrong = fleet.events(3)
    assert (wrong["type"], wrong["data"]["lagging"]) == ("diverged", ["n2"])
    assert (wrong["data"]["version"], wrong["data"]["have"]) == (data["version"], 3)
    fleet.rotate("2", "n2")
    *_, again = fleet.events(4)
    assert (again["type"], again["data"]["previous_version"]) == ("converged", data["version"])
    new = fleet.key.with_name("new")
    new.write_bytes(secret("another key of the fleet"))
    os.rename(new, fleet.key)
    wait_until(lambda: fleet.secret()["version"] != data["version"] and fleet.secret()["converged"])
    fleet.rotate("4", *names)
    *_, last = fleet.events(5)
    assert last["type"] == "converged"


def test_what_is_not_known_has_not_converged(fleet: Watched) -> None:
    """One that dies is silent and named, in every place; so is one with an unreadable document."""
    fleet.start("n1", "n2")
    probes, path = free_port(), f"{fleet.world.directory}/relay.sock"
    relay = fleet.relay("1s", listen=f"127.0.0.1:{probes}", socket=path)
    fleet.daemons["n2"].kill()
    fleet.rotate("2", "n1")
    (diverged,) = fleet.events(1)
    assert diverged["data"]["lagging"] == ["n2"]
    wait_until(lambda: ask(path, "/v1/status")[1]["relay"]["fleet"]["instances"]["silent"] == 1)
    _, status = ask(path, "/v1/status")
    assert status["relay"]["fleet"]["secrets"] == {"converged": 0, "spreading": 0, "diverged": 1}
    assert any("secret db has diverged: 1 of 2" in line for line in status["attention"])
    assert any("waiting for n2" in line for line in status["attention"])
    assert "1 live, 1 silent" in fleet.world.run("status", "--socket", path).stdout
    assert 'syncd_fleet_instances{state="silent"} 1.0' in metrics(probes)
    assert 'syncd_fleet_secrets{state="diverged"} 1.0' in metrics(probes)
    assert "syncd_scans" not in metrics(probes)

    async def forge(js: Any) -> None:
        await js.publish(f"$KV.{fleet.bucket}.n2", b'{"instance": "n2", "changed_at": "9999"}')

    fleet.server.ask(forge)
    relay.wait_for("fleet.unusable")
    fleet.rotate("3", "n1")
    _, unreadable = fleet.events(2)
    assert (unreadable["type"], unreadable["data"]["unreadable"]) == ("diverged", ["n2"])
    relay.wait_for("delivery.acknowledged", 2)
    relay.kill()
    relay.start()
    relay.wait_for("fleet.unusable", 2)

    async def delete(js: Any) -> None:
        await js.publish(f"$KV.{fleet.bucket}.n2", b"", headers={"KV-Operation": "DEL"})

    fleet.server.ask(delete)
    *_, converged = fleet.events(3)
    assert (converged["type"], converged["data"]["instances"]) == ("converged", 1)
    lines = fleet.world.run("events", "--socket", path, "--after", "start").stdout.splitlines()
    assert "db  diverged  Client/db" in lines[0]
    assert "waiting for n2" in lines[0]
    assert "1 of 1 installations" in lines[-1]


def metrics(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text: str = answer.read().decode()
    return text


def test_one_audit_event_for_a_rotation_of_the_fleet(fleet: Watched) -> None:
    """However many installations there are, and not again when a divergence ends."""
    fleet.start("n1", "n2")
    with open(f"{fleet.worlds['n1'].directory}/own", "wb") as file:
        file.write(OWN)
    with box(fleet.worlds["n1"]) as aidbox:
        trail = consumer(fleet.worlds["n1"], aidbox, "audit_event", types=["converged"])
        fleet.relay("1s", trail)
        fleet.rotate("2", "n1", "n2")
        (converged,) = fleet.events(1)
        fleet.rotate("3", "n1")
        fleet.events(2)
        fleet.rotate("2", "n1")
        fleet.events(3)
        fleet.rotate("4", "n1", "n2")
        fleet.events(4)
        wait_until(lambda: len(aidbox.resources("AuditEvent")) == 2)
        first = aidbox.resources("AuditEvent")[0]
    assert first["id"] == f"syncd-{converged['id']}"
    assert first["subtype"][0]["code"] == "secret-converged"
    details = {item["type"]: item["valueString"] for item in first["entity"][0]["detail"]}
    assert (details["instances"], details["version"]) == ("2", converged["data"]["version"])
    assert "CANARY" not in json.dumps(first)


def test_a_bucket_that_was_made_anew(fleet: Watched) -> None:
    """It may have lost installations that are still there: nothing converges until all that live
    have had the time to write again."""
    fleet.start("n1", "n2")
    path = f"{fleet.world.directory}/relay.sock"
    relay = fleet.relay(socket=path)

    def state() -> Any:
        return ask(path, "/v1/status")[1]["relay"]["fleet"]

    wait_until(lambda: state()["secrets"].get("converged") == 1)
    assert relay.stop() == 0
    fleet.daemons["n2"].kill()
    fleet.server.ask(lambda js: js.delete_stream(f"KV_{fleet.bucket}"))
    fleet.server.ask(bucket(fleet.bucket))
    fleet.rotate("2", "n1")
    wait_until(lambda: documents(fleet.server, fleet.bucket).keys() == {"n1"})
    relay.start()
    relay.wait_for("fleet.bucket_new")
    wait_until(lambda: state()["instances"])
    _, status = ask(path, "/v1/status")
    assert status["sequence"] == 0
    assert any("the fleet is not known: bucket" in line for line in status["attention"])


def test_a_fleet_without_installations(fleet: Watched) -> None:
    """An empty bucket is not a fleet that is well: it may be another one than they write to."""
    path = f"{fleet.world.directory}/relay.sock"
    fleet.relay(socket=path)
    expected = f"no installation writes to bucket {fleet.bucket}; set state_bucket"
    wait_until(
        lambda: any(expected in line for line in ask(path, "/v1/status")[1]["attention"]),
        lambda: ask(path, "/v1/status"),
    )


def test_a_bucket_that_is_missing(fleet: Watched, nats: NatsServer) -> None:
    """Events are relayed all the same; the probe says so, and the fleet is known later."""
    fleet.start("n1")
    probes = free_port()
    nats.ask(lambda js: js.delete_stream(f"KV_{fleet.bucket}"))
    source = {"urls": [nats.url], "subject": f"{fleet.bucket}.>", "state_bucket": fleet.bucket}
    path = f"{fleet.world.directory}/relay.sock"
    api = {"listen": f"127.0.0.1:{probes}", "socket": path}
    settings: dict[str, Any] = {"relay": source, "api": api}
    with fleet.world.relay(**settings) as relay:
        assert "not known yet" in fleet.world.run("status", "--socket", path).stdout
        reason = relay.wait_for("fleet.failing")["reason"]
        assert f"there is no bucket {fleet.bucket}" in reason
        relay.wait_for("relay.following")
        assert reason in warnings(probes)
        assert "syncd_fleet" in metrics(probes)
        nats.ask(bucket(fleet.bucket))
        relay.wait_for("fleet.following")


def warnings(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
        return " ".join(json.load(answer)["warnings"])
