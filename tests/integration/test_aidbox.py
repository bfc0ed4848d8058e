"""Aidbox as a consumer: the real daemon against a double of Aidbox in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from support.aidbox import Aidbox, bundle, client, reference
from support.aidbox_clients import OWN, Load, box, consumer, status
from support.aidbox_server import TTL
from support.receiver import Receiver
from support.subscriber import ask
from support.waiting import DEADLINE, wait_until
from support.world import CANARY, World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.world import DaemonProcess


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        with open(f"{world.directory}/own", "wb") as file:
            file.write(OWN)
        yield world


def test_a_refused_value_is_tried_gently(world: World) -> None:
    """Ten failed logins at most, each of which leads to the event; Aidbox takes it afterwards.

    The double's clock stands still, and without `drop_cache` it keeps the old value in its cache.
    """
    world.publish(app=b"old")
    world.map("app")
    with box(world, frozen=True) as aidbox:
        assert status(aidbox.urls[0], "app", b"old") == 200
        verifying = consumer(world, aidbox, "verify", verify_timeout="1s")
        world.configure(consumers=[verifying])
        with world.daemon() as daemon:
            world.publish(app=b"new")
            daemon.wait_for("adoption.rejected", secret="app")
            refused = [r for r in aidbox.requests("/fhir/Patient") if r["status"] == 401]
            assert 2 <= len(refused) <= 10
            aidbox.advance(TTL)
            daemon.wait_for("adoption.adopted", secret="app")
            (event_id,) = {r["headers"]["x-correlation-id"] for r in refused}
            assert event_id.endswith("-1")
            assert len({r["headers"]["traceparent"] for r in refused}) == len(refused)


def test_the_other_side_of_a_client_secret(world: World) -> None:
    """It is notified when Aidbox has the new value, of nothing else, and fails from swap to event.

    An application that read the new value at the swap would fail as long as Aidbox has the old one.
    """
    world.publish(app=b"0")
    world.map("app")
    with box(world, replicas=3, frozen=True) as aidbox, Receiver() as receiver:
        hook = {"name": "app", "kind": "webhook", "url": receiver.url, "types": ["adopted"]}
        world.configure(consumers=[consumer(world, aidbox, "drop_cache", "verify"), hook])
        with world.daemon() as daemon:
            for number in range(1, 11):
                assert [status(url, "app", world.values["app"]) for url in aidbox.urls] == [200] * 3
                world.publish(app=str(number).encode())
                receiver.wait(number)
                assert [status(url, "app", world.values["app"]) for url in aidbox.urls] == [200] * 3
            daemon.wait_for("adoption.adopted", 10)
    types = {request.events[0]["type"] for request in receiver.requests}
    assert types == {"io.syncd.secret.adopted"}
    assert len(receiver.requests) == 10


def test_aidbox_starts_after_the_rotation(world: World) -> None:
    """Nothing listens for longer than the timeout, and then the new value is adopted."""
    world.publish(app=b"old")
    world.map("app")
    with box(world) as aidbox:
        pass
    verifying = consumer(world, aidbox, "drop_cache", "verify", verify_timeout="500ms")
    socket = f"{world.directory}/api.sock"
    world.configure(consumers=[verifying], api={"socket": socket, "listen": ""})
    with world.daemon() as daemon:
        world.publish(app=b"new")
        daemon.wait_for("adoption.unreachable", secret="app")
        assert not daemon.logged("adoption.rejected")
        shown = world.run("status", "--socket", socket, "--format", "json")
        (item,) = json.loads(shown.stdout)["secrets"]
        assert item["consumers"]["aidbox"]["adoption"]["state"] == "unreachable"
        assert "Connection refused" in item["consumers"]["aidbox"]["adoption"]["problem"]
        attention = json.loads(shown.stdout)["status"]["attention"]
        assert any("whether secret app was adopted is not known" in line for line in attention)
        with box(world, port=aidbox.port):
            daemon.wait_for("adoption.adopted", secret="app")
        assert not daemon.logged("adoption.rejected")


def test_a_rotation_under_load(world: World) -> None:
    """With `drop_cache` three replicas take the new value long before the TTL, and it is proved.

    The double's clock stands still, so nothing but `$drop-cache` can end its TTL of 30 s.
    """
    gaps, adoptions = [], 0
    world.publish(app=secret("0"))
    world.map("app")
    with box(world, replicas=3, frozen=True) as aidbox:
        world.configure(consumers=[consumer(world, aidbox, "drop_cache", "verify")])
        with world.daemon() as daemon:
            for number in range(3):
                old, new = world.values["app"], secret(str(number + 1))
                with Load(aidbox.urls, old, new) as load:
                    load.run_up()
                    swapped = time.monotonic()
                    world.publish(app=new)
                    load.wait_for_switch()
                    gaps.append(max(load.accepted.values()) - swapped)
                    adoptions += 1
                    daemon.wait_for("adoption.adopted", adoptions, secret="app")
                for url in aidbox.urls:
                    assert status(url, "app", old) == 401
                    assert status(url, "app", new) == 200
        dropped = Counter(item["replica"] for item in aidbox.requests("/$drop-cache"))
        assert dropped == {0: 3, 1: 3, 2: 3}
    assert min(gaps) < TTL / 2, gaps  # without `drop_cache` it takes the TTL
    events = [e for e in world.events() if e["type"] == "io.syncd.secret.adopted"]
    for event in events:
        data = json.loads(event["data"])
        assert data["consumer"] == "aidbox"
        assert [item["address"] for item in data["replicas"]] == aidbox.urls
        assert all(item["adopted"] for item in data["replicas"])
    assert len(events) == 3
    for name in os.listdir(world.state):
        with open(f"{world.state}/{name}", "rb") as file:
            assert CANARY not in file.read(), name


def test_the_gap_without_drop_cache(world: World) -> None:
    """Without it the old value works, and the new one does not, for the 30 s of Aidbox's TTL."""
    old, new = secret("0"), secret("1")
    world.publish(app=old)
    world.map("app")
    with box(world, replicas=3, frozen=True) as aidbox:
        world.configure(consumers=[consumer(world, aidbox, "verify")])
        with world.daemon() as daemon, Load(aidbox.urls, old, new) as load:
            load.run_up()
            world.publish(app=new)
            daemon.wait_for("secret.changed")
            for second in range(30):
                seen = [(status(u, "app", old), status(u, "app", new)) for u in aidbox.urls]
                assert seen == [(200, 401)] * 3, second
                aidbox.advance(1)
            load.wait_for_switch()
            daemon.wait_for("adoption.adopted", secret="app")
        assert not aidbox.requests("/$drop-cache")


