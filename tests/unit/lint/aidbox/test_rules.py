"""The rules, where the big picture of the integration test has no room."""

from __future__ import annotations

from typing import Any

import pytest
from support.aidbox import client, reference

from syncd.core.model import Entry, Scope
from syncd.lint.aidbox.rules import Destination, Live, check_live

URL = "http://127.0.0.1:8080"
ENTRIES = {
    "app": Entry("app", "/m/app", (Scope("Client", "app"),)),
    "any": Entry("any", "/m/any", (Scope("Client"),)),
    "kafka": Entry("kafka", "/m/kafka", (Scope("AidboxTopicDestination"),)),
    "broken": Entry("broken", "/m/broken", ()),
}


def found(
    resources: dict[str, tuple[dict[str, Any], ...]],
    *,
    changed: float | None = None,
    rotated: dict[str, float] | None = None,
    **live: Any,
) -> list[tuple[str, str]]:
    findings = check_live(
        Live(URL, resources, **live),
        ENTRIES,
        "/vc.json",
        vault_config_changed=changed,
        rotated=rotated or {},
    )
    return [(item.code, item.hint) for item in findings]


def codes(*arguments: Any, **more: Any) -> list[str]:
    return [code for code, _ in found(*arguments, **more)]


def test_a_type_that_was_not_read_says_nothing_of_its_entries() -> None:
    """Nor does an entry whose scope cannot be read."""
    assert codes({}) == []
    assert codes({"Client": ()}) == ["entry-unreferenced"] * 2


def test_the_hint_for_an_unknown_name() -> None:
    """The closest of those that this resource may use."""
    ((code, hint),) = found({"Client": (client("app", reference("apt")),)})[:1]
    assert code == "reference-unknown"
    assert "did you mean app?" in hint
    provider = {"id": "x", "client": {"_secret": reference("app2")}}
    ((_, hint),) = found({"IdentityProvider": (provider,)})
    assert "the vault config has no entry for IdentityProvider/x" in hint


@pytest.mark.parametrize("name", ["a\x1b[2J", "x" * 200])
def test_what_is_no_name_is_not_repeated(name: str) -> None:
    """It may be the secret itself, or move the cursor of a terminal."""
    live = Live(URL, {"Client": (client("app", reference(name)),)})
    findings = check_live(live, {}, "/vc.json", vault_config_changed=None, rotated={})
    assert [item.code for item in findings] == ["reference-unknown"]
    assert name not in str(findings[0])


@pytest.mark.parametrize(
    ("destination", "rotated", "stale"),
    [
        (Destination(100.0, 3), 101.0, True),
        (Destination(100.0, None), 101.0, True),
        (Destination(100.0, 3), 100.0, False),
        (Destination(None, 3), 101.0, False),
        (None, 101.0, False),
        (Destination(100.0, 3), None, False),
    ],
)
def test_a_destination_is_stale_if_that_is_known(
    destination: Destination | None, rotated: float | None, stale: bool
) -> None:
    """Both times must be."""
    resource = {"id": "d", "parameter": [{"name": "header", "_valueString": reference("kafka")}]}
    told = found(
        {"AidboxTopicDestination": (resource,)},
        destinations={} if destination is None else {"d": destination},
        rotated={} if rotated is None else {"kafka": rotated},
    )
    assert [code for code, _ in told] == ["destination-stale"] * stale
    if stale and destination is not None:
        queued = "unknown" if destination.queued is None else "3"
        assert f"messagesQueued is {queued}" in told[0][1]


@pytest.mark.parametrize(
    ("changed", "needed"), [(None, 0), (99.0, 0), (101.0, 0), (103.0, 1), (203.0, 2)]
)
def test_each_replica_may_need_a_restart(changed: float | None, needed: int) -> None:
    """Clocks are not compared to the second."""
    started = {"http://one": 100.0, "http://two": 200.0}
    told = codes({}, started=started, changed=changed)
    assert told == ["aidbox-restart-needed"] * needed
