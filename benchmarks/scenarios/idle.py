"""What it costs to wait: processor time and wake-ups while nothing happens.

All parties wait through the same minute, side by side.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.listeners import Webhook, subscriber
from benchmarks.numbers import Row
from benchmarks.processes import Process, Syncd
from benchmarks.scenarios.provisioning import settings
from benchmarks.vault import Vault, free_ports, wait_for_files

if TYPE_CHECKING:
    from benchmarks.bench import Bench

_SECRETS = 100
_SETTLED = 3.0


def rows(bench: Bench) -> list[Row]:
    """A sidecar against a `watchfiles` loop, and a provisioning daemon against `bao agent`."""
    seconds = bench.effort.idle
    with ExitStack() as stack:
        parties = {**_sidecar(bench, stack), **_provisioning(bench, stack)}
        time.sleep(min(_SETTLED, seconds))
        cpu: dict[str, list[float]] = {name: [] for name in parties}
        wakeups: dict[str, list[float]] = {name: [] for name in parties}
        for _ in range(bench.effort.repetitions):
            before = {name: process.usage() for name, process in parties.items()}
            time.sleep(seconds)
            for name, process in parties.items():
                process.alive()
                after = process.usage()
                cpu[name].append((after.seconds - before[name].seconds) / seconds * 100)
                wakeups[name].append((after.wakeups - before[name].wakeups) / seconds)
    return [
        row
        for ours, peer, bounded in (
            ("sidecar", "a watchfiles loop", True),
            ("provisioning", "bao agent", True),
        )
        for row in (
            Row(
                f"idle {seconds:g} s, {ours}: processor",
                "% of a core",
                cpu[ours],
                cpu[peer],
                against=peer,
                bound=0.1 if bounded else None,
                bounded="ours",
            ),
            Row(
                f"idle {seconds:g} s, {ours}: wake-ups",
                "1/s",
                wakeups[ours],
                wakeups[peer],
                against=peer,
                bound=1 if bounded else None,
                bounded="ours",
            ),
        )
    ]


def _sidecar(bench: Bench, stack: ExitStack) -> dict[str, Process]:
    mount, directory = bench.mount(_SECRETS), bench.disk()
    hook = Webhook()
    stack.callback(hook.close)
    socket = f"{directory}/s"
    consumer = {"name": "hook", "kind": "webhook", "url": hook.url}
    daemon = Syncd(
        directory,
        mount.vault_config,
        consumers=[consumer],
        api={"socket": socket, "listen": f"127.0.0.1:{free_ports()}"},
    )
    stack.enter_context(daemon)
    stream = subscriber(socket)
    stack.callback(stream.close)
    other = bench.mount(_SECRETS)
    command = [sys.executable, "-m", "benchmarks.peers.watchfiles_loop", other.root]
    loop = stack.enter_context(Process(command, f"{bench.disk()}/log"))
    return {"sidecar": daemon, "a watchfiles loop": loop}


def _provisioning(bench: Bench, stack: ExitStack) -> dict[str, Process]:
    vault = stack.enter_context(Vault(bench.disk(), bench.effort.provisioned[0]))
    directory, target = bench.disk(), f"{bench.tmpfs()}/out"
    vault_config, more = settings(vault, directory, target, interval="5m")
    daemon = stack.enter_context(Syncd(directory, vault_config, **more))
    rendered = bench.tmpfs()
    agent = stack.enter_context(vault.agent(bench.disk(), rendered, interval="5m"))
    wait_for_files(target, vault.count)
    wait_for_files(rendered, vault.count)
    return {"provisioning": daemon, "bao agent": agent}
