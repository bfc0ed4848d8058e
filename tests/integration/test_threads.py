"""The threads that all callers share are not needed by what must go on."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

from support.receiver import Receiver
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from pathlib import Path

# in the daemon's own event loop, to which anyio's limit belongs
TAKE_ALL = """
import signal
import sys

import anyio
import anyio.to_thread

run = anyio.run


def run_beside(main, *args, **options):
    async def take_all(*, task_status):
        with anyio.open_signal_receiver(signal.SIGUSR2) as signals:
            task_status.started()
            async for _ in signals:
                anyio.to_thread.current_default_thread_limiter().total_tokens = 0
                print('{"event": "taken"}', file=sys.stderr, flush=True)

    async def both(*arguments):
        async with anyio.create_task_group() as tasks:
            await tasks.start(take_all)
            await main(*arguments)
            tasks.cancel_scope.cancel()

    return run(both, *args, **options)


anyio.run = run_beside
"""


def test_scans_ledger_deliveries_and_api_need_no_thread_that_others_hold(tmp_path: Path) -> None:
    """With all of anyio's in use, a rotation is seen, recorded, delivered and reported."""
    (tmp_path / "sitecustomize.py").write_text(TAKE_ALL)
    with World() as world, Receiver() as receiver:
        world.map("a", "b")
        world.publish(a=secret("1"), b=secret("1"))
        address = f"{world.directory}/s"
        consumer = {"name": "hook", "kind": "webhook", "url": receiver.url}
        world.configure(consumers=[consumer], api={"socket": address, "listen": ""})
        path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
        with world.daemon(PYTHONPATH=path) as daemon:
            daemon.signal(signal.SIGUSR2)
            daemon.wait_for("taken")
            try:
                for number in ("2", "3"):
                    world.publish(a=secret(number), b=secret("1"))
                    receiver.wait(int(number) - 1)

                def is_recorded() -> bool:
                    done = world.run("status", "--socket", address, "--format", "json")
                    found = json.loads(done.stdout)["status"]["consumers"]["hook"]
                    return (found["pending"], found["state"]) == (0, "ok")

                wait_until(is_recorded)
                done = world.run("events", "--socket", address, "--format", "json")
                assert len(done.stdout.splitlines()) == 2
            finally:
                daemon.kill()  # a clean end closes files in the threads that are taken
