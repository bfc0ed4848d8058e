"""Secrets from OpenBao: time, requests and memory, against `bao agent` doing the same."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks.numbers import Pair, Row
from benchmarks.processes import DEADLINE, Process, Syncd, once
from benchmarks.vault import CountingProxy, Vault, wait_for_files

if TYPE_CHECKING:
    from benchmarks.bench import Bench

_AGENT = "bao agent"


def settings(
    vault: Vault, directory: str, target: str, *, interval: str, address: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Vault config and configuration of a daemon that fetches everything in the vault."""
    manifest, vault_config = f"{directory}/manifest.yaml", f"{directory}/vault-config.json"
    vault.manifest(manifest)
    entries = {
        name: {"path": f"{target}/{name}", "scope": {"resource_type": "Client", "id": name}}
        for name in vault.names
    }
    with open(vault_config, "w") as file:
        json.dump({"secret": entries}, file)
    entry = {
        "manifest": manifest,
        "target": target,
        "interval": interval,
        "vault_url": address or vault.address,
        "auth": {"method": "token", "token_file": vault.token_file},
    }
    return vault_config, {"provision": [entry]}


def rows(bench: Bench) -> list[Row]:
    """All of them."""
    with Vault(bench.disk(), bench.effort.provisioned) as vault:
        return [_cold(bench, vault), _requests(bench, vault), *_running(bench, vault)]


def _cold(bench: Bench, vault: Vault) -> Row:
    pair = Pair()
    pair.take(
        lambda: _once(bench, vault),
        lambda: _agent_once(bench, vault),
        bench.effort.repetitions,
    )
    return Row(
        f"process start to {vault.count} secrets fetched and written, then exit",
        "s",
        pair.ours,
        pair.peer,
        against=_AGENT,
    )


def _requests(bench: Bench, vault: Vault) -> Row:
    counts = []
    for fetch in (_once, _agent_once):
        proxy = CountingProxy(vault.port)
        fetch(bench, vault, proxy.address)
        proxy.close()
        counts.append(float(proxy.requests))
    return Row(
        f"requests for {vault.count} secrets", "requests", counts[:1], counts[1:], against=_AGENT
    )


def _once(bench: Bench, vault: Vault, address: str | None = None) -> float:
    directory, target = bench.disk(), f"{bench.tmpfs()}/out"
    vault_config, more = settings(vault, directory, target, interval="120s", address=address)
    took = once(directory, vault_config, **more)
    wait_for_files(target, vault.count)
    return took


def _agent_once(bench: Bench, vault: Vault, address: str | None = None) -> float:
    directory, target = bench.disk(), bench.tmpfs()
    start = time.perf_counter()
    with vault.agent(directory, target, interval="5m", once=True, address=address) as agent:
        if agent.wait() != 0:
            raise RuntimeError(f"bao agent failed: {agent.said()[-800:]}")
        took = time.perf_counter() - start
    wait_for_files(target, vault.count)
    return took


def _running(bench: Bench, vault: Vault) -> list[Row]:
    """Memory of both once they have rendered everything twice; how long a pass takes us."""
    memory, passes = Pair(), []
    for number in range(bench.effort.repetitions):
        with ExitStack() as stack:
            daemon, target = _syncd(bench, vault, stack)
            rendered = bench.tmpfs()
            agent = vault.agent(bench.disk(), rendered, interval="2s")
            stack.enter_context(agent)
            wait_for_files(target, vault.count)
            wait_for_files(rendered, vault.count)
            vault.rotate(f"value {number}")
            passes.append(_refresh(daemon, target))
            _await_rendering(rendered, vault, f"value {number}")
            memory.take(lambda: daemon.memory()[0], lambda: agent.memory()[0], 1)  # noqa: B023
    return [
        Row(
            f"resident memory, provisioning {vault.count} secrets from OpenBao",
            "MiB",
            memory.ours,
            memory.peer,
            against=_AGENT,
            bound=0.5,
        ),
        Row(f"a pass over {vault.count} secrets, all rotated, to the swap", "s", passes),
    ]


def _syncd(bench: Bench, vault: Vault, stack: ExitStack) -> tuple[Syncd, str]:
    directory, target = bench.disk(), f"{bench.tmpfs()}/out"
    vault_config, more = settings(vault, directory, target, interval="120s")
    return stack.enter_context(Syncd(directory, vault_config, **more)), target


def _refresh(daemon: Process, target: str) -> float:
    before, start = os.readlink(f"{target}/..data"), time.perf_counter()
    os.kill(daemon.pid, signal.SIGUSR1)
    while os.readlink(f"{target}/..data") == before:
        if time.perf_counter() > start + DEADLINE:
            raise TimeoutError("syncd does not fetch")
        time.sleep(0.001)
    return time.perf_counter() - start


def _await_rendering(directory: str, vault: Vault, value: str) -> None:
    deadline = time.monotonic() + DEADLINE
    for number, name in enumerate(vault.names):
        while True:
            with open(f"{directory}/{name}") as file:
                if file.read() == f"{value} of {number}":
                    break
            if time.monotonic() > deadline:
                raise TimeoutError("bao agent does not render again")
            time.sleep(0.05)
