"""syncd.core.event_data: the change of a vault config as a receiver may see it."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from syncd.core.event_data import VaultConfigData, known_of, secret_data, secret_state
from syncd.core.model import Change, ChangeKind, Entry, Scope

NOTHING = VaultConfigData((), (), (), ())


@pytest.mark.parametrize("field", ["added", "removed", "rescoped", "repointed"])
def test_a_change_of_the_vault_config_is_true_if_anything_changed(field: str) -> None:
    """It is false only when all four lists are empty."""
    assert replace(NOTHING, **{field: ("a",)})
    assert not NOTHING


def test_a_change_of_the_vault_config_can_be_cut_to_some_secrets() -> None:
    """A consumer reads no name outside its scope."""
    change = VaultConfigData(("a", "b"), ("c",), ("b",), ("b", "c"))
    assert change.about({"b"}) == VaultConfigData(("b",), (), ("b",), ("b",))


@pytest.mark.parametrize("extra", [False, True])
def test_a_file_outside_the_vault_config_says_so(extra: bool) -> None:
    """Also to a relay; of a secret of the vault config nothing is added."""
    entry = Entry("x", "/etc/x", () if extra else (Scope("Client"),), extra=extra)
    data = secret_data(Change(ChangeKind.ADDED, entry, "k1:01", None))
    sent = msgspec.json.decode(msgspec.json.encode(data))
    assert sent.get("extra", False) is extra
    known = known_of("2026-11-23T20:40:28.333Z", "/syncd/a", msgspec.convert(sent, type(data)))
    assert known.entry == Entry("x", "/etc/x", entry.scopes, "/syncd/a", extra)
    assert msgspec.to_builtins(secret_state(known)).get("extra", False) is extra