def test_a_replica_that_fails_is_told_again_and_the_others_are_not(world: World) -> None:
    """A batch is acknowledged when every replica has answered; a retry repeats what failed."""
    world.publish(a=secret("0"), b=secret("0"))
    world.map("a", "b")
    with box(world, replicas=3) as aidbox:
        aidbox.fail(503, "/$drop-cache", replica=1, times=2, retry_after="0")
        world.configure(consumers=[consumer(world, aidbox, "drop_cache", "audit_event")])
        with world.daemon() as daemon:
            world.publish(a=secret("1"), b=secret("1"))
            said = daemon.wait_for("delivery.acknowledged")
        assert (said["events"], said["after_failures"]) == (2, 2)
        dropped = [(r["replica"], r["status"]) for r in aidbox.requests("/$drop-cache")]
        assert sorted(dropped) == [(0, 200), (1, 200), (1, 503), (1, 503), (2, 200)]
        posted = aidbox.requests("/fhir/AuditEvent")
        assert [request["status"] for request in posted] == [201, 201]


def test_audit_events(world: World) -> None:
    """One valid AuditEvent per change, which names secret, resource and versions, and no value."""
    world.publish(a=secret("0"), b=secret("0"))
    world.map("a", "late", b={"resource_type": "TokenIntrospector"})
    with box(world) as aidbox:
        world.configure(consumers=[consumer(world, aidbox, "audit_event")])
        with world.daemon() as daemon:
            world.publish(a=secret("1"), b=secret("1"), late=secret("0"))
            daemon.wait_for("delivery.acknowledged")
            world.withdraw("a")
            daemon.wait_for("delivery.acknowledged", 2)
        stored = aidbox.resources("AuditEvent")
        requests = aidbox.requests("/fhir/AuditEvent")
    changes = {item["entity"][0]["name"] + " " + item["action"]: item for item in stored}
    assert sorted(changes) == ["a D", "a U", "b U", "late C"]
    events = {str(event["sequence"]): event for event in world.events()}
    for item in stored:
        AuditEvent.model_validate(item)
        assert item["agent"][0]["who"]["display"] == "syncd"
        assert item["entity"][1]["name"] in ("Client/a", "Client/late", "TokenIntrospector")
        event = events[item["id"].rpartition("-")[2]]
        assert item["recorded"] == event["time"]
        data = json.loads(event["data"])
        details = {detail["type"]: detail["valueString"] for detail in item["entity"][0]["detail"]}
        assert details.get("version") == data["version"]
        assert details.get("previous_version") == data["previous_version"]
    assert {r["headers"]["if-none-exist"] for r in requests} == {f"_id={i['id']}" for i in stored}
    assert "CANARY" not in json.dumps(stored)


