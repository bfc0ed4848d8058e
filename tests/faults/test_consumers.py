"""Consumers that do everything wrong, at random: nothing is lost, and no other consumer waits."""

from __future__ import annotations

import base64
import contextlib
import random
import signal
import statistics
import time
from typing import TYPE_CHECKING, Any

from support import tls
from support.faults import Books, expected, hook, scaled
from support.receiver import (
    Receiver,
    Reply,
    close,
    close_in_mid_answer,
    flood,
    garbage,
    hang,
    reply,
    reset,
    trickle,
)
from support.waiting import wait_until
from support.world import CANARY, World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from support.world import DaemonProcess

ROUNDS = scaled(100, 300)
STORMS = scaled(2, 20)
HOSTILE = 6
TIMEOUT = scaled(6, 30)
"""Seconds that a consumer which hangs would take from another one that waited for it."""


def test_hostile_consumers(tmp_path: Path, count: Callable[[str], None]) -> None:
    """Consumers fail in every way at random; they get everything, and another one gets it at once.

    The other one's latency is measured in turn with them calm and with them hostile: had it to
    wait for one that hangs, it would take the whole timeout.
    """
    rng = random.Random(30)
    authority = tls.Authority(tmp_path)
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        trap = stack.enter_context(Receiver())
        good = stack.enter_context(Books())
        hostile = [stack.enter_context(Books()) for _ in range(HOSTILE)]
        expired = stack.enter_context(Books(tls=authority.server(expires=tls.EXPIRED)))
        credentials = plant_credentials(world)
        world.publish({f"s{number}": secret("0") for number in range(20)})
        world.map(*world.values)
        consumers = [
            hook(good, "good"),
            hook(expired, "expired", ca_file=str(authority.file), timeout=TIMEOUT),
            *(
                hook(books, f"hostile-{number}", timeout=TIMEOUT, **credentials)
                for number, books in enumerate(hostile)
            ),
        ]
        world.configure(consumers=consumers)
        with world.daemon() as daemon:
            for books in (good, expired, *hostile):
                books.start_from(expected(world))
            calm: list[float] = []
            stormy: list[float] = []
            for _ in range(STORMS):
                calm += rotate(world, good, ROUNDS)
                before = len(failures(daemon))
                for number, books in enumerate(hostile):
                    spoil(books, misbehaviour(rng, trap, first=number))
                stormy += rotate(world, good, ROUNDS)
                wait_until(
                    lambda before=before: (  # type: ignore[misc] # bound in the loop
                        {f"hostile-{number}" for number in range(HOSTILE)}
                        <= {item["consumer"] for item in failures(daemon)[before:]}
                    ),
                    "a hostile consumer does not fail",
                )
                for books in (good, *hostile):
                    books.recover()
                reload(daemon)  # an operator who repaired the consumers need not wait for a backoff
                for books in hostile:
                    books.wait_for_state(expected(world))
            assert expired.requests == []
            expired.stop()
            expired.tls = authority.server()
            expired.start()
            reload(daemon)
            expired.wait_for_state(expected(world))
            failed = len(failures(daemon))
        lost = sum(len(books.lost(expected(world))) for books in (good, expired, *hostile))
        disordered = sum(books.disordered for books in (good, expired, *hostile))
        leaked = [r for r in trap.requests if CANARY in r.body or CANARY.decode() in str(r.headers)]
        usual, during = percentile(calm), percentile(stormy)
        count(
            f"lost {lost} of {20 * (HOSTILE + 2)}, failed attempts {failed}, out of order "
            f"{disordered}, other consumer's median {statistics.median(calm) * 1000:.0f} ms calm, "
            f"{statistics.median(stormy) * 1000:.0f} ms hostile, p99 {usual * 1000:.0f} and "
            f"{during * 1000:.0f} ms, at the redirect's target {trap.connections} connections"
        )
        assert (lost, disordered) == (0, 0)
        assert leaked == []
        assert trap.connections == 0
        # a consumer that waited for one that hangs would take TIMEOUT, which is far longer than
        # a busy machine takes for a delivery
        assert during < usual + TIMEOUT / 2
        assert statistics.median(stormy) < statistics.median(calm) + TIMEOUT / 10


FAILURES = ("delivery.retry", "delivery.rejected")


def failures(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """The log of failed attempts."""
    return [item for item in daemon.log if item.get("event") in FAILURES]


def plant_credentials(world: World) -> dict[str, Any]:
    """Everything that a request can carry, with a canary in each."""
    with open(f"{world.directory}/password", "wb") as file:
        file.write(secret("password"))
    with open(f"{world.directory}/key", "wb") as file:
        file.write(b"whsec_" + base64.b64encode(secret("key")))
    return {
        "basic_auth": {"username": "syncd", "password_file": f"{world.directory}/password"},
        "signing_key_file": f"{world.directory}/key",
        "headers": {"X-Token": secret("header").decode()},
    }


def misbehaviour(rng: random.Random, trap: Receiver, first: int) -> Iterable[Reply]:
    """What a consumer does until it is repaired: faults at random, with an answer now and then."""
    kinds: list[Reply] = [
        reply(302, location=trap.url),
        reply(307, location=trap.url),
        hang,
        hang,
        reset,
        trickle,
        reply(500),
        reply(503, retry_after="3600"),
        reply(404),
        close,
        close_in_mid_answer,
        flood,
        garbage,
        reply(204),
    ]
    return [kinds[first], *(rng.choice(kinds) for _ in range(200))]


def rotate(world: World, good: Books, rounds: int) -> list[float]:
    """Rotates one secret at a time; how long each took to arrive, seconds."""
    taken = []
    for number in range(rounds):
        seen = len(good.requests)
        started = time.monotonic()
        world.publish({f"s{number % 20}": secret(f"{started}")})
        arrived = good.wait(seen + 1)[-1].at
        taken.append(arrived - started)
    return taken


def spoil(books: Books, replies: Iterable[Reply]) -> None:
    """Has a consumer misbehave; what hangs does so until it is repaired."""
    books._loop.call_soon_threadsafe(books.released.clear)
    books.script(*replies)


def reload(daemon: DaemonProcess) -> None:
    before = len(daemon.logged("daemon.ready"))
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("daemon.ready", before + 1)


def percentile(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=100, method="inclusive")[98]
