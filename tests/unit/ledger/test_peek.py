"""A look into a ledger from outside: right whether or not it is open, and without a trace."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from syncd.core.changes import plan
from syncd.core.model import Entry, Observation, Scope, State
from syncd.core.timing import rfc3339
from syncd.ledger.ledger import Ledger
from syncd.ledger.peek import Rotations, read_rotations
from syncd.ledger.state_dir import StateDir

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES = {name: Entry(name, f"/m/{name}", (Scope("Client"),)) for name in ("same", "changed")}


def record(ledger: Ledger, at: float, **versions: str) -> None:
    known = ledger.inventory()
    seen = {name: Observation(State.PRESENT, f"k1:{v}") for name, v in versions.items()}
    ledger.record(
        plan(known, ENTRIES, seen, rfc3339(at)), known, "/vc.json", rfc3339(at), consumers={}
    )


def test_an_open_and_a_closed_ledger(tmp_path: Path) -> None:
    """Baseline and times are the same in both, and a closed ledger gets no files beside it."""
    state = StateDir.open(str(tmp_path))
    ledger = Ledger.open(state, "boot")
    record(ledger, 100.0, same="1", changed="1")
    record(ledger, 200.0, same="1", changed="2")
    expected = Rotations(
        100.0,
        {"same": 100.0, "changed": 200.0},
        100.0,
        versions={"changed": "k1:2"},
        replaced={"changed": ((200.0, "k1:1"),)},
    )
    assert read_rotations(str(tmp_path)) == expected
    ledger.close()
    state.close()
    before = sorted(os.listdir(tmp_path))
    assert read_rotations(str(tmp_path)) == expected
    assert sorted(os.listdir(tmp_path)) == before


def test_before_the_baseline(tmp_path: Path) -> None:
    """A daemon that has not scanned yet saw nothing."""
    state = StateDir.open(str(tmp_path))
    ledger = Ledger.open(state, "boot")
    assert read_rotations(str(tmp_path)) == Rotations(math.inf, {})
    ledger.close()
    state.close()


def test_the_vault_config(tmp_path: Path) -> None:
    """Its last change; what the event log has lost may be a change, and is not vouched for."""
    state = StateDir.open(str(tmp_path))
    ledger = Ledger.open(state, "boot")
    record(ledger, 100.0, same="1", changed="1")
    entries = {**ENTRIES, "new": Entry("new", "/m/new", (Scope("Client"),))}
    known = ledger.inventory()
    seen = {name: Observation(State.PRESENT, "k1:1") for name in entries}
    changes = plan(known, entries, seen, rfc3339(200.0))
    ledger.record(changes, known, "/vc.json", rfc3339(200.0), consumers={})
    found = read_rotations(str(tmp_path))
    assert (found.config_since, found.config_changed) == (100.0, 200.0)
    ledger.prune(0, rfc3339(1000.0))
    found = read_rotations(str(tmp_path))
    assert (found.config_since, found.config_changed) == (math.inf, None)
    ledger.close()
    state.close()


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
def test_no_ledger(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, empty or something else is the same as no ledger."""
    if content is not None:
        (tmp_path / "ledger.sqlite3").write_bytes(content)
    assert read_rotations(str(tmp_path)) == Rotations()


def test_what_was_found_after_a_stop(tmp_path: Path) -> None:
    """It may have changed since the ledger was closed, or after a crash since its newest event."""
    with closing(StateDir.open(str(tmp_path / "first"))) as first:
        ledger = Ledger.open(first, "boot")
        assert ledger.resumed is None
        record(ledger, 100.0, same="1", changed="1")
        record(ledger, 200.0, same="1", changed="2")
        shutil.copytree(tmp_path / "first", tmp_path / "left")  # as a SIGKILL leaves it
        ledger.close()
    state = StateDir.open(str(tmp_path / "left"))
    crashed = Ledger.open(state, "boot")
    assert crashed.resumed == rfc3339(200.0)
    crashed.close()
    opened = Ledger.open(state, "boot")
    assert opened.resumed is not None
    assert opened.resumed > rfc3339(300.0)
    known = opened.inventory()
    seen = {"changed": Observation(State.PRESENT, "k1:3")}
    planned = plan(known, ENTRIES, seen, rfc3339(400.0))
    opened.record(planned, known, "/vc.json", rfc3339(400.0), consumers={}, since=rfc3339(300.0))
    assert read_rotations(state.path).late == {400.0: 300.0}
    opened.close()
    state.close()
