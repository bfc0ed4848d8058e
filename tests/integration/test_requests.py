"""What a person asks of a consumer: try now, send again; and a credential that is corrected."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.accounts import as_user, needs_root
from support.nats import NatsServer
from support.receiver import Receiver, reply
from support.tls import Authority
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "whsec_c2VjcmV0c2VjcmV0c2VjcmV0"


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish(a=secret("0"), b=secret("0"))
        world.map("a", "b", "never")
        yield world


def configure(world: World, *consumers: dict[str, Any]) -> None:
    world.configure(api={"socket": f"{world.directory}/s"}, consumers=list(consumers))


def hook(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"name": "hook", "kind": "webhook", "url": receiver.url, **more}


def test_a_retry_does_not_wait_for_the_backoff(world: World) -> None:
    """The receiver asked to wait for an hour; a person knows better."""
    at = ("--socket", f"{world.directory}/s")
    with Receiver() as receiver, world_of(world, hook(receiver)).daemon() as daemon:
        receiver.script(reply(503, retry_after="3600"), reply(400))
        world.publish(a=secret("1"))
        daemon.wait_for("delivery.retry")
        done = world.run("retry", "hook", *at)
        assert (done.returncode, done.stdout) == (0, "hook: 1 pending, trying now\n")
        # refused, and so held for a time of its own
        daemon.wait_for("delivery.rejected")
        assert world.run("retry", *at).returncode == 0
        daemon.wait_for("delivery.acknowledged")
        assert [request.subjects for request in receiver.requests] == [["a"]] * 3
        done = world.run("retry", "other", *at)
        assert (done.returncode, "no consumer of this name" in done.stderr) == (2, True)


def world_of(world: World, *consumers: dict[str, Any]) -> World:
    configure(world, *consumers)
    return world


@pytest.mark.parametrize("max_batch", [1, 5])
def test_a_ping_proves_a_webhook(world: World, max_batch: int) -> None:
    """It is signed, goes past the mailbox, and shows where it went and what was answered."""
    key = f"{world.directory}/webhook.key"
    with open(key, "w") as file:
        file.write(KEY)
    at = ("--socket", f"{world.directory}/s")
    with Receiver() as receiver:
        settings = hook(receiver, signing_key_file=key, max_batch=max_batch)
        with world_of(world, settings).daemon():
            receiver.script(reply(503), reply(403))
            done = world.run("test", "hook", *at)
            assert done.returncode == 1
            assert "status   503" in done.stdout
            done = world.run("test", "hook", *at)
            assert (done.returncode, f"replace the credentials in {key}" in done.stdout) == (
                1,
                True,
            )
            assert " unproven " in world.run("status", *at).stdout
            assert world.run("test", "hook", *at).returncode == 0
            request = receiver.requests[-1]
            request.verify(KEY)
            (event,) = request.cloud_events()
            assert (event.get_type(), event.get_subject()) == ("io.syncd.ping", "hook")
            assert " unproven " not in world.run("status", *at).stdout
        with world.daemon():  # it is remembered
            assert " unproven " not in world.run("status", *at).stdout


def test_a_check_connects_and_sends_nothing(world: World) -> None:
    """By TCP and TLS with the consumer's own trust, and by a Unix socket."""
    authority = Authority(Path(world.directory))
    with Receiver() as receiver, Receiver(tls=authority.server()) as other:
        configure(
            world,
            hook(receiver),
            {**hook(other, ca_file=str(authority.file)), "name": "trusted"},
            {**hook(other), "name": "untrusted"},
            {"name": "away", "kind": "webhook", "url": "http://127.0.0.1:1"},
            {"name": "bus", "kind": "nats", "urls": ["nats://127.0.0.1:1"]},
        )
        done = world.run("check", "-c", world.config, "--consumers", "--format", "json")
        found = json.loads(done.stdout)["findings"]
        assert [item["where"] for item in found if item["code"] == "consumer-unreachable"] == [
            "consumers[2].url",
            "consumers[3].url",
            "consumers[4].urls[0]",
        ]
        assert done.returncode == 1
        assert not receiver.requests
        assert not other.requests


