"""The atomic publisher: layout, permissions, what counts as a change, and crashes at every step."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st

from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.payload import File
from syncd.provision import publish
from syncd.provision.publish import Publisher, filesystem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OLD = (
    File("a", b"old a"),
    File("db/user", b"old user"),
    File("db/password", b"old password"),
    File("gone", b"old gone"),
)
NEW = (File("a", b"new a"), File("db/user", b"new user"), File("c", b"new c", 0o600))
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


def view(target: Path) -> dict[str, bytes]:
    """What a reader finds by the visible names."""
    found: dict[str, bytes] = {}
    for name in os.listdir(target):
        if name.startswith(".."):
            continue
        path = target / name
        if path.is_dir():
            found |= {f"{name}/{inner}": (path / inner).read_bytes() for inner in os.listdir(path)}
        elif path.exists():
            found[name] = path.read_bytes()
    return found


def contents(files: Sequence[File]) -> dict[str, bytes]:
    return {file.path: file.content for file in files}


def generations(target: Path) -> list[str]:
    return [name for name in os.listdir(target) if name.startswith("..2")]


def assert_tidy(target: Path, files: Sequence[File]) -> None:
    """The target holds these files, one generation, and nothing that is not needed."""
    assert view(target) == contents(files)
    names = {file.path.partition("/")[0] for file in files}
    assert set(os.listdir(target)) == {"..data", os.readlink(target / "..data"), *names}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


def test_a_first_pass_writes_the_layout_of_the_csi_driver(target: Path) -> None:
    """The generation is a dated directory, `..data` leads to it, names lead through `..data`."""
    assert Publisher(str(target)).publish(OLD)
    assert_tidy(target, OLD)
    generation = os.readlink(target / "..data")
    assert publish._GENERATION.match(generation)
    assert os.readlink(target / "a") == "..data/a"
    assert os.readlink(target / "db") == "..data/db"
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o750
    assert stat.S_IMODE(os.stat(target / generation).st_mode) == 0o750
    assert stat.S_IMODE(os.stat(target / "db").st_mode) == 0o750
    assert stat.S_IMODE(os.stat(target / "a").st_mode) == 0o644


def test_permissions_do_not_depend_on_the_umask(target: Path) -> None:
    """A mode is what the manifest says, under any umask."""
    before = os.umask(0o077)
    try:
        Publisher(str(target)).publish([File("a", b"x", 0o664), File("d/b", b"x", 0o400)])
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(target / "a").st_mode) == 0o664
    assert stat.S_IMODE(os.stat(target / "d" / "b").st_mode) == 0o400
    assert stat.S_IMODE(os.stat(target / "d").st_mode) == 0o750


def test_nothing_is_written_when_nothing_changed(target: Path) -> None:
    """The same files again leave the same generation in place."""
    publisher = Publisher(str(target))
    publisher.publish(OLD)
    before = os.readlink(target / "..data")
    assert not publisher.publish(tuple(reversed(OLD)))
    assert os.readlink(target / "..data") == before
    assert not Publisher(str(target)).publish(OLD)


@pytest.mark.parametrize(
    "files",
    [
        (File("a", b"OLD A"), *OLD[1:]),
        (File("a", b"old a, longer"), *OLD[1:]),
        (File("a", b""), *OLD[1:]),
        (File("a", b"old a", 0o640), *OLD[1:]),
        OLD[1:],
        (*OLD, File("more", b"")),
        (File("a/b", b"old a"), *OLD[1:]),
        (),
    ],
    ids=["same length", "longer", "emptied", "mode", "fewer", "more", "file to directory", "none"],
)
def test_any_difference_makes_a_new_generation(target: Path, files: tuple[File, ...]) -> None:
    """Content, permissions, a file more or less: the set is swapped as a whole."""
    publisher = Publisher(str(target))
    publisher.publish(OLD)
    before = os.readlink(target / "..data")
    assert publisher.publish(files)
    assert os.readlink(target / "..data") != before
    assert_tidy(target, files)


def test_a_volatile_key_alone_is_no_change(target: Path) -> None:
    """A whole response whose `request_id` differs is the same; any other difference counts."""

    def response(request_id: int, value: str) -> File:
        content = b'{"data":{"v":"%s"},"request_id":"%d"}' % (value.encode(), request_id)
        return File("r", content, volatile=frozenset(["request_id"]))

    publisher = Publisher(str(target))
    assert publisher.publish([response(1, "x")])
    assert not publisher.publish([response(2345, "x")])
    assert (target / "r").read_bytes() == response(1, "x").content
    assert publisher.publish([response(3, "y")])
    assert (target / "r").read_bytes() == response(3, "y").content


def test_what_others_changed_is_written_again(target: Path) -> None:
    """A generation that was tampered with or deleted is replaced, a missing link made again."""
    publisher = Publisher(str(target))
    publisher.publish(OLD)
    os.chmod(target / "a", 0o777)
    assert publisher.publish(OLD)
    for instead in ("link", "directory", "bystander"):
        (target / "..data" / "a").unlink()
        if instead == "link":
            os.symlink("/etc/hostname", target / "..data" / "a")
        elif instead == "directory":
            (target / "..data" / "a").mkdir()
        else:
            (target / "..data" / "b").write_bytes(b"")
        assert publisher.publish(OLD)
        assert_tidy(target, OLD)
    subprocess.run(["rm", "-r", target / os.readlink(target / "..data")], check=True)
    assert publisher.publish(OLD)
    (target / "db").unlink()
    publisher.publish(OLD)
    assert_tidy(target, OLD)


@ROOT
def test_files_get_owner_and_group_and_directories_only_the_group(target: Path) -> None:
    """Numbers and names both work; another owner is a change, and so is none."""
    publisher = Publisher(str(target))
    publisher.publish(OLD)
    group = grp.getgrgid(os.getegid()).gr_name
    assert not Publisher(str(target), owner="0", group=group).publish(OLD)
    assert Publisher(str(target), owner="1234", group="4321").publish(OLD)
    for path in (target / "a", target / "db" / "user"):
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == (1234, 4321)
    for path in (target / "db", target / "..data/"):
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == (0, 4321)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o750
    assert publisher.publish(OLD)
    assert os.stat(target / "a").st_uid == 0


@ROOT
def test_a_target_that_is_made_belongs_to_syncd_and_the_group(target: Path) -> None:
    """Its owner could replace what is in it; without the group, its members could not enter."""
    Publisher(str(target), owner="1234", group="4321").publish(OLD)
    assert (os.stat(target).st_uid, os.stat(target).st_gid) == (0, 4321)
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o750


@pytest.mark.parametrize("kind", ["link", "file", "directory"])
@pytest.mark.parametrize("name", ["..2026_11_23_20_40_28.k3xw9f", "..data_tmp"])
def test_a_leftover_of_any_kind_does_not_block_publishing(
    target: Path, kind: str, name: str
) -> None:
    """It is removed, and what a link leads to is not touched."""
    Publisher(str(target)).publish(OLD)
    bystander = target / "bystander"
    bystander.mkdir()
    (bystander / "file").write_bytes(b"mine")
    if kind == "link":
        os.symlink("bystander", target / name)
    elif kind == "file":
        (target / name).write_bytes(b"left")
    else:
        (target / name / "inner").mkdir(parents=True)
    assert Publisher(str(target)).publish(NEW)
    assert not os.path.lexists(target / name)
    assert (bystander / "file").read_bytes() == b"mine"


def test_a_current_generation_that_is_a_link_is_replaced(target: Path) -> None:
    """Even if it leads to exactly these files: they could change at any time."""
    Publisher(str(target)).publish(OLD)
    current = os.readlink(target / "..data")
    os.rename(target / current, target / "elsewhere")
    os.symlink("elsewhere", target / current)
    assert Publisher(str(target)).publish(OLD)
    assert os.readlink(target / "..data") != current
    assert not os.path.lexists(target / current)
    assert (target / "elsewhere" / "a").read_bytes() == b"old a"


@pytest.mark.parametrize(
    ("mode", "who"), [(0o770, f"gid {os.getegid()}"), (0o757, "every user"), (0o1777, "every user")]
)
def test_a_target_that_others_may_write_is_refused(target: Path, mode: int, who: str) -> None:
    """Whoever can replace `..data` decides what its readers get."""
    target.mkdir()
    target.chmod(mode)
    with pytest.raises(
        RefusedError, match=f"{who} can replace what is in it; run syncd as its owner, or"
    ):
        Publisher(str(target)).publish(OLD)
    assert os.listdir(target) == []
    target.chmod(0o750)
    assert Publisher(str(target)).publish(OLD)


@pytest.mark.parametrize(("owner", "group"), [("no-such-account", None), (None, "no-such-account")])
def test_an_unknown_owner_is_refused_by_name(
    target: Path, owner: str | None, group: str | None
) -> None:
    """The message names the missing user or group, and nothing is written."""
    with pytest.raises(RefusedError, match=r"no-such-account; create the (user|group)"):
        Publisher(str(target), owner=owner, group=group).publish(OLD)
    assert view(target) == {} if target.exists() else True


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../b", "..data", "a//b", "a/", "."])
def test_a_path_that_leaves_the_layout_is_refused(target: Path, path: str) -> None:
    """Whatever a provider says, nothing is written outside the generation."""
    with pytest.raises(RefusedError, match="cannot publish"):
        Publisher(str(target)).publish([File(path, b"x")])


def test_a_target_that_is_a_file_is_refused(target: Path) -> None:
    """The remedy is about `target`, not about permissions."""
    target.write_bytes(b"mine")
    for path in (target, target / "below"):
        with pytest.raises(TemporaryError, match="Not a directory; set target to a directory"):
            Publisher(str(path)).publish(OLD)
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_others_wrote_is_not_touched(target: Path, kind: str) -> None:
    """A name that is taken is refused by name; a bystander stays."""
    target.mkdir()
    (target / "bystander").write_bytes(b"mine")
    if kind == "file":
        (target / "a").write_bytes(b"mine")
    elif kind == "directory":
        (target / "a").mkdir()
    else:
        os.symlink("bystander", target / "a")
    with pytest.raises(RefusedError, match=r"cannot publish a into .*; move it out of the target"):
        Publisher(str(target)).publish(OLD)
    os.rename(target / "a", target / "moved")
    assert Publisher(str(target)).publish(OLD)
    assert Publisher(str(target)).publish(())
    assert (target / "bystander").read_bytes() == b"mine"
    assert os.path.lexists(target / "moved")


def test_a_foreign_data_link_is_not_touched(target: Path) -> None:
    """`..data` that leads anywhere but to a generation stops the pass."""
    target.mkdir()
    os.symlink("/etc", target / "..data")
    with pytest.raises(RefusedError, match=r"\.\.data"):
        Publisher(str(target)).publish(OLD)
    assert os.readlink(target / "..data") == "/etc"


def test_a_second_syncd_has_to_wait(target: Path) -> None:
    """Two publishers never clean up behind each other."""
    publisher = Publisher(str(target))
    publisher.publish(OLD)
    descriptor = os.open(target, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with pytest.raises(TemporaryError, match="another syncd"):
        publisher.publish(NEW)
    os.close(descriptor)
    assert publisher.publish(NEW)


class Recorder:
    """Counts the steps of a pass."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def __call__(self, name: str) -> None:
        self.steps.append(name)


