"""The wall clock is stepped by a day, forth and back, under the running daemon, without effect.

The step is the daemon's alone (`support/clock.c`, preloaded); the monotonic clock goes on as it
does when `date` or NTP steps a machine. Files are dated by the stepped clock, too.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support.faults import Books, expected, hook, scaled
from support.receiver import reply
from support.subscriber import Subscription
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.world import DaemonProcess

DAY = 86400
STEPS = [DAY, -DAY, 0] * scaled(1, 30)
NAMES = [f"s{number}" for number in range(10)]


class Clock:
    """A wall clock that can be stepped.

    Attributes:
        wrapper: A command that executes another one, which goes by it.
    """

    def __init__(self, directory: str) -> None:
        library, self._file = f"{directory}/clock.so", f"{directory}/steps"
        source = os.path.join(os.path.dirname(__file__), "../support/clock.c")
        build = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source]
        subprocess.run(build, check=True)
        self.wrapper = ["env", f"LD_PRELOAD={library}", f"CLOCK_STEPS={self._file}"]
        self._count = 0
        with open(self._file, "wb") as file:
            file.truncate(1 << 14)

    def step(self, offset: int) -> None:
        """Sets it: seconds that it is ahead of the machine's."""
        with open(self._file, "r+b", buffering=0) as file:
            file.seek(8 + 16 * self._count)
            file.write(struct.pack("qq", time.time_ns(), offset))
            self._count += 1
            file.seek(0)
            file.write(struct.pack("q", self._count))


def write_in_place(path: str, value: bytes) -> None:
    """Writes a file in four steps, more slowly than it takes to settle."""
    pause = threading.Event()
    with open(path, "wb", buffering=0) as file:
        for number in range(0, len(value), 5):
            file.write(value[number : number + 5])
            pause.wait(0.03)  # the writer's pace, nothing is waited for


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the clock is stepped by a library in C")
def test_steps_of_a_day(tmp_path: Path, count: Callable[[str], None]) -> None:
    """Scans, settling, the grace period, retries and streams go by the time that passes.

    After each step: nothing is announced for it; a mount that is away for a moment is not taken
    for gone; a swap and a file written in place arrive once, also where the first attempt failed.
    """
    clock = Clock(str(tmp_path))
    wrong = 0
    with World() as world, Books() as books, Books() as moody:
        socket = f"{world.directory}/syncd.sock"
        world.publish({name: secret("0") for name in NAMES})
        plain = f"{world.directory}/plain"
        world.map(*NAMES, paths={"p": f"{plain}/p"})
        os.mkdir(plain)
        write_in_place(f"{plain}/p", secret("0"))
        world.configure(
            consumers=[hook(books), hook(moody, "moody")],
            watch={"rescan_interval": "50ms", "settle": "20ms", "remount_grace": "1h"},
            api={"socket": socket},
        )
        with (
            world.daemon(wrapper=clock.wrapper) as daemon,
            Subscription(socket) as subscription,
        ):
            for one in (books, moody):
                one.start_from(everything(world, b"0"))
            for turn, offset in enumerate(STEPS):
                clock.step(offset)
                scans(daemon, 3)
                os.rename(world.mount, f"{world.mount}-away")
                scans(daemon, 3)
                os.rename(f"{world.mount}-away", world.mount)
                scans(daemon, 3)
                wrong += books.received - turn * 2
                moody.script(reply(503), reply(503))
                mark = f"{turn:04}"
                world.publish(s0=secret(mark))
                write_in_place(f"{plain}/p", secret(mark))
                state = everything(world, mark.encode())
                for one in (books, moody):
                    one.wait_for_state(state)
                seen = {received.event["subject"] for received in subscription.take(2)}
                assert seen == {"s0", "p"}
                said = time.time() + offset
                at = daemon.logged("delivery.acknowledged")[-1]["timestamp"]
                assert abs(stamp(at) - said) < DAY / 2, "the step did not reach the daemon"
            lost = sum(len(one.lost(state)) for one in (books, moody))
        removed = books.removed + moody.removed
        more = books.received - 2 * len(STEPS)
    count(
        f"steps {len(STEPS)} of a day or two, lost {lost}, false events {wrong + more}, "
        f"false removals {removed}"
    )
    assert (lost, wrong, more, removed) == (0, 0, 0, 0)


def everything(world: World, mark: bytes) -> dict[str, str]:
    return expected(world, {**world.values, "p": secret(mark.decode())})


def scans(daemon: DaemonProcess, more: int) -> None:
    """Waits for that many scans."""
    daemon.wait_for("mount.scanned", len(daemon.logged("mount.scanned")) + more)


def stamp(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()
