"""Publishers that are killed, and a disk that is full: real processes and file systems."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from unit.provision.test_publish import (
    NEW,
    OLD,
    ROOT,
    Recorder,
    assert_tidy,
    contents,
    steps_of,
    view,
)

from syncd.core.errors import TemporaryError
from syncd.core.payload import File
from syncd.provision.publish import Publisher, filesystem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def publish_and_die(target: Path, files: str, at: int) -> None:
    """Runs a pass in a process of its own that is gone at the given step."""
    script = f"""
import os
from syncd.core.payload import File
from syncd.provision.publish import Publisher
left = {at}
def step(name):
    global left
    if not left:
        os._exit(9)
    left -= 1
Publisher({str(target)!r}, step=step).publish({files})
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9


def literal(files: Sequence[File]) -> str:
    return "[" + ", ".join(f"File({f.path!r}, {f.content!r}, {f.mode})" for f in files) + "]"


def test_a_publisher_killed_at_every_step_leaves_one_whole_generation(tmp_path: Path) -> None:
    """Readers find the old or the new set, complete; the next pass finishes and tidies up."""
    steps = steps_of(tmp_path, OLD, NEW)
    assert set(steps) == {
        "make generation",
        "write file",
        "sync directory",
        "link data_tmp",
        "link name",
        "swap",
        "unlink name",
        "clean generation",
    }
    swapped = steps.index("swap")
    for at in range(len(steps)):
        target = tmp_path / f"killed-{at}"
        Publisher(str(target)).publish(OLD)
        publish_and_die(target, literal(NEW), at)
        assert view(target) == contents(OLD if at <= swapped else NEW), steps[at]
        Publisher(str(target)).publish(NEW)
        assert_tidy(target, NEW)
    # and going back to the old set after a crash is a pass like any other
    for at in range(len(steps)):
        target = tmp_path / f"killed-{at}"
        publish_and_die(target, literal(OLD[:1]), min(at, 3))
        Publisher(str(target)).publish(NEW)
        assert_tidy(target, NEW)


def test_a_first_pass_killed_at_every_step_leaves_nothing_or_all(tmp_path: Path) -> None:
    """On an empty target a reader finds no file, or every file."""
    recorder = Recorder()
    Publisher(str(tmp_path / "recorded"), step=recorder).publish(NEW)
    swapped = recorder.steps.index("swap")
    for at in range(len(recorder.steps)):
        target = tmp_path / f"killed-{at}"
        publish_and_die(target, literal(NEW), at)
        assert view(target) == (contents(NEW) if at > swapped else {}), recorder.steps[at]
        Publisher(str(target)).publish(NEW)
        assert_tidy(target, NEW)


@ROOT
def test_a_full_disk_leaves_the_old_files(tmp_path: Path) -> None:
    """On a real file system without room: one clear line, nothing half-written, then recovery."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        publisher = Publisher(str(mount / "secrets"))
        publisher.publish(OLD)
        with pytest.raises(TemporaryError, match="No space left on device; free disk space"):
            publisher.publish([File("a", b"x" * 100_000)])
        assert_tidy(mount / "secrets", OLD)
        assert publisher.publish(NEW)
        assert_tidy(mount / "secrets", NEW)
        assert filesystem(str(mount / "secrets")) == "tmpfs"
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_process_that_is_being_started_does_not_hold_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child has a copy of every descriptor until it executes its program."""
    copies: list[int] = []
    real = os.open

    def copied(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real(path, flags, mode, dir_fd=dir_fd)
        copies.append(os.dup(descriptor))
        return descriptor

    monkeypatch.setattr(os, "open", copied)
    try:
        publisher = Publisher(str(tmp_path / "target"))
        assert publisher.publish(OLD)
        assert publisher.publish(NEW)
    finally:
        for descriptor in copies:
            os.close(descriptor)
