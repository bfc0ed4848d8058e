"""Mounts come, go and are replaced, for real: file systems in a private mount namespace.

A mount that is on its way back is no removal. Tests reach into the namespace by `/proc/PID/root`.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from support.faults import Books, MountNamespace, expected, hook, is_root, scaled
from support.mount import publish
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.world import DaemonProcess

pytestmark = pytest.mark.skipif(not is_root(), reason="mounting needs root")
NAMES = [f"s{number}" for number in range(20)]
TURNS = scaled(2, 30)


class Place:
    """A world whose mount lies in a mount namespace; the daemon runs in there too."""

    def __init__(self, world: World, namespace: MountNamespace, books: Books) -> None:
        self.world = world
        self.namespace = namespace
        self.books = books
        os.makedirs(world.mount)
        world.map(*NAMES)
        world.configure(consumers=[hook(books)], watch={"rescan_interval": "1h"})

    def publish(self, mark: str, *, at: str | None = None) -> None:
        """Publishes all secrets anew."""
        self.world.values = {name: secret(f"{mark}-{name}") for name in NAMES}
        self.republish(at=at)

    def republish(self, *, at: str | None = None) -> None:
        """Publishes all secrets as they are."""
        publish(self.namespace.path(at or self.world.mount), self.world.values)

    def mount(self, *, at: str | None = None) -> None:
        """Mounts an empty file system."""
        self.namespace.run("mount", "-t", "tmpfs", "tmpfs", at or self.world.mount)

    def umount(self) -> None:
        self.namespace.run("umount", "--lazy", self.world.mount)

    def daemon(self) -> DaemonProcess:
        return self.world.daemon(wrapper=self.namespace.wrapper)

    def begin(self) -> None:
        """The daemon is ready: what is there now is the baseline."""
        self.books.start_from(expected(self.world))

    def arrived(self) -> int:
        """Waits for the state of the mount; how many secrets are lost."""
        self.books.wait_for_state(expected(self.world))
        return len(self.books.lost(expected(self.world)))


@pytest.fixture
def place() -> Iterator[Place]:
    with World() as world, MountNamespace() as namespace, Books() as books:
        yield Place(world, namespace, books)


def missing(daemon: DaemonProcess, turn: int) -> None:
    """Waits until the daemon has noticed that the mount is away."""
    daemon.wait_for("secret.problem", len(NAMES) * (turn + 1), state="missing")


def verdict(place: Place, lost: int, count: Callable[[str], None]) -> None:
    total, books = len(NAMES) * TURNS, place.books
    count(f"lost {lost} of {total}, events {books.received}, false removals {books.removed}")
    assert (lost, books.removed) == (0, 0)
    assert books.received == total, "each change is one event, and nothing else is"


def test_removed_and_recreated(place: Place, count: Callable[[str], None]) -> None:
    """A directory that is deleted with all in it and made anew announces only what changed."""
    place.mount()
    mount = f"{place.world.mount}/csi"
    place.world.mount = mount
    place.world.map(*NAMES)
    place.publish("0")
    lost = 0
    with place.daemon() as daemon:
        place.begin()
        for turn in range(TURNS):
            shutil.rmtree(place.namespace.path(mount))
            missing(daemon, 2 * turn)
            place.republish()
            daemon.wait_for("secret.recovered", len(NAMES) * (2 * turn + 1))
            shutil.rmtree(place.namespace.path(mount))
            missing(daemon, 2 * turn + 1)
            place.publish(f"again {turn}")
            lost += place.arrived()
            daemon.wait_for("secret.recovered", len(NAMES) * (2 * turn + 2))
    verdict(place, lost, count)


def test_unmounted_and_mounted_again(place: Place, count: Callable[[str], None]) -> None:
    """A new file system in the place of the old one announces what changed, no removal."""
    place.mount()
    place.publish("0")
    lost = 0
    with place.daemon() as daemon:
        place.begin()
        for turn in range(TURNS):
            place.umount()
            missing(daemon, turn)
            place.mount()
            place.publish(f"remounted {turn}")
            lost += place.arrived()
    verdict(place, lost, count)


def test_read_only(place: Place, count: Callable[[str], None]) -> None:
    """A mount that turns read-only and back makes no event of its own."""
    place.mount()
    place.publish("0")
    lost = 0
    with place.daemon():
        place.begin()
        for turn in range(TURNS):
            place.namespace.run("mount", "-o", "remount,ro", place.world.mount)
            place.namespace.run("mount", "-o", "remount,rw", place.world.mount)
            place.publish(f"writable {turn}")
            lost += place.arrived()
            place.namespace.run("mount", "-o", "remount,ro", place.world.mount)
    verdict(place, lost, count)


def test_started_on_a_read_only_mount(place: Place, count: Callable[[str], None]) -> None:
    """As in a pod: the daemon's own view is read-only, the driver's is not."""
    place.mount()
    place.publish("0")
    pod = f"{place.world.directory}/pod"
    os.mkdir(pod)
    place.namespace.run("mount", "--bind", place.world.mount, pod)
    place.namespace.run("mount", "-o", "remount,bind,ro", pod)
    driver, place.world.mount = place.world.mount, pod
    place.world.map(*NAMES)
    lost = 0
    with place.daemon():
        place.begin()
        for turn in range(TURNS):
            place.publish(f"driver {turn}", at=driver)
            lost += place.arrived()
    verdict(place, lost, count)


def test_replaced_by_another_file_system(place: Place, count: Callable[[str], None]) -> None:
    """What is mounted over a mount counts at once, and so does what comes to light below it."""
    place.mount()
    place.publish("below")
    below = place.world.values
    lost = 0
    with place.daemon():
        place.begin()
        for turn in range(TURNS // 2):
            ready = f"{place.world.directory}/ready"
            os.makedirs(ready, exist_ok=True)
            place.mount(at=ready)
            place.publish(f"above {turn}", at=ready)
            place.namespace.run("mount", "--move", ready, place.world.mount)
            lost += place.arrived()
            place.umount()
            place.world.values = below
            lost += place.arrived()
    verdict(place, lost, count)


def test_bound_into_another_namespace(place: Place, count: Callable[[str], None]) -> None:
    """A pod's view: another mount namespace, where the directory is bound to another place.

    The publisher is in the first namespace; inotify reports it in the second.
    """
    place.mount()
    place.publish("0")
    pod_path = f"{place.world.directory}/pod"
    os.mkdir(pod_path)
    with MountNamespace(place.namespace) as pod:
        pod.run("mount", "--bind", place.world.mount, pod_path)
        pod.run("umount", place.world.mount)
        outside, place.world.mount = place.world.mount, pod_path
        place.world.map(*NAMES)
        lost = 0
        with place.world.daemon(wrapper=pod.wrapper) as daemon:
            place.begin()
            hints = len(daemon.logged("mount.scanned", reason="inotify"))
            for turn in range(TURNS):
                place.publish(f"outside {turn}", at=outside)
                lost += place.arrived()
            assert len(daemon.logged("mount.scanned", reason="inotify")) > hints
    verdict(place, lost, count)


def test_a_mount_that_does_not_return(place: Place, count: Callable[[str], None]) -> None:
    """After the grace period the secrets of a mount that stays away are removed, once each."""
    place.mount()
    place.publish("0")
    place.world.configure(
        consumers=[hook(place.books)], watch={"rescan_interval": "1h", "remount_grace": "300ms"}
    )
    with place.daemon():
        place.begin()
        place.umount()
        place.books.wait(len(NAMES))
    count(f"removed {place.books.removed} of {len(NAMES)}, events {place.books.received}")
    assert place.books.removed == place.books.received == len(NAMES)
