"""Publishers of every kind: as fast as they can, and files written in every wrong way in place."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support.faults import Books, cpu_seconds, expected, hook, scaled
from support.mount import swapping
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable

GENERATIONS = scaled(100, 1000)
"""How many are announced before the publisher stops."""

SECRETS = 20
TURNS = scaled(2, 50)
MOST_CPU = 0.75
"""Of a core: a scan takes at most half of the time, delivery and log need the rest."""


def test_swaps_at_full_speed(world: World, books: Books, count: Callable[[str], None]) -> None:
    """While a publisher swaps as fast as it can, no two generations mix and the load is bounded.

    Every generation holds one number in all of its files, so all events of one time must tell of
    all secrets, and of versions that one number gives.
    """
    names = [f"s{number}" for number in range(SECRETS)]
    world.publish(dict.fromkeys(names, b"start"))
    world.map(*names)
    world.configure(consumers=[hook(books, max_batch=1000)], watch={"settle": "50ms"})
    with world.daemon(SYNCD_LOG_LEVEL="info") as daemon:
        books.start_from(expected(world))
        begun, used = time.monotonic(), cpu_seconds(daemon.pid)
        with swapping(world.mount, names):
            wait_until(
                lambda: len(announced(books)) >= GENERATIONS,
                lambda: f"{len(announced(books))} of {GENERATIONS} generations",
                DEADLINE + GENERATIONS,
            )
        took = time.monotonic() - begun
        share = (cpu_seconds(daemon.pid) - used) / took
        with open(f"{world.mount}/s0", "rb") as file:
            swaps = int(file.read())
        world.publish(dict.fromkeys(names, b"end"))
        books.wait_for_state(expected(world))
        generations = announced(books)
        numbers = version_numbers(world, names, swaps + 1000)
    mixed = [
        time
        for time, batch in generations.items()
        if len({numbers.get((name, version)) for name, version in batch.items()}) != 1
    ]
    count(
        f"mixed 0 of {len(generations)} generations seen, swaps {swaps} in {took:.0f} s, "
        f"processor {share:.0%}, lost {len(books.lost(expected(world)))} of {SECRETS}"
        if not mixed
        else f"mixed {len(mixed)} of {len(generations)}"
    )
    assert mixed == []
    assert share < MOST_CPU


def announced(books: Books) -> dict[str, dict[str, str]]:
    """Versions by secret, by the time of the events."""
    generations: dict[str, dict[str, str]] = {}
    for request in list(books.requests):
        for event in request.events:
            batch = generations.setdefault(event["time"], {})
            batch[event["subject"]] = event["data"]["version"]
    return generations


def version_numbers(world: World, names: list[str], most: int) -> dict[tuple[str, str], bytes]:
    """Which content a version stands for."""
    contents = [b"start", b"end", *(b"%d" % number for number in range(most))]
    return {
        (name, version): content
        for content in contents
        for name, version in expected(world, dict.fromkeys(names, content)).items()
    }


def in_steps(path: str, value: bytes, hesitate: Callable[[], None]) -> None:
    """Writes byte by byte over what is there."""
    with open(path, "wb", buffering=0) as file:
        for number, byte in enumerate(value):
            file.write(bytes([byte]))
            if number % 4 == 0:
                hesitate()


def truncated_then_filled(path: str, value: bytes, hesitate: Callable[[], None]) -> None:
    """Empties the file, and writes everything at once, but later."""
    os.truncate(path, 0)
    hesitate()
    with open(path, "r+b", buffering=0) as file:
        file.write(value)


def in_halves(path: str, value: bytes, hesitate: Callable[[], None]) -> None:
    """Stops in mid-file for longer than the settle time, and keeps it open."""
    with open(path, "wb", buffering=0) as file:
        file.write(value[:4])
        hesitate()
        hesitate()
        file.write(value[4:])


def over_zeros(path: str, value: bytes, hesitate: Callable[[], None]) -> None:
    """Makes room first, so that the file is full of zeros, and fills it then."""
    with open(path, "wb", buffering=0) as file:
        file.truncate(len(value))
        hesitate()
        file.write(value)


def renamed(path: str, value: bytes, hesitate: Callable[[], None]) -> None:
    """Writes beside it and puts it in its place."""
    with open(f"{path}.new", "wb", buffering=0) as file:
        file.write(value)
    hesitate()
    os.rename(f"{path}.new", path)


def linked(path: str, value: bytes, hesitate: Callable[[], None]) -> None:
    """Puts a hard link of another name in its place."""
    with open(f"{path}.linked", "wb", buffering=0) as file:
        file.write(value)
    os.link(f"{path}.linked", f"{path}.new")
    hesitate()
    os.rename(f"{path}.new", path)
    os.unlink(f"{path}.linked")


@pytest.mark.parametrize(
    "write", [in_steps, truncated_then_filled, in_halves, over_zeros, renamed, linked]
)
def test_written_in_place(
    world: World,
    books: Books,
    count: Callable[[str], None],
    write: Callable[[str, bytes, Callable[[], None]], None],
) -> None:
    """Whatever way a file is written, it is announced once, when it is whole."""
    plain(world, a=secret("0"), b=secret("0"))
    world.configure(consumers=[hook(books)], watch={"settle": "20ms"})
    legitimate: set[str] = set()
    hesitation = threading.Event()
    with world.daemon():
        books.start_from(expected(world))
        for turn in range(TURNS):
            value = secret(f"{turn:04}")[-12:]
            world.values["a"] = value
            legitimate.add(expected(world)["a"])
            # longer than the settle time: this is the writer's pace, nothing is waited for
            write(f"{world.mount}/a", value, lambda: void(hesitation.wait(0.06)))
            books.wait_for_state(expected(world))
        fence(world, books)
    false, torn = books.received - TURNS - 1, books.versions["a"] - legitimate
    count(f"false events {false}, torn contents {len(torn)}, of {TURNS} changes")
    assert (false, torn, books.removed) == (0, set(), 0)


def chmod(path: str, turn: int) -> None:
    os.chmod(path, 0o640 if turn % 2 else 0o644)


def older(path: str, turn: int) -> None:
    """Sets the modification time backwards."""
    os.utime(path, (1_600_000_000 - turn, 1_600_000_000 - turn))


def newer(path: str, turn: int) -> None:
    """Sets the modification time to the future."""
    os.utime(path, (4_000_000_000 + turn, 4_000_000_000 + turn))


def same_in_place(path: str, turn: int) -> None:
    """Writes what is there over what is there."""
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb", buffering=0) as file:
        file.write(content)


def same_renamed(path: str, turn: int) -> None:
    """Puts another file with the same content in its place."""
    with open(path, "rb") as file, open(f"{path}.new", "wb") as new:
        new.write(file.read())
    os.rename(f"{path}.new", path)


def another_link(path: str, turn: int) -> None:
    """Gives the file one more name."""
    os.link(path, f"{path}.{turn}")


def renamed_away_and_back(path: str, turn: int) -> None:
    """Exchanges the file with a copy that is the same."""
    os.link(path, f"{path}.spare")
    os.rename(f"{path}.spare", path)
    os.unlink(f"{path}.spare")  # a rename between two names of one file does nothing


UNNOTICED = {another_link, renamed_away_and_back}
"""What does nothing to the name of the secret starts no scan; the fence's one looks at it."""