def test_a_ping_that_does_not_arrive(world: World) -> None:
    """The reason is in the answer, whatever the kind."""
    at = ("--socket", f"{world.directory}/s")
    bus = {"name": "bus", "kind": "nats", "urls": ["nats://127.0.0.1:1"]}
    away = {"name": "away", "kind": "webhook", "url": "http://127.0.0.1:1"}
    with world_of(world, away, bus, aidbox(world, "http://127.0.0.1:1")).daemon():
        for name, problem in (
            ("away", "cannot deliver to http://127.0.0.1:1: "),
            ("bus", "cannot use NATS at 127.0.0.1:1: "),
            ("aidbox", "cannot read at http://127.0.0.1:1: "),
        ):
            done = world.run("test", name, *at)
            assert (done.returncode, "  status   no answer" in done.stdout) == (1, True)
            assert f"  problem  {problem}" in done.stdout


def aidbox(world: World, *urls: str) -> dict[str, Any]:
    file = f"{world.directory}/client-secret"
    with open(file, "wb") as opened:
        opened.write(secret("client"))
    return {
        "name": "aidbox",
        "kind": "aidbox",
        "urls": list(urls),
        "client_id": "syncd",
        "client_secret_file": file,
        "actions": ["drop_cache"],
    }


def test_a_ping_to_each_replica_of_aidbox(world: World) -> None:
    """It reads as the Client, and changes nothing; a 403 proves the credentials, too."""
    at = ("--socket", f"{world.directory}/s")
    with Receiver() as one, Receiver() as other:
        origins = [receiver.url.rpartition("/")[0] for receiver in (one, other)]
        with world_of(world, aidbox(world, *origins)).daemon():
            other.script(reply(403))
            done = world.run("test", "aidbox", *at)
            assert done.returncode == 0
            assert f"  status   204  {origins[0]}\n  status   403  {origins[1]}" in done.stdout
            (request,) = one.requests
            assert (request.method, request.target) == ("GET", "/fhir/Patient?_count=0")
            assert request.headers["authorization"].startswith("Basic ")
            assert "-ping-" in request.headers["x-correlation-id"]
            other.script(reply(401), reply(401))
            done = world.run("test", "aidbox", "--format", "json", *at)
            found = json.loads(done.stdout)
            assert (done.returncode, found["status"]) == (1, 401)
            assert [item["status"] for item in found["targets"]] == [204, 401]
            assert "cache" in found["problem"]  # the file is new
            assert " unproven " in world.run("status", *at).stdout


def test_a_ping_to_nats(world: World) -> None:
    """It is stored under a subject of its own, and a relay does not take it for an event."""
    at = ("--socket", f"{world.directory}/s")
    with NatsServer() as server:
        bus = {"name": "bus", "kind": "nats", "urls": server.urls, "subject": "s.<resource_type>"}
        world.configure(
            instance="one",
            api={"socket": at[1]},
            consumers=[bus, {**bus, "name": "binary", "content_mode": "binary"}],
        )
        with world.daemon() as daemon:
            done = world.run("test", "bus", *at)
            assert (done.returncode, "no stream takes subject s.~ping" in done.stdout) == (1, True)
            server.ask(lambda js: js.add_stream(name="events", subjects=["s.>"]))
            relay = {"urls": server.urls, "subject": "s.>", "durable": "relay"}
            with world.relay(relay=relay) as follower:
                follower.wait_for("relay.following")
                done = world.run("test", "bus", *at)
                assert done.returncode == 0
                assert "  TLS      none\n" in done.stdout
                assert "  answer   stream events stored s.~ping as message 1\n" in done.stdout
                assert world.run("test", "binary", *at).returncode == 0
                (message, binary) = server.stored("events")
                assert message.json["type"] == binary.headers["ce-type"] == "io.syncd.ping"
                assert message.json["data"] == {"consumer": "bus"}
                assert message.json["id"] in message.headers["Nats-Msg-Id"]
                assert " unproven " not in world.run("status", "bus", *at).stdout
                follower.wait_for("relay.pinged", 2)
                assert not follower.logged("relay.unusable")
                world.publish(a=secret("1"))
                daemon.wait_for("delivery.acknowledged", consumer="bus")
                follower.wait_for("relay.received", events=1)


