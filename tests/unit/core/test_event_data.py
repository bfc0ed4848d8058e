"""syncd.core.event_data: the change of a vault config as a receiver may see it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from syncd.core.event_data import VaultConfigData

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
