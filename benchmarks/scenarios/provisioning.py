"""Secrets from OpenBao: time, requests and memory, against `bao agent` doing the same."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks.numbers import Pair, Row
from benchmarks.processes import DEADLINE, Process, Syncd, started_once
from benchmarks.vault import CountingProxy, Vault, wait_for_files

if TYPE_CHECKING:
    from benchmarks.bench import Bench

_AGENT = "bao agent"
_ROTATIONS_APART = 0.08
"""As a share of the interval; no whole number of them is one."""


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
    many, few = bench.effort.provisioned
    with Vault(bench.disk(), few) as vault:
        small = _cold(bench, vault, bound=3.0)
    with Vault(bench.disk(), many) as vault:
        return [
            _cold(bench, vault, bound=1.0),
            small,
            _requests(bench, vault),
            _one_rotated(bench, vault),
            *_running(bench, vault),
        ]


def _cold(bench: Bench, vault: Vault, *, bound: float) -> Row:
    pair = Pair()
    pair.take(
        lambda: _once(bench, vault),
        lambda: _agent_once(bench, vault),
        bench.effort.repetitions,
    )
    return Row(
        f"process start to the last of {vault.count} secrets fetched and written",
        "s",
        pair.ours,
        pair.peer,
        against=_AGENT,
        bound=bound,
    )


def _one_rotated(bench: Bench, vault: Vault) -> Row:
    """From the vault to the file, with the same interval for both.

    One secret is rotated after the other, and none is waited for before the next: what is measured
    is how the polls are done, not when one happens to come.
    """
    interval, count = bench.effort.polled
    pair = Pair()
    target, rendered = f"{bench.tmpfs()}/out", bench.tmpfs()
    for directory in (target, rendered):
        with ExitStack() as stack:
            if directory == target:
                place = bench.disk()
                vault_config, more = settings(vault, place, target, interval=f"{interval}s")
                stack.enter_context(Syncd(place, vault_config, **more))
            else:
                agent = vault.agent(bench.disk(), rendered, interval=f"{interval}s")
                stack.enter_context(agent)
            wait_for_files(directory, vault.count)
            samples = pair.ours if directory == target else pair.peer
            samples += _rotations(vault, directory, count, interval * _ROTATIONS_APART)
    return Row(
        f"one of {vault.count} secrets rotated, from the vault to the file, every {interval} s",
        "s",
        pair.ours,
        pair.peer,
        against=_AGENT,
        bound=1.2,
    )


def _rotations(vault: Vault, directory: str, count: int, apart: float) -> list[float]:
    """Seconds that each of so many rotations takes, of secrets all over the vault."""
    started: dict[str, tuple[str, float]] = {}
    samples: list[float] = []
    begun = time.perf_counter()
    while len(samples) < count:
        now, number = time.perf_counter(), len(samples) + len(started)
        if number < count and now >= begun + number * apart:
            value, index = f"{directory} {number}", number * vault.count // count
            vault.rotate_one(index, value)
            started[vault.names[index]] = value, time.perf_counter()
        for name, (value, start) in list(started.items()):
            with open(f"{directory}/{name}") as file:
                if file.read() == value:
                    samples.append(time.perf_counter() - start)
                    del started[name]
        if now > begun + count * apart + DEADLINE:
            raise TimeoutError("a rotation does not arrive")
        time.sleep(0.01)
    return samples


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
    with started_once(directory, vault_config, **more) as process:
        return _until_written(process, target, vault.count)


def _agent_once(bench: Bench, vault: Vault, address: str | None = None) -> float:
    directory, target = bench.disk(), bench.tmpfs()
    with vault.agent(directory, target, interval="5m", once=True, address=address) as agent:
        return _until_written(agent, target, vault.count)


def _until_written(process: Process, target: str, count: int) -> float:
    """Seconds from the start of a process to its last file; waits for its end, too."""
    wait_for_files(target, count)
    took = time.perf_counter() - process.started
    if process.wait() != 0:
        raise RuntimeError(f"{process.said()[-800:]}")
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
