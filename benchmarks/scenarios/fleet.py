"""A fleet that a relay watches: a rotation of everything, the question who has it, heartbeats."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.bus import BUCKET, HEARTBEAT, SECRETS, STREAM, Bus, Crowd
from benchmarks.listeners import Webhook
from benchmarks.numbers import Row
from benchmarks.processes import Process, Syncd

if TYPE_CHECKING:
    from benchmarks.bench import Bench

_STATUS_BOUND: Final = 2.0
_MEMORY_BOUND: Final = 96.0


class Figures(msgspec.Struct):
    """What was measured with so many installations.

    Attributes:
        count: Installations.
        convergence: From the first document of a rotation to the last `converged`, seconds.
        processor: What the relay used of a processor meanwhile, seconds.
        status: Time of `syncd fleet status`, seconds.
        memory: Resident memory of the relay afterwards, MiB.
        server: Processor of the server while heartbeats come, percent of a core.
        relay: The same of the relay.
    """

    count: int
    convergence: list[float]
    processor: list[float]
    status: list[float]
    memory: list[float]
    server: list[float]
    relay: list[float]


def rows(bench: Bench) -> list[Row]:
    """For each size of the fleet, and what an installation costs in the largest and smallest."""
    found = [_measure(bench, count) for count in bench.effort.fleet]
    small, large = found[0], found[-1]
    return [
        *(row for figures in found for row in _rows(figures)),
        *(
            Row(
                f"rotation, {what} per installation, {large.count:,} installations",
                "ms",
                [seconds / large.count * 1e3 for seconds in of_large],
                [seconds / small.count * 1e3 for seconds in of_small],
                against=f"with {small.count:,} installations",
                bound=1.5,
            )
            for what, of_large, of_small in (
                ("time", large.convergence, small.convergence),
                ("processor of the relay", large.processor, small.processor),
            )
        ),
    ]


def _rows(found: Figures) -> list[Row]:
    fleet = f"{found.count:,} installations with {SECRETS} secrets"
    return [
        Row(f"fleet-wide rotation to converged, {fleet}", "s", found.convergence),
        Row(f"syncd fleet status, {fleet}", "s", found.status, bound=_STATUS_BOUND, bounded="ours"),
        Row(
            f"resident memory of the relay, {fleet}",
            "MiB",
            found.memory,
            bound=_MEMORY_BOUND,
            bounded="ours",
        ),
        Row(f"heartbeats every {HEARTBEAT:g} s, server, {fleet}", "% of a core", found.server),
        Row(f"heartbeats every {HEARTBEAT:g} s, relay, {fleet}", "% of a core", found.relay),
    ]


def _measure(bench: Bench, count: int) -> Figures:
    found = Figures(count, [], [], [], [], [], [])
    with ExitStack() as stack:
        bus = stack.enter_context(Bus(bench.disk()))
        crowd = stack.enter_context(Crowd(bus, count))
        crowd.write(crowd.documents())
        hook = Webhook()
        stack.callback(hook.close)
        relay = stack.enter_context(_relay(bench.disk(), bus, hook))
        relay.wait_for_text("fleet.following")
        for _ in range(bench.effort.repetitions):
            crowd.rotate()
            documents = crowd.documents()
            hook.clear()
            began, used = time.perf_counter(), relay.usage().seconds
            crowd.write(documents)
            found.convergence.append(hook.wait(SECRETS) - began)
            found.processor.append(relay.usage().seconds - used)
            found.memory.append(relay.memory()[0])
        _heartbeats(bench, crowd, bus, relay, found)
        # the relay has long done with the rotation: this is what the command takes
        found.status = [_status(bench.disk(), bus) for _ in range(bench.effort.repetitions)]
    return found


def _relay(directory: str, bus: Bus, hook: Webhook) -> Process:
    config = f"{directory}/relay.yaml"
    source = {"urls": [bus.url], "subject": f"{STREAM}.>", "state_bucket": BUCKET}
    consumer = {"name": "hook", "kind": "webhook", "url": hook.url, "max_batch": 100}
    content = {"state_dir": f"{directory}/state", "relay": source, "consumers": [consumer]}
    with open(config, "w") as file:
        json.dump(content, file)
    command = [Syncd.python, "-Pm", "syncd", "relay", "-c", config]
    return Process(command, f"{directory}/log", {"SYNCD_LOG_FORMAT": "json"})


def _status(directory: str, bus: Bus) -> float:
    os.makedirs(directory, exist_ok=True)
    command = [Syncd.python, "-Pm", "syncd", "fleet", "status"]
    command += ["--nats", bus.url, "--bucket", BUCKET, "--format", "json"]
    with Process(command, f"{directory}/log") as process:
        if process.wait() != 0:
            raise RuntimeError(f"syncd fleet status: {process.said()[-800:]}")
        return time.perf_counter() - process.started


def _heartbeats(bench: Bench, crowd: Crowd, bus: Bus, relay: Process, found: Figures) -> None:
    """Documents without a change, as many in a second as the fleet writes."""
    seconds = bench.effort.idle
    documents = crowd.documents()[: max(1, round(crowd.count * seconds / HEARTBEAT))]
    before = [process.usage().seconds for process in (bus, relay)]
    began = time.perf_counter()
    crowd.write(documents, seconds)
    time.sleep(max(0.0, began + seconds - time.perf_counter()))
    took = time.perf_counter() - began
    for process, used, into in zip((bus, relay), before, (found.server, found.relay), strict=True):
        process.alive()
        into.append((process.usage().seconds - used) / took * 100)
