"""`syncd relay` end to end: installations, a NATS server, a relay, and consumers that it feeds."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.faults import hook
from support.nats import NatsServer, bucket, free_port, stream
from support.receiver import Receiver, reply
from support.subscriber import Subscription, ask
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nats.js import JetStreamContext
    from support.world import DaemonProcess

_numbers = itertools.count(1)


@pytest.fixture
def name(nats: NatsServer) -> str:
    """A stream of the test's own, for subjects that begin with its name."""
    name = f"r{next(_numbers)}"
    nats.ask(stream(name, f"{name}.>"))
    return name


@contextmanager
def installation(
    nats: NatsServer, name: str, instance: str
) -> Iterator[tuple[World, DaemonProcess]]:
    """A mount with one secret, and a daemon that publishes its changes."""
    with World() as world:
        world.publish({"client-secret": secret("1")})
        world.map("client-secret")
        bus = {"name": "bus", "kind": "nats", "urls": [nats.url]}
        bus["subject"] = f"{name}.<instance>.<resource_type>.<secret>"
        world.configure(consumers=[bus], instance=instance)
        with world.daemon() as daemon:
            yield world, daemon


def source(nats: NatsServer, name: str, **more: Any) -> dict[str, Any]:
    return {"urls": [nats.url], "subject": f"{name}.>", "durable": f"relay-{name}", **more}


def publish(nats: NatsServer, subject: str, payload: bytes, **headers: str) -> None:
    async def send(js: JetStreamContext) -> None:
        await js.publish(subject, payload, headers=headers or None)

    nats.ask(send)


def event(number: int, *, secret: str = "a", previous: int | None = None, **more: Any) -> bytes:
    """An event of an installation that exists in this test only."""
    before = number - 1 if previous is None else previous
    return json.dumps(
        {
            "specversion": "1.0",
            "id": f"0a0a0a0a-{number}",
            "source": "/syncd/elsewhere",
            "type": "io.syncd.secret.changed",
            "subject": secret,
            "time": "2026-11-23T20:40:28.333Z",
            "datacontenttype": "application/json",
            "data": {
                "secret": secret,
                "change": "modified",
                "path": f"/m/{secret}",
                "scope": {"resource_type": "Client", "id": "app"},
                "version": f"k1:{number:02x}",
                "previous_version": f"k1:{before:02x}",
            },
            **more,
        }
    ).encode()


def test_events_arrive_as_they_were_sent(nats: NatsServer, name: str) -> None:
    """Two installations with a secret of one name: both are told, unchanged, under their ids."""
    with World() as world, Receiver() as receiver:
        relay = world.relay(relay=source(nats, name), consumers=[hook(receiver)])
        with (
            relay,
            installation(nats, name, "n/1") as (one, _),
            installation(nats, name, "n2") as (
                other,
                _,
            ),
        ):
            relay.wait_for("relay.following")
            one.publish({"client-secret": secret("2")})
            other.publish({"client-secret": secret("2")})
            received = [request.events[0] for request in receiver.wait(2)]
        stored = nats.stored(name)
    assert sorted(received, key=str) == sorted((message.json for message in stored), key=str)
    assert {one["source"] for one in received} == {"/syncd/n/1", "/syncd/n2"}
    assert {message.subject for message in stored} == {
        f"{name}.n%2F1.Client.client-secret",
        f"{name}.n2.Client.client-secret",
    }


def test_signatures_carry_the_original_id(nats: NatsServer, name: str) -> None:
    """So a consumer recognizes an event that it gets twice by `webhook-id`."""
    key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    with World() as world, Receiver() as receiver:
        with open(f"{world.directory}/key", "w") as file:
            file.write(key)
        consumers = [hook(receiver, signing_key_file=f"{world.directory}/key")]
        with world.relay(relay=source(nats, name), consumers=consumers) as relay:
            relay.wait_for("relay.following")
            publish(nats, f"{name}.x", event(7))
            (request,) = receiver.wait(1)
    request.verify(key)
    assert request.headers["webhook-id"] == "0a0a0a0a-7"


def test_a_quiet_start_and_a_relay_that_was_away(nats: NatsServer, name: str) -> None:
    """The past is not told; what came while it was killed or its consumer was down is, once."""
    publish(nats, f"{name}.x", event(1))
    with World() as world, Receiver() as receiver:
        relay = world.relay(relay=source(nats, name), consumers=[hook(receiver)])
        relay.start()
        relay.wait_for("relay.following")
        publish(nats, f"{name}.x", event(2))
        receiver.wait(1)
        relay.wait_for("delivery.acknowledged")
        receiver.default = reply(503)
        publish(nats, f"{name}.x", event(3))
        relay.wait_for("delivery.retry")
        relay.kill()
        for number in (4, 5):
            publish(nats, f"{name}.x", event(number))
        receiver.default = reply()
        count = len(receiver.requests)
        with relay:
            relay.wait_for("delivery.acknowledged", sequence=4)
        told = [request.events[0] for request in receiver.requests[count:]]
    # how far it was when the last one came is a race, the chain of versions is not
    assert told[-1]["id"] == "0a0a0a0a-5"
    versions = ["k1:02", *(one["data"]["version"] for one in told)]
    assert [one["data"]["previous_version"] for one in told] == versions[:-1]
    assert receiver.requests[0].events[0]["id"] == "0a0a0a0a-2"


