"""An attacker who may write to the mount swaps links while syncd reads: nothing outside is opened.

Judge is the kernel: inotify on the victim's files tells every opening and reading of them, by
whomever. Looking at a path (`O_PATH`, stat) makes no such event and gives nothing away.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from inotify_simple import INotify, flags
from support.faults import Books, expected, hook, sandbox, scaled
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable

SCANS = scaled(100, 20_000)
PATHS = {"door": "door/victim", "file": "victim", "data": "..data/victim", "deep": "in/door/victim"}

ATTACK = """
import itertools, os, sys
mount, outside = sys.argv[1:]
beside = "../" + os.path.basename(outside)
targets = (outside, beside, "in", mount + "/in", "/proc/self/root" + outside, "loop", "..")
print("begun", flush=True)
for number in itertools.count():
    target = targets[number % len(targets)]
    for door in ("door", "..data", "in/door", "victim"):
        new = mount + "/new"
        os.symlink(target + "/victim" if door == "victim" else target, new)
        os.replace(new, mount + "/" + door)
    if number % 5 == 0:  # a directory that turns into a link
        os.unlink(mount + "/door")
        os.mkdir(mount + "/door")
        with open(mount + "/door/victim", "w") as file:
            file.write("inside")
        os.rename(mount + "/door", mount + "/old-" + str(number))
        os.symlink(outside, mount + "/door")
        os.unlink(mount + "/old-" + str(number) + "/victim")
        os.rmdir(mount + "/old-" + str(number))
"""


@pytest.mark.parametrize("way", ["openat2", "pinning"])
def test_links_swapped_while_reading(way: str, count: Callable[[str], None]) -> None:
    """Whatever is a link at whatever moment, the victim's file is never opened, nor announced.

    Both ways of opening are attacked: by `openat2`, and where a sandbox has no such call.
    """
    with World() as world, Books() as books, INotify() as eye:
        outside = f"{world.directory}/outside"
        for directory in (outside, f"{world.mount}/in"):
            os.makedirs(directory)
        victim = f"{outside}/victim"
        write(victim, secret("victim"))
        write(f"{world.mount}/in/victim", b"inside")
        write(f"{world.mount}/quiet", secret("0"))
        attacked = {name: f"{world.mount}/{path}" for name, path in PATHS.items()}
        world.map("quiet", paths=attacked)
        world.configure(
            consumers=[hook(books)],
            watch={"rescan_interval": "10ms", "settle": "1ms", "roots": [world.mount]},
        )
        seen = flags.OPEN | flags.ACCESS
        eye.add_watch(victim, seen)
        wrapper = [] if way == "openat2" else sandbox("openat2", errno="ENOSYS")
        with world.daemon(wrapper=wrapper, SYNCD_LOG_LEVEL="debug") as daemon:
            books.state = {}
            attacker = subprocess.Popen(
                [sys.executable, "-c", ATTACK, world.mount, outside], stdout=subprocess.PIPE
            )
            try:
                assert attacker.stdout is not None
                attacker.stdout.readline()
                before = len(daemon.logged("mount.scanned"))
                wait_until(
                    lambda: len(daemon.logged("mount.scanned")) > before + SCANS,
                    "scans have stopped",
                    DEADLINE + SCANS,
                )
                assert attacker.poll() is None, "the attack has ended"
                write(f"{world.mount}/quiet", secret("1"))
                state = expected(world, {"quiet": secret("1")})
                books.wait_for_state(state)
            finally:
                attacker.kill()
                attacker.communicate()
            scans = len(daemon.logged("mount.scanned")) - before
        opened = [event for event in eye.read(timeout=0) if event.mask & seen]
        stolen = expected(world, dict.fromkeys(PATHS, secret("victim")))
        inside = expected(world, dict.fromkeys(PATHS, b"inside"))
        told = {name: books.versions.get(name, set()) for name in PATHS}
        with open(victim, "rb") as file:
            file.read()
        assert eye.read(timeout=1000), "the judge is blind"
    leaked = sum(stolen[name] in versions for name, versions in told.items())
    foreign = sum(len(versions - {inside[name]}) for name, versions in told.items())
    count(
        f"opened outside {len(opened)}, announced from outside {leaked}, of {scans} scans of "
        f"{len(PATHS)} attacked secrets, {books.received} events"
    )
    assert (len(opened), leaked, foreign) == (0, 0, 0)


def write(path: str, content: bytes) -> None:
    with open(f"{path}.new", "wb") as file:
        file.write(content)
    os.rename(f"{path}.new", path)
