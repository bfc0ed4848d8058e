"""Event streams of the real daemon: complete, harmless to others, bounded in memory."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support.receiver import Receiver
from support.subscriber import Received, Subscription, Swarm, ask, parse, resident
from support.waiting import DEADLINE
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable

    Figure = Callable[[str], None]


@pytest.fixture
def figure(capsys: pytest.CaptureFixture[str]) -> Figure:
    """Shows a measured figure in the test's output, whether it passes or not."""

    def show(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return show


def path(world: World) -> str:
    return f"{world.directory}/syncd.sock"


def begin(world: World, names: list[str], **settings: object) -> None:
    world.publish({name: secret("0") for name in names})
    world.map(*names)
    world.configure(api={"socket": path(world)}, **settings)


class Killable:
    """A subscriber in a process of its own (curl); a kill leaves it its last saved position."""

    def __init__(self, world: World) -> None:
        self._path = path(world)
        self.received: list[Received] = []
        self.news = threading.Condition()
        self._after = "start"
        self.process: subprocess.Popen[str]
        self._thread: threading.Thread

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *("curl", "-sSN", "--unix-socket", self._path),
                *("-H", f"Last-Event-ID: {self._after}", "http://syncd/v1/events"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, args=(self.process,))
        self._thread.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for event in parse(line.removesuffix("\n") for line in process.stdout):
            with self.news:
                self.received.append(event)
                if event.sequence % 7 == 0:  # it saves its position now and then, as consumers do
                    self._after = event.id
                self.news.notify_all()
        process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()


def test_a_subscriber_that_is_killed_and_restarted(world: World, figure: Figure) -> None:
    """Killed and restarted at random 200 times, a subscriber misses no event."""
    names = [f"s{number}" for number in range(5)]
    begin(world, names)
    chance = random.Random(3)
    over = threading.Event()

    def rotate() -> None:
        number = 0
        while not over.is_set():
            number += 1
            world.publish({name: secret(str(number)) for name in names[: number % 5 + 1]})

    with world.daemon():
        subscriber = Killable(world)
        rotating = threading.Thread(target=rotate)
        rotating.start()
        try:
            for _ in range(200):
                subscriber.start()
                had, until = len(subscriber.received), time.monotonic() + chance.random() * 0.03
                with subscriber.news:  # at random: some are killed before their first event
                    subscriber.news.wait_for(
                        lambda had=had: len(subscriber.received) > had + 20,  # type: ignore[misc] # one predicate per turn
                        until - time.monotonic(),
                    )
                subscriber.kill()
        finally:
            over.set()
            rotating.join()
        world.publish(s0=secret("last"))
        newest = 0
        subscriber.start()
        with subscriber.news:
            deadline = time.monotonic() + DEADLINE
            while time.monotonic() < deadline:
                newest = ask(path(world), "/v1/status")[1]["sequence"]
                if subscriber.received and subscriber.received[-1].sequence == newest > 200:
                    break
                subscriber.news.wait(0.2)
        subscriber.kill()
    sequences = [event.sequence for event in subscriber.received]
    assert sorted(set(sequences)) == list(range(1, newest + 1))
    contents = {event.id: event.event for event in subscriber.received}
    assert all(contents[event.id] == event.event for event in subscriber.received)
    figure(f"{newest} events, {len(sequences) - newest} of them repeated, none missed")


def test_a_thousand_subscribers(world: World, figure: Figure) -> None:
    """1,000 subscribers each get every event of 100 rotations; webhooks are not kept waiting."""
    with Receiver() as receiver:
        begin(
            world,
            ["a", "b"],
            consumers=[{"name": "hook", "kind": "webhook", "url": receiver.url}],
        )
        with world.daemon(SYNCD_LOG_LEVEL="info") as daemon, Swarm(path(world), 1000) as swarm:
            swarm.read(lambda: all(swarm.sequences), DEADLINE)
            before = resident(daemon.pid)

            def rotate() -> None:
                for number in range(100):
                    world.publish(a=secret(f"n{number}"))
                    daemon.wait_for("secret.changed", number + 1)

            rotating = threading.Thread(target=rotate)
            rotating.start()
            took = swarm.read(lambda: min(map(len, swarm.sequences)) > 100, DEADLINE)
            rotating.join()
            memory = resident(daemon.pid)
            webhook = receiver.wait(1)
        assert all(sequence == list(range(101)) for sequence in swarm.sequences)
        latency = [item["latency_ms"] for item in daemon.logged("delivery.acknowledged")]
    figure(
        f"100,000 events in {took:.1f} s ({swarm.bytes / took / 1e6:.0f} MB/s); "
        f"{before:.0f} MiB before, {memory:.0f} MiB after; {len(webhook)} webhooks, "
        f"median {sorted(latency)[len(latency) // 2]:.0f} ms, slowest {max(latency):.0f} ms"
    )
    assert memory < before + 40


def test_a_subscriber_that_does_not_read(world: World, figure: Figure) -> None:
    """It is cut off while memory stays bounded, resumes without a gap, and slows no other."""
    names = [f"s{number:03}" for number in range(300)]
    begin(world, names)
    with world.daemon() as daemon, Subscription(path(world)) as healthy:
        stalled = socket.socket(socket.AF_UNIX)
        stalled.settimeout(DEADLINE)
        stalled.connect(path(world))
        stalled.sendall(b"GET /v1/events?after=start HTTP/1.1\r\nHost: syncd\r\n\r\n")
        before = resident(daemon.pid)
        deadline, rotation = time.monotonic() + DEADLINE, 0
        while not daemon.logged("subscriber.stalled"):
            assert time.monotonic() < deadline
            rotation += 1
            world.publish({name: secret(str(rotation)) for name in names})
            healthy.take(300)
        (said,) = daemon.logged("subscriber.stalled")
        memory = resident(daemon.pid)
        got = b"".join(iter(lambda: stalled.recv(1 << 16), b""))
        stalled.close()
        # the last chunk may have been cut, so what counts are whole blocks
        whole = got.decode().rpartition("\n\n")[0].replace("\r\n", "\n").split("\n")
        ids = [line.removeprefix("id: ") for line in whole if line.startswith("id: ")]
        with Subscription(path(world), "?follow=false", ids[-1]) as resumed:
            events = resumed.rest()
        wanted = range(int(ids[-1].rpartition("-")[2]) + 1, rotation * 300 + 1)
        assert [event.sequence for event in events] == list(wanted)
    figure(
        f"cut off {said['behind']} events behind with {said['unsent']} bytes unsent; "
        f"{before:.1f} MiB before, {memory:.1f} MiB after {rotation * 300} events"
    )
    assert said["unsent"] < 256 << 10
    assert memory < before + 24


def test_a_position_that_is_gone(world: World) -> None:
    """One reset has the present state within the scope; the stream goes on from there."""
    begin(world, ["a", "b"], event_log={"max_events": 3, "prune_interval": "100ms"})
    with world.daemon() as daemon:
        first = ask(path(world), "/v1/status")[1]
        old = f"{first['epoch']}-{first['sequence']}"
        for number in range(5):
            world.publish(a=secret(f"n{number}"))
            daemon.wait_for("secret.changed", number + 1)
        daemon.wait_for("event_log.pruned")
        for position in (old, "0ther-7", "nonsense", f"{first['epoch']}-999"):
            with Subscription(path(world), "", position) as stream:
                (reset,) = stream.take(1)
                assert reset.type == reset.event["type"] == "io.syncd.reset"
                states = {item["secret"]: item for item in reset.event["data"]["secrets"]}
                _, now = ask(path(world), "/v1/secrets")
                assert {item["secret"]: item["version"] for item in now["secrets"]} == {
                    name: item["version"] for name, item in states.items()
                }
                world.publish(b=secret(position))
                (event,) = stream.take(1)
                assert (event.sequence, event.event["subject"]) == (reset.sequence + 1, "b")
        with Subscription(path(world), "?secret=b&follow=false", old) as stream:
            (reset,) = stream.rest()
            assert [item["secret"] for item in reset.event["data"]["secrets"]] == ["b"]


def test_filters(world: World) -> None:
    """A stream holds only what its filters ask for; a resource matches its type's secrets too."""
    world.publish({name: secret("0") for name in "abc"})
    world.map(
        a={"resource_type": "Client", "id": "one"},
        b={"resource_type": "Client"},
        c={"resource_type": "IdentityProvider", "id": "one"},
    )
    world.configure(api={"socket": path(world)})
    with world.daemon() as daemon:
        for number, name in enumerate("abc", 1):
            world.publish({name: secret("1")})
            daemon.wait_for("secret.changed", number)
        for query, wanted in (
            ("", "abc"),
            ("&secret=a", "a"),
            ("&secret=a&secret=c", "ac"),
            ("&resource=Client", "ab"),
            ("&resource=Client/one", "ab"),
            ("&resource=Client/two", "b"),
            ("&resource=IdentityProvider/one&secret=a", ""),
        ):
            with Subscription(path(world), f"?follow=false{query}") as stream:
                assert "".join(event.event["subject"] for event in stream.rest()) == wanted, query
        assert ask(path(world), "/v1/events?resource=/x")[0] == 400
        assert ask(path(world), "/v1/events?folow=false")[0] == 400


def test_a_reload_keeps_streams(world: World) -> None:
    """SIGHUP ends no stream, unless the API's own settings changed; no event is lost by it."""
    begin(world, ["a"])
    with world.daemon() as daemon:
        with Subscription(path(world)) as stream:
            world.configure(api={"socket": path(world)}, watch={"settle": "20ms"})
            daemon.signal(signal.SIGHUP)
            world.publish(a=secret("1"))
            daemon.wait_for("daemon.ready", 2)
            world.publish(a=secret("2"))
            assert stream.take(2)[-1].sequence in (2, 3)
            inode = os.stat(path(world)).st_ino
            world.configure(
                api={"socket": path(world), "subscribers": [{"name": "x", "uid": 4242}]}
            )
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("daemon.ready", 3)
            assert stream.rest() == []
        assert os.stat(path(world)).st_ino == inode
        with Subscription(path(world)) as stream:
            world.publish(a=secret("3"))
            stream.take(1)
        world.configure(api={"socket": f"{world.directory}/no/such/place"})
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("daemon.reload_rejected")
        assert ask(path(world), "/v1/status")[0] == 200
