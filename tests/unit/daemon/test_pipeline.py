"""The consumers of one configuration, until another one takes its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from support.mail import Mail, change

from syncd.config.settings import Settings
from syncd.core.events import Commit
from syncd.daemon.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from syncd.core.events import Event
    from syncd.daemon.resources import Resources


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    made = Mail(str(tmp_path / "state"), {})
    yield made
    made.close()


async def test_a_configuration_that_was_replaced_delivers_nothing_more(mail: Mail) -> None:
    """A swap right after the reload is the new webhook's; subscribers hear of it all the same."""
    heard: list[Commit] = []
    woken: list[Sequence[Event]] = []
    listeners: list[Callable[[Commit], None]] = [heard.append]
    resources = SimpleNamespace(ledger=mail.ledger, listeners=listeners)
    pipeline = Pipeline(Settings(vault_config="/v"), cast("Resources", resources))
    posted: list[Sequence[Event]] = []
    ended: list[bool] = []
    delivery = SimpleNamespace(
        wake=woken.append, post=posted.append, end=lambda: ended.append(True)
    )
    pipeline.deliveries = {"hook": cast("Any", delivery)}
    before, after = (Commit((change("a", number, 1),), {}, 0.0) for number in (2, 3))
    pipeline.post(before)
    pipeline.committed(before)
    assert not ended
    pipeline.end()
    pipeline.committed(after)
    assert ended == [True]
    assert posted == woken == [before.events]
    assert heard == [before, after]
