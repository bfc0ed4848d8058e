"""From the swap of `..data` to the receiver of the event."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.bench import Bench, rest
from benchmarks.listeners import Arrivals, Line, Webhook, subscriber
from benchmarks.numbers import Pair, Row, percentile
from benchmarks.peers import go_loop
from benchmarks.peers.hashing import hash_files
from benchmarks.plot import Curve
from benchmarks.processes import Process, Syncd

if TYPE_CHECKING:
    from benchmarks.mounts import Mount

SHELL_LOOP: Final = (
    'inotifywait -q -m -e moved_to --format %f "$0" | while read -r name; do'
    ' [ "$name" = ..data ] && curl -sS -o /dev/null -X POST -H "Content-Type: application/json"'
    ' -d "{\\"changed\\": true}" "$1"; done'
)
"""`inotifywait -m | while read; do curl; done`, which does not know what has changed."""

_SHELL_BOUNDS: Final = {100: 0.5}
_GO_BOUNDS: Final = {1: 3.0, 100: 1.6, 1000: 1.3}
_SUBSCRIBER_SECRETS: Final = 100
_WARM: Final = 3
_SHELL_START: Final = 0.5


def swap(mount: Mount, arrivals: Arrivals, changed: int | None = 1) -> float:
    """Rotates, and waits for the last arrival; seconds in between."""
    arrivals.clear()
    count = 1 if changed is not None else len(mount.names)
    start = mount.rotate(changed)
    took = arrivals.wait(count) - start
    rest(took)
    return took


def webhook_rows(bench: Bench) -> tuple[list[Row], list[Curve]]:
    """To a webhook, one of many secrets rotated, against a loop of a shell and one in Go."""
    rows, curves = [], (Curve("syncd"), Curve("inotifywait and curl"), Curve("a loop in Go"))
    for count, times in bench.effort.latencies.items():
        found = _webhook(bench, count, times * bench.effort.repetitions)
        for curve, samples in zip(curves, (found.ours, found.shell, found.go), strict=True):
            if samples:
                curve.points.append((count, median(samples), percentile(samples, 0.99)))
        name, bounds = f"swap to webhook, {count:,} secrets", (_SHELL_BOUNDS, _GO_BOUNDS)
        for peer, against, bound in zip(
            (found.shell, found.go), ("inotifywait and curl", "a loop in Go"), bounds, strict=True
        ):
            if peer:
                rows.append(
                    Row(
                        name,
                        "ms",
                        found.ours,
                        peer,
                        against=against,
                        bound=bound.get(count),
                        spread=True,
                    )
                )
    return rows, [curve for curve in curves if curve.points]


@dataclass(slots=True)
class _Samples:
    """Milliseconds, taken in turn; those of Go are missing where there is no Go to build it."""

    ours: list[float] = field(default_factory=list)
    shell: list[float] = field(default_factory=list)
    go: list[float] = field(default_factory=list)


def _webhook(bench: Bench, count: int, times: int) -> _Samples:
    samples = _Samples()
    with ExitStack() as stack:
        sides = []
        for kept in (samples.ours, samples.shell, samples.go):
            hook, mount = Webhook(), bench.mount(count)
            stack.callback(hook.close)
            sides.append((mount, hook, kept))
        mount, hook, _ = sides[0]
        consumers = [{"name": "hook", "kind": "webhook", "url": hook.url}]
        stack.enter_context(Syncd(bench.disk(), mount.vault_config, consumers=consumers))
        mount, hook, _ = sides[1]
        command = ["sh", "-c", SHELL_LOOP, mount.root, hook.url]
        shell = Process(command, f"{bench.disk()}/log", group=True)
        stack.enter_context(shell)
        program = go_loop.build(bench.disk())
        if program is None:
            del sides[2]
        else:
            mount, hook, _ = sides[2]
            stack.enter_context(Process([program, mount.root, hook.url], f"{bench.disk()}/log"))
        time.sleep(_SHELL_START)
        for turn in range(_WARM + times):  # at first connections, caches, the interpreter's own
            for mount, hook, kept in sides:
                took = 1000 * swap(mount, hook)
                if turn >= _WARM:
                    kept.append(took)
        shell.alive()
    return samples


def subscriber_rows(bench: Bench) -> list[Row]:
    """To a subscriber on a Unix socket, against a bare loop and against hashing alone."""
    return [_one_of_a_hundred(bench), *_all_rotated(bench)]


def _one_of_a_hundred(bench: Bench) -> Row:
    pair, count = Pair(), _SUBSCRIBER_SECRETS
    times = bench.effort.latencies.get(count, 2) * bench.effort.repetitions
    with ExitStack() as stack:
        mount, other = bench.mount(count), bench.mount(count)
        socket, line = f"{bench.disk()}/s", f"{bench.disk()}/s"
        stack.enter_context(
            Syncd(bench.disk(), mount.vault_config, api={"socket": socket, "listen": ""})
        )
        ours = subscriber(socket)
        stack.callback(ours.close)
        stack.enter_context(bare_loop(bench, other, line))
        theirs = Line(line)
        stack.callback(theirs.close)
        time.sleep(_SHELL_START)
        for _ in range(3):
            swap(mount, ours)
            swap(other, theirs)
        pair.take(lambda: 1000 * swap(mount, ours), lambda: 1000 * swap(other, theirs), times)
    return Row(
        f"swap to subscriber, {count} secrets",
        "ms",
        pair.ours,
        pair.peer,
        against="a bare loop in Python",
        bound=3,
        spread=True,
    )


def bare_loop(bench: Bench, mount: Mount, line: str) -> Process:
    """The bare loop, running."""
    command = [sys.executable, "-m", "benchmarks.peers.bare_loop", mount.root, line]
    return Process(command, f"{bench.disk()}/log")


def _all_rotated(bench: Bench) -> list[Row]:
    count = bench.effort.bulk
    pair = Pair()
    with ExitStack() as stack:
        mount = bench.mount(count)
        socket = f"{bench.disk()}/s"
        stack.enter_context(
            Syncd(bench.disk(), mount.vault_config, api={"socket": socket, "listen": ""})
        )
        ours = subscriber(socket)
        stack.callback(ours.close)
        swap(mount, ours, None)
        pair.take(
            partial(swap, mount, ours, None),
            partial(hashing, mount),
            bench.effort.repetitions + 2,
        )
    return [
        Row(
            f"swap to last event at a subscriber, {count:,} secrets all rotated",
            "s",
            pair.ours,
            pair.peer,
            against="one thread that reads and hashes the same files",
            bound=2.5,
        ),
        Row("events per second, one subscriber", "1/s", [count / took for took in pair.ours]),
    ]


def hashing(mount: Mount) -> float:
    """Seconds that one thread takes to read and hash all files of a mount."""
    start = time.perf_counter()
    hash_files(mount.paths)
    return time.perf_counter() - start
