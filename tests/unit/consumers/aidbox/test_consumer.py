"""The consumer of kind `aidbox`: what it repeats, what it does not, and whom it waits for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from structlog.testing import capture_logs
from support.mail import change
from support.receiver import Receiver, reply

from syncd.config.settings import Aidbox
from syncd.consumers.aidbox.consumer import AidboxConsumer, _combined
from syncd.consumers.consumer import UndeliveredError, UnusableError
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.event_data import (
    SECRET_ADOPTED,
    SECRET_REJECTED,
    VAULT_CONFIG_CHANGED,
    AdoptionData,
    VaultConfigData,
)
from syncd.core.events import Event, Stamp
from syncd.core.model import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

STAMP = Stamp("5f0c2a91", "/syncd/host")
Make = "Callable[..., AidboxConsumer]"


@pytest.fixture
def one() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def two() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., AidboxConsumer]]:
    """Makes a consumer of these receivers."""
    (tmp_path / "secret").write_bytes(b"canary")
    made = []

    def consumer(*receivers: Receiver, **changes: Any) -> AidboxConsumer:
        options: dict[str, Any] = {
            "name": "aidbox",
            "urls": tuple(f"http://127.0.0.1:{item.port}" for item in receivers),
            "client_id": "syncd",
            "client_secret_file": str(tmp_path / "secret"),
            "actions": ("drop_cache",),
            **changes,
        }
        made.append(AidboxConsumer(Aidbox(**options), STAMP))
        return made[-1]

    yield consumer
    for item in made:
        await item.aclose()


def numbered(*events: Event) -> list[Event]:
    return [msgspec.structs.replace(e, sequence=n) for n, e in enumerate(events, 1)]


async def test_one_drop_per_batch_and_replica(
    make: Callable[..., AidboxConsumer], one: Receiver, two: Receiver
) -> None:
    """Never per secret."""
    consumer = make(one, two)
    await consumer.deliver(numbered(*(change(name, 2, 1) for name in "abcdef")))
    for receiver in (one, two):
        (request,) = receiver.requests
        assert (request.method, request.target) == ("POST", "/$drop-cache")
        assert request.body == b""
    assert "canary" not in repr(consumer)


async def test_a_retry_that_holds_more_is_told_to_all(
    make: Callable[..., AidboxConsumer], one: Receiver, two: Receiver
) -> None:
    """Who has answered for a batch is not asked again for it, but is for what came later."""
    consumer = make(one, two)
    first, second = numbered(change("a", 2, 1), change("b", 2, 1))
    two.script(reply(503, retry_after="7"), reply(503))
    with pytest.raises(TemporaryError) as error:
        await consumer.deliver([first])
    assert error.value.retry_after == 7
    with pytest.raises(TemporaryError):
        await consumer.deliver([first])
    assert (len(one.requests), len(two.requests)) == (1, 2)
    await consumer.deliver([first, second])
    assert (len(one.requests), len(two.requests)) == (2, 3)


async def test_a_replica_that_left_the_dns_is_not_waited_for(
    make: Callable[..., AidboxConsumer], one: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that joined forgotten."""
    found = ["127.0.0.1", "127.0.0.9"]

    async def resolve(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        return [(None, None, None, None, (address, port)) for address in found]

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    consumer = make(urls=(f"http://aidbox.internal:{one.port}",), resolve="all")
    events = numbered(change("a", 2, 1))
    with pytest.raises(TemporaryError, match=r"\(127\.0\.0\.9\): Connection refused"):
        await consumer.deliver(events)
    found.remove("127.0.0.9")
    await consumer.deliver(events)
    (request,) = one.requests
    assert request.headers["host"] == f"aidbox.internal:{one.port}"


async def test_other_events_are_nothing_to_aidbox(
    make: Callable[..., AidboxConsumer], one: Receiver
) -> None:
    """It loads its vault config once: dropping caches does not help."""
    data = VaultConfigData(("a",), (), (), ())
    event = Event(1, "2026-11-23T20:40:28.333Z", VAULT_CONFIG_CHANGED, "/c", data, {"a": ()})
    await make(one, actions=("drop_cache", "audit_event")).deliver([event])
    assert not one.requests


async def test_audit_is_told_once_and_without_a_gap(
    make: Callable[..., AidboxConsumer], one: Receiver
) -> None:
    """While something else fails, the trail goes from version to version all the same."""
    consumer = make(one, actions=("drop_cache", "audit_event"))
    first, second = numbered(change("a", 2, 1), change("a", 3, 1))
    one.script(reply(503), reply(201), reply(503), reply(503), reply(201))
    for events in ([first], [first], [second]):  # the second still told against what is known
        with pytest.raises(TemporaryError):
            await consumer.deliver(events)
    await consumer.deliver([second])
    told = [json.loads(r.body) for r in one.requests if r.target == "/fhir/AuditEvent"]
    assert [item["id"] for item in told] == ["syncd-5f0c2a91-1", "syncd-5f0c2a91-2"]
    details = [{d["type"]: d["valueString"][-1] for d in i["entity"][0]["detail"]} for i in told]
    assert details == [
        {"version": "2", "previous_version": "1"},
        {"version": "3", "previous_version": "2"},
    ]


async def test_a_server_of_another_fhir_version(
    make: Callable[..., AidboxConsumer], one: Receiver
) -> None:
    """Its 422 is reported once, with the cause; nothing is retried, and other actions go on."""
    consumer = make(one, actions=("audit_event", "drop_cache"), max_in_flight=1)
    one.script(reply(200), reply(422), reply(422))
    with capture_logs() as logs:
        await consumer.deliver(numbered(change("a", 2, 1), change("b", 2, 1)))
    errors = [item for item in logs if item["log_level"] == "error"]
    assert [item["event"] for item in errors] == ["audit.refused"]
    assert "R4" in errors[0]["hint"]
    assert len(one.requests) == 3


async def test_audit_goes_elsewhere(
    make: Callable[..., AidboxConsumer], one: Receiver, two: Receiver, tmp_path: Path
) -> None:
    """To the server of `audit_url`, with its credentials, which are read again after a 401."""
    token = tmp_path / "token"
    token.write_text("first")
    consumer = make(
        one,
        actions=("audit_event",),
        audit_url=f"http://127.0.0.1:{two.port}/fhir/",
        audit_bearer_token_file=str(token),
    )
    await consumer.deliver(numbered(change("a", 2, 1)))
    assert not one.requests
    (request,) = two.requests
    assert (request.target, request.headers["authorization"]) == (
        "/fhir/AuditEvent",
        "Bearer first",
    )
    assert request.headers["x-correlation-id"] == "5f0c2a91-1"
    token.write_text("second")
    two.script(reply(401), reply(201), reply(403), reply(503), reply(500))
    await consumer.deliver(numbered(change("a", 3, 2), change("b", 3, 2))[1:])
    assert [r.headers["authorization"] for r in two.requests[1:]][-1] == "Bearer second"
    for kind in (UnusableError, TemporaryError, UndeliveredError):
        with pytest.raises(kind):
            await consumer.deliver(numbered(change("a", 4, 3)))


@pytest.mark.parametrize(("type_", "outcome"), [(SECRET_ADOPTED, "0"), (SECRET_REJECTED, "8")])
async def test_the_outcome_of_adoption_is_recorded(
    make: Callable[..., AidboxConsumer], one: Receiver, type_: str, outcome: str
) -> None:
    """Once, as an AuditEvent that refers to the secret and its Client."""
    data = AdoptionData("app", Scope("Client", "app"), "k1:02", "aidbox", 0.2, ())
    event = Event(7, "2026-11-23T20:40:28.333Z", type_, "app", data)
    await make(one, actions=("audit_event",)).deliver([event])
    (request,) = one.requests
    resource = json.loads(request.body)
    assert resource["outcome"] == outcome
    assert resource["subtype"][0]["code"] == "secret-" + type_.rpartition(".")[2]
    assert [item["name"] for item in resource["entity"]] == ["app", "Client/app"]
    AuditEvent.model_validate(resource)


async def test_audit_goes_to_a_replica_that_can_be_reached(
    make: Callable[..., AidboxConsumer], one: Receiver, two: Receiver
) -> None:
    """They share a database; and what failed does not keep the caches."""
    consumer = make(one, two, actions=("audit_event",))
    one.stop()
    await consumer.deliver(numbered(change("a", 2, 1)))
    (request,) = two.requests
    assert request.headers["if-none-exist"] == "_id=syncd-5f0c2a91-1"
    assert request.headers["content-type"] == "application/fhir+json"


async def test_a_refusal_of_the_audit_comes_after_the_caches(
    make: Callable[..., AidboxConsumer], one: Receiver
) -> None:
    """One action that fails keeps no other from being done."""
    consumer = make(one, actions=("audit_event", "drop_cache"))
    one.script(reply(200), reply(400))
    with pytest.raises(RefusedError, match=r"cannot record an AuditEvent at .*: it answered 400"):
        await consumer.deliver(numbered(change("a", 2, 1)))
    assert [r.target for r in one.requests] == ["/$drop-cache", "/fhir/AuditEvent"]


async def test_a_change_that_cannot_be_recorded_holds_up_no_other(
    make: Callable[..., AidboxConsumer], one: Receiver
) -> None:
    """It is named, the others are recorded, and what Aidbox as a whole refuses is not its fault."""
    consumer = make(one, actions=("audit_event",), max_in_flight=1)
    events = numbered(*(change(name, 2, 1) for name in "abc"))
    one.script(reply(201), reply(400), reply(201))
    with pytest.raises(UndeliveredError, match="it answered 400") as caught:
        await consumer.deliver(events)
    assert [group.events for group in caught.value.groups] == [(events[1],)]
    assert len(one.requests) == 3
    one.script(reply(403))
    with pytest.raises(UnusableError, match="it answered 403"):
        await consumer.deliver(numbered(*(change(name, 3, 2) for name in "abc")))
    assert len(one.requests) == 4


@pytest.mark.parametrize(
    ("errors", "kind", "text"),
    [
        ([RefusedError("no")], RefusedError, "no"),
        ([RefusedError("no", "do"), RefusedError("never")], RefusedError, "no (and 1 more); do"),
        ([RefusedError("no"), TemporaryError("later")], TemporaryError, "later (and 1 more)"),
    ],
)
def test_several_errors_are_one(
    errors: list[SyncdError], kind: type[SyncdError], text: str
) -> None:
    """What may heal by itself decides how soon to try again."""
    error = _combined(errors)
    assert type(error) is kind
    assert str(error) == text