def steps_of(tmp_path: Path, before: Sequence[File], after: Sequence[File]) -> list[str]:
    recorder = Recorder()
    target = tmp_path / "recorded"
    Publisher(str(target)).publish(before)
    Publisher(str(target), step=recorder).publish(after)
    return recorder.steps


def test_everything_is_on_disk_before_it_counts(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, then their directories, then the rename, then the target: a power cut loses no set."""
    Publisher(str(target)).publish(OLD)
    seen: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(target))
        seen.append(path.partition("/..2")[2].partition("/")[2] or path)
        sync(descriptor)

    def renamed(old: str, new: str, **directories: int) -> None:
        seen.append("rename")
        rename(old, new, **directories)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    Publisher(str(target)).publish(NEW)
    before, after = seen[: seen.index("rename")], seen[seen.index("rename") + 1 :]
    assert before[:3] == ["a", "db/user", "c"]
    assert before[3] == "db"
    assert before[4].startswith("/..2")
    assert after[0] == ""


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left on device; free disk space"),
        (errno.EROFS, "Read-only file system; mount the file system read-write"),
        (errno.EIO, "Input/output error; check the disk"),
    ],
)
def test_a_pass_that_fails_at_any_step_leaves_the_old_generation(
    tmp_path: Path, number: int, says: str
) -> None:
    """Disk full, read-only, broken: one line, the old files stay, and the next pass succeeds."""
    steps = steps_of(tmp_path, OLD, NEW)
    for at in range(len(steps)):
        target = tmp_path / f"failed-{at}"
        Publisher(str(target)).publish(OLD)
        left = iter(range(len(steps)))

        def step(_name: str, at: int = at, left: object = left) -> None:
            if next(left) == at:  # type: ignore[call-overload]
                raise OSError(number, "injected")

        with pytest.raises(TemporaryError, match=says):
            Publisher(str(target), step=step).publish(NEW)
        assert view(target) == contents(OLD if at <= steps.index("swap") else NEW)
        Publisher(str(target)).publish(NEW)
        assert_tidy(target, NEW)


@pytest.mark.parametrize(
    ("call", "number", "says"),
    [
        ("fcntl.flock", errno.ENOLCK, "No locks available; use a file system that"),
        ("fcntl.flock", errno.EAGAIN, "another syncd is publishing into it"),
        ("os.fstat", errno.ESTALE, "Stale file handle; mount the file system again"),
        ("os.fchown", errno.EINVAL, "user namespace does not map owner 0; use"),
        ("os.fchown", errno.EPERM, "change the owner of files"),
    ],
)
def test_each_refusal_of_the_system_has_its_own_remedy(
    target: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, says: str
) -> None:
    """A target that cannot be looked at is not a file in the way, for example."""

    def refuse(*_: object, **_named: object) -> None:
        raise OSError(number, "canary")

    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(SyncdError, match=says):
            Publisher(str(target), owner="0").publish(OLD)
    Publisher(str(target), owner="0").publish(OLD)
    assert_tidy(target, OLD)


def test_the_file_system_of_a_missing_directory_is_unknown(tmp_path: Path) -> None:
    """Then there is no warning."""
    assert filesystem(str(tmp_path / "nowhere")) is None
    assert filesystem("/proc") == "proc"


def test_no_error_shows_a_value(target: Path) -> None:
    """Paths and reasons only."""
    canary = File("a", b"canary-7f3a")
    assert "canary" not in repr(canary)

    def step(name: str) -> None:
        if name == "link data_tmp":
            raise OSError(errno.ENOSPC, "canary-7f3a")

    with pytest.raises(TemporaryError) as caught:
        Publisher(str(target), step=step).publish([canary])
    assert "canary" not in str(caught.value)


names = st.text("ab", min_size=1, max_size=2)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


def consistent(files: list[File]) -> bool:
    return not any(other.path.startswith(file.path + "/") for file in files for other in files)


sets = st.lists(
    st.builds(File, paths, st.binary(max_size=4), st.sampled_from([0o644, 0o600])),
    unique_by=lambda file: file.path,
    max_size=5,
).filter(consistent)


@settings(max_examples=60)
@given(history=st.lists(sets, min_size=1, max_size=4))
def test_the_target_always_holds_exactly_the_last_set(
    tmp_path_factory: pytest.TempPathFactory, history: list[list[File]]
) -> None:
    """Whatever is published in whatever order, only the last set shows, and nothing is left."""
    target = tmp_path_factory.mktemp("history") / "target"
    for files in history:
        Publisher(str(target)).publish(files)
    found = {}
    for directory, _, inner in os.walk(target / "..data/"):
        for name in inner:
            path = os.path.join(directory, name)
            with open(path, "rb") as opened:
                found[os.path.relpath(path, target / "..data")] = opened.read()
            assert os.path.exists(target / os.path.relpath(path, target / "..data"))
    assert found == contents(history[-1])
    assert len(generations(target)) == 1
