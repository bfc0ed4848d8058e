"""A fleet's bus at its worst: servers die, freeze, fill up and change their minds in a storm.

One installation publishes, a relay delivers to a consumer that keeps the books. In the end the
consumer's last events tell the state of the mount, and it has seen no event twice.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest
from support.faults import Books, Rotation, expected, hook, scaled
from support.nats import Cluster, NatsServer, bucket, documents, stream
from support.tls import replace
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

SECRETS = 20
STATE = "state"
"""The bucket to which the installation writes its state, beside its events."""

ROUNDS = scaled(1, 40)


class Ledger(Books):
    """Books that also count what was seen before."""

    def __init__(self) -> None:
        super().__init__(keep=False)
        self.seen: set[tuple[str, str]] = set()
        self.duplicates = 0

    def _book(self, event: Mapping[str, Any]) -> None:
        identity = (event["source"], event["id"])
        self.duplicates += identity in self.seen
        self.seen.add(identity)
        super()._book(event)


class Fleet:
    """An installation, a bus and a relay with one consumer, in a storm of rotations."""

    def __init__(self, bus: Cluster | NatsServer, **login: Any) -> None:
        self._bus = bus
        self._login = login
        self._stack = ExitStack()
        self.moment = threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.world = stack.enter_context(World())
            self.books = stack.enter_context(Ledger())
            world, server = self.world, {"urls": self._bus.urls, "timeout": 3, **self._login}
            world.publish({f"s{number}": secret("0") for number in range(SECRETS)})
            world.map(*world.values)
            world.configure(
                consumers=[{"name": "bus", "kind": "nats", **server, "state_bucket": STATE}]
            )
            source = {**server, "subject": "syncd.>", "durable": "relay", "state_bucket": STATE}
            consumers = [hook(self.books, types=["changed"])]
            self.relay = world.relay(relay=source, consumers=consumers)
            self.daemon = world.daemon()
            stack.enter_context(self.relay)
            stack.enter_context(self.daemon)
            self.relay.wait_for("relay.following")
            self.books.start_from(expected(world))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    @contextmanager
    def storm(self) -> Iterator[None]:
        """Secrets rotate while the block runs; afterwards everything has arrived."""
        with Rotation(self.world, pause=0.02) as rotation:
            yield
        self.swaps = rotation.swaps
        self.books.wait_for_state(expected(self.world))
        self.wait_for_document()
        self.wait_for_convergence()

    def wait_for_document(self) -> None:
        """Waits until the bucket has the newest state, too."""

        def written() -> bool:
            (document,) = documents(self._bus, STATE).values()
            found = {name: item["version"] for name, item in document["secrets"].items()}
            return found == expected(self.world)

        wait_until(written, "the bucket has an old document")

    def wait_for_convergence(self) -> None:
        """Waits until the relay has announced the newest version of each secret, in order."""

        def announced() -> dict[str, str]:
            query = "SELECT data FROM event WHERE type = ? ORDER BY sequence"
            path = f"file:{self.world.directory}/relay/ledger.sqlite3?mode=ro"
            with closing(sqlite3.connect(path, uri=True)) as ledger:
                rows = ledger.execute(query, ("io.syncd.secret.converged",)).fetchall()
            found = [json.loads(data) for (data,) in rows]
            return {data["secret"]: data["version"] for data in found}

        wait_until(lambda: announced() == expected(self.world), "the relay has not announced it")

    def let_arrive(self) -> None:
        """Waits until something more has arrived: the bus works."""
        count = self.books.received
        wait_until(lambda: self.books.received > count, "nothing arrives")

    def verdict(self, faults: str) -> str:
        books = self.books
        lost = len(books.lost(expected(self.world)))
        assert (lost, books.duplicates, books.disordered, books.removed) == (0, 0, 0, 0)
        assert books.received
        return (
            f"lost {lost} of {SECRETS}, duplicates {books.duplicates}, out of order "
            f"{books.disordered}; {faults}, swaps {self.swaps}, events {books.received}"
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three servers with a stream on each of them."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def bus(cluster: Cluster) -> Cluster:
    """The cluster with an empty stream and an empty bucket."""

    async def remove(js: Any) -> None:
        for info in await js.streams_info():
            await js.delete_stream(info.config.name)

    cluster.ask(remove)
    cluster.ask(stream("fleet", "syncd.>", num_replicas=3))
    cluster.ask(bucket(STATE, num_replicas=3))
    return cluster


def test_leaders_are_killed(bus: Cluster, count: Callable[[str], None]) -> None:
    """The stream's leader dies without a word and comes back; the relay is restarted once."""
    with Fleet(bus) as fleet:
        with fleet.storm():
            for round_ in range(ROUNDS):
                leader = bus.leader("fleet")
                leader.stop()
                fleet.let_arrive()
                if round_ == 0:  # a kill may repeat what its consumer has, under the same id
                    assert fleet.relay.stop() == 0
                leader.start()
                if round_ == 0:
                    fleet.relay.start()
                fleet.let_arrive()
        count(fleet.verdict(f"leaders killed {ROUNDS}, relays restarted 1"))


