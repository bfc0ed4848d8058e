"""The state directory fails in every way it can: refused in one line, or rebuilt and said; no loss.

A silent loss would be a change that no consumer gets while the daemon reports no problem.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from support.faults import SOAK, Books, MountNamespace, expected, hook, is_root, scaled
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from support.world import DaemonProcess

SECRETS = 20
PAGE = 4096
REFUSED = 1
needs_root = pytest.mark.skipif(not is_root(), reason="mounting needs root")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish({f"s{number}": secret("0") for number in range(SECRETS)})
        world.map(*world.values)
        yield world


@pytest.fixture
def books(world: World) -> Iterator[Books]:
    with Books() as books:
        world.configure(consumers=[hook(books)])
        yield books


def rotate(world: World, mark: str) -> None:
    """Rotates every secret in one swap."""
    world.publish({name: secret(f"{mark}-{name}") for name in world.values})


def lost(world: World, books: Books) -> int:
    """Waits for the state of the mount; how many secrets are lost."""
    books.wait_for_state(expected(world))
    return len(books.lost(expected(world)))


def refusal(world: World, wrapper: Sequence[str] = ()) -> str:
    """Starts a daemon that must refuse to run; the line that says why."""
    daemon = world.daemon(ready=False, wrapper=wrapper).start()
    assert daemon.wait_for_end() == REFUSED, "".join(daemon.output)
    daemon.kill()
    assert len(daemon.output) == 1, "".join(daemon.output)
    assert daemon.output[0].startswith("syncd: cannot ")
    return daemon.output[0]


@contextlib.contextmanager
def small_disk(world: World, mib: int = 1) -> Iterator[MountNamespace]:
    """A namespace where the state directory is a file system of its own, of few MiB."""
    os.makedirs(world.state)
    with MountNamespace() as namespace:
        namespace.run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", world.state)
        yield namespace


@contextlib.contextmanager
def filled(directory: str) -> Iterator[None]:
    """Leaves no room in a file system while the block runs."""
    with open(f"{directory}/filler", "wb", buffering=0) as filler:
        with contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * PAGE)
        yield
    os.unlink(f"{directory}/filler")


@needs_root
def test_full(world: World, books: Books, count: Callable[[str], None]) -> None:
    """While the disk is full it says so and announces nothing it could forget; then everything."""
    total = 0
    with small_disk(world) as namespace:
        state = namespace.path(world.state)
        with world.daemon(wrapper=namespace.wrapper) as daemon:
            shutil.copy(f"{state}/fingerprint.key", world.state)  # for `expected`, outside
            books.start_from(expected(world))
            for turn in range(scaled(2, 30)):
                with filled(state):
                    swaps = 0
                    while len(daemon.logged("ledger.unusable")) <= turn:
                        swaps += 1
                        assert swaps < 1000, "the disk is not full"
                        scans = len(daemon.logged("mount.scanned"))
                        rotate(world, f"full-{turn}-{swaps}")
                        wait_until(
                            lambda scans=scans, turn=turn: (  # type: ignore[misc] # bound in the loop
                                len(daemon.logged("mount.scanned")) > scans
                                or len(daemon.logged("ledger.unusable")) > turn
                            ),
                            "no scan",
                        )
                    total += swaps
                daemon.wait_for("ledger.recovered", turn + 1)
                missing = lost(world, books)
        with filled(state):
            told = refusal(world, namespace.wrapper) if not starts(world, namespace) else "started"
    count(
        f"lost {missing} of {SECRETS}, disk full {scaled(2, 30)} times, swaps {total}, "
        f"out of order {books.disordered}, false removals {books.removed}; start when full: "
        f"{told.strip().rpartition('; ')[0] or told}"
    )
    assert (missing, books.disordered, books.removed) == (0, 0, 0)
    assert told == "started" or "the disk is full" in told


@needs_root
@pytest.mark.parametrize("mib", [1, 2, 6] if SOAK else [1])
def test_filled_by_the_ledger_itself(
    world: World, books: Books, count: Callable[[str], None], mib: int
) -> None:
    """A log that has taken the last of the room is emptied, and pruning gives room back."""
    log: dict[str, Any] = {"prune_interval": 0.05}
    world.configure(consumers=[hook(books)], event_log=log)
    with small_disk(world, mib) as namespace, world.daemon(wrapper=namespace.wrapper) as daemon:
        shutil.copy(f"{namespace.path(world.state)}/fingerprint.key", world.state)
        books.start_from(expected(world))
        swaps = 0
        while not daemon.logged("ledger.unusable"):
            swaps += 1
            scans = len(daemon.logged("mount.scanned"))
            rotate(world, f"filled-{swaps}")
            wait_until(
                lambda scans=scans: (  # type: ignore[misc] # bound in the loop
                    len(daemon.logged("mount.scanned")) > scans or daemon.logged("ledger.unusable")
                ),
                "no scan",
            )
        assert "the disk is full" in daemon.logged("ledger.unusable")[0]["problem"]
        world.configure(consumers=[hook(books)], event_log={**log, "max_events": SECRETS})
        daemon.signal(signal.SIGHUP)
        missing = lost(world, books)
        rotate(world, "after")
        missing += lost(world, books)
    count(f"lost {missing} of {SECRETS}, swaps until {mib} MiB were full {swaps}")
    assert (missing, books.disordered, books.removed) == (0, 0, 0)


def starts(world: World, namespace: MountNamespace) -> bool:
    """Whether a daemon starts on a full disk: it may, where its files have room to spare."""
    daemon = world.daemon(ready=False, wrapper=namespace.wrapper).start()
    ready = is_ready(daemon)
    daemon.kill()
    return ready


def is_ready(daemon: DaemonProcess) -> bool:
    """Waits until a daemon is ready or has ended; whether it is ready."""
    wait_until(lambda: daemon.logged("daemon.ready") or daemon.over, "neither starts nor ends")
    return bool(daemon.logged("daemon.ready"))


@needs_root
def test_read_only(world: World, books: Books, count: Callable[[str], None]) -> None:
    """A state directory that turned read-only is refused; what changed meanwhile arrives later."""
    missing = 0
    with small_disk(world) as namespace:
        with world.daemon(wrapper=namespace.wrapper):
            shutil.copy(f"{namespace.path(world.state)}/fingerprint.key", world.state)
            books.start_from(expected(world))
        for turn in range(scaled(1, 20)):
            namespace.run("mount", "-o", "remount,ro", world.state)
            rotate(world, f"read-only-{turn}")
            assert "Read-only file system" in refusal(world, namespace.wrapper)
            namespace.run("mount", "-o", "remount,rw", world.state)
            with world.daemon(wrapper=namespace.wrapper):
                missing += lost(world, books)
    total = scaled(1, 20) * SECRETS
    count(f"lost {missing} of {total}, refused {scaled(1, 20)}, events {books.received}")
    assert (missing, books.received, books.removed) == (0, total, 0)


def garbage(path: str, rng: random.Random) -> None:
    """Overwrites the file with noise."""
    with open(path, "wb") as file:
        file.write(rng.randbytes(5 * PAGE))


def truncated(path: str, rng: random.Random) -> None:
    """Cuts it off in the middle."""
    os.truncate(path, rng.randrange(1, os.path.getsize(path)))


def emptied(path: str, rng: random.Random) -> None:
    """Leaves nothing of it."""
    os.truncate(path, 0)


def zeroed(path: str, rng: random.Random) -> None:
    """Zeroes a page, as some file systems do after a power cut."""
    overwrite(path, rng, bytes(PAGE))


def noisy(path: str, rng: random.Random) -> None:
    """Overwrites a page with noise."""
    overwrite(path, rng, rng.randbytes(PAGE))


def overwrite(path: str, rng: random.Random, page: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(rng.randrange(os.path.getsize(path) // PAGE) * PAGE)
        file.write(page)


def other_schema(path: str, rng: random.Random) -> None:
    """Takes a table away."""
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        ledger.execute("DROP TABLE pending")
        ledger.commit()


@pytest.mark.parametrize("damage", [garbage, truncated, emptied, zeroed, noisy, other_schema])
def test_corrupted(
    world: World,
    books: Books,
    count: Callable[[str], None],
    damage: Callable[[str, random.Random], None],
) -> None:
    """A damaged ledger is set aside, and a new baseline is begun, at level error; or no harm done.

    Either way what changes from then on arrives. A change of the time before is either delivered,
    or the log says that the ledger was rebuilt. A daemon that finds the damage later ends, and is
    started again.
    """
    rng = random.Random(8)
    rebuilt = silent = after = late = 0
    turns = scaled(1, 40)
    for turn in range(turns):
        with world.daemon() as daemon:
            late += deliver(world, books, daemon, f"before-{turn}") + is_damaged_at_last(daemon)
        rotate(world, f"away-{turn}")
        damage(f"{world.state}/ledger.sqlite3", rng)
        with world.daemon(ready=False) as daemon:
            if not is_ready(daemon):
                revive(daemon)
            elif not daemon.logged("ledger.rebuilt"):
                if arrives(world, books, daemon):
                    silent += len(books.lost(expected(world)))
                else:
                    late += 1
                    revive(daemon)
            if said := daemon.logged("ledger.rebuilt"):
                rebuilt += 1
                assert said[0]["level"] == "error"
                assert os.path.exists(f"{world.state}/ledger.sqlite3.set-aside")
            late += deliver(world, books, daemon, f"after-{turn}") + is_damaged_at_last(daemon)
            after += len(books.lost(expected(world)))
    count(
        f"silently lost {silent}, lost afterwards {after} of {turns * SECRETS}, rebuilt and said "
        f"{rebuilt} of {turns}, found later {late}, false removals {books.removed}"
    )
    assert (silent, after, books.removed) == (0, 0, 0)
    assert rebuilt > 0


def test_damage_that_shows_late(world: World, books: Books, count: Callable[[str], None]) -> None:
    """A daemon that is ready ends with the reason when it meets the damage; its start rebuilds."""
    with world.daemon():
        books.start_from(expected(world))
        rotate(world, "before")
        lost(world, books)
    path = f"{world.state}/ledger.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        (root,) = ledger.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'pending_event'"
        ).fetchone()
    with open(path, "r+b") as file:
        file.seek((root - 1) * PAGE)
        file.write(bytes(PAGE))
    with world.daemon() as daemon:
        assert deliver(world, books, daemon, "after")
        missing = len(books.lost(expected(world)))
    count(f"lost {missing} of {SECRETS}, false removals {books.removed}")
    assert (missing, books.removed) == (0, 0)


def deliver(world: World, books: Books, daemon: DaemonProcess, mark: str) -> bool:
    """Rotates everything, and again if the daemon ends before it has arrived; whether it did."""
    books.start_from(expected(world))
    rotate(world, mark)
    if arrives(world, books, daemon):
        return False
    revive(daemon)
    books.start_from(expected(world))
    rotate(world, f"{mark}, again")
    assert arrives(world, books, daemon)
    return True


def arrives(world: World, books: Books, daemon: DaemonProcess) -> bool:
    """Waits for the state of the mount; False if the daemon ends instead."""
    wait_until(lambda: daemon.over or not books.lost(expected(world)), "lost, and not said")
    return not daemon.over


def revive(daemon: DaemonProcess) -> None:
    """Starts a daemon again that has ended by itself: the ledger is rebuilt then."""
    assert daemon.wait_for_end() == REFUSED
    require_reason(daemon)
    starts, rebuilt = (len(daemon.logged(it)) for it in ("daemon.ready", "ledger.rebuilt"))
    daemon.kill()
    daemon.start()
    daemon.wait_for("daemon.ready", starts + 1)
    daemon.wait_for("ledger.rebuilt", rebuilt + 1)


def is_damaged_at_last(daemon: DaemonProcess) -> bool:
    """Stops a daemon; whether it found the damage meanwhile, after everything had arrived."""
    code = daemon.stop()
    daemon.kill()  # no more is to be checked at the end of the block
    if code == 0:
        return False
    assert code == REFUSED
    require_reason(daemon)
    return True


def require_reason(daemon: DaemonProcess) -> None:
    """Requires that each end, of which this is the last one, was said in one line of its own."""
    is_reason = [line[0] != "{" for line in daemon.output]
    assert is_reason[-1]
    assert (True, True) not in itertools.pairwise(is_reason)
    for line in itertools.compress(daemon.output, is_reason):
        assert line.startswith("syncd: cannot ")
        assert "it is damaged" in line


def test_newer_version(world: World, books: Books, count: Callable[[str], None]) -> None:
    """What a newer syncd wrote is left as it is, byte by byte; it goes on when that is back."""
    with world.daemon():
        books.start_from(expected(world))
    path = f"{world.state}/ledger.sqlite3"
    version = set_version(path, 99)
    with open(path, "rb") as file:
        before = file.read()
    rotate(world, "meanwhile")
    assert "newer syncd" in refusal(world)
    with open(path, "rb") as file:
        touched = file.read() != before
    set_version(path, version)
    with world.daemon():
        missing = lost(world, books)
    count(f"lost {missing} of {SECRETS}, refused 1, ledger touched {int(touched)}")
    assert (missing, touched) == (0, False)


def set_version(path: str, version: int) -> int:
    """Sets the version of the schema; the one before."""
    with contextlib.closing(sqlite3.connect(path, timeout=DEADLINE)) as ledger:
        (before,) = ledger.execute("PRAGMA user_version").fetchone()
        ledger.execute(f"PRAGMA user_version = {version}")
        ledger.commit()
    return int(before)
