"""Killed at any moment, again and again, while secrets rotate: everything arrives in the end."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

from support.faults import Books, Rotation, expected, hook, scaled
from support.receiver import reply
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable

KILLS = scaled(10, 300)
SECRETS = 50


def test_kill_at_any_moment(count: Callable[[str], None]) -> None:
    """After kills at random moments every consumer's last events tell the state of the mount.

    Moments lie between the start of the interpreter and a second of work. One consumer takes
    everything, one refuses a part for a while, one takes batches over a Unix socket.
    """
    rng = random.Random(20)
    with World() as world:
        socket = f"{world.directory}/consumer.sock"
        with Books() as steady, Books() as moody, Books(unix=socket) as batched:
            consumers = [
                hook(steady, "steady"),
                hook(moody, "moody"),
                hook(batched, "batched", socket=socket, max_batch=20),
            ]
            receivers = (steady, moody, batched)
            world.publish({f"s{number}": secret("0") for number in range(SECRETS)})
            world.map(*world.values)
            world.configure(consumers=consumers)
            with world.daemon():
                for books in receivers:
                    books.start_from(expected(world))
            daemon = world.daemon(ready=False)
            moment = threading.Event()
            with Rotation(world, pause=0.02) as rotation:
                for _ in range(KILLS):
                    moody.script(*(reply(503) for _ in range(rng.randint(0, 2))))
                    daemon.start()
                    moment.wait(rng.uniform(0.0, 1.2))  # the moment itself, nothing is waited for
                    daemon.kill()
            moody.recover()  # else what daemons left over that were killed early is a long backoff
            with world.daemon():
                for books in receivers:
                    books.wait_for_state(expected(world))
            lost = sum(len(books.lost(expected(world))) for books in receivers)
            disordered = sum(books.disordered for books in receivers)
            removed = sum(books.removed for books in receivers)
            received = sum(books.received for books in receivers)
    count(
        f"lost {lost} of {SECRETS * len(receivers)}, kills {KILLS}, swaps {rotation.swaps}, "
        f"events {received}, out of order {disordered}, false removals {removed}"
    )
    assert (lost, disordered, removed) == (0, 0, 0)
    assert received > SECRETS
