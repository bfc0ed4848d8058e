"""A new `fingerprint_key_file` while the state directory or the ledger fails."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.world import secret

from syncd.core.errors import StateError
from syncd.daemon.fingerprint_key import FingerprintKeyFile
from syncd.daemon.resources import Resources
from syncd.ledger.ledger import UNKNOWN_BOOT, Ledger
from syncd.ledger.state_dir import StateDir
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def resources(tmp_path: Path) -> Iterator[Resources]:
    with ExitStack() as stack:
        state = StateDir.open(f"{tmp_path}/state")
        stack.callback(state.close)
        ledger = Ledger.open(state, UNKNOWN_BOOT)
        stack.callback(ledger.close)
        yield Resources(state, ledger, Metrics())


class Changes:
    """Counts them, and knows the key of the last one."""

    def __init__(self, resources: Resources) -> None:
        self.keys: list[str] = []
        self._resources = resources

    def __call__(self) -> None:
        self.keys.append(self._resources.state.keys.key_id)


def shared_key(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_bytes(secret("the shared key"))
    return str(path)


async def test_the_state_directory_cannot_be_opened(
    resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported, the key before stays in use, and the new one is taken over later."""
    changes = Changes(resources)
    before, path = resources.state.keys, resources.state.path
    file = FingerprintKeyFile(shared_key(tmp_path), resources, changes)
    monkeypatch.setattr(resources.state, "path", f"{path}/gone")
    await file.check()
    assert (changes.keys, resources.state.keys) == ([], before)
    monkeypatch.setattr(resources.state, "path", path)
    await file.check()
    assert changes.keys == [resources.state.keys.key_id] != [before.key_id]


async def test_the_ledger_cannot_record_it(
    resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions are made with the key that the state directory has; recording is tried again."""
    changes, recorded = Changes(resources), list[str]()

    def refuse(_key_id: str) -> None:
        raise StateError("cannot use the ledger: no space", "free some")

    monkeypatch.setattr(resources.ledger, "use_key", refuse)
    file = FingerprintKeyFile(shared_key(tmp_path), resources, changes)
    await file.check()
    assert changes.keys == [resources.state.keys.key_id]
    monkeypatch.setattr(resources.ledger, "use_key", recorded.append)
    await file.check()
    await file.check()
    assert recorded == changes.keys == [resources.state.keys.key_id]
