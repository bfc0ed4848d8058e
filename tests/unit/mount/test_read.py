"""Snapshots of real mounts: one generation, no file outside, nothing half-written, no false end."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support.mount import publish
from support.waiting import DEADLINE

from syncd.config.settings import Watch
from syncd.core.decode import Size
from syncd.core.model import Entry, Observation, Scope, State
from syncd.mount import file_reader, lookup, root_scan
from syncd.mount.read import Reader
from syncd.mount.roots import home_of
from syncd.mount.way import Watched, follow
from syncd.system import beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from syncd.mount.snapshot import Snapshot

KEY = b"k" * 32
GRACE = 30.0
SETTLE = 0.05
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    path = tmp_path / "mount"
    path.mkdir()
    return path


def entries(root: Path, *names: str) -> dict[str, Entry]:
    return {name: Entry(name, str(root / name), (Scope("Client", "c"),)) for name in names}


class Looker:
    """A reader of some roots, and a monotonic clock that stands still unless told.

    Args:
        roots: The boundary.
        settle: As in the configuration.
        max_size: As in the configuration.
    """

    def __init__(self, *roots: Path | str, settle: float = SETTLE, max_size: int = 1000) -> None:
        watch = Watch(roots=tuple(map(str, roots)), max_secret_size=Size(max_size))
        self.settle = settle
        self.reader = Reader(KEY, watch, settle=settle, grace=GRACE)
        self.monotonic = 1000.0

    def look(self, wanted: dict[str, Entry], *, writers: Iterable[str] = ()) -> Snapshot:
        """One scan."""
        return self.reader.scan(
            wanted,
            clock=lambda: self.monotonic,
            is_written=frozenset(writers).__contains__,
        )

    def scan(self, wanted: dict[str, Entry], *, writers: Iterable[str] = ()) -> Snapshot:
        """A second scan, `settle` after the first one, so that plain files are at rest."""
        self.look(wanted, writers=writers)
        self.monotonic += self.settle
        try:
            return self.look(wanted, writers=writers)
        finally:
            self.monotonic -= self.settle

    def version(self, name: str, content: bytes) -> str:
        return self.reader.fingerprint(name, content)


def brief(seen: Observation) -> tuple[State, bool]:
    return seen.state, seen.settled


PRESENT, MISSING = (State.PRESENT, True), (State.MISSING, True)
HELD, UNREADABLE = (State.MISSING, False), (State.UNREADABLE, True)
WRITTEN = (State.PRESENT, False)


# what is there


def test_a_generation_is_read_through_its_links(mount: Path) -> None:
    """Plain and nested names of an AtomicWriter mount are present at once, however young."""
    publish(mount, {"a": b"one", "db/user": b"two\n", "empty": b""})
    looker = Looker(mount)
    seen = looker.look(entries(mount, "a", "db/user", "empty", "none"))
    assert seen.observations["a"] == Observation(State.PRESENT, looker.version("a", b"one"))
    assert seen.observations["db/user"].version == looker.version("db/user", b"two\n")
    assert brief(seen.observations["empty"]) == PRESENT
    assert brief(seen.observations["none"]) == MISSING
    assert (seen.empty, seen.newline_ended) == (["empty"], ["db/user"])
    assert seen.world_readable == []
    assert seen.retry_in is None


def test_a_version_is_keyed_and_bound_to_the_name(mount: Path) -> None:
    """Equal contents of two secrets, or under two keys, have nothing in common."""
    publish(mount, {"a": b"same", "b": b"same"})
    looker = Looker(mount)
    seen = looker.scan(entries(mount, "a", "b")).observations
    assert seen["a"].version != seen["b"].version
    other = Reader(b"o" * 32, Watch(), settle=0, grace=0)
    assert other.fingerprint("a", b"same") != seen["a"].version


def test_only_content_that_is_taken_is_seen(mount: Path) -> None:
    """Half of a certificate would be called malformed."""
    (mount / "a").write_bytes(b"half")
    looker, shown = Looker(mount), []
    looker.reader = Reader(
        KEY, Watch(), settle=looker.settle, grace=GRACE, see=lambda *seen: shown.append(seen)
    )
    assert brief(looker.look(entries(mount, "a")).observations["a"]) == WRITTEN
    assert shown == []
    (mount / "a").write_bytes(b"whole")
    looker.scan(entries(mount, "a"))
    assert shown == [("a", looker.version("a", b"whole"), b"whole")]


def test_a_scan_keeps_the_key_that_it_began_with(mount: Path) -> None:
    """Else a version under the new key would be compared with one under the old."""
    publish(mount, {"a": b"same"})
    looker = Looker(mount)
    before = looker.version("a", b"same")
    located, _ = looker.reader.locate(entries(mount, "a"))
    (members,) = located.values()
    scan = looker.reader.root_scan(members, known=lambda _: before)
    looker.reader.use(b"n" * 32, (KEY,))
    assert scan.run().observations["a"].version == before
    seen = looker.reader.root_scan(members, known=lambda _: before).run().observations["a"]
    assert (seen.version, seen.former) == (looker.version("a", b"same"), before)
    assert seen.version != before


class TestAfterNothingButASwap:
    """The visible names need no second look, unless one was no link or the directory is another."""

    def look(self, looker: Looker, wanted: dict[str, Entry]) -> Callable[..., list[str | None]]:
        """A first scan; returns what makes further ones, and their versions."""
        (members,) = looker.reader.locate(wanted)[0].values()

        def versions(*, swapped: bool) -> list[str | None]:
            scan = looker.reader.root_scan(members, swapped=swapped)
            return [seen.version for seen in scan.run().observations.values()]

        versions(swapped=False)
        return versions

    def test_links_are_taken_as_they_were(self, mount: Path) -> None:
        """What replaced one gives a hint of its own; the next look finds it."""
        publish(mount, {"a": b"1", "b": b"1"})
        looker, wanted = Looker(mount), entries(mount, "a", "b")
        versions = self.look(looker, wanted)
        publish(mount, {"a": b"2", "b": b"2"})
        (mount / "a").unlink()
        (mount / "a").write_bytes(b"plain")
        both = [looker.version("a", b"2"), looker.version("b", b"2")]
        assert versions(swapped=True) == both
        assert versions(swapped=False) == [None, both[1]]
        assert versions(swapped=True) == [None, both[1]]

    def test_the_way_is_what_it_was(self, mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is not followed again, and what must be watched is the same; else it is."""
        publish(mount, {"a": b"1"})
        looker, followed = Looker(mount), []
        (members,) = looker.reader.locate(entries(mount, "a"))[0].values()

        def noted(path: str, watched: Watched) -> str:
            followed.append(path)
            return follow(path, watched)

        monkeypatch.setattr(root_scan, "follow", noted)
        first = looker.reader.root_scan(members).run().watched
        assert str(mount) in first.ways
        publish(mount, {"a": b"2"})
        assert looker.reader.root_scan(members, swapped=True).run().watched == first
        assert len(followed) == 1
        looker.reader.root_scan(members).run()
        assert len(followed) == 2

    def test_a_scan_that_was_given_up_takes_nothing_back(self, mount: Path) -> None:
        """It was held by a file system, and ends after a later one has seen that a link is none."""
        publish(mount, {"a": b"1"})
        looker, wanted = Looker(mount), entries(mount, "a")
        (members,) = looker.reader.locate(wanted)[0].values()
        held = looker.reader.root_scan(members)
        later = looker.reader.root_scan(members)
        held.run()
        assert members.root.linked is None
        later.run()
        assert members.root.linked is not None

    def test_another_directory_is_looked_at(self, mount: Path) -> None:
        """Its names are its own."""
        publish(mount, {"a": b"1"})
        looker, wanted = Looker(mount), entries(mount, "a")
        versions = self.look(looker, wanted)
        mount.rename(mount.with_name("former"))
        publish(mount, {"a": b"2"})
        (mount / "a").unlink()
        (mount / "a").write_bytes(b"plain")
        assert versions(swapped=True) == [None]

    def test_a_scan_that_found_no_generation_is_no_look(self, mount: Path) -> None:
        """What the names were before is not known to hold."""
        publish(mount, {"a": b"1"})
        looker, wanted = Looker(mount), entries(mount, "a")
        versions = self.look(looker, wanted)
        generation = os.readlink(mount / "..data")
        (mount / "..data").unlink()
        versions(swapped=False)
        (mount / "a").unlink()
        (mount / "a").write_bytes(b"plain")
        (mount / "..data").symlink_to(generation)
        assert versions(swapped=True) == [None]