@pytest.mark.parametrize(
    "touch", [chmod, older, newer, same_in_place, same_renamed, another_link, renamed_away_and_back]
)
def test_touched_and_not_changed(
    world: World,
    books: Books,
    count: Callable[[str], None],
    touch: Callable[[str, int], None],
) -> None:
    """What leaves the content as it is makes no event, whatever else it does to the file."""
    plain(world, a=secret("0"), b=secret("0"))
    world.configure(consumers=[hook(books)], watch={"settle": "20ms"})
    with world.daemon() as daemon:
        books.start_from(expected(world))
        for turn in range(TURNS * 5):
            scanned = len(daemon.logged("mount.scanned"))
            touch(f"{world.mount}/a", turn)
            if touch not in UNNOTICED:
                daemon.wait_for("mount.scanned", scanned + 1)
        fence(world, books)
        looked = len(daemon.logged("mount.scanned"))
    count(f"false events {books.received - 1}, of {TURNS * 5} times touched, scans {looked}")
    assert books.received == 1


def plain(world: World, **values: bytes) -> None:
    """Plain files, without a publisher."""
    for name, value in values.items():
        world.write_plain(name, value)
    world.values = values
    world.map(*values)


def fence(world: World, books: Books) -> None:
    """One more change, of another secret: what comes before it has been announced by then."""
    world.write_plain("b", secret("fence"))
    world.values["b"] = secret("fence")
    books.wait_for_state(expected(world))


def void(_: object) -> None:
    """Discards a result."""