def test_duplicates_in_the_stream_are_told_once(nats: NatsServer, name: str) -> None:
    """Published twice without an id for the server to know it by, or under two subjects."""
    with (
        World() as world,
        Receiver() as receiver,
        world.relay(relay=source(nats, name), consumers=[hook(receiver)]) as relay,
    ):
        relay.wait_for("relay.following")
        for number in (1, 1, 2):
            publish(nats, f"{name}.x", event(number))
            publish(nats, f"{name}.y", event(number))
        receiver.wait(2)
        publish(nats, f"{name}.x", event(9, secret="last"))
        requests = receiver.wait(3)
    assert [request.events[0]["id"][-1] for request in requests] == ["1", "2", "9"]


def test_a_message_that_is_not_an_event_delays_nothing(nats: NatsServer, name: str) -> None:
    """It is logged with its place, never comes again, and what is behind it arrives."""
    with World() as world, Receiver() as receiver:
        with world.relay(relay=source(nats, name), consumers=[hook(receiver)]) as relay:
            relay.wait_for("relay.following")
            publish(nats, f"{name}.x", secret("not json"))
            publish(nats, f"{name}.x", event(1, type="org.example.other"))
            publish(nats, f"{name}.x", event(2))
            receiver.wait(1)
            first, second = (relay.wait_for("relay.unusable", n) for n in (1, 2))

        async def unacknowledged(js: JetStreamContext) -> int:
            return (await js.consumer_info(name, f"relay-{name}")).num_ack_pending or 0

        wait_until(lambda: nats.ask(unacknowledged) == 0, lambda: "something is not acknowledged")
    assert (first["position"], second["position"]) == (1, 2)
    assert "has a type that this syncd does not know" in second["problem"]


def test_a_consumer_on_the_server_that_is_lost(nats: NatsServer, name: str) -> None:
    """It is made again, from where the ledger is; then the stream is made anew, and told whole."""
    with (
        World() as world,
        Receiver() as receiver,
        world.relay(relay=source(nats, name), consumers=[hook(receiver)]) as relay,
    ):
        relay.wait_for("relay.following")
        publish(nats, f"{name}.x", event(1))
        receiver.wait(1)
        nats.ask(lambda js: js.delete_consumer(name, f"relay-{name}"))
        publish(nats, f"{name}.x", event(2))
        receiver.wait(2)
        nats.ask(lambda js: js.delete_stream(name))
        nats.ask(stream(name, f"{name}.>"))
        publish(nats, f"{name}.x", event(3))
        requests = receiver.wait(3)
    assert [request.events[0]["id"][-1] for request in requests] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("of", "followed", "gone"),
    [
        ("relay", "{name}", "no stream takes subject {name}.>"),
        ("fleet", "KV_{name}", "there is no bucket {name}"),
    ],
)
def test_what_is_followed_is_deleted(
    nats: NatsServer, name: str, of: str, followed: str, gone: str
) -> None:
    """Each line says what is gone; none blames the connection or has a number for a reason."""
    followed, gone = followed.format(name=name), gone.format(name=name)
    nats.ask(bucket(name))
    with World() as world, world.relay(relay=source(nats, name, state_bucket=name)) as relay:

        def reasons() -> list[str]:
            return [line["reason"] for line in relay.logged(f"{of}.failing")]

        relay.wait_for(f"{of}.following")
        (consumer,) = nats.ask(lambda js: js.consumers_info(followed))
        nats.ask(lambda js: js.delete_consumer(followed, consumer.name))
        wait_until(reasons)
        assert "the consumer on the server is gone" in reasons()[0]
        nats.ask(lambda js: js.delete_stream(followed))
        wait_until(lambda: any(gone in reason for reason in reasons()), reasons)
        assert not any("connection" in reason or "error" in reason for reason in reasons())


