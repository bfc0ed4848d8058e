"""Large installations: many secrets in one mount, and many consumers of one change."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.bench import rest
from benchmarks.listeners import Webhook, subscriber
from benchmarks.numbers import Pair, Row
from benchmarks.processes import Syncd
from benchmarks.scenarios.latency import hashing, swap

if TYPE_CHECKING:
    from benchmarks.bench import Bench

_TIMES = 3


def rows(bench: Bench) -> list[Row]:
    """All of them; none where the effort has no large size."""
    if bench.effort.scale is None:
        return []
    secrets, consumers = bench.effort.scale
    return [*_many_secrets(bench, secrets), _many_consumers(bench, consumers)]


def _many_secrets(bench: Bench, count: int) -> list[Row]:
    pair = Pair()
    with ExitStack() as stack:
        mount, socket = bench.mount(count), f"{bench.disk()}/s"
        daemon = stack.enter_context(
            Syncd(bench.disk(), mount.vault_config, api={"socket": socket, "listen": ""})
        )
        ours = subscriber(socket)
        stack.callback(ours.close)
        one = [swap(mount, ours) for _ in range(_TIMES + 1)]
        memory = [daemon.memory()[0]]
        swap(mount, ours, None)
        pair.take(partial(swap, mount, ours, None), partial(hashing, mount), _TIMES)
        memory_after = [daemon.memory()[0]]
    of = f"{count:,} secrets"
    return [
        Row(f"process start to ready, {of}", "s", [daemon.started_in]),
        Row(f"swap to subscriber, {of}", "s", one[1:]),
        Row(
            f"swap to last event at a subscriber, {of} all rotated",
            "s",
            pair.ours,
            pair.peer,
            against="one thread that reads and hashes the same files",
            bound=2.5,
        ),
        Row(f"resident memory, {of}", "MiB", memory),
        Row(f"resident memory, {of}, all rotated", "MiB", memory_after),
    ]


def _many_consumers(bench: Bench, count: int) -> Row:
    took = []
    with ExitStack() as stack:
        hook, mount = Webhook(), bench.mount(10)
        stack.callback(hook.close)
        consumers = [
            {"name": f"hook-{number}", "kind": "webhook", "url": hook.url}
            for number in range(count)
        ]
        stack.enter_context(Syncd(bench.disk(), mount.vault_config, consumers=consumers))
        for _ in range(bench.effort.repetitions + 1):
            hook.clear()
            start = mount.rotate(1)
            took.append(hook.wait(count) - start)
            rest(min(took[-1], 0.5))
            time.sleep(0.1)
    return Row(f"swap to the last of {count} webhooks", "s", took[1:])
