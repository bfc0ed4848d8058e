"""`recreate_destinations` against the double of Aidbox, with three replicas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.aidbox import Aidbox, allow, bundle, client
from support.aidbox_destinations import (
    DESTINATIONS,
    TYPE,
    Traffic,
    destination,
    prepare,
    recreating,
    serve,
    stored,
    value,
    wait_for_values,
)
from support.waiting import wait_until
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def outcomes(world: World) -> list[tuple[str, dict[str, Any]]]:
    """Short type and data of each event about a destination."""
    return [
        (event["type"].rpartition(".")[2], json.loads(event["data"]))
        for event in world.events()
        if event["type"].startswith("io.syncd.destination.")
    ]


def sent(aidbox: Aidbox, id_: str) -> list[str]:
    """The methods of the requests that changed a destination."""
    made = aidbox.requests(f"/fhir/{TYPE}/{id_}")
    return [request["method"] for request in made if request["method"] != "GET"]


def test_every_destination_of_a_rotated_secret_and_no_other(world: World) -> None:
    """Recreated with id and body, current at every replica, recorded; with traffic, nothing lost.

    Those whose secrets stayed are left alone.
    """
    prepare(world)
    bodies = [destination(number) for number in range(DESTINATIONS)]
    with serve(world, *bodies) as aidbox:
        before = stored(aidbox)
        world.configure(
            consumers=[recreating(world, aidbox, "drop_cache", "audit_event")],
        )
        rotated = ["d1", "d5", "d9"]
        with world.daemon() as daemon, Traffic(aidbox):
            world.publish({name: value(1) for name in rotated})
            for name in rotated:
                daemon.wait_for("destination.recreated", destination=name)
            wait_until(lambda: len(aidbox.resources("AuditEvent")) == 2 * len(rotated))
            wait_until(lambda: stored(aidbox) == before)  # and no stand-in is left
        wait_for_values(aidbox, rotated, value(1))
        assert aidbox.lost == 0
        assert aidbox.published > 0
        assert [sent(aidbox, f"d{number}") for number in range(DESTINATIONS)] == [
            ["DELETE"] if f"d{number}" in rotated else [] for number in range(DESTINATIONS)
        ]
        codes = [item["subtype"][0]["code"] for item in aidbox.resources("AuditEvent")]
        assert sorted(codes) == ["destination-recreated"] * 3 + ["secret-modified"] * 3
        (logged,) = {r["headers"]["x-correlation-id"] for r in aidbox.requests(f"/fhir/{TYPE}/d1")}
        assert "-" in logged
    found = {data["scope"]["id"]: (how, data) for how, data in outcomes(world)}
    assert sorted(found) == rotated
    how, data = found["d1"]
    assert (how, data["secret"], data["reason"]) == ("recreated", "d1", None)
    assert [item["address"] for item in data["replicas"]] == aidbox.urls
    assert all(item["started_at"] for item in data["replicas"])


def test_messages_that_wait_keep_a_destination_as_it_is(world: World) -> None:
    """It is stale, which is reported once; when they are delivered it is recreated."""
    prepare(world, count=1)
    with serve(world, destination(0), delivering=False, queued={"d0": 2}) as aidbox:
        world.configure(consumers=[recreating(world, aidbox, "drop_cache", drain_timeout="100ms")])
        with world.daemon() as daemon:
            world.publish(d0=value(1))
            problem = daemon.wait_for("destination.stale", destination="d0")
            assert "messagesQueued is 2 at http://127.0.0.1" in problem["problem"]
            assert "restart the replicas" in problem["hint"]
            daemon.wait_for("action.postponed")
            assert sent(aidbox, "d0") == []
            assert list(stored(aidbox)) == ["d0"]
            for replica in range(3):
                aidbox.restart(replica)  # as the remedy says
            daemon.wait_for("destination.current", destination="d0")
        assert aidbox.lost == 0
    assert [how for how, _ in outcomes(world)] == ["stale"]


def test_a_replica_that_cannot_read_the_secret(world: World) -> None:
    """The stand-in shows that a new sender would not start: an old one is better than none."""
    prepare(world, count=1)
    with serve(world, destination(0)) as aidbox:
        world.configure(consumers=[recreating(world, aidbox, "drop_cache")])
        with world.daemon() as daemon:
            aidbox.hide(2, "d0")
            world.publish(d0=value(1))
            problem = daemon.wait_for("destination.stale", destination="d0")["problem"]
            assert problem == f"a new sender does not start at {aidbox.urls[2]}"
            assert list(stored(aidbox)) == ["d0"]
            assert sent(aidbox, "d0") == []
            aidbox.hide(2)
            daemon.wait_for("destination.recreated", destination="d0")
        wait_for_values(aidbox, ["d0"], value(1))
        assert aidbox.lost == 0
    assert [how for how, _ in outcomes(world)] == ["stale", "recreated"]


def test_force(world: World) -> None:
    """Then what waits is dropped after the time, and not before."""
    prepare(world, count=1)
    with serve(world, destination(0), delivering=False, queued={"d0": 2}) as aidbox:
        options = {"drain_timeout": "100ms", "force": True, "stand_in": False}
        world.configure(consumers=[recreating(world, aidbox, "drop_cache", **options)])
        with world.daemon() as daemon:
            world.publish(d0=value(1))
            daemon.wait_for("destination.recreated", destination="d0")
        assert aidbox.lost == 2
        wait_for_values(aidbox, ["d0"], value(1))


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"name": "header", "valueString": "X-Tenant: hidden"}, "webhook-at-least-once", "header"),
        ({"name": "password", "valueString": "hidden"}, "webhook-at-least-once", "password"),
        ({"name": "region", "valueString": "eu"}, "bigquery-at-least-once", "exports all data"),
    ],
)
def test_what_is_never_recreated(world: World, more: dict[str, Any], kind: str, said: str) -> None:
    """A body that may hold a secret is not kept outside of Aidbox, and no export begins again."""
    prepare(world, count=2)
    bad = destination(0, more, kind=kind)
    with serve(world, bad, destination(1)) as aidbox:
        world.configure(consumers=[recreating(world, aidbox, "drop_cache")])
        with world.daemon() as daemon:
            world.publish(d0=value(1), d1=value(1))
            daemon.wait_for("destination.recreated", destination="d1")
            problem = daemon.wait_for("destination.stale", destination="d0")["problem"]
        assert said in problem
        assert "hidden" not in "".join(daemon.output)
        assert sent(aidbox, "d0") == []


def test_nothing_is_deleted_that_may_not_be_created(world: World) -> None:
    """A policy for DELETE and none for POST is found before the first step."""
    prepare(world, count=1)
    with open(f"{world.directory}/own", "wb") as file:
        file.write(b"own")
    policies = [allow("syncd", request_method=method) for method in ("get", "delete")]
    known = bundle(client("syncd", "own"), *policies, destination(0))
    with Aidbox(world.vault_config, known, replicas=2) as aidbox:
        world.configure(consumers=[recreating(world, aidbox)])
        with world.daemon() as daemon:
            world.publish(d0=value(1))
            reason = daemon.wait_for("action.postponed")["reason"]
        assert "AccessPolicy" in reason
        assert sent(aidbox, "d0") == []
    ((how, data),) = outcomes(world)
    assert (how, data["replicas"]) == ("stale", [])
    assert "it answered 403" in data["reason"]


def test_a_secret_of_one_destination_has_no_stand_in(world: World) -> None:
    """A sender of another id could not read it, and Aidbox would refuse to publish events to it."""
    prepare(world, own_scope=True, count=2)
    with serve(world, destination(0), destination(1)) as aidbox:
        world.configure(consumers=[recreating(world, aidbox, "drop_cache")])
        with world.daemon() as daemon:
            world.publish(d0=value(1), d1=value(1))
            for name in ("d0", "d1"):
                daemon.wait_for("destination.recreated", destination=name)
        assert not aidbox.requests(f"/fhir/{TYPE}/d0-syncd/$status")
        wait_for_values(aidbox, ["d0", "d1"], value(1))
        assert sorted(stored(aidbox)) == ["d0", "d1"]


def test_a_stop_between_delete_and_post(world: World) -> None:
    """The POST is made before syncd ends, so that no destination is missing meanwhile."""
    prepare(world, count=1)
    with serve(world, destination(0), slow=1.0) as aidbox:
        before = stored(aidbox)
        world.configure(consumers=[recreating(world, aidbox, stand_in=False)])
        with world.daemon():
            world.publish(d0=value(1))
            wait_until(lambda: sent(aidbox, "d0") == ["DELETE"])
        assert stored(aidbox) == before


def test_what_an_earlier_process_left_behind(world: World) -> None:
    """A deleted destination is created from the ledger, first of all, without a new rotation."""
    prepare(world, count=1)
    with serve(world, destination(0)) as aidbox:
        before = stored(aidbox)
        world.configure(consumers=[recreating(world, aidbox, stand_in=False)])
        # the first POST shows that it is allowed; the one after the DELETE fails
        aidbox.fail(503, f"/fhir/{TYPE}", method="POST", skip=1, times=1000)
        daemon = world.daemon()
        with daemon:
            world.publish(d0=value(1))
            daemon.wait_for("destination.missing", destination="d0")
            daemon.kill()
        assert stored(aidbox) == {}
        aidbox.heal()
        with world.daemon() as daemon:
            daemon.wait_for("destination.recovering", destination="d0")
            wait_until(lambda: stored(aidbox) == before)
