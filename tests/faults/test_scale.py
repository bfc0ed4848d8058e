"""Many secrets in one mount: every change arrives, and ten times as many take ten times as much.

Full size is 10,000 and 100,000 secrets, and 200 consumers of one change.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from support.faults import SOAK, Books, cpu_seconds, expected, hook, memory, scaled
from support.mount import publish
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (scaled(200, 10_000), scaled(2_000, 100_000))
CONSUMERS = scaled(20, 200)
MOST_MEMORY = 3.0
"""KiB of resident memory for each secret, after all were rotated at once."""

MOST_TIME = 2.0
"""Times as much processor time for a secret, where there are ten times as many."""


def test_ten_times_as_many_secrets(count: Callable[[str], None]) -> None:
    """All are delivered, with the newest version; processor time and memory grow in proportion."""
    spent, used = zip(*map(_rotate_all, SIZES), strict=True)
    few, many = SIZES
    each = [seconds / size * 1e6 for seconds, size in zip(spent, SIZES, strict=True)]
    grown = (used[1] - used[0]) / (many - few)
    count(
        f"all of {few} and of {many} secrets rotated, lost 0; processor time {each[0]:.0f} and "
        f"{each[1]:.0f} µs each, memory {used[0] / 1024:.1f} and {used[1] / 1024:.1f} MiB, "
        f"{grown:.1f} KiB each"
    )
    if SOAK:
        assert each[1] < MOST_TIME * each[0]
        assert grown < MOST_MEMORY


def _rotate_all(size: int) -> tuple[float, int]:
    """Processor time of one rotation of all secrets, seconds, and memory after it, KiB."""
    names = [f"s{number}" for number in range(size)]
    with World() as world, Books(keep=False) as books:
        world.publish({name: secret(f"0-{name}") for name in names})
        world.map(*names)
        world.configure(consumers=[hook(books, max_batch=100)])
        with world.daemon(SYNCD_LOG_LEVEL="info") as daemon:
            books.start_from(expected(world))
            spent: list[float] = []
            for swap in (1, 2):  # the first also grows what stays
                before = cpu_seconds(daemon.pid)
                world.publish({name: secret(f"{swap}-{name}") for name in names})
                books.wait_for_state(expected(world))
                spent.append(cpu_seconds(daemon.pid) - before)
            assert books.received == 2 * size
            assert books.disordered == 0
            return spent[1], memory(daemon.pid)


def test_a_change_reaches_many_consumers(count: Callable[[str], None]) -> None:
    """Each has its own mailbox, and gets each event once."""
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        books = [stack.enter_context(Books(keep=False)) for _ in range(CONSUMERS)]
        world.publish(a=secret("0"), b=secret("0"))
        world.map("a", "b")
        world.configure(consumers=[hook(one, f"c{n}") for n, one in enumerate(books)])
        daemon = stack.enter_context(world.daemon(SYNCD_LOG_LEVEL="info"))
        for one in books:
            one.start_from(expected(world))
        for swap in ("1", "2", "3"):
            world.values["a"] = secret(swap)
            publish(world.mount, world.values, unchanged={"b"})
            for one in books:
                one.wait_for_state(expected(world))
        count(f"{CONSUMERS} consumers, lost 0; memory {memory(daemon.pid) / 1024:.1f} MiB")
        assert {one.received for one in books} == {3}
