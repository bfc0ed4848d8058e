"""inotify fails in every way it can: nothing is lost, it is said, and it is taken up again."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.faults import Books, descriptors, expected, hook, is_root, paused, sandbox, scaled
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.world import DaemonProcess

SECRETS = 20
QUEUE = "/proc/sys/fs/inotify/max_queued_events"
needs_root = pytest.mark.skipif(not is_root(), reason="limits of its own need root")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish({f"s{number}": secret("0") for number in range(SECRETS)})
        world.map(*world.values)
        yield world


def rotate_all(world: World, books: Books, mark: str) -> int:
    """Rotates every secret, one swap each, and waits for the last state; how many are lost."""
    for name in sorted(world.values):
        world.publish({name: secret(f"{mark}-{name}")})
    books.wait_for_state(expected(world))
    return len(books.lost(expected(world)))


def inotify_scans(daemon: DaemonProcess) -> int:
    return len(daemon.logged("mount.scanned", reason="inotify"))


def test_queue_overflow(world: World, books: Books, count: Callable[[str], None]) -> None:
    """When the kernel drops events, everything is scanned, and the change among them is found."""
    with open(QUEUE) as file:
        flood = int(file.read()) + 100
    world.configure(consumers=[hook(books)], watch={"rescan_interval": "1h"})
    with world.daemon() as daemon:
        books.start_from(expected(world))
        for turn in range(scaled(1, 20)):
            with paused(daemon):
                for number in range(flood // 2 + 1):  # an event for each making and removing
                    os.mkdir(f"{world.mount}/unrelated-{number}")
                    os.rmdir(f"{world.mount}/unrelated-{number}")
                world.publish(s0=secret(f"lost by the queue {turn}"))
            daemon.wait_for("mount.scanned", turn + 1, reason="overflow")
            books.wait_for_state(expected(world))
        lost = rotate_all(world, books, "after")
        assert inotify_scans(daemon) > 0
    count(
        f"lost {lost} of {SECRETS}, overflows {scaled(1, 20)}, events {books.received}, "
        f"false removals {books.removed}"
    )
    assert (lost, books.removed) == (0, 0)


FLOOD = """
import os, sys
number = 0
while True:
    path = f"{sys.argv[1]}/unrelated-{number % 1000}"
    number += 1
    with open(path, "w") as file:
        file.write("x")
    os.unlink(path)
"""


def test_flood_of_unrelated_files(world: World, books: Books, count: Callable[[str], None]) -> None:
    """While another process floods the mount with other files, every rotation arrives."""
    world.configure(consumers=[hook(books)])
    with world.daemon() as daemon:
        books.start_from(expected(world))
        flood = subprocess.Popen([sys.executable, "-c", FLOOD, world.mount])
        try:
            for turn in range(scaled(2, 200)):
                lost = rotate_all(world, books, f"flooded-{turn}")
        finally:
            flood.kill()
            flood.wait()
        overflows = len(daemon.logged("mount.scanned", reason="overflow"))
    count(
        f"lost {lost} of {SECRETS}, rotations {scaled(2, 200) * SECRETS}, overflows {overflows}, "
        f"false removals {books.removed}"
    )
    assert (lost, books.removed) == (0, 0)


@needs_root
@pytest.mark.parametrize(
    ("limit", "reason"),
    [("max_inotify_instances", "max_user_instances"), ("max_inotify_watches", "max_user_watches")],
)
def test_limits_of_inotify(
    world: World, books: Books, count: Callable[[str], None], limit: str, reason: str
) -> None:
    """Without instances or watches it polls and says why; once there are some it watches again.

    The limit holds in a user namespace of the daemon's own. So are its mounts, since every mount of
    another test would be a hint.
    """
    world.configure(consumers=[hook(books)], watch={"rescan_interval": "200ms"})
    narrow = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    narrow += [f'echo 0 > /proc/sys/user/{limit}; exec "$@"', "sh"]
    with world.daemon(wrapper=narrow) as daemon:
        books.start_from(expected(world))
        assert reason in daemon.wait_for("watch.degraded", mode="poll")["problem"]
        lost = rotate_all(world, books, "polled")
        assert inotify_scans(daemon) == 0
        assert len(daemon.logged("watch.degraded")) == 1
        widen = f"echo 1000 > /proc/sys/user/{limit}"
        inside = ["nsenter", "-t", str(daemon.pid), "--user", "--preserve-credentials"]
        subprocess.run([*inside, "sh", "-c", widen], check=True, timeout=DEADLINE)
        daemon.wait_for("watch.recovered", mode="inotify")
        lost += rotate_all(world, books, "watched")
        wait_until(lambda: inotify_scans(daemon) > 0, "inotify was not taken up again")
    count(f"lost {lost} of {2 * SECRETS}, false removals {books.removed}")
    assert (lost, books.removed) == (0, 0)


@needs_root
def test_no_descriptor_is_left(world: World, books: Books, count: Callable[[str], None]) -> None:
    """While no file can be opened nothing is announced, and afterwards everything."""
    world.configure(consumers=[hook(books)], watch={"rescan_interval": "200ms"})
    with world.daemon() as daemon:
        books.start_from(expected(world))
        limit = ["prlimit", "--pid", str(daemon.pid)]
        lost = 0
        for turn in range(scaled(2, 50)):
            full = descriptors(daemon.pid)
            subprocess.run([*limit, f"--nofile={full}:"], check=True)
            scanned = len(daemon.logged("mount.scanned"))
            for name in sorted(world.values):
                world.publish({name: secret(f"{turn}-{name}")})
            daemon.wait_for("mount.scanned", scanned + 3)
            subprocess.run([*limit, "--nofile=1024:"], check=True)
            books.wait_for_state(expected(world))
            lost += len(books.lost(expected(world)))
        problems = daemon.logged("secret.problem")
    count(
        f"lost {lost} of {scaled(2, 50) * SECRETS}, false removals {books.removed}, problems told "
        f"{len(problems)}"
    )
    assert (lost, books.removed) == (0, 0)


def test_no_inotify_at_all(world: World, books: Books, count: Callable[[str], None]) -> None:
    """In a sandbox without inotify it polls, says so once, and loses nothing."""
    world.configure(consumers=[hook(books)], watch={"rescan_interval": "200ms"})
    without = sandbox("inotify_init", "inotify_init1", errno="ENOSYS")
    with world.daemon(wrapper=without) as daemon:
        books.start_from(expected(world))
        assert daemon.wait_for("daemon.ready")["watch"] == "poll"
        assert "no inotify" in daemon.wait_for("watch.degraded")["problem"]
        lost = rotate_all(world, books, "polled")
        assert len(daemon.logged("watch.degraded")) == 1
    with world.daemon() as daemon:
        assert daemon.wait_for("daemon.ready")["watch"] == "inotify"
        lost += rotate_all(world, books, "watched")
    count(f"lost {lost} of {2 * SECRETS}, false removals {books.removed}")
    assert (lost, books.removed) == (0, 0)
