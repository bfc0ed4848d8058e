"""Resident memory of a sidecar: small, large, and after a long life."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.listeners import Webhook
from benchmarks.numbers import Row
from benchmarks.processes import Process, Syncd
from benchmarks.scenarios.latency import swap

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.mounts import Mount

_SMALL = 100


def rows(bench: Bench) -> list[Row]:
    """All of them; each daemon has delivered something before it is looked at."""
    return [
        *_sizes(bench, _SMALL, None, api=False),
        *_sizes(bench, _SMALL, 36, api=True),
        *_sizes(bench, bench.effort.bulk, 56, api=True),
        *_after_rotations(bench),
    ]


def _sizes(bench: Bench, count: int, bound: float | None, *, api: bool) -> list[Row]:
    """Our resident size is bounded; the proportional one is shown beside it.

    Args:
        bench: Where to work.
        count: How many secrets.
        bound: Largest allowed size, MiB, or None.
        api: Whether there are the API's socket and the probes, as in the image.
    """
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    mount = bench.mount(count)
    for _ in range(bench.effort.repetitions):
        with ExitStack() as stack:
            hook = Webhook()
            stack.callback(hook.close)
            daemon = stack.enter_context(_sidecar(bench, mount, hook, api=api))
            command = [sys.executable, "-m", "benchmarks.peers.watchfiles_loop", mount.root]
            loop = stack.enter_context(Process(command, f"{bench.disk()}/log"))
            time.sleep(0.5)
            swap(mount, hook)
            ours.append(daemon.memory())
            theirs.append(loop.memory())
    against = "a watchfiles loop"
    what = f"sidecar{' with its API and probes' if api else ''}, {count:,} secrets"
    return [
        Row(
            f"resident memory, {what}",
            "MiB",
            [rss for rss, _ in ours],
            [rss for rss, _ in theirs],
            against=against,
            bound=bound,
            bounded="ours",
        ),
        Row(
            f"proportional memory (PSS), {what}",
            "MiB",
            [pss for _, pss in ours],
            [pss for _, pss in theirs],
            against=against,
        ),
    ]


def _sidecar(bench: Bench, mount: Mount, hook: Webhook, *, api: bool = False) -> Syncd:
    directory = bench.disk()
    consumer = {"name": "hook", "kind": "webhook", "url": hook.url, "max_batch": 100}
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    return Syncd(
        directory,
        mount.vault_config,
        consumers=[consumer],
        **({"api": {"socket": f"{directory}/s", "listen": listen}} if api else {}),
    )


def _after_rotations(bench: Bench) -> list[Row]:
    """Every swap rotates every secret; a daemon that kept anything of them would grow."""
    times, count = bench.effort.rotations
    with ExitStack() as stack:
        hook, mount = Webhook(), bench.mount(count)
        stack.callback(hook.close)
        daemon = stack.enter_context(_sidecar(bench, mount, hook))
        before, halfway = 0.0, 0.0
        for number in range(times):
            hook.clear()
            start = mount.rotate()
            hook.wait(1)
            time.sleep(max(0.0, 0.1 - (time.perf_counter() - start)))
            if number == min(10, times // 10):
                before = daemon.memory()[0]
            if number == times // 2:
                halfway = daemon.memory()[0]
        time.sleep(1)
        after = daemon.memory()[0]
    return [
        Row(
            f"resident memory after {times:,} rotations of {count:,} secrets",
            "MiB",
            [after],
            [halfway],
            against="itself, halfway",
        ),
        Row(
            f"growth over {times:,} rotations of {count:,} secrets",
            "MiB",
            [after],
            [before],
            against="itself, after the first ten",
        ),
    ]