def test_installations_with_one_key_record_a_rotation_once(world: World) -> None:
    """Three sidecars with mounts and event ids of their own; a fourth is of another group."""
    with ExitStack() as stack:
        worlds = [world, *(stack.enter_context(World()) for _ in range(3))]
        for each in worlds:
            each.publish(app=secret("0"))
            each.map("app")
        aidbox = stack.enter_context(box(world))
        with open(f"{world.directory}/shared.key", "wb") as file:
            file.write(b"k" * 32)
        for each in worlds:
            group = {"audit_group": "other"} if each is worlds[-1] else {}
            own = consumer(world, aidbox, "audit_event", **group)
            each.configure(consumers=[own], fingerprint_key_file=f"{world.directory}/shared.key")
            stack.enter_context(each.daemon())
        for number in (1, 2):
            for each in worlds:
                each.publish(app=secret(str(number)))
            requests = len(worlds) * number
            wait_until(lambda n=requests: len(aidbox.requests("/fhir/AuditEvent")) == n)  # type: ignore[misc]
            assert len(aidbox.resources("AuditEvent")) == 2 * number
        answers = [request["status"] for request in aidbox.requests("/fhir/AuditEvent")]
    assert sorted(answers) == [200] * 4 + [201] * 4


def test_audit_events_survive_a_crash_without_duplicates(world: World) -> None:
    """What was recorded before a crash is recorded once, although it is told again."""
    world.publish(a=secret("0"))
    world.map("a")
    with box(world) as aidbox:
        aidbox.fail(503, "/$drop-cache", times=1000)
        world.configure(consumers=[consumer(world, aidbox, "drop_cache", "audit_event")])
        with world.daemon() as daemon:
            world.publish(a=secret("1"))
            wait_until(lambda: len(aidbox.resources("AuditEvent")) == 1)
            daemon.kill()
            daemon.start()
            wait_until(lambda: len(aidbox.requests("/fhir/AuditEvent")) == 2)
            aidbox.heal()
            daemon.wait_for("delivery.acknowledged")
        assert [r["status"] for r in aidbox.requests("/fhir/AuditEvent")] == [201, 200]
        assert len(aidbox.resources("AuditEvent")) == 1


