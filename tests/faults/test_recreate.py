"""Destinations of Aidbox are recreated while syncd is killed and events are published."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

from support.aidbox_destinations import (
    DESTINATIONS,
    TYPE,
    Traffic,
    destination,
    prepare,
    recreating,
    serve,
    stored,
    value,
    wait_for_values,
)
from support.faults import scaled
from support.waiting import DEADLINE, wait_until
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

ROTATIONS = scaled(3, 50)
KILLS = scaled(6, 100)
SLOW = 0.05
"""Seconds that a POST takes, so that kills come between it and the DELETE before it."""


def test_killed_at_any_moment(count: Callable[[str], None]) -> None:
    """All destinations come back as they were, with the newest secret, and no event is lost.

    A rotation changes some of twelve secrets. Kills come while the interpreter starts and within a
    second of work, so before, between and after every step.
    """
    rng = random.Random(18)
    names = [f"d{number}" for number in range(DESTINATIONS)]
    with World() as world:
        prepare(world)
        with serve(world, *map(destination, range(DESTINATIONS)), slow=SLOW) as aidbox:
            before = stored(aidbox)
            world.configure(consumers=[recreating(world, aidbox, "drop_cache")])
            with world.daemon():
                pass  # the baseline
            daemon, moment = world.daemon(ready=False), threading.Event()
            generation = unfinished = missing = 0
            with Traffic(aidbox):
                for kill in range(KILLS):
                    if kill * ROTATIONS // KILLS == generation:
                        generation += 1
                        some = rng.sample(names, rng.randint(1, DESTINATIONS))
                        world.publish({name: value(generation) for name in some})
                    daemon.log.clear()
                    daemon.start()
                    if kill % 4:
                        daemon.wait_for("daemon.ready")
                    moment.wait(rng.uniform(0.0, 1.0))  # the moment itself
                    daemon.kill()
                    found = stored(aidbox)
                    unfinished += found != before
                    missing += not before.keys() <= found.keys()
                with world.daemon():
                    generation += 1
                    world.publish({name: value(generation) for name in names})
                    wait_for_values(aidbox, names, value(generation))
                    wait_until(lambda: stored(aidbox) == before, within=2 * DEADLINE)
            wait_until(lambda: not any(aidbox.queued(name) for name in names))
            deleted = sum(
                request["method"] == "DELETE"
                for name in names
                for request in aidbox.requests(f"/fhir/{TYPE}/{name}")
            )
            lost, published = aidbox.lost, aidbox.published
    count(
        f"lost {lost} of {published} events, kills {KILLS}, {unfinished} of them with a stand-in, "
        f"{missing} with a destination missing, rotations {generation}, recreated {deleted}"
    )
    assert lost == 0
    assert published > ROTATIONS
    assert deleted >= DESTINATIONS
