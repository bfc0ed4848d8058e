"""From the start of the process to its readiness notification (sd_notify)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.numbers import Pair, Row
from benchmarks.processes import Syncd

if TYPE_CHECKING:
    from benchmarks.bench import Bench

_SECRETS = 100


def rows(bench: Bench) -> list[Row]:
    """With an inventory in the ledger, as after a restart; against an interpreter that imports."""
    mount, directory = bench.mount(_SECRETS), bench.disk()
    pair = Pair()

    def ours() -> float:
        with Syncd(
            directory,
            mount.vault_config,
            consumers=[{"name": "hook", "kind": "webhook", "url": "http://127.0.0.1:9/"}],
            api={"socket": f"{directory}/s", "listen": ""},
        ) as daemon:
            return daemon.started_in

    ours()  # bytecode, the ledger
    pair.take(ours, _interpreter, bench.effort.repetitions + 2)
    return [
        Row(
            f"process start to ready, {_SECRETS} secrets",
            "s",
            pair.ours,
            pair.peer,
            against="python -c 'import asyncio, ssl, sqlite3'",
            bound=0.6,
            bounded="ours",
        )
    ]


def _interpreter() -> float:
    start = time.perf_counter()
    command = [sys.executable, "-c", "import asyncio, ssl, sqlite3"]
    subprocess.run(command, check=True, env=os.environ)
    return time.perf_counter() - start