def test_a_value_that_aidbox_never_takes(world: World) -> None:
    """It is rejected after the deadline, visibly, and delays nothing else."""
    world.publish(app=secret("0"), other=secret("0"))
    world.map("app", "other")
    wrong = client("app", reference("other"))  # another secret than the vault config means
    with box(world, wrong, client("other", reference("other"))) as aidbox, Receiver() as receiver:
        verifying = consumer(world, aidbox, "drop_cache", "verify", verify_timeout="6s")
        world.configure(
            consumers=[verifying, {"name": "hook", "kind": "webhook", "url": receiver.url}],
            api={"socket": f"{world.directory}/api.sock", "listen": ""},
        )
        with world.daemon() as daemon:
            world.publish(app=secret("1"))
            receiver.wait(1)
            world.publish(other=secret("1"))
            daemon.wait_for("adoption.adopted", secret="other")
            assert not daemon.logged("adoption.rejected")
            assert len(aidbox.requests("/$drop-cache")) == 2
            _, shown = ask(f"{world.directory}/api.sock", "/v1/secrets")
            states = {
                item["secret"]: item["consumers"]["aidbox"]["adoption"]["state"]
                for item in shown["secrets"]
            }
            assert states == {"app": "pending", "other": "adopted"}
            daemon.wait_for("adoption.rejected", secret="app")
            receiver.wait(4)
            command = ("status", "--socket", f"{world.directory}/api.sock")
            shown = json.loads(world.run(*command, "--format", "json").stdout)
            text = world.run(*command)
    types = Counter(request.events[0]["type"] for request in receiver.requests)
    assert types == {
        "io.syncd.secret.changed": 2,
        "io.syncd.secret.adopted": 1,
        "io.syncd.secret.rejected": 1,
    }
    rejected = receiver.requests[-1].events[0]["data"]
    assert rejected["replicas"][0]["reason"] == "it answers 401"
    assert rejected["seconds"] >= 6
    found = {item["secret"]: item["consumers"]["aidbox"]["adoption"] for item in shown["secrets"]}
    assert found["app"]["state"] == "rejected"
    assert any("app was not adopted" in line for line in shown["status"]["attention"])
    assert text.returncode == 1
    assert re.search(r"rejected after [0-9.]+ s", text.stdout)


def test_a_newer_change_takes_the_place_of_an_older_one(world: World) -> None:
    """Only the newest version is verified to its end."""
    world.publish(app=secret("0"))
    world.map("app")
    with box(world, frozen=True) as aidbox:
        world.configure(consumers=[consumer(world, aidbox, "verify")])
        assert status(aidbox.urls[0], "app", secret("0")) == 200  # and cached
        with world.daemon() as daemon:
            world.publish(app=secret("1"))
            daemon.wait_for("secret.changed", 1)
            wait_until(lambda: any(r["status"] == 401 for r in aidbox.requests("/fhir/Patient")))
            world.publish(app=secret("2"))
            daemon.wait_for("secret.changed", 2)
            aidbox.advance(30)
            daemon.wait_for("adoption.adopted", secret="app")
    last = [json.loads(e["data"]) for e in world.events()]
    assert [item.get("change") for item in last] == ["modified", "modified", None]
    assert last[2]["version"] == last[1]["version"]


def test_a_verification_goes_on_after_a_crash(world: World) -> None:
    """It is in the ledger until it has ended, and then known after a restart."""
    world.publish(app=secret("0"))
    world.map("app")
    with box(world, frozen=True) as aidbox:
        world.configure(
            consumers=[consumer(world, aidbox, "verify")],
            api={"socket": f"{world.directory}/api.sock"},
        )
        assert status(aidbox.urls[0], "app", secret("0")) == 200
        with world.daemon() as daemon:
            world.publish(app=secret("1"))
            wait_until(lambda: any(r["status"] == 401 for r in aidbox.requests("/fhir/Patient")))
            daemon.kill()
            aidbox.advance(30)
            daemon.start()
            daemon.wait_for("adoption.adopted", secret="app")
        with world.daemon():
            asked = world.run(
                "status", "--socket", f"{world.directory}/api.sock", "--format", "json"
            )
            (item,) = json.loads(asked.stdout)["secrets"]
    assert item["consumers"]["aidbox"]["adoption"]["state"] == "adopted"


def test_what_cannot_be_verified_is_said_once(world: World) -> None:
    """A secret of another type, or of all Clients, is `not_verifiable`."""
    world.publish(a=secret("0"), b=secret("0"))
    world.map(a={"resource_type": "TokenIntrospector"}, b={"resource_type": "Client"})
    with box(world) as aidbox:
        world.configure(
            consumers=[consumer(world, aidbox, "verify")],
            api={"socket": f"{world.directory}/api.sock"},
        )
        with world.daemon() as daemon:
            for number in (1, 2):
                world.publish(a=secret(str(number)), b=secret(str(number)))
                daemon.wait_for("delivery.acknowledged", number)
            ask = ("status", "--socket", f"{world.directory}/api.sock")
            shown = json.loads(world.run(*ask, "--format", "json").stdout)
        for name in ("a", "b"):
            assert len(daemon.logged("adoption.not_verifiable", secret=name)) == 1
        assert not aidbox.requests("/fhir/Patient")
    for item in shown["secrets"]:
        assert item["consumers"]["aidbox"]["adoption"]["state"] == "not_verifiable"


