"""The state directory: one daemon at a time, a key that stays, and clear refusals."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.accounts import as_user
from support.waiting import DEADLINE

from syncd.core.errors import StateError
from syncd.ledger.ledger import Ledger
from syncd.ledger.state_dir import StateDir

if TYPE_CHECKING:
    from pathlib import Path

OPEN = """
import os, sys
sys.path.insert(0, sys.argv[3])
from syncd.core.errors import StateError
from syncd.ledger.state_dir import StateDir
if int(sys.argv[2]):
    os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
try:
    StateDir.open(sys.argv[1])
except StateError as error:
    print(error)
"""
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def open_elsewhere(path: Path, uid: int = 0) -> str:
    """What another process is told that opens the directory."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(path), str(uid), os.getcwd()],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    return done.stdout.strip()


def test_the_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    """32 bytes at mode 0600 in a directory at 0700, the same at every opening."""
    path = tmp_path / "deep" / "state"
    state = StateDir.open(str(path))
    key, key_id = state.keys.current, state.keys.key_id
    assert len(key) == 32
    assert stat.S_IMODE((path / "fingerprint.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert key.hex() not in repr(state) + key_id
    state.close()
    again = StateDir.open(str(path))
    assert (again.keys.current, again.keys.key_id) == (key, key_id)
    again.close()


def test_a_crash_while_the_key_is_made_leaves_no_half_key(tmp_path: Path) -> None:
    """What was written before the rename does not count."""
    (tmp_path / "fingerprint.key.new").write_bytes(b"half")
    state = StateDir.open(str(tmp_path))
    assert len(state.keys.current) == 32
    assert not (tmp_path / "fingerprint.key.new").exists()
    state.close()


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_key_of_another_length_is_refused(tmp_path: Path, content: bytes) -> None:
    """A damaged key is never used, never replaced behind one's back, and releases the lock."""
    (tmp_path / "fingerprint.key").write_bytes(content)
    for _ in range(2):
        with pytest.raises(StateError, match="is not a file of 32 bytes; restore it"):
            StateDir.open(str(tmp_path))
    assert (tmp_path / "fingerprint.key").read_bytes() == content


def test_a_key_that_is_not_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A FIFO has no writer, and a directory no content."""
    path = tmp_path / "fingerprint.key"
    path.mkdir()
    with pytest.raises(StateError, match="is not a file of 32 bytes"):
        StateDir.open(str(tmp_path))
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(StateError, match="is not a file of 32 bytes"):
        StateDir.open(str(tmp_path))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free disk space"), (errno.EROFS, "mount the file system read-write")],
)
def test_a_key_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    """The remedy is for the reason; the lock is released, and the next start makes the key."""

    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StateError, match=remedy):
            StateDir.open(str(tmp_path))
    StateDir.open(str(tmp_path)).close()


def test_two_daemons_cannot_share_a_directory(tmp_path: Path) -> None:
    """The second one is told so; after the first one is gone it may."""
    state = StateDir.open(str(tmp_path))
    assert "another syncd uses it; stop that syncd" in open_elsewhere(tmp_path)
    state.close()
    assert open_elsewhere(tmp_path) == ""


@ROOT
def test_what_may_not_be_written_is_refused_with_the_right_reason(tmp_path: Path) -> None:
    """For an unprivileged user: a read-only directory, and a key of somebody else."""
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        if str(directory) != "/tmp":
            directory.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir()
    assert "Permission denied; set state_dir" in open_elsewhere(closed, 65534)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    foreign.chmod(0o777)
    (foreign / "fingerprint.key").write_bytes(b"x" * 32)
    (foreign / "fingerprint.key").chmod(0o600)
    told = open_elsewhere(foreign, 65534)
    assert told.endswith("fingerprint.key: Permission denied; make it readable for this user")


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    """A path that is no directory gives one line, not a traceback."""
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(StateError, match="cannot write to"):
        StateDir.open(str(tmp_path / "state"))


STRANGER = 4343


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_others_cannot_write_to_it_any_longer(tmp_path: Path) -> None:
    """A directory of this user's that others can write to is closed to them; reading is theirs."""
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    opened = StateDir.open(str(state))
    assert opened.exposure is None
    assert mode(state) == 0o755
    opened.close()


@ROOT
def test_a_directory_of_another_user(tmp_path: Path) -> None:
    """Its owner could replace every file in it."""
    os.chown(tmp_path, STRANGER, STRANGER)
    with pytest.raises(StateError, match="it belongs to uid 4343, who could replace its files"):
        StateDir.open(str(tmp_path))
    assert os.listdir(tmp_path) == []


@ROOT
def test_a_volume_of_roots(reachable: Path) -> None:
    """A daemon of another user may use it; where every user may, that is reported."""
    for bits, exposed in ((0o777, "every user can write to it"), (0o775, "None")):
        state = reachable / f"{bits:o}"
        state.mkdir()
        os.chown(state, 0, STRANGER)
        state.chmod(bits)
        done = as_user(STRANGER, EXPOSURE, str(state))
        assert done.stdout.strip() == exposed, done.stderr
        assert mode(state) == bits


EXPOSURE = "print(syncd.ledger.state_dir.StateDir.open(sys.argv[1]).exposure)"


@ROOT
@pytest.mark.parametrize("name", ["fingerprint.key", "ledger.sqlite3", "ledger.sqlite3-wal"])
def test_a_file_of_another_user(tmp_path: Path, name: str) -> None:
    """Whoever put it there knows the key, or decides what is delivered."""
    file = tmp_path / name
    file.write_bytes(b"A" * 32)
    file.chmod(0o600)
    os.chown(file, STRANGER, STRANGER)
    with pytest.raises(StateError, match=r"cannot use .* it belongs to uid 4343"):
        open_all(tmp_path)
    assert file.read_bytes() == b"A" * 32


def open_all(path: Path) -> None:
    """Opens directory and ledger, and closes them."""
    state = StateDir.open(str(path))
    try:
        Ledger.open(state, "boot").close()
    finally:
        state.close()


def test_a_key_that_others_can_write(tmp_path: Path) -> None:
    """It may be somebody else's; one that others could only read is closed to them."""
    open_all(tmp_path)
    key = tmp_path / "fingerprint.key"
    key.chmod(0o644)
    open_all(tmp_path)
    assert mode(key) == 0o600
    key.chmod(0o666)
    with pytest.raises(StateError, match="every user can write to it; remove it to start"):
        open_all(tmp_path)


@pytest.mark.parametrize("name", ["fingerprint.key", "ledger.sqlite3", "lock"])
def test_a_link_in_the_directory(tmp_path: Path, name: str) -> None:
    """It is not followed, and what it leads to is neither read nor changed."""
    state, target = tmp_path / "state", tmp_path / "target"
    state.mkdir()
    target.write_bytes(b"B" * 32)
    target.chmod(0o644)
    (state / name).symlink_to(target)
    with pytest.raises(StateError, match=r"cannot (use|write to)"):
        open_all(state)
    assert (target.read_bytes(), mode(target)) == (b"B" * 32, 0o644)


def test_a_link_in_the_place_of_a_key_to_be(tmp_path: Path) -> None:
    """What a crash, or somebody else, left under the temporary name is not written to."""
    state, target = tmp_path / "state", tmp_path / "target"
    state.mkdir()
    target.write_bytes(b"B")
    (state / "fingerprint.key.new").symlink_to(target)
    open_all(state)
    assert target.read_bytes() == b"B"
    assert not (state / "fingerprint.key").is_symlink()
