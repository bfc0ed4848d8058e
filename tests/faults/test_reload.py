"""A reload on a full disk: changes during it are delivered once there is space again."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.faults import hook, is_root
from support.receiver import Receiver
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not is_root(), reason="mounting takes root")


@pytest.fixture
def world() -> Iterator[World]:
    """A world whose state directory is a small file system of its own."""
    with World() as world:
        os.makedirs(world.state)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "t", world.state], check=True)
        try:
            yield world
        finally:
            for daemon in world.daemons:
                daemon.kill()
            subprocess.run(["umount", world.state], check=True)


def test_a_reload_while_the_disk_is_full(world: World) -> None:
    """Neither a change nor SIGHUP ends the daemon; with room, every consumer gets everything."""
    world.publish(a=secret("1"))
    world.map("a")
    with Receiver() as receiver, Receiver() as second:
        world.configure(consumers=[hook(receiver), hook(second, "second")])
        with world.daemon() as daemon:
            filler = os.open(f"{world.state}/filler", os.O_CREAT | os.O_WRONLY)
            try:
                while os.write(filler, bytes(4096)):
                    pass
            except OSError:
                pass
            names = [f"n{number}" for number in range(200)]
            world.publish({name: secret(name) for name in [*names, "a"]})
            world.map("a", *names)
            daemon.wait_for("ledger.unusable")
            world.configure(consumers=[hook(receiver)])
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("daemon.ready", 2)
            os.ftruncate(filler, 0)
            os.close(filler)
            daemon.wait_for("ledger.recovered")
            receiver.wait(202)
            assert daemon.stop() == 0
    delivered = {event["subject"] for request in receiver.requests for event in request.events}
    assert delivered == {"a", *names, world.vault_config}