def test_a_partition_heals(bus: Cluster, count: Callable[[str], None]) -> None:
    """The leader hears and says nothing, its connections open, until others have taken over."""
    with Fleet(bus) as fleet:
        with fleet.storm():
            for _ in range(ROUNDS):
                leader = bus.leader("fleet")
                leader.freeze(frozen=True)
                try:
                    fleet.let_arrive()
                    fleet.let_arrive()
                finally:
                    leader.freeze(frozen=False)
                fleet.let_arrive()
        count(fleet.verdict(f"partitions {ROUNDS}"))


def test_a_stream_fills_up(bus: Cluster, count: Callable[[str], None]) -> None:
    """Nothing is taken until there is room; the newest state of each secret arrives then."""
    with Fleet(bus) as fleet:
        with fleet.storm():
            bus.ask(stream("fleet", "syncd.>", num_replicas=3, max_msgs=10, discard="new"))
            reason = fleet.daemon.wait_for("delivery.retry")["reason"]
            assert "is full or cannot store" in reason
            bus.ask(stream("fleet", "syncd.>", num_replicas=3, discard="new"))
            fleet.let_arrive()
        count(fleet.verdict("times full 1"))


def test_credentials_are_rotated_in_a_storm(tmp_path: Path, count: Callable[[str], None]) -> None:
    """The server disconnects every client; files are sometimes ahead of it, sometimes behind."""
    password = tmp_path / "password"

    def user(generation: int) -> dict[str, Any]:
        return {"users": [{"user": "syncd", "password": secret(str(generation)).decode()}]}

    with NatsServer(authorization=user(0)) as server:
        server.login = {"user": "syncd", "password": secret("0").decode()}
        server.ask(stream("fleet", "syncd.>"))
        server.ask(bucket(STATE))
        replace(password, secret("0"))
        with Fleet(server, user="syncd", password_file=str(password)) as fleet:
            with fleet.storm():
                # a client that is refused comes back within a minute: the other order is for a soak
                for generation in range(1, ROUNDS + 1):
                    if generation % 2:
                        replace(password, secret(str(generation)))
                    server.reload(authorization=user(generation))
                    server.login["password"] = secret(str(generation)).decode()
                    if not generation % 2:
                        fleet.relay.wait_for("relay.failing", reason=refusal(server, password))
                        replace(password, secret(str(generation)))
                    fleet.let_arrive()
            count(fleet.verdict(f"rotations {ROUNDS}"))
            said = str([*fleet.daemon.log, *fleet.relay.log])
            assert secret("").decode() not in said


def refusal(server: NatsServer, path: Path) -> str:
    return (
        f"cannot use NATS at 127.0.0.1:{server.port}: the credentials are not accepted; replace "
        f"them in {path}"
    )
