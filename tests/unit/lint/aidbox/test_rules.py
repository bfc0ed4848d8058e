"""The rules, where the big picture of the integration test has no room."""

from __future__ import annotations

from typing import Any

import pytest
from support.aidbox import client, reference

from syncd.consumers.aidbox.resources import Sender
from syncd.core.model import Entry, Scope
from syncd.lint.aidbox.rotations import Evidence, Verdict
from syncd.lint.aidbox.rules import Live, check_live

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
    config: Evidence = Evidence(since=0.0),  # noqa: B008 - immutable
    rotated: dict[str, Evidence] | None = None,
    **live: Any,
) -> list[tuple[str, str]]:
    findings = check_live(
        Live(URL, resources, **live),
        ENTRIES,
        "/vc.json",
        vault_config_evidence=config,
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
    findings = check_live(live, {}, "/vc.json", vault_config_evidence=Evidence(), rotated={})
    assert [item.code for item in findings] == ["reference-unknown"]
    assert name not in str(findings[0])


BACK = ((99.0, "k1:0"), (100.5, "k1:1"), (101.0, None))
"""Replaced before the start, removed after it, and there again."""


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    [
        (Evidence(changed=101.0, since=50.0, written=500.0), Verdict.OLD),
        (Evidence(changed=100.0, since=50.0, written=500.0), Verdict.CURRENT),
        (Evidence(101.0, version="k1:1", replaced=BACK, complete=50.0), Verdict.CURRENT),
        (Evidence(101.0, version="k1:1", replaced=BACK, complete=100.2), Verdict.UNKNOWN),
        (Evidence(101.0, version="k1:3", replaced=BACK, complete=50.0), Verdict.OLD),
        (Evidence(101.0, replaced=((101.0, None),), complete=50.0), Verdict.OLD),
        (Evidence(101.0, after=100.0), Verdict.OLD),
        (Evidence(101.0, after=99.0), Verdict.UNKNOWN),
        (Evidence(99.0, since=50.0, after=98.0), Verdict.CURRENT),
        (Evidence(since=100.0, written=500.0), Verdict.CURRENT),
        (Evidence(since=101.0, written=500.0), Verdict.UNKNOWN),
        (Evidence(since=101.0, written=100.0), Verdict.CURRENT),
        (Evidence(written=500.0), Verdict.UNKNOWN),
        (Evidence(), Verdict.UNKNOWN),
    ],
)
def test_a_recent_file_is_no_rotation(evidence: Evidence, verdict: Verdict) -> None:
    """A change is proved by content alone; its absence also by a file older than the process."""
    assert evidence.judge(100.0) is verdict


def kafka(*senders: Sender, evidence: Evidence | None = None, **live: Any) -> list[tuple[str, str]]:
    """Findings about the destination d, which uses the secret kafka."""
    resource = {"id": "d", "parameter": [{"name": "header", "_valueString": reference("kafka")}]}
    return found(
        {"AidboxTopicDestination": (resource | live.pop("more", {}),)},
        senders={"d": senders},
        rotated={} if evidence is None else {"kafka": evidence},
        **live,
    )


ROTATED = Evidence(changed=101.0, since=50.0)


@pytest.mark.parametrize(
    ("sender", "evidence", "expected"),
    [
        (Sender("one", started=100.0), ROTATED, ["destination-stale"]),
        (Sender("one", started=101.0), ROTATED, []),
        (Sender("one", started=None), ROTATED, []),
        (Sender("one", started=100.0), None, []),
        (Sender("one", started=100.0), Evidence(written=500.0), ["destination-unknown"]),
        (Sender("one", is_alive=False), None, ["destination-dead"]),
    ],
)
def test_a_sender_is_judged_by_what_is_known(
    sender: Sender, evidence: Evidence | None, expected: list[str]
) -> None:
    """One that is dead is so without any evidence."""
    assert [code for code, _ in kafka(sender, evidence=evidence)] == expected


def test_each_replica_has_its_own_sender() -> None:
    """Stale, dead and current ones of one destination, and messages that wait at any replica."""
    senders = (
        Sender("one", started=100.0, queued=2),
        Sender("two", is_alive=False),
        Sender("three", started=200.0, queued=3),
    )
    stale, dead = kafka(*senders, evidence=ROTATED)
    assert (stale[0], dead[0]) == ("destination-stale", "destination-dead")
    assert "messagesQueued is unknown" in stale[1]  # a dead sender does not report its queue
    ((_, hint),) = kafka(senders[0], senders[2], evidence=ROTATED)
    assert "messagesQueued is 5;" in hint


@pytest.mark.parametrize(
    ("release", "said"), [(None, "a PUT returns 405"), (2607, "returns 405"), (2608, "endpoint")]
)
def test_the_remedies_are_in_the_vendors_order(release: int | None, said: str) -> None:
    """A restart loses nothing, so it is first; what a PUT can do depends on the release."""
    releases = {} if release is None else {"one": release}
    stale = Sender("one", started=100.0, queued=2)
    ((_, hint),) = kafka(stale, evidence=ROTATED, releases=releases)[:1]
    assert hint.index("restart this replica (nothing is lost") < hint.index("wait until")
    assert said in hint
    ((_, hint),) = kafka(stale, evidence=ROTATED, more={"kind": "kafka-best-effort"})
    assert "messages that it has in memory are lost" in hint


@pytest.mark.parametrize(
    ("release", "expected"),
    [(2512, ["aidbox-too-old"]), (2602, ["aidbox-sender-race"]), (2603, []), (2609, [])],
)
def test_releases(release: int, expected: list[str]) -> None:
    """The LTS release 2512 has no external secrets."""
    assert codes({}, releases={"one": release}) == expected


@pytest.mark.parametrize(
    ("changed", "needed"), [(None, 0), (99.0, 0), (101.0, 0), (103.0, 1), (203.0, 2)]
)
def test_each_replica_may_need_a_restart(changed: float | None, needed: int) -> None:
    """Clocks are not compared to the second."""
    started = {"http://one": 100.0, "http://two": 200.0}
    told = codes({}, started=started, config=Evidence(changed, since=0.0))
    assert told == ["aidbox-restart-needed"] * needed


def test_a_vault_config_that_was_not_watched() -> None:
    """Is no reason to restart, whatever its file's time says."""
    evidence = Evidence(since=150.0, written=500.0)
    started = {"http://one": 100.0, "http://two": 200.0}
    ((code, hint),) = found({}, started=started, config=evidence)
    assert code == "aidbox-restart-unknown"
    assert "has watched since" in hint
