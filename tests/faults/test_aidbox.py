"""The gap that a hard cut-over leaves, by the clock on the wall: Aidbox's cache lives for 30 s."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from support.aidbox_clients import Load, box, consumer
from support.aidbox_server import TTL
from support.waiting import DEADLINE
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("actions", [("drop_cache", "verify"), ("verify",)])
def test_the_gap(actions: tuple[str, ...], count: Callable[[str], None]) -> None:
    """From the swap until every replica has dropped the old value and taken the new one."""
    old, new = secret("0"), secret("1")
    with World() as world:
        world.publish(app=old)
        world.map("app")
        with box(world, replicas=3) as aidbox:
            world.configure(consumers=[consumer(world, aidbox, *actions)])
            with world.daemon() as daemon, Load(aidbox.urls, old, new) as load:
                load.run_up()
                swapped = time.monotonic()
                world.publish(app=new)
                load.wait_for_switch(within=TTL + DEADLINE)
                refused = max(load.refused.values()) - swapped
                accepted = max(load.accepted.values()) - swapped
                took = daemon.wait_for("adoption.adopted", secret="app")["took"]
    count(
        f"with {' and '.join(actions)} the old value was refused everywhere after {refused:.3f} s, "
        f"the new one accepted after {accepted:.3f} s, adoption proved after {took:.3f} s"
    )
    if "drop_cache" in actions:
        assert accepted < TTL / 2
    else:
        assert accepted > TTL / 2  # whatever was cached last, was so while all were running up