def test_a_swap_while_the_generation_is_pinned(
    mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new generation counts as a whole, however young: its age is not told by the old link."""
    publish(mount, {"a": b"1", "b": b"1"})
    os.utime(mount / "..data", (1, 1), follow_symlinks=False)
    looker, left = Looker(mount), [True]
    read_link = lookup.link

    def swapped(directory: int, path: str) -> str | None:
        if left:
            left.clear()
            publish(mount, {"a": b"2", "b": b"2"})
        return read_link(directory, path)

    monkeypatch.setattr(root_scan, "link", swapped)
    seen = looker.look(entries(mount, "a", "b")).observations
    assert {brief(item) for item in seen.values()} == {PRESENT}
    assert seen["a"].version == looker.version("a", b"2")


def test_a_path_through_the_data_link_is_read_too(mount: Path) -> None:
    """A vault config may name `..data/a`, or a name whose link does not exist yet."""
    publish(mount, {"a": b"one", "b": b"two"})
    (mount / "b").unlink()
    seen = Looker(mount).look(entries(mount, "..data/a", "b"))
    assert [brief(o) for o in seen.observations.values()] == [PRESENT, PRESENT]


@pytest.mark.parametrize("hours", [-24, 0, 24])
def test_plain_files_are_read_when_at_rest(mount: Path, hours: int) -> None:
    """Two identical looks, `settle` apart, whatever the file server's clock says."""
    (mount / "a").write_bytes(b"one")
    at = (time.time() + hours * 3600,) * 2
    os.utime(mount / "a", at)
    looker, wanted = Looker(mount), entries(mount, "a")
    young = looker.look(wanted)
    assert brief(young.observations["a"]) == WRITTEN
    assert young.retry_in == SETTLE
    looker.monotonic += SETTLE / 2
    assert looker.look(wanted).retry_in == pytest.approx(SETTLE / 2)
    (mount / "a").write_bytes(b"two")
    os.utime(mount / "a", at)
    looker.monotonic += SETTLE / 2
    assert brief(looker.look(wanted).observations["a"]) == WRITTEN, "it is another content"
    looker.monotonic += SETTLE
    old = looker.look(wanted)
    assert old.observations["a"].version == looker.version("a", b"two")
    assert old.retry_in is None
    assert looker.look(wanted, writers=[str(mount / "a")]).retry_in is not None


def test_content_that_is_known_is_at_rest(mount: Path) -> None:
    """After a restart, only what differs from the inventory must be looked at twice."""
    (mount / "a").write_bytes(b"one")
    looker = Looker(mount)
    version = looker.version("a", b"one")
    seen = looker.reader.scan(entries(mount, "a"), known=lambda _name: version)
    assert seen.observations["a"] == Observation(State.PRESENT, version)


def test_a_file_that_is_open_for_writing_is_waited_for(mount: Path) -> None:
    """However long its writer pauses, up to a limit: some programs keep a file open for ever."""
    (mount / "a").write_bytes(b"half")
    looker, wanted = Looker(mount), entries(mount, "a")
    with (mount / "a").open("ab"):
        assert brief(looker.scan(wanted).observations["a"]) == WRITTEN
        looker.monotonic += file_reader.WRITER_LIMIT / 2
        assert brief(looker.look(wanted).observations["a"]) == WRITTEN
        looker.monotonic += file_reader.WRITER_LIMIT
        assert brief(looker.look(wanted).observations["a"]) == PRESENT


def test_a_file_of_a_generation_that_is_written_in_place_must_rest(mount: Path) -> None:
    """Truncated after publication, it is unsettled and then unreadable, never an empty secret."""
    publish(mount, {"a": b"one"})
    looker = Looker(mount)
    published = (mount / "..data").lstat().st_mtime_ns  # clocks of file systems tick slowly
    while (mount / "..data" / "a").stat().st_mtime_ns <= published:
        (mount / "a").write_bytes(b"")
    assert brief(looker.look(entries(mount, "a")).observations["a"]) == WRITTEN
    assert brief(looker.scan(entries(mount, "a")).observations["a"]) == UNREADABLE
    (mount / "a").write_bytes(b"two")
    assert brief(looker.scan(entries(mount, "a")).observations["a"]) == PRESENT


def test_what_changes_no_content_changes_no_version(mount: Path) -> None:
    """chmod, mtime set backwards, a hard link, the same content in a new file: the same version."""
    (mount / "a").write_bytes(b"one")
    looker = Looker(mount)

    def version() -> str | None:
        return looker.scan(entries(mount, "a")).observations["a"].version

    first = version()
    (mount / "a").chmod(0o640)
    assert version() == first
    os.utime(mount / "a", (1, 1))
    assert version() == first
    os.link(mount / "a", mount / "other")
    assert version() == first
    (mount / "new").write_bytes(b"one")
    os.replace(mount / "new", mount / "a")
    assert version() == first


# one entry alone is unreadable


def unreadable_kinds(root: Path) -> dict[str, str]:
    (root / "outside").symlink_to("/etc/hostname")
    (root / "dangling").symlink_to("nothing")
    (root / "loop").symlink_to("loop")
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo")
    (root / "large").write_bytes(b"x" * 1001)
    (root / "void").write_bytes(b"")
    (root / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    return {
        "outside": "leads outside",
        "dangling": "is a dangling symlink",
        "loop": "loop of symlinks",
        "directory": "a directory",
        "fifo": "a FIFO",
        "large": "larger than",
        "void": "is empty",
        "device": "leads outside",
        "socket": "a socket",
        "x" * 300: "cannot be read",
    }


@pytest.mark.parametrize("pinning", [False, True])
@pytest.mark.parametrize("atomic", [False, True])
def test_what_is_no_readable_file_spoils_that_entry_alone(
    mount: Path, monkeypatch: pytest.MonkeyPatch, *, atomic: bool, pinning: bool
) -> None:
    """Every kind of trouble is named, and the entry next to it goes on."""
    if pinning:
        monkeypatch.setattr(beneath, "_open", beneath._open_by_pinning)
    if atomic:
        publish(mount, {"good": b"good"})
    else:
        (mount / "good").write_bytes(b"good")
    reasons = unreadable_kinds(mount)
    looker = Looker(mount)
    seen = looker.scan(entries(mount, *reasons, "good")).observations
    for name, reason in reasons.items():
        assert brief(seen[name]) == UNREADABLE, name
        assert reason in (seen[name].problem or ""), name
    assert seen["good"].version == looker.version("good", b"good")


def test_an_entry_outside_all_roots_is_unreadable(mount: Path, tmp_path: Path) -> None:
    """The roots bind, whatever the vault config names, and by whatever link."""
    (tmp_path / "x").write_bytes(b"x")
    (mount / "door").symlink_to(tmp_path)
    wanted = entries(tmp_path, "x", "mount") | entries(mount, "door/x")
    for seen in Looker(mount).scan(wanted).observations.values():
        assert brief(seen) == UNREADABLE
        assert "outside the watch roots" in (seen.problem or "")


def test_roots_are_compared_by_their_real_paths(mount: Path, tmp_path: Path) -> None:
    """`/var/run` is `/run`, on either side; `//` and `..` are no other place."""
    publish(mount, {"a": b"one"})
    (mount / "plain").mkdir()
    (mount / "plain" / "b").write_bytes(b"two")
    (tmp_path / "alias").symlink_to(tmp_path)
    alias = tmp_path / "alias" / "mount"
    for boundary in (alias, f"{tmp_path}//mount", f"{tmp_path}/mount/../mount/"):
        for named in (mount, alias):
            seen = Looker(boundary).scan(entries(named, "a", "plain/b")).observations
            assert [brief(o) for o in seen.values()] == [PRESENT, PRESENT], (boundary, named)


def test_too_few_descriptors_is_no_verdict(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE leaves what is known as it was, and is tried again soon."""
    publish(mount, {"a": b"one"})

    def short(_directory: int, _path: str) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(beneath, "open_file", short)
    seen = Looker(mount).scan(entries(mount, "a"))
    assert brief(seen.observations["a"]) == (State.UNREADABLE, False)
    assert seen.retry_in is not None
    assert seen.retry_in <= 1.0


# links


def test_links_that_end_in_a_root_are_followed(mount: Path, tmp_path: Path) -> None:
    """Absolute links inside a root, and from one root to another, are fine and are watched."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "real").write_bytes(b"real")
    (mount / "file").write_bytes(b"file")
    (mount / "absolute").symlink_to(mount / "file")
    (mount / "across").symlink_to(other / "real")
    looker = Looker(mount, other)
    seen = looker.scan(entries(mount, "absolute", "across"))
    assert seen.observations["absolute"].version == looker.version("absolute", b"file")
    assert seen.observations["across"].version == looker.version("across", b"real")
    assert seen.watched.files[str(other)] == {"real"}


def test_a_link_out_of_a_generation_is_read_as_a_plain_file(mount: Path, tmp_path: Path) -> None:
    """What a generation only links to can be written in place, so it has to rest."""
    other = tmp_path / "other"
    other.mkdir()
    publish(mount, {"a": b"one"})
    (other / "real").write_bytes(b"half")
    (mount / "..data" / "b").symlink_to(other / "real")
    looker = Looker(mount, other)
    assert brief(looker.look(entries(mount, "b")).observations["b"]) == WRITTEN
    assert brief(looker.scan(entries(mount, "b")).observations["b"]) == PRESENT


def attack(mount: Path, outside: Path) -> tuple[threading.Event, threading.Thread]:
    """Swaps `door` and `..data` between inside and outside until told to stop."""
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            target = (str(outside), "../mount-outside", "in", str(mount / "in"))[number % 4]
            for door in ("door", "..data"):
                os.symlink(target, mount / "new")
                os.replace(mount / "new", mount / door)

    thread = threading.Thread(target=swap)
    thread.start()
    return stop, thread


@pytest.mark.parametrize("pinning", [False, True])
def test_an_attacker_in_the_mount_gets_nothing_read_from_outside(
    mount: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, pinning: bool
) -> None:
    """Links, directories and `..data` itself are swapped for the outside; it is never opened."""
    if pinning:
        monkeypatch.setattr(beneath, "_open", beneath._open_by_pinning)
    outside = tmp_path / "mount-outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"CANARY")
    (mount / "in").mkdir()
    (mount / "in" / "a").write_bytes(b"inside")
    os.utime(mount / "in" / "a", (1, 1))
    opened: set[str] = set()
    original, open_file = beneath._open, beneath.open_file

    def note(descriptor: int) -> int:
        opened.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        return descriptor

    def spy(directory: int, path: str, flags: int) -> int:
        descriptor = original(directory, path, flags)
        return descriptor if flags & os.O_PATH else note(descriptor)

    monkeypatch.setattr(beneath, "_open", spy)
    # a plain name is opened without it
    monkeypatch.setattr(beneath, "open_file", lambda at, path: note(open_file(at, path)))
    stop, thread = attack(mount, outside)
    looker = Looker(mount)
    wanted = entries(mount, "door/a", "a", "..data/a")
    inside = {looker.version(name, b"inside") for name in wanted} | {None}
    good = 0
    deadline = time.monotonic() + DEADLINE
    try:
        while good < 200:
            assert time.monotonic() < deadline
            looker.monotonic += GRACE
            for seen in looker.scan(wanted).observations.values():
                assert seen.version in inside
                good += seen.version is not None
    finally:
        stop.set()
        thread.join()
    assert opened == {str(mount / "in" / "a")}


# one generation


def test_a_scan_that_loses_every_race_says_nothing(
    mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When each generation goes away in mid-scan, nothing of any of them is told."""
    publish(mount, {"a": b"one", "b": b"two"})
    looker = Looker(mount)
    number = 0
    original = beneath.open_file

    def slow(directory: int, path: str) -> int:
        nonlocal number
        if path == "b":
            number += 1
            publish(mount, {"a": b"one %d" % number, "b": b"two"})
        return original(directory, path)

    monkeypatch.setattr(beneath, "open_file", slow)
    monkeypatch.setattr(root_scan, "_ATTEMPTS", 3)
    seen = looker.look(entries(mount, "a", "b"))
    assert [brief(o) for o in seen.observations.values()] == [WRITTEN, WRITTEN]
    assert seen.retry_in == SETTLE
    assert number == 3


def test_a_lost_race_leaves_nothing_in_the_next_attempt(
    mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found in a generation that went away is not listed twice."""
    publish(mount, {"a": b"one\n", "b": b"two"})
    original, swapped = beneath.open_file, False

    def slow(directory: int, path: str) -> int:
        nonlocal swapped
        if path == "b" and not swapped:
            swapped = True
            publish(mount, {"a": b"three\n", "b": b"two"})
        return original(directory, path)

    monkeypatch.setattr(beneath, "open_file", slow)
    seen = Looker(mount).scan(entries(mount, "a", "b"))
    assert [brief(o) for o in seen.observations.values()] == [PRESENT, PRESENT]
    assert seen.newline_ended == ["a"]


# removed, or away


def settled_states(looker: Looker, wanted: dict[str, Entry]) -> list[tuple[State, bool]]:
    return [brief(seen) for seen in looker.scan(wanted).observations.values()]


def test_a_new_generation_without_a_file_removes_it_at_once(mount: Path) -> None:
    """A publisher that leaves a file out means it."""
    publish(mount, {"a": b"one", "b": b"two"})
    looker, wanted = Looker(mount), entries(mount, "a", "b")
    looker.scan(wanted)
    publish(mount, {"b": b"two"})
    assert settled_states(looker, wanted) == [MISSING, PRESENT]


def test_a_plain_file_that_is_deleted_is_removed_at_once(mount: Path) -> None:
    """In a directory that is as it was, absence is removal."""
    (mount / "a").write_bytes(b"one")
    looker, wanted = Looker(mount), entries(mount, "a")
    looker.scan(wanted)
    (mount / "a").unlink()
    assert settled_states(looker, wanted) == [MISSING]


@pytest.mark.parametrize("atomic", [False, True])
def test_a_vanished_mount_has_a_grace_period(mount: Path, *, atomic: bool) -> None:
    """A directory that is gone, empty or half filled again keeps its secrets for that long."""

    def fill(*names: str) -> None:
        if atomic:
            publish(mount, dict.fromkeys(names, b"same"))
        else:
            for name in names:
                (mount / name).write_bytes(b"same")

    fill("a", "b")
    looker, wanted = Looker(mount), entries(mount, "a", "b")
    before = looker.scan(wanted).observations
    shutil.rmtree(mount)
    assert settled_states(looker, wanted) == [HELD, HELD]
    looker.monotonic += GRACE / 2
    mount.mkdir()
    seen = looker.look(wanted)
    assert [brief(o) for o in seen.observations.values()] == [HELD, HELD]
    assert seen.retry_in == GRACE / 2
    fill("a")
    assert settled_states(looker, wanted) == [PRESENT, HELD]
    fill("a", "b")
    assert looker.scan(wanted).observations == before
    shutil.rmtree(mount)
    assert settled_states(looker, wanted) == [HELD, HELD]
    looker.monotonic += GRACE
    assert settled_states(looker, wanted) == [MISSING, MISSING]
    assert settled_states(looker, wanted) == [MISSING, MISSING]
    mount.mkdir()
    fill("b")
    assert settled_states(looker, wanted) == [MISSING, PRESENT]


def test_a_directory_replaced_between_scans_has_a_grace_period(mount: Path) -> None:
    """Another directory under the same name may be a remount that is being filled."""
    for name in ("a", "b"):
        (mount / name).write_bytes(b"x")
    looker, wanted = Looker(mount), entries(mount, "a", "b")
    looker.scan(wanted)
    mount.rename(mount.parent / "old")
    mount.mkdir()
    (mount / "a").write_bytes(b"x")
    assert settled_states(looker, wanted) == [PRESENT, HELD]
    looker.monotonic += GRACE
    assert settled_states(looker, wanted) == [PRESENT, MISSING]


@pytest.mark.parametrize("first", ["..data", "a", "generation", "file"])
def test_a_teardown_of_any_order_removes_nothing(mount: Path, first: str) -> None:
    """While `rm -rf` goes through an AtomicWriter mount, nothing counts as removed."""
    publish(mount, {"a": b"one", "b": b"two"})
    looker, wanted = Looker(mount), entries(mount, "a", "b")
    looker.scan(wanted)
    generation = mount / os.readlink(mount / "..data")
    if first == "generation":
        shutil.rmtree(generation)
        (mount / "a").unlink()
    elif first == "file":
        (generation / "a").unlink()
    else:
        (mount / first).unlink()
    for state, settled in settled_states(looker, wanted):
        assert not (state is State.MISSING and settled)
    looker.monotonic += GRACE
    expected = {"..data": UNREADABLE, "a": PRESENT, "generation": MISSING, "file": MISSING}
    for _ in range(2):
        assert settled_states(looker, wanted)[0] == expected[first]


def test_a_wrong_path_is_missing_at_once(mount: Path) -> None:
    """An entry that comes to the vault config without a file need not be waited for."""
    publish(mount, {"a": b"one"})
    looker = Looker(mount)
    looker.scan(entries(mount, "a"))
    assert settled_states(looker, entries(mount, "a", "typo")) == [PRESENT, MISSING]


def test_an_empty_mount_at_the_start_is_waited_for(mount: Path) -> None:
    """A daemon that starts before its mount is filled does not announce that all is gone."""
    looker, wanted = Looker(mount), entries(mount, "a")
    assert settled_states(looker, wanted) == [HELD]
    publish(mount, {"a": b"one"})
    assert settled_states(looker, wanted) == [PRESENT]


def test_roots_that_change_keep_their_memory(mount: Path, tmp_path: Path) -> None:
    """A mount that is away stays so when the vault config brings another root."""
    publish(mount, {"a": b"one"})
    looker, wanted = Looker(), entries(mount, "a")
    looker.scan(wanted)
    shutil.rmtree(mount)
    mount.mkdir()
    (mount / "lost+found").mkdir()
    (tmp_path / "other").mkdir()
    assert settled_states(looker, wanted | entries(tmp_path, "other/b"))[0] == HELD


# roots


def located(reader: Reader, wanted: dict[str, Entry]) -> dict[str, list[str]]:
    """The names of the secrets of each root."""
    return {path: sorted(found.names()) for path, found in reader.locate(wanted)[0].items()}


def test_roots_are_what_files_lie_in(mount: Path, tmp_path: Path) -> None:
    """The nearest ancestor with `..data`, else the parent; a root in a root is its own."""
    publish(mount, {"db/user": b"x"})
    for name in ("plain", "mount/inner"):
        (tmp_path / name).mkdir()
    publish(mount / "inner", {"z": b"x"})
    wanted = entries(mount, "db/user", "deep/er/x", "inner/z") | entries(tmp_path, "plain/y", "w")
    assert located(Looker().reader, wanted) == {
        str(mount): ["db/user", "deep/er/x"],
        str(mount / "inner"): ["inner/z"],
        str(tmp_path / "plain"): ["plain/y"],
        str(tmp_path): ["w"],
    }


def test_a_root_with_two_names_is_one(mount: Path, tmp_path: Path) -> None:
    """One swap is one change, however the vault config names the mount."""
    publish(mount, {"a": b"x", "db/b": b"x"})
    (tmp_path / "alias").symlink_to(mount)
    wanted = entries(mount, "a") | entries(tmp_path, "alias/db/b")
    looker = Looker()
    assert list(located(looker.reader, wanted).values()) == [["a", "alias/db/b"]]
    assert {brief(o) for o in looker.look(wanted).observations.values()} == {PRESENT}


def test_a_name_that_leads_elsewhere_moves_its_secrets(mount: Path, tmp_path: Path) -> None:
    """Two names of one root become two roots when one of the links is swapped."""
    other = tmp_path / "other"
    publish(mount, {"a": b"x", "b": b"x"})
    publish(other, {"b": b"y"})
    (tmp_path / "alias").symlink_to(mount)
    looker, wanted = Looker(), entries(mount, "a") | entries(tmp_path, "alias/b")
    (members,) = looker.reader.locate(wanted)[0].values()
    assert not looker.reader.has_moved(members)
    (tmp_path / "new").symlink_to(other)
    (tmp_path / "new").replace(tmp_path / "alias")
    assert looker.reader.has_moved(members)
    seen = looker.look(wanted).observations
    assert seen["alias/b"].version == looker.version("alias/b", b"y")


def test_a_mount_that_was_found_stays_a_root_while_it_is_away(tmp_path: Path) -> None:
    """Without its `..data` link only memory says where a mount begins; a mount point ends it."""
    mount, none = tmp_path / "mount", frozenset(("/",))
    (mount / "db").mkdir(parents=True)
    parent = str(mount / "db")
    assert home_of(parent, (), none, None).root == parent
    (mount / "..data").symlink_to("..gone")
    known = home_of(parent, (), none, None)
    assert known.root == str(mount)
    assert home_of(parent, (), frozenset((parent,)), None).root == parent
    (mount / "..data").unlink()
    assert home_of(parent, (), none, known).root == str(mount)
    assert home_of(parent, (), frozenset((parent,)), known).root == parent
    assert home_of(parent, (), frozenset((str(mount),)), known).root == str(mount)
    assert home_of("/elsewhere", (), none, known).root == "/elsewhere"


# watches


def test_what_is_watched(mount: Path) -> None:
    """Every component and link on the way, and the names of interest; no generation."""
    publish(mount, {"a": b"x", "db/user": b"x"})
    (mount / "dir").mkdir()
    wanted = entries(mount, "a", "db/user", "dir/x", "none/deep/x", "..data/a")
    watched = Looker(mount).look(wanted).watched
    way = watched.ways[str(mount.parent)]
    assert way == {"mount"}
    assert watched.ways["/"] == {mount.parts[1]}
    assert watched.ways[str(mount)] == {"..data", "db", "dir", "none"}
    assert watched.ways[str(mount / "dir")] == {"..data"}
    assert watched.files == {
        str(mount): {"a"},
        str(mount / "dir"): {"x"},
        str(mount / "none" / "deep"): {"x"},
    }


def test_links_on_the_way_are_watched_one_by_one(tmp_path: Path) -> None:
    """A link above the directory, one in the middle of a chain, and the file at its end."""
    for name in ("releases/r1", "store"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "store" / "real").write_bytes(b"x")
    (tmp_path / "middle").symlink_to("store/real")
    (tmp_path / "current").symlink_to("releases/r1")
    (tmp_path / "releases" / "r1" / "pw").symlink_to("../../middle")
    watched = Looker().look(entries(tmp_path, "current/pw")).watched
    assert watched.ways[str(tmp_path)] == {"current", "releases", "middle", "store"}
    assert watched.ways[str(tmp_path / "releases")] == {"r1"}
    assert watched.files == {
        str(tmp_path / "releases" / "r1"): {"pw"},
        str(tmp_path / "store"): {"real"},
    }


def test_what_does_not_exist_is_watched_for_where_it_will_appear(tmp_path: Path) -> None:
    """The nearest directory that exists, for the next name on the way."""
    watched = Watched()
    path = str(tmp_path / "no" / "such" / "place")
    assert follow(path, watched) == path
    assert watched.ways[str(tmp_path)] == {"no"}
    assert str(tmp_path / "no") not in watched.ways


def test_a_loop_of_links_has_an_end(tmp_path: Path) -> None:
    """As in the kernel, after so many links."""
    (tmp_path / "loop").symlink_to("loop/further")
    watched = Watched()
    assert follow(str(tmp_path / "loop"), watched) == str(tmp_path / "loop")
    assert watched.ways[str(tmp_path)] == {"loop"}


def test_files_outside_the_vault_config_have_no_boundary(mount: Path, tmp_path: Path) -> None:
    """The operator named them, so that their directory is no watch root, and links lead anywhere.

    An entry of the vault config beside one stays outside.
    """
    publish(mount, {"a": b"1"})
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/key1").write_bytes(b"key")
    (tmp_path / "live").mkdir()
    (tmp_path / "live/key").symlink_to("../archive/key1")
    (tmp_path / "live/plain").write_bytes(b"plain")
    named = {
        name: Entry(name, str(tmp_path / "live" / name), (), extra=True)
        for name in ("key", "plain")
    }
    beside = entries(tmp_path / "live", "plain")["plain"]
    wanted = {**entries(mount, "a"), **named, "beside": beside}
    wanted["beside"] = Entry("beside", beside.path, beside.scopes)
    for boundary in ((mount,), ()):
        looker = Looker(*boundary)
        seen = looker.scan(wanted).observations
        assert seen["key"].version == looker.version("key", b"key")
        assert seen["plain"].version == looker.version("plain", b"plain")
        code = "secret-outside-roots" if boundary else None
        assert seen["beside"].code == code
    directory = str(tmp_path / "archive")
    assert looker.scan(wanted).watched.files[directory] == frozenset(("key1",))