def test_once_verifies_before_it_ends(world: World) -> None:
    """`run --once` drops, verifies, and tells others what came of it."""
    world.publish(app=secret("0"))
    world.map("app")
    with box(world) as aidbox, Receiver() as receiver:
        world.configure(
            consumers=[
                consumer(world, aidbox, "drop_cache", "verify"),
                {"name": "hook", "kind": "webhook", "url": receiver.url},
            ]
        )
        assert world.run("run", "-c", world.config, "--once").returncode == 0
        world.publish(app=secret("1"))
        assert world.run("run", "-c", world.config, "--once").returncode == 0
    types = [request.events[0]["type"] for request in receiver.requests]
    assert types == ["io.syncd.secret.changed", "io.syncd.secret.adopted"]


@pytest.mark.parametrize("grant_type", ["basic", "client_credentials"])
def test_its_own_secret_rotates(world: World, grant_type: str) -> None:
    """A 401 has the credential file read again, once, and the request repeated at once."""
    auth = {"auth": {"client_credentials": {"access_token_expiration": 600}}}
    world.publish(own=OWN, a=secret("0"))
    world.map("a", own={"resource_type": "Client", "id": "syncd"})
    own = {**client("syncd", reference("own")), **auth}
    with box(world, own, frozen=True) as aidbox:
        more = {"client_secret_file": f"{world.mount}/own", "grant_type": grant_type}
        world.configure(consumers=[consumer(world, aidbox, "drop_cache", **more)])
        with world.daemon() as daemon:
            for number in (1, 2):
                world.publish(a=secret(str(number)))
                daemon.wait_for("delivery.acknowledged", number)
            tokens = len(aidbox.requests("/auth/token"))
            assert tokens == (1 if grant_type == "client_credentials" else 0)
            aidbox.advance(600)  # the token has expired by now
            world.publish(own=b"another", a=secret("3"))
            daemon.wait_for("delivery.acknowledged", 3)
        statuses = [request["status"] for request in aidbox.requests("/$drop-cache")]
        assert statuses == [200, 200, *([401] if tokens else []), 200]


def test_its_own_secret_rotates_and_aidbox_does_not_know_yet(world: World) -> None:
    """A 401 soon after its own file changed is no rejection: it waits for Aidbox's cache."""
    world.publish(own=OWN, a=secret("0"))
    world.map("a", own={"resource_type": "Client", "id": "syncd"})
    with box(world, client("syncd", reference("own")), frozen=True) as aidbox:
        world.configure(
            consumers=[
                consumer(world, aidbox, "drop_cache", client_secret_file=f"{world.mount}/own")
            ]
        )
        with world.daemon() as daemon:
            world.publish(a=secret("1"))
            daemon.wait_for("delivery.acknowledged")
            world.publish(own=OWN)
            assert status(aidbox.urls[0], "syncd", OWN) == 200  # and cached
            world.publish(own=b"another")
            said = daemon.wait_for("delivery.retry", 2)
            aidbox.advance(30)
            daemon.wait_for("delivery.acknowledged", 2)
            assert not daemon.logged("delivery.rejected")
    assert "may still have the old secret of Client/syncd in its cache" in said["reason"]


def test_a_missing_policy_is_named(world: World) -> None:
    """A 403 is for a person: the message says which Client lacks what."""
    world.publish(a=secret("0"))
    world.map("a")
    known = bundle(client("syncd", OWN.decode()))
    with Aidbox(world.vault_config, known) as aidbox:
        world.configure(consumers=[consumer(world, aidbox, "drop_cache")])
        with world.daemon() as daemon:
            world.publish(a=secret("1"))
            said = daemon.wait_for("delivery.rejected")
    assert said["reason"] == (
        f"cannot drop the caches at {aidbox.urls[0]}: it answered 403; give Client/syncd an "
        "AccessPolicy for this request, as docs/aidbox.md shows"
    )


