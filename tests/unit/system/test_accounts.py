"""syncd.system.accounts: users and groups by name or number."""

from __future__ import annotations

import pytest

from syncd.system.accounts import group_id, user_id


@pytest.mark.parametrize("find", [user_id, group_id])
def test_a_name_or_a_number(find: object) -> None:
    """A number is taken as it is, a name is looked up."""
    assert callable(find)
    assert (find("0"), find("4242"), find("root")) == (0, 4242, 0)
    for unknown in ("no-such-account", "", "٤", "-1"):
        with pytest.raises(LookupError):
            find(unknown)
