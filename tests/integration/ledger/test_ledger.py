"""Ledgers of processes that are killed, and on a disk that is full."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE
from unit.ledger.test_ledger import ROOT, Book, brief

if TYPE_CHECKING:
    from pathlib import Path


def test_a_kill_between_commit_and_acknowledgement_repeats_the_event(tmp_path: Path) -> None:
    """A process that dies by SIGKILL right after its commit leaves the event, under the same id."""
    script = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from unit.ledger.test_ledger import Book
book = Book(sys.argv[1])
book.record(a="1")
book.record(a="2")
(event,) = book.take()
print(book.ledger.epoch, event.sequence, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    directory = str(tmp_path / "state")
    done = subprocess.run(
        [sys.executable, "-c", script, directory, *PATHS],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    book = Book(directory)
    (event,) = book.take()
    assert done.stdout.split() == [book.ledger.epoch, str(event.sequence)]
    assert brief(event) == ("a", "modified", "k1:1", "k1:2")
    book.close()


PATHS = (os.getcwd(), f"{os.getcwd()}/tests")

FULL = """
import sys
sys.path[:0] = sys.argv[2:]
import os, subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", sys.argv[1]], check=True)
from unit.ledger.test_ledger import Book, brief

from syncd.core.errors import StateError
book = Book(sys.argv[1] + "/state")
book.record(a="0")
filler = os.open(sys.argv[1] + "/filler", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filler, b"x" * 4096)
except OSError:
    pass
version, failed = 0, None
while failed is None:
    before = book.inventory
    try:
        version += 1
        book.record(a=str(version), **{f"s{n}": str(version) for n in range(50)})
    except StateError as error:
        failed = str(error)
print(failed)
os.ftruncate(filler, 0)
book.record(a="e")
print(brief([e for e in book.take() if e.subject == "a"][0])[3], len(book.take()) in (1, 51))
book.close()
os.close(filler)
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
try:
    book.open()
except StateError as error:
    print(error)
"""


@ROOT
def test_a_full_disk_is_an_error_until_there_is_room(tmp_path: Path) -> None:
    """On a real tmpfs: nothing half-recorded, all of it after; read-only is refused."""
    done = subprocess.run(
        [
            *("unshare", "-m", sys.executable, "-c", FULL),
            *(str(tmp_path), *PATHS),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    full, recovered, read_only = done.stdout.splitlines()
    assert full.startswith("cannot use the ledger: ")
    assert recovered == "k1:e True"
    assert read_only.startswith(f"cannot write to {tmp_path}/state: Read-only file system")