def test_wrong_credentials_are_named(world: World) -> None:
    """So are credentials that Aidbox does not know, after they were read again."""
    os.utime(f"{world.directory}/own", (0, 0))
    world.publish(a=secret("0"))
    world.map("a")
    with Aidbox(world.vault_config, bundle(client("syncd", "else"))) as aidbox:
        world.configure(consumers=[consumer(world, aidbox, "drop_cache")])
        with world.daemon() as daemon:
            world.publish(a=secret("1"))
            said = daemon.wait_for("delivery.rejected")
        assert len(aidbox.requests("/$drop-cache")) == 2
    assert f"write the secret of Client/syncd into {world.directory}/own" in said["reason"]


def test_metrics(world: World) -> None:
    """Adoptions are counted and timed from the start on."""
    world.publish(app=secret("0"))
    world.map("app")
    with box(world) as aidbox, Receiver() as spare:
        port = spare.port
        spare.stop()
        world.configure(
            consumers=[consumer(world, aidbox, "drop_cache", "verify")],
            api={"listen": f"127.0.0.1:{port}"},
        )
        with world.daemon() as daemon:
            assert scrape(port)['syncd_adoptions_total{consumer="aidbox",outcome="rejected"}'] == 0
            world.publish(app=secret("1"))
            daemon.wait_for("adoption.adopted")
            scraped = scrape(port)
    assert scraped['syncd_adoptions_total{consumer="aidbox",outcome="adopted"}'] == 1
    assert scraped['syncd_adoption_seconds_count{consumer="aidbox"}'] == 1


def scrape(port: int) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_a_replica_that_is_down_holds_up_no_other(world: World) -> None:
    """Each new change is told to the others at once, whatever the pace of the retries is."""
    world.publish(a=secret("0"))
    world.map("a")
    with box(world, replicas=2) as aidbox:
        aidbox.fail(418, "/$drop-cache", replica=1, times=1000)  # a rejection waits for a minute
        world.configure(consumers=[consumer(world, aidbox, "drop_cache")])
        with world.daemon() as daemon:
            for number in range(1, 4):
                world.publish(a=secret(str(number)))
                daemon.wait_for("delivery.rejected", number)
        dropped = Counter(r["replica"] for r in aidbox.requests("/$drop-cache"))
    assert dropped == {0: 3, 1: 3}


def test_who_does_not_use_it_does_not_pay_for_it() -> None:
    """Nothing of it is imported for a daemon without a consumer of kind `aidbox`."""
    script = (
        "import sys, syncd.daemon.daemon, syncd.daemon.engine;"
        "print([m for m in sys.modules if 'aidbox' in m or m == 'syncd.consumers.aidbox.verify'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_verification_comes_and_goes_with_the_configuration(world: World) -> None:
    """SIGHUP begins it, goes on with what is under way, and ends it with its series."""
    world.publish(app=secret("0"))
    world.map("app")
    with box(world, frozen=True) as aidbox, Receiver() as spare:
        port = spare.port
        spare.stop()
        api = {"listen": f"127.0.0.1:{port}"}
        series = 'syncd_adoptions_total{consumer="aidbox",outcome="adopted"}'

        def reload(daemon: DaemonProcess, count: int, *actions: str) -> None:
            world.configure(consumers=[consumer(world, aidbox, *actions)], api=api)
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("daemon.ready", count)

        world.configure(consumers=[consumer(world, aidbox, "audit_event")], api=api)
        assert status(aidbox.urls[0], "app", secret("0")) == 200
        with world.daemon() as daemon:
            assert series not in scrape(port)
            reload(daemon, 2, "audit_event", "verify")
            world.publish(app=secret("1"))
            wait_until(lambda: any(r["status"] == 401 for r in aidbox.requests("/fhir/Patient")))
            reload(daemon, 3, "drop_cache", "verify")
            aidbox.advance(30)
            daemon.wait_for("adoption.adopted")
            assert scrape(port)[series] == 1
            reload(daemon, 4, "drop_cache")
            wait_until(lambda: series not in scrape(port))
            assert not daemon.logged("consumer.forgotten")
