"""Snapshots beside other processes, users and mounts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
from support.mount import swapping
from support.waiting import DEADLINE
from unit.mount.test_read import PRESENT, ROOT, WRITTEN, Looker, brief, entries

from syncd.system import beneath

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    path = tmp_path / "mount"
    path.mkdir()
    return path


@ROOT
def test_a_file_that_may_not_be_read_spoils_that_entry_alone(tmp_path: Path) -> None:
    """For an unprivileged user, permission denied is a reason of one entry; so is a whole root."""
    script = textwrap.dedent("""
        import os, sys, time
        sys.path.insert(0, sys.argv[2])
        from syncd.core.model import Entry
        from syncd.config.settings import Watch
        from syncd.mount.read import Reader
        base = sys.argv[1]
        os.setgid(65534); os.setuid(65534)
        names = ["open/a", "open/denied", "closed/b"]
        reader = Reader(b"k", Watch(), settle=0, grace=9)
        seen = reader.scan({n: Entry(n, f"{base}/{n}", ()) for n in names})
        for name in names:
            found = seen.observations[name]
            print(name, found.state, found.settled, found.problem)
    """)
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
    (tmp_path / "open" / "a").write_bytes(b"a")
    (tmp_path / "open" / "denied").write_bytes(b"d")
    (tmp_path / "open" / "denied").chmod(0)
    (tmp_path / "closed" / "b").write_bytes(b"b")
    (tmp_path / "closed").chmod(0o700)
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        if str(directory) != "/tmp":
            directory.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), os.getcwd()],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "open/a present True None",
        "open/denied unreadable True is not readable for uid 65534",
        f"closed/b unreadable True the mount {tmp_path}/closed is not readable for uid 65534",
    ]


@pytest.mark.parametrize("pinning", [False, True])
def test_no_snapshot_mixes_generations(
    mount: Path, monkeypatch: pytest.MonkeyPatch, *, pinning: bool
) -> None:
    """While another process swaps as fast as it can, all files of a scan are of one generation."""
    if pinning:
        monkeypatch.setattr(beneath, "_open", beneath._open_by_pinning)
    names = [f"s{number}" for number in range(12)]
    wanted = entries(mount, *names)
    looker = Looker(mount)
    # a version that shows the content, which says of which generation it is
    shown = msgspec.structs.replace(
        looker.reader._rules, fingerprint=lambda _name, content: content.decode()
    )
    monkeypatch.setattr(looker.reader, "_rules", shown)
    generations: set[str | None] = set()

    def scanned() -> int:
        seen = looker.look(wanted).observations
        states = {brief(seen[name]) for name in names}
        versions = {seen[name].version for name in names}
        assert states in ({PRESENT}, {WRITTEN})
        assert len(versions) == 1
        generations.update(versions - {None})
        return len(generations)

    with swapping(mount, names):
        deadline = time.monotonic() + DEADLINE
        while scanned() < 150:
            assert time.monotonic() < deadline


REMOUNT = """
import os, subprocess, sys, time
sys.path[:0] = [sys.argv[2], f"{sys.argv[2]}/tests"]
from support import mount as csi
from syncd.core.model import Entry
from syncd.config.settings import Watch
from syncd.mount.read import Reader
root = sys.argv[1]
def mount(): subprocess.run(["mount", "-t", "tmpfs", "none", root], check=True)
def umount(): subprocess.run(["umount", root], check=True)
def publish(*names): csi.publish(root, dict.fromkeys(names, b"x"))
reader = Reader(b"k", Watch(), settle=0, grace=30)
wanted = {n: Entry(n, f"{root}/{n}", ()) for n in "ab"}
def scan(now=0):
    reader.forget_mounts()
    seen = reader.scan(wanted, clock=lambda: now).observations
    print(*(f"{o.state}{'' if o.settled else '?'}" for o in seen.values()))
with open(f"{root}/a", "wb") as file: file.write(b"placeholder under the mount")
mount(); publish("a", "b"); scan()
umount(); scan()
mount(); scan()
publish("a", "b"); scan()
umount(); scan(); scan(31)
mount(); publish("a", "b"); scan(32)
subprocess.run(["mount", "-o", "remount,ro", root], check=True); scan(33)
umount()
"""


@ROOT
def test_a_real_remount_removes_nothing(mount: Path) -> None:
    """tmpfs unmounted, mounted, filled: held, then present; in the end what lies below counts."""
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", REMOUNT, str(mount), os.getcwd()],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "present present",
        "missing? missing?",
        "missing? missing?",
        "present present",
        "missing? missing?",
        "present missing",
        "present present",
        "present present",
    ]