def test_the_present_state_is_sent_again(world: World) -> None:
    """To one consumer, all that it may see or one secret, as to someone who knows nothing."""
    at = ("--socket", f"{world.directory}/s")
    scope = [{"resource_type": "Client", "id": "a"}]
    with Receiver() as receiver, Receiver() as other:
        configure(world, hook(receiver), {**hook(other, scope=scope), "name": "other"})
        with world.daemon() as daemon:
            done = world.run("resend", "hook", *at)
            assert (done.returncode, done.stdout) == (0, "hook: sending 2 secrets\n")
            events = [event for request in receiver.wait(2) for event in request.events]
            assert sorted(event["subject"] for event in events) == ["a", "b"]
            for event in events:
                assert event["data"]["change"] == "added"
                assert event["data"]["previous_version"] is None
            world.run("resend", "hook", "--secret", "b", *at)
            assert receiver.wait(3)[2].subjects == ["b"]
            assert not other.requests
            world.run("resend", "other", *at)
            assert other.wait(1)[0].subjects == ["a"]
            daemon.wait_for("delivery.acknowledged", consumer="other")
            # and what comes afterwards is a change from that
            world.publish(a=secret("1"))
            (event,) = other.wait(2)[1].events
            assert event["data"]["change"] == "modified"
            done = world.run("resend", "other", "--secret", "b", *at)
            assert (done.returncode, "may see no state of b" in done.stderr) == (2, True)
            done = world.run("resend", "hook", "--secret", "never", *at)
            assert done.returncode == 2


def test_no_state_for_a_consumer_of_other_events(world: World) -> None:
    """It is not said that anything is sent, and the remedy is about its types."""
    with Receiver() as receiver:
        configure(world, hook(receiver, types=["adopted"]))
        with world.daemon():
            done = world.run("resend", "hook", "--socket", f"{world.directory}/s")
        assert done.returncode == 2
        assert "hook takes no changes of secrets; add changed to its types" in done.stderr


def test_a_corrected_credential_is_used_at_once(world: World) -> None:
    """Whatever the backoff: what was missing is there."""
    key = f"{world.directory}/webhook.key"
    with Receiver() as receiver:
        configure(world, hook(receiver, signing_key_file=key))
        with open(key, "w") as file:
            file.write("not a key")
        with world.daemon() as daemon:
            world.publish(a=secret("1"))
            daemon.wait_for("delivery.rejected")  # held at the cap, half a minute at least
            # the first look at the file is after the failure
            daemon.wait_for("delivery.credentials_watched", consumer="hook")
            with open(f"{key}.new", "w") as file:
                file.write(KEY)
            os.rename(f"{key}.new", key)
            daemon.wait_for("delivery.retry_now", consumer="hook")
            receiver.wait(1)[0].verify(KEY)


@needs_root
def test_only_root_may_ask(world: World) -> None:
    """A subscriber sees what it is granted, and asks for nothing."""
    with Receiver() as receiver:
        world.configure(
            api={
                "socket": f"{world.directory}/s",
                "socket_mode": "0666",
                "subscribers": [{"name": "n", "uid": 65534}],
            },
            consumers=[hook(receiver)],
        )
        os.chmod(world.directory, 0o755)
        code = """
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
codes = []
for action in ("retry", "resend", "test"):
    connection = Unix("syncd")
    connection.request("POST", f"/v1/consumers/hook/{action}")
    codes.append(connection.getresponse().status)
print(*codes)
"""
        with world.daemon():
            done = as_user(65534, code, f"{world.directory}/s")
            assert done.stdout.split() == ["403"] * 3, done.stderr
        assert not receiver.requests
