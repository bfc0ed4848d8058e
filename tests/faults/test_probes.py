"""Callers do what they like on `api.listen`: the kubelet's next probe is answered."""

from __future__ import annotations

import socket
import threading
import urllib.request
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from support.faults import Books, expected, hook
from support.nats import free_port
from support.waiting import DEADLINE

from syncd.api.service import MOST_PROBES
from syncd.api.sockets import BACKLOG

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.world import World

IDLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNFINISHED = b"GET /healthz HTTP/1.1\r\nHost: "
UNREAD = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
PROBES = ("healthz", "readyz", "metrics")


def status(port: int, target: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{target}", timeout=DEADLINE) as answer:
        answer.read()
        number: int = answer.status
        return number


@pytest.fixture
def port(world: World, books: Books) -> int:
    port = free_port()
    world.publish(a=b"0")
    world.map("a")
    world.configure(
        consumers=[hook(books)], api={"listen": f"127.0.0.1:{port}", "metrics_secret_names": True}
    )
    return port


@pytest.mark.parametrize("request_", [b"", IDLE, UNFINISHED, UNREAD], ids=repr)
def test_probes_answer_while_connections_are_held(
    world: World, port: int, request_: bytes, count: Callable[[str], None]
) -> None:
    """Idle and unfinished connections, and those whose answers are not read, give way to probes."""
    answered = 0
    with world.daemon() as daemon, ExitStack() as held:
        for number in range(3 * MOST_PROBES):
            one = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
            held.enter_context(one)
            with suppress(OSError):
                one.sendall(request_)
                if request_ is IDLE:
                    one.recv(1000)
            if number >= MOST_PROBES - 1 and number % 16 == 0:
                answered += sum(status(port, target) == 200 for target in PROBES)
        held_open = len(daemon.logged("library.logged"))
    count(f"probes {answered} of {answered}, with {3 * MOST_PROBES} connections held")
    assert answered == 3 * len([n for n in range(MOST_PROBES - 1, 3 * MOST_PROBES) if n % 16 == 0])
    assert held_open == 0


def test_probes_answer_while_others_connect_in_a_loop(
    world: World, books: Books, port: int, count: Callable[[str], None]
) -> None:
    """Connections that close at once cost next to nothing: probes and rotations go on."""
    over, connected = threading.Event(), [0]

    def churn() -> None:
        while not over.is_set():
            with socket.socket() as one, suppress(OSError):
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
                connected[0] += 1

    with world.daemon():
        books.start_from(expected(world))
        churning = threading.Thread(target=churn)
        churning.start()
        try:
            answered = 0
            while connected[0] < 4 * BACKLOG:
                answered += all(status(port, target) == 200 for target in PROBES)
            world.publish(a=b"1")
            books.wait_for_state(expected(world))
        finally:
            over.set()
            churning.join()
    count(f"probes {answered} of {answered} during {connected[0]} connections")
    assert answered
