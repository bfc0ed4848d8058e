"""A day of rotations in minutes: memory stays flat after the first tenth, and no descriptor leaks.

Full size is 10,000 secrets, 1,000 subscribers and 20 consumers over 720 swaps, which is a day at
the CSI driver's interval of two minutes. `SYNCD_SOAK_SWAPS` sets another number.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from typing import TYPE_CHECKING

from support.faults import SOAK, Books, descriptors, expected, hook, memory, scaled
from support.mount import publish
from support.subscriber import Swarm
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRETS = scaled(300, 10_000)
SUBSCRIBERS = scaled(30, 1_000)
CONSUMERS = scaled(4, 20)
SWAPS = int(os.environ.get("SYNCD_SOAK_SWAPS") or scaled(60, 720))
CHANGED = 10
"""Secrets that change with each swap."""

MOST_GROWTH = 0.03
"""Of the resident memory, over the last nine tenths, by the slope of a straight line."""


def test_a_day_of_rotations(count: Callable[[str], None]) -> None:
    """The slope of resident memory over the swaps is flat; descriptors are as many as before."""
    names = [f"s{number}" for number in range(SECRETS)]
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        books = [stack.enter_context(Books(keep=False)) for _ in range(CONSUMERS)]
        socket = f"{world.directory}/syncd.sock"
        world.publish({name: secret(f"0-{name}") for name in names})
        world.map(*names)
        world.configure(
            consumers=[hook(one, f"c{n}", max_batch=100) for n, one in enumerate(books)],
            api={"socket": socket},
        )
        daemon = stack.enter_context(world.daemon(SYNCD_LOG_LEVEL="info"))
        swarm = stack.enter_context(Swarm(socket, SUBSCRIBERS))
        stack.enter_context(reading(swarm))
        for one in books:
            one.start_from(expected(world))
        used: list[int] = []
        open_now: list[int] = []
        for swap in range(SWAPS):
            chosen = [names[(swap * CHANGED + n) % SECRETS] for n in range(CHANGED)]
            world.values |= {name: secret(f"{swap}-{name}") for name in chosen}
            publish(world.mount, world.values, unchanged=set(names).difference(chosen))
            news = expected(world, {name: world.values[name] for name in chosen})
            for one in books:
                one.wait_for_state(news)
            used.append(memory(daemon.pid))
            open_now.append(descriptors(daemon.pid))
        everything = expected(world)
        lost = sum(len(one.lost(everything)) for one in books)
        received = [len(sequences) for sequences in swarm.sequences]
    tenth = SWAPS // 10
    slope, _ = statistics.linear_regression(range(tenth, SWAPS), used[tenth:])
    growth = slope * (SWAPS - tenth) / statistics.mean(used[tenth:])
    leaking, _ = statistics.linear_regression(range(tenth, SWAPS), open_now[tenth:])
    leaked = leaking * (SWAPS - tenth)
    count(
        f"swaps {SWAPS} of {SECRETS} secrets, events {sum(one.received for one in books)} at "
        f"{CONSUMERS} consumers and {sum(received)} at {SUBSCRIBERS} subscribers, lost {lost}; "
        f"memory {used[tenth] / 1024:.1f} MiB after a tenth, {used[-1] / 1024:.1f} at the end, "
        f"slope {growth:+.1%}; descriptors {open_now[tenth]}, "
        f"{open_now[-1]} at the end, slope {leaked:+.1f}"
    )
    assert lost == 0
    assert leaked < 2  # a connection may be between two requests
    assert growth < (MOST_GROWTH if SOAK else 2 * MOST_GROWTH)
    assert min(received) > 0


@contextlib.contextmanager
def reading(swarm: Swarm) -> Iterator[None]:
    """Has the subscribers read in a thread of their own while the block runs."""
    over = threading.Event()
    problems: list[BaseException] = []

    def read() -> None:
        try:
            swarm.read(over.is_set, within=3 * 3600.0)
        except BaseException as error:  # noqa: BLE001 - it belongs to the test's thread
            problems.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not problems, problems