def test_subscribers_of_a_relay(nats: NatsServer, name: str) -> None:
    """They see whose secret it is, resume by the relay's positions, and status tells them apart."""
    with World() as world:
        path = f"{world.directory}/relay.sock"
        with world.relay(relay=source(nats, name), api={"socket": path}) as relay:
            relay.wait_for("relay.following")
            publish(nats, f"{name}.x", event(1))
            publish(nats, f"{name}.x", event(2, source="/syncd/other"))
            wait_until(lambda: ask(path, "/v1/status")[1]["sequence"] == 2, lambda: "not received")
            with Subscription(path, "?after=none-0", ready=False) as subscription:
                (reset,) = subscription.take(1)
            _, status = ask(path, "/v1/status")
            _, secrets = ask(path, "/v1/secrets?")
            text = world.run("status", "--socket", path)
            with Subscription(path, f"?after={status['epoch']}-0&follow=false") as subscription:
                first, second = subscription.rest()
            publish(nats, f"{name}.x", event(3, previous=1))
            with Subscription(path, f"?after={second.id}&secret=a") as subscription:
                (third,) = subscription.take(1)
    assert reset.type == "io.syncd.reset"
    assert [state["source"] for state in reset.event["data"]["secrets"]] == [
        "/syncd/elsewhere",
        "/syncd/other",
    ]
    assert [(one["source"], one["secret"]) for one in secrets["secrets"]] == [
        ("/syncd/elsewhere", "a"),
        ("/syncd/other", "a"),
    ]
    assert (status["watch_mode"], status["attention"], status["sequence"]) == ("nats", [], 2)
    assert (status["vault_config"], status["vault_config_valid"]) == (None, None)
    assert status["relay"] == {"subject": f"{name}.>"}
    assert f"relaying {name}.>" in text.stdout
    assert "/syncd/other a" in text.stdout
    assert text.returncode == 0
    assert (first.event["id"], second.event["source"]) == ("0a0a0a0a-1", "/syncd/other")
    assert second.id == f"{status['epoch']}-2"
    assert third.event["id"] == "0a0a0a0a-3"


def test_a_relay_without_a_server_says_so(name: str) -> None:
    """It is up, not ready, and goes on by itself."""
    probes = free_port()
    with NatsServer() as server, World() as world, Receiver() as receiver:
        server.ask(stream(name, f"{name}.>"))
        server.stop()
        options = ("--nats", server.url, "--subject", f"{name}.>", "--durable", "d")
        settings: dict[str, Any] = {"consumers": [hook(receiver)]}
        settings["api"] = {"listen": f"127.0.0.1:{probes}"}
        with world.relay(*options, **settings) as relay:
            failing = relay.wait_for("relay.failing")
            assert f"127.0.0.1:{server.port}: Connection refused; " in failing["reason"]
            status, body = get(f"http://127.0.0.1:{probes}/readyz")
            assert (status, body["reasons"]) == (503, [failing["reason"]])
            server.start()
            relay.wait_for("relay.following")
            assert get(f"http://127.0.0.1:{probes}/readyz")[0] == 200
            publish(server, f"{name}.x", event(1))
            receiver.wait(1)
            server.stop()
            relay.wait_for("relay.failing")
            server.start()
            publish(server, f"{name}.x", event(2))
            receiver.wait(2)
            relay.signal(signal.SIGHUP)
            relay.wait_for("relay.following", 3)
            publish(server, f"{name}.x", event(3))
            receiver.wait(3)


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_another_relays_consumer_is_not_taken(nats: NatsServer, name: str) -> None:
    """Two relays with one name and different subjects would take each other's events."""
    with World() as world, World() as other:
        with world.relay(relay=source(nats, name)) as relay:
            relay.wait_for("relay.following")
        changed = source(nats, name, subject=f"{name}.other.>")
        with other.relay(relay=changed) as relay:
            failing = relay.wait_for("relay.failing")
    assert (
        f"cannot use the durable consumer relay-{name}: it has another subject"
        in (failing["reason"])
    )


@pytest.mark.parametrize(
    ("content", "options", "problems"),
    [
        ({}, [], ["relay: is missing; add relay, or give --nats and --subject"]),
        ({"relay": {"urls": []}}, ["--subject", "s"], ["relay.urls: is empty"]),
        (
            {"relay": {"urls": []}},
            [],
            ["relay.subject: is missing; add subject, or give --subject", "relay.urls: is empty"],
        ),
        (
            {},
            ["--nats", "http://h", "--subject", "a b"],
            ["command line: --nats: is not the URL", "command line: --subject: "],
        ),
        ({"vault_config": "/v"}, ["--nats", "nats://h", "--subject", "s"], ["vault_config"]),
        ({}, ["--nats", "nats://u:p@h", "--subject", "s"], ["--nats: holds credentials"]),
    ],
)
def test_a_configuration_that_cannot_be_used(
    content: dict[str, Any], options: list[str], problems: list[str]
) -> None:
    """Every problem at once, each with its place; exit code 2."""
    with World() as world:
        with open(world.config, "w") as file:
            json.dump(content, file)
        done = world.run("relay", "-c", world.config, *options)
    assert done.returncode == 2
    assert all(problem in done.stderr for problem in problems), done.stderr
    assert len(done.stderr.splitlines()) == len(problems)


def test_the_default_consumer_is_the_hosts_own(nats: NatsServer, name: str) -> None:
    """Relays on two machines do not share one."""
    with World() as world:
        settings = source(nats, name)
        del settings["durable"]
        with world.relay(relay=settings) as relay:
            made = relay.wait_for("relay.consumer_made")
    assert made["durable"] == f"syncd-relay-{socket.gethostname()}"[:63]
