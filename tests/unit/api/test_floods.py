"""Users who flood the socket are denied for a while, and only they."""

from __future__ import annotations

from typing import TYPE_CHECKING

from structlog.testing import capture_logs
from support.waiting import until

from syncd.api import floods as flooding
from syncd.api.floods import FLOOD, Floods

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest


class Socket:
    """Records who was denied."""

    def __init__(self, *, able: bool = True) -> None:
        self.able = able
        self.denied: list[list[int]] = []

    def deny(self, uids: Iterable[int]) -> None:
        if not self.able:
            raise OSError
        self.denied.append(list(uids))


async def test_who_floods_is_denied_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a number of connections in vain within a second; the others are not affected."""
    monkeypatch.setattr(flooding, "DENIED", 0.02)
    made = Socket()
    floods = Floods(made.deny)
    with capture_logs() as lines:
        floods.add(7, FLOOD - 1)
        floods.add(8, FLOOD - 1)
        assert made.denied == []
        floods.add(7, 1)
        floods.add(7, 1)
        assert made.denied == [[7]]
        await until(lambda: made.denied == [[7], []])
    (line,) = lines
    assert (line["event"], line["uid"]) == ("api.flooded", 7)
    floods.close()
    assert made.denied == [[7], []]


async def test_many_who_flood() -> None:
    """The latest ones are denied, a bounded number; at the end nobody is."""
    made = Socket()
    floods = Floods(made.deny)
    for uid in range(100):
        floods.add(uid, FLOOD)
    assert made.denied[-1] == list(range(36, 100))
    floods.close()
    assert made.denied[-1] == []


async def test_a_busy_day_is_no_flood() -> None:
    """What takes longer than a second is not counted together."""
    now = 0.0
    made = Socket()
    floods = Floods(made.deny, lambda: now)
    for now in range(0, 40, 2):  # noqa: B007 - the clock reads it
        floods.add(7, FLOOD // 2 + 1)
    assert made.denied == []
    floods.close()


async def test_where_nobody_can_be_denied() -> None:
    """Without access control lists it is logged, and no more."""
    floods = Floods(Socket(able=False).deny)
    with capture_logs() as lines:
        floods.add(7, FLOOD)
    assert [line["denied_for"] for line in lines] == [0]
    floods.close()
