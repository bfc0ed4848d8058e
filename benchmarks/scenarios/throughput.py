"""Events per second: to one webhook, one at a time and in batches, and to many subscribers."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from benchmarks.bench import Bench, rest
from benchmarks.listeners import Crowd, Webhook
from benchmarks.numbers import Pair, Row
from benchmarks.processes import Syncd

if TYPE_CHECKING:
    from benchmarks.mounts import Mount

_CURLS: Final = 50
_BATCH: Final = 100


def rows(bench: Bench) -> list[Row]:
    """All of them."""
    return [*_webhooks(bench), _crowd(bench)]


def _webhooks(bench: Bench) -> list[Row]:
    single, batched = Pair(), Pair()
    with ExitStack() as stack:
        sides = []
        for most in (1, _BATCH):
            hook, mount = Webhook(), bench.mount(bench.effort.burst)
            stack.callback(hook.close)
            consumer = {"name": "hook", "kind": "webhook", "url": hook.url, "max_batch": most}
            stack.enter_context(Syncd(bench.disk(), mount.vault_config, consumers=[consumer]))
            sides.append((mount, hook))
            _rate(mount, hook)
        for _ in range(bench.effort.repetitions):
            single.take(lambda: _rate(*sides[0]), lambda: _curls(sides[0][1]), 1)
            batched.take(lambda: _rate(*sides[1]), None, 1)
    return [
        Row(
            "events per second, one webhook",
            "1/s",
            single.ours,
            single.peer,
            against="curl, one process after the other",
        ),
        Row(f"events per second, one webhook, max_batch {_BATCH}", "1/s", batched.ours),
    ]


def _rate(mount: Mount, hook: Webhook) -> float:
    hook.clear()
    start = mount.rotate()
    took = hook.wait(len(mount.names)) - start
    rest(min(took, 0.2))
    return len(mount.names) / took


def _curls(hook: Webhook) -> float:
    command = ["curl", "-sS", "-m", "30", "-o", "/dev/null", "-X", "POST", "-d", "{}", hook.url]
    start = time.perf_counter()
    for _ in range(_CURLS):
        subprocess.run(command, check=True)
    return _CURLS / (time.perf_counter() - start)


def _crowd(bench: Bench) -> Row:
    subscribers, secrets = bench.effort.crowd
    samples = []
    with ExitStack() as stack:
        mount, socket = bench.mount(secrets), f"{bench.disk()}/s"
        stack.enter_context(
            Syncd(bench.disk(), mount.vault_config, api={"socket": socket, "listen": ""})
        )
        crowd = Crowd(socket, subscribers)
        stack.callback(crowd.close)
        for _ in range(bench.effort.repetitions + 1):
            start = mount.rotate()
            took = crowd.wait(secrets) - start
            samples.append(subscribers * secrets / took)
            rest(min(took, 0.5))
    return Row(f"events per second, {subscribers:,} subscribers", "1/s", samples[1:])
