"""syncd.ledger.fingerprint_keys, and how the state directory keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from syncd.core.errors import StateError
from syncd.ledger.fingerprint_keys import MOST_KEYS, FingerprintKeys
from syncd.ledger.ledger import Ledger
from syncd.ledger.state_dir import StateDir

if TYPE_CHECKING:
    from pathlib import Path

SHARED, OTHER = b"a key of sixteen or more bytes", b"another key that is shared"


def test_a_shared_key_is_the_same_everywhere() -> None:
    """Two installations with one file have one key, and another than either had alone."""
    one, two = FingerprintKeys.own(), FingerprintKeys.own()
    assert one.current != two.current
    one, two = one.replaced(SHARED), two.replaced(SHARED)
    assert one.current == two.current
    assert one.former != two.former
    assert SHARED not in one.encode()
    assert one.current.hex() not in repr(one)


def test_the_same_key_again_is_no_replacement() -> None:
    """Neither an own key without a file, nor a shared one whose file is as before."""
    own = FingerprintKeys.own()
    assert own.replaced(None) is own
    shared = own.replaced(SHARED)
    assert shared.replaced(SHARED) == shared
    assert hash(shared.replaced(SHARED)) == hash(shared)


def test_without_the_file_the_key_is_an_own_one_again() -> None:
    """Who holds the shared key can no longer guess; the shared key is one of those before."""
    shared = FingerprintKeys.own().replaced(SHARED)
    own = shared.replaced(None)
    assert not own.shared
    assert own.current not in (shared.current, *shared.former)
    assert own.former == (shared.current, *shared.former)


def test_keys_are_bounded_and_none_is_kept_twice() -> None:
    """A key that comes back is the current one, and no longer one of those before."""
    keys = FingerprintKeys.own()
    for _ in range(9):
        keys = keys.replaced(SHARED).replaced(OTHER)
    assert len(keys.former) == 2
    for number in range(20):
        keys = keys.replaced(b"%016d" % number)
    assert len(keys.key_ids) == MOST_KEYS


def test_what_is_stored_is_read_again() -> None:
    """An own key alone is 32 bytes, as it always was; a damaged file holds no key."""
    own = FingerprintKeys.own()
    assert own.encode() == own.current
    for keys in (own, own.replaced(SHARED), own.replaced(SHARED).replaced(None)):
        assert FingerprintKeys.decode(keys.encode()) == keys
    for damaged in (b"", b"{}", b"\xff" * 40, b'{"shared":true,"keys":[]}'):
        assert FingerprintKeys.decode(damaged) is None
    assert FingerprintKeys.decode(b'{"shared":true,"keys":["AAAA"]}') is None


def test_the_state_directory_keeps_keys_and_ledger_together(tmp_path: Path) -> None:
    """Keys survive a restart, and the ledger of the key before is not set aside."""
    state = StateDir.open(str(tmp_path))
    Ledger.open(state, "boot").close()
    assert state.use_key(SHARED)
    assert not state.use_key(SHARED)
    keys = state.keys
    state.close()  # the process ends before the ledger knows of the key
    state = StateDir.open(str(tmp_path))
    assert state.keys == keys
    ledger = Ledger.open(state, "boot")
    assert ledger.rebuilt is None
    for number in range(MOST_KEYS + 1):
        state.use_key(b"%016d" % number)
        ledger.use_key(state.keys.key_id)
    ledger.close()
    state.close()
    state = StateDir.open(str(tmp_path))
    ledger = Ledger.open(state, "boot")
    assert ledger.rebuilt is None
    ledger.close()
    state.close()


def test_a_damaged_file_of_keys_is_refused(tmp_path: Path) -> None:
    """Rather than taking a new baseline, which would miss changes."""
    state = StateDir.open(str(tmp_path))
    state.use_key(SHARED)
    state.close()
    (tmp_path / "fingerprint.key").write_bytes(b'{"shared":true')
    with pytest.raises(StateError, match="restore it from a backup"):
        StateDir.open(str(tmp_path))
