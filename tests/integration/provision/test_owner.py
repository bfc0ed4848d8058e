"""`owner`: another user's files, and what that user can do with the directories they are in."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from unit.provision.test_publish import NEW, OLD, contents, steps_of, view

from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.payload import File
from syncd.provision import generation
from syncd.provision.publish import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OWNER, STRANGER, SYNCD = 4001, 4002, 3000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """This process as another user, without its groups."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that every user can get to."""
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path


def test_the_owner_reads_and_others_do_not(place: Path) -> None:
    """Without a group, too: the owner may enter the directories, and nobody else may."""
    files = [File("a", b"a", 0o400), File("db/user", b"user", 0o644)]
    target = place / "secrets"
    Publisher(str(target), owner=str(OWNER)).publish(files)
    with acting_as(OWNER):
        assert view(target) == contents(files)
        assert sorted(os.listdir(target / "db")) == ["user"]
    with acting_as(STRANGER):
        for directory in (target, target / "..data"):
            with pytest.raises(PermissionError):
                os.listdir(directory)
        with pytest.raises(PermissionError):
            (target / "db" / "user").read_bytes()
    Publisher(str(target), owner=str(STRANGER)).publish(files[:1])
    with acting_as(STRANGER), pytest.raises(PermissionError):
        os.listdir(target)  # the target itself was made for the first owner


def test_the_owner_can_change_no_directory(place: Path) -> None:
    """No name can be made, replaced or removed: the readers get what syncd published."""
    target = place / "secrets"
    Publisher(str(target), owner=str(OWNER)).publish(OLD)
    current = os.readlink(target / "..data")
    with acting_as(OWNER):
        changes: tuple[Callable[[], object], ...] = (
            lambda: os.rename(target / current, target / "zz"),
            lambda: os.unlink(target / "..data"),
            lambda: os.symlink("/etc", target / "..data_tmp"),
            lambda: os.unlink(target / "a"),
            lambda: os.unlink(target / current / "a"),
            lambda: os.mkdir(target / current / "more"),
            lambda: os.unlink(target / current / "db" / "user"),
            lambda: os.chmod(target / current, 0o777),
            lambda: os.chmod(target, 0o777),
        )
        for change in changes:
            with pytest.raises(PermissionError):
                change()
    assert not Publisher(str(target), owner=str(OWNER)).publish(OLD)


def test_swapping_at_any_step_gives_nothing_away(place: Path) -> None:
    """An owner who still can write the target swaps the new generation for a link, at each step."""
    victim = place / "victim"
    victim.write_bytes(b"of another team")
    victim.chmod(0o600)
    steps = steps_of(place, OLD, NEW)
    for at in range(len(steps)):
        target = place / f"attacked-{at}"
        Publisher(str(target), owner=str(OWNER)).publish(OLD)
        attacked = iter(range(len(steps) + 10))

        def attack(
            _name: str, target: Path = target, at: int = at, attacked: Iterator[int] = attacked
        ) -> None:
            if next(attacked) != at:
                return
            # after the target was opened: as an administrator's mistake would be
            target.chmod(0o777)
            with acting_as(OWNER):
                for name in [name for name in os.listdir(target) if name.startswith("..2")]:
                    os.rename(target / name, target / f"zz{name}")
                    os.symlink(victim, target / name)

        with contextlib.suppress(RefusedError, TemporaryError):
            Publisher(str(target), owner=str(OWNER), group="4444", step=attack).publish(NEW)
        found = victim.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)
        with pytest.raises(RefusedError, match="every user can replace what is in it"):
            Publisher(str(target), owner=str(OWNER)).publish(OLD)


@pytest.mark.parametrize("uid", [OWNER, STRANGER])
def test_a_target_of_another_user_is_refused(place: Path, uid: int) -> None:
    """Such as one that an earlier version gave to the owner."""
    target = place / "secrets"
    target.mkdir(mode=0o750)
    os.chown(target, uid, -1)
    with pytest.raises(RefusedError, match=f"it belongs to uid {uid}, who can replace what is in"):
        Publisher(str(target), owner=str(OWNER)).publish(OLD)
    assert os.listdir(target) == []


def test_a_link_that_another_user_put_in_place_of_the_target_is_refused(place: Path) -> None:
    """In a directory such as /tmp whoever comes first would choose where secrets are written."""
    (place / "elsewhere").mkdir(mode=0o750)
    place.chmod(0o1777)
    with acting_as(STRANGER):
        os.symlink("elsewhere", place / "secrets")
    says = f"secrets on the way to it is a link of uid {STRANGER}; remove the link"
    with pytest.raises(RefusedError, match=says):
        Publisher(str(place / "secrets"), owner=str(OWNER)).publish(OLD)
    assert os.listdir(place / "elsewhere") == []


def test_without_access_control_lists_a_group_is_needed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than to publish files that their owner cannot reach."""

    def refuse(*_arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(generation, "grant_entry", refuse)
    target = place / "secrets"
    says = f"so {OWNER} could not enter the directories; set group to a group of {OWNER}"
    with pytest.raises(RefusedError, match=says):
        Publisher(str(target), owner=str(OWNER)).publish(OLD)
    assert not target.exists()
    assert Publisher(str(target), owner=str(OWNER), group=str(OWNER)).publish(OLD)
    with acting_as(OWNER):
        assert view(target) == contents(OLD)


AS_SERVICE = """
import ctypes, os, struct, sys
from syncd.core.payload import File
from syncd.provision.publish import Publisher
target, uid, owner, *capabilities = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
os.setgroups([])
os.setresgid(int(uid), int(uid), int(uid))
os.setresuid(int(uid), int(uid), int(uid))
kept = sum(1 << int(number) for number in capabilities)
header, data = struct.pack("II", 0x20080522, 0), struct.pack("IIIIII", kept, kept, 0, 0, 0, 0)
assert libc.capset(header, data) == 0
for content in (b"first", b"second", b"second"):
    print(Publisher(target, owner=owner).publish([File("a", content, 0o600)]))
"""


def test_two_capabilities_are_enough(place: Path) -> None:
    """CAP_CHOWN gives files away, and CAP_DAC_READ_SEARCH reads them back."""
    (place / "run").mkdir()
    os.chown(place / "run", SYNCD, -1)
    target = place / "run" / "secrets"
    command = [sys.executable, "-c", AS_SERVICE, str(target), str(SYNCD), str(OWNER), "0", "2"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "False"]
    assert (target / "a").read_bytes() == b"second"
    assert (os.stat(target / "a").st_uid, os.stat(target).st_uid) == (OWNER, SYNCD)
