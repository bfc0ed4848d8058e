"""`syncd events`: parsing streams, coming back, and lines that are safe on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from syncd.commands.client import DeniedError, UnreachableError
from syncd.commands.events import Block, EventReader, as_text, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTRIBUTES = (
    '"specversion": "1.0", "id": "x-1", "source": "/syncd/h", "time": "t",'
    ' "datacontenttype": "application/json"'
)


def test_blocks() -> None:
    """Comments are dropped, lines of data joined, and an id without data is a position."""
    lines = [": hi", "retry: 1", "id: x-1", "", "event: t", "data: 1", "data:2", "id: x-2", "", ""]
    assert list(blocks(lines)) == [Block("message", "", "x-1"), Block("t", "1\n2", "x-2")]


class Script(EventReader):
    """Plays streams, and records from where each was asked for."""

    asked: list[str | None]
    streams: list[list[Block | Exception]]

    def _once(self, last: str | None) -> Iterator[Block]:
        self.asked.append(last)
        for item in self.streams.pop(0):
            if isinstance(item, Exception):
                raise item
            yield item


def script(*streams: list[Block | Exception], follow: bool = True) -> tuple[Script, list[str]]:
    said: list[str] = []
    journal = Script("/s", follow, None, (), (), said.append, sleep=lambda _: None)
    journal.asked, journal.streams = [], list(streams)
    return journal, said


def test_it_comes_back_where_it_was() -> None:
    """It resumes from the last id, says once that the daemon is away, and gives up when denied."""
    away = UnreachableError("away")
    journal, said = script(
        [Block("t", "1", "x-1"), away],
        [away],
        [Block("message", "", "x-5")],
        [DeniedError("no")],
    )
    shown: list[Block] = []
    with pytest.raises(DeniedError):
        shown.extend(journal.events())
    assert journal.asked == [None, "x-1", "x-1", "x-5"]
    assert said == ["away; trying again"]


@pytest.mark.parametrize("follow", [True, False])
def test_a_daemon_that_was_never_there(follow: bool) -> None:
    """The first attempt fails at once: a typing mistake in the path must not wait for ever."""
    journal, _ = script([UnreachableError("away")], follow=follow)
    with pytest.raises(UnreachableError):
        list(journal.events())


def test_a_name_that_would_move_the_cursor() -> None:
    """Control characters reach a terminal as text."""
    event = (
        f'{{"type": "io.syncd.vault_config.changed", "subject": "/c", {ATTRIBUTES},'
        ' "data": {"added": ["a\\u001b[2J"], "removed": [], "rescoped": [], "repointed": []}}'
    )
    assert as_text(Block("t", event, "x-1")) == "t  vault config /c  added a\\x1b[2J  x-1"


@pytest.mark.parametrize(
    ("type_", "adopted", "line"),
    [
        (
            "io.syncd.secret.adopted",
            "true",
            "t  a  adopted by http://h  Client/c  k1:00  after 0.2 s  x-1",
        ),
        (
            "io.syncd.secret.rejected",
            "false",
            "t  a  rejected by http://h  Client/c  k1:00  after 0.2 s  x-1",
        ),
    ],
)
def test_adoption_in_a_line(type_: str, adopted: str, line: str) -> None:
    """Whose secret, by which replicas, and after how long."""
    event = (
        f'{{"type": "{type_}", "subject": "a", {ATTRIBUTES}, "data": {{"secret": "a",'
        ' "scope": {"resource_type": "Client", "id": "c"}, "version": "k1:00", "consumer": "x",'
        f' "seconds": 0.2, "replicas": [{{"address": "http://h", "adopted": {adopted},'
        ' "seconds": null, "reason": null}]}}'
    )
    assert as_text(Block("t", event, "x-1")) == line


@pytest.mark.parametrize(
    ("how", "reason", "rest"),
    [("recreated", "null", ""), ("stale", '"messages wait"', "  messages wait")],
)
def test_a_destination_in_a_line(how: str, reason: str, rest: str) -> None:
    """Which secret, which destination, and why not."""
    event = (
        f'{{"type": "io.syncd.destination.{how}", "subject": "a", {ATTRIBUTES}, "data": {{'
        '"secret": "a", "scope": {"resource_type": "AidboxTopicDestination", "id": "d"},'
        f' "version": "k1:00", "consumer": "x", "seconds": 0.2, "reason": {reason},'
        ' "replicas": []}}'
    )
    line = f"t  a  {how}  AidboxTopicDestination/d  k1:00  after 0.2 s{rest}  x-1"
    assert as_text(Block("t", event, "x-1")) == line
