"""Reading a live Aidbox that does not behave as the double does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.aidbox import reference
from support.receiver import Receiver, reply

from syncd.config.settings import Aidbox
from syncd.lint.aidbox.reading import read_live

if TYPE_CHECKING:
    from pathlib import Path

    from syncd.core.findings import Finding
    from syncd.lint.aidbox.rules import Live

HEALTH = {"checks": {"uptime": [{"observedValue": 5}]}}


async def read(
    tmp_path: Path, receiver: Receiver, *answers: Any, base: str = ""
) -> tuple[Live, list[Finding]]:
    """Reads as far as there are answers; then there is nothing."""
    (tmp_path / "secret").write_bytes(b"x")
    receiver.default = reply(404)
    receiver.script(
        *(
            item if callable(item) else reply(200, json.dumps(item).encode())
            for item in (HEALTH, *answers)
        )
    )
    settings = Aidbox(
        name="check",
        urls=(f"http://127.0.0.1:{receiver.port}{base}",),
        client_id="syncd",
        client_secret_file=str(tmp_path / "secret"),
        actions=(),
    )
    return await read_live(settings)


def page(*ids: str, following: str | None = None, type_: str = "X") -> dict[str, Any]:
    link = [] if following is None else [{"relation": "next", "url": following}]
    return {"entry": [{"resource": {"id": id_}} for id_ in ids], "link": link}


@pytest.mark.parametrize(
    ("following", "target"),
    [
        ("/fhir/X?_page=2", "/fhir/X?_page=2"),
        ("?_page=2", "/fhir/AidboxTopicDestination?_page=2"),
        ("https://evil.example.org/fhir/X?_page=2", "/fhir/X?_page=2"),
        ("http://box/some/base/fhir/X?_page=2", "/fhir/X?_page=2"),
        ("//evil.example.org/fhir/X", "/fhir/X"),
        ("/fhir/X?a b\u00e9\0%20", "/fhir/X?a%20b%C3%A9%00%20"),
    ],
)
@pytest.mark.parametrize("base", ["", "/base"])
async def test_the_next_page_is_asked_of_the_same_server(
    tmp_path: Path, receiver: Receiver, following: str, target: str, base: str
) -> None:
    """Whatever host the link names: credentials go nowhere else."""
    live, findings = await read(
        tmp_path, receiver, page("a", following=following), page("b", "a"), base=base
    )
    assert [item["id"] for item in live.resources["AidboxTopicDestination"]] == ["a", "b"]
    assert not findings
    assert receiver.requests[2].target == base + target
    assert receiver.requests[1].target == f"{base}/fhir/AidboxTopicDestination?_count=100"


async def test_pages_that_go_round_in_a_circle(tmp_path: Path, receiver: Receiver) -> None:
    """They end where they were before."""
    first = page("a", following="/fhir/X?_page=2")
    again = page("b", following="/fhir/AidboxTopicDestination?_count=100")
    live, _ = await read(tmp_path, receiver, first, again)
    assert [item["id"] for item in live.resources["AidboxTopicDestination"]] == ["a", "b"]


async def test_a_type_that_aidbox_does_not_know(tmp_path: Path, receiver: Receiver) -> None:
    """Has no resources."""
    live, findings = await read(tmp_path, receiver)
    assert set(live.resources.values()) == {()}
    assert not findings
    assert len(live.resources) == 4


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b"<html>"),
        reply(200, b'{"entry": 1}'),
        reply(200, b'{"entry": [{"resource": {"id": "\xff"}}]}'),
        reply(200, b'{"entry": [{"resource": {"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}]}"),
        reply(200, b'{"entry": [], "link": [{"relation": "next", "url": "http://["}]}'),
        reply(500),
        reply(403),
    ],
)
async def test_what_cannot_be_read_is_told_and_the_rest_is_read(
    tmp_path: Path, receiver: Receiver, answer: Any
) -> None:
    """Each type by itself."""
    live, findings = await read(tmp_path, receiver, answer, page("a"))
    assert "AidboxTopicDestination" not in live.resources
    assert len(live.resources["Client"]) == 1
    (finding,) = findings
    assert finding.code == "aidbox-unreadable"
    assert finding.source.endswith("/fhir/AidboxTopicDestination")
    assert finding.hint


async def test_an_aidbox_that_is_no_aidbox(tmp_path: Path, receiver: Receiver) -> None:
    """One finding, and no more requests."""
    receiver.script(reply(200, b"{}"))
    live, (finding,) = await read(tmp_path, receiver)
    assert "is not what Aidbox documents" in finding.message
    assert not live.resources
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("parameters", "started", "queued"),
    [
        ([], None, None),
        ([{"name": "startTimestamp", "valueDateTime": "soon"}], None, None),
        ([{"name": "startTimestamp", "valueDateTime": "0001-01-01T00:00:00+01:00"}], None, None),
        (
            [
                {"name": "startTimestamp", "valueDateTime": "2024-10-03T07:23:00Z"},
                {"name": "messagesQueued", "valueDecimal": 2},
            ],
            1727940180.0,
            2,
        ),
    ],
)
async def test_the_state_of_a_destination(
    tmp_path: Path,
    receiver: Receiver,
    parameters: list[object],
    started: float | None,
    queued: int | None,
) -> None:
    """Only of one that refers to a secret, and as far as it is told."""
    using = {"id": "d", "parameter": [{"name": "header", "_valueString": reference("a")}]}
    destinations = {"entry": [{"resource": using}, {"resource": {"id": "other"}}]}
    status = {"parameter": parameters}
    empty: dict[str, Any] = {}
    live, findings = await read(tmp_path, receiver, destinations, empty, empty, empty, status)
    assert not findings
    assert set(live.senders) == {"d"}
    (sender,) = live.senders["d"]
    assert (sender.is_alive, sender.started, sender.queued) == (True, started, queued)


@pytest.mark.parametrize(
    ("id_", "asked"), [("a b/é?", "a%20b%2F%C3%A9%3F"), (["x"], "%5B%27x%27%5D"), (None, "None")]
)
async def test_an_id_that_is_none_of_fhir(
    tmp_path: Path, receiver: Receiver, id_: object, asked: str
) -> None:
    """It is text like any other, and leads nowhere else."""
    using = {"id": id_, "parameter": [{"name": "header", "_valueString": reference("a")}]}
    empty: dict[str, Any] = {}
    status: dict[str, Any] = {"parameter": []}
    page = {"entry": [{"resource": using}]}
    live, findings = await read(tmp_path, receiver, page, empty, empty, empty, status)
    assert not findings
    assert len(live.senders[str(id_)]) == 1
    assert receiver.requests[-1].target == f"/fhir/AidboxTopicDestination/{asked}/$status"


@pytest.mark.parametrize("uptime", [1e300, 1e12, -1e12])
async def test_an_uptime_that_is_none(tmp_path: Path, receiver: Receiver, uptime: float) -> None:
    """It would lead out of the years that a date has."""
    health = {"checks": {"uptime": [{"observedValue": uptime}]}}
    receiver.script(reply(200, json.dumps(health).encode()))
    live, (finding,) = await read(tmp_path, receiver)
    assert not live.started
    assert "is not what Aidbox documents" in finding.message


NONE = b'{"text": {"div": "AidboxTopicDestination d has no sender associated with it."}}'


@pytest.mark.parametrize(
    ("answers", "alive", "codes"),
    [
        ([reply(500, NONE), reply(500, NONE)], [False], []),
        ([reply(500, NONE), {"parameter": []}], [True], []),  # it has just been created
        ([reply(500, b"another fault")], [], ["aidbox-unreadable"]),
        ([reply(500, NONE), reply(502)], [], ["aidbox-unreadable"]),
    ],
)
async def test_a_destination_without_a_sender(
    tmp_path: Path,
    receiver: Receiver,
    answers: list[Any],
    alive: list[bool],
    codes: list[str],
) -> None:
    """The documented answer of a replica where it did not start, given twice; others are faults."""
    using = {"id": "d", "parameter": [{"name": "header", "_valueString": reference("a")}]}
    empty: dict[str, Any] = {}
    first = [{"entry": [{"resource": using}]}, empty, empty, empty]
    live, findings = await read(tmp_path, receiver, *first, *answers)
    assert [sender.is_alive for sender in live.senders["d"]] == alive
    assert [finding.code for finding in findings] == codes


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("2605.0", 2605),
        ("2512", 2512),
        ("v2609.1-lts", 2609),
        ("edge", None),
        ("9999.1", None),
        ("20260501", None),
    ],
)
async def test_the_release(
    tmp_path: Path, receiver: Receiver, version: str, release: int | None
) -> None:
    """Year and month, wherever they stand in the version; unknown where there are none."""
    receiver.script(reply(200, json.dumps({**HEALTH, "about": {"version": version}}).encode()))
    live, _ = await read(tmp_path, receiver)
    assert list(live.releases.values()) == ([] if release is None else [release])
