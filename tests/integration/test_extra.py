"""Secret files outside the vault config (`watch.extra`): the real daemon and the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.aidbox_clients import box, consumer
from support.documents import blocks_of, document
from support.mount import publish
from support.pem import certificate, private_key
from support.receiver import Receiver
from support.subscriber import ask
from support.waiting import wait_until
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

DESTINATION = {"resource_type": "AidboxTopicDestination"}


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


class Live:
    """Certificates as certbot keeps them: links into an archive, which is somewhere else."""

    def __init__(self, world: World) -> None:
        self.archive, self.live = f"{world.directory}/archive", f"{world.directory}/live"
        self.number = 0
        for directory in (self.archive, self.live):
            os.mkdir(directory)

    def renew(self, **files: bytes) -> None:
        """Writes files into the archive, and replaces the links to them."""
        self.number += 1
        for name, content in files.items():
            target = f"{self.archive}/{name}{self.number}.pem"
            with open(target, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
                file.write(content)
            os.symlink(target, f"{self.live}/.new")
            os.rename(f"{self.live}/.new", f"{self.live}/{name}.pem")

    def extra(self, name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "path": f"{self.live}/{name}.pem", **more}


def hook(name: str, receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "webhook", "url": receiver.url, **more}


def changes(receiver: Receiver) -> list[tuple[str, str]]:
    return [
        (event["subject"], event["data"]["change"])
        for request in receiver.requests
        for event in request.events
    ]


def secrets(socket: str) -> dict[str, Any]:
    """What the daemon knows of each, by name."""
    return {item["secret"]: item for item in ask(socket, "/v1/secrets")[1]["secrets"]}


def test_the_life_of_files_outside_the_vault_config(world: World) -> None:
    """Watched along their whole path, announced to who may see them, shown, and reloaded.

    None of it is a change of the vault config, after which one would restart Aidbox.
    """
    world.publish(app=b"1")
    world.map("app")
    nats = f"{world.directory}/nats"
    publish(nats, {"user.creds": b"1"})
    live = Live(world)
    live.renew(cert=certificate(0), key=private_key(0))
    extra = [live.extra("cert"), live.extra("key")]
    creds = {"path": f"{nats}/user.creds", "scope": DESTINATION}
    socket, roots = f"{world.directory}/api.sock", [world.mount]
    with Receiver() as every, Receiver() as clients, Receiver() as destinations:
        settings = {
            "consumers": [
                hook("every", every),
                hook("clients", clients, scope=[{"resource_type": "Client"}]),
                hook("destinations", destinations, scope=[DESTINATION]),
            ],
            "api": {"socket": socket, "listen": ""},
        }
        world.configure(watch={"roots": roots, "extra": [*extra, creds]}, **settings)
        assert world.run("check", "-c", world.config, "--strict").returncode == 0
        with world.daemon() as daemon:
            live.renew(cert=certificate(1))  # of another key than the one that is there
            (request,) = every.wait()
            (event,) = request.events
            assert (event["subject"], event["data"]["change"]) == ("cert", "modified")
            assert (event["data"]["extra"], event["data"]["scope"]) == (True, [])
            assert event["data"]["path"] == f"{live.live}/cert.pem"
            publish(nats, {"user.creds": b"2"})
            (event,) = destinations.wait()[0].events
            assert (event["subject"], event["data"]["scope"]) == (creds["path"], DESTINATION)
            every.wait(2)
            answer = secrets(socket)
            assert (answer["cert"]["extra"], "extra" in answer["app"]) == (True, False)
            assert answer["cert"]["not_after"]
            assert answer["cert"]["content_problem"] == "does not belong to the private key key"
            assert list(answer["cert"]["consumers"]) == ["every"]
            found = world.run("check", "-c", world.config).stdout
            assert re.search(r"watch\.extra\[0\]\.path: .*\[certificate-mismatch\]", found)

            added = {"name": "licence", "path": f"{nats}/licence"}
            publish(nats, {"user.creds": b"2", "licence": b"3"})
            world.configure(watch={"roots": roots, "extra": [extra[0], added, creds]}, **settings)
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("daemon.ready", 2)
            every.wait(4)
            assert changes(every)[2:] == [("key", "removed"), ("licence", "added")]
            publish(nats, {"user.creds": b"2", "licence": b"4"})
            every.wait(5)
            world.publish(app=b"2")
            clients.wait()
        assert changes(clients) == [("app", "modified")]
        assert changes(destinations) == [(creds["path"], "modified")]
    # while nothing runs, one is removed, and it is still known that it was no secret of Aidbox
    world.configure(watch={"roots": roots, "extra": [extra[0], creds]})
    assert world.run("run", "--once", "-c", world.config).returncode == 0
    assert world.events()[-1]["subject"] == "licence"
    assert {event["type"] for event in world.events()} == {"io.syncd.secret.changed"}


def test_aidbox_has_nothing_to_do_with_them(world: World) -> None:
    """No cache is dropped and no login tried for one, but its change is in the audit trail."""
    world.publish(app=b"1", licence=b"1")
    world.map("app")
    scope = {"resource_type": "Client", "id": "app"}
    licence = {"name": "licence", "path": f"{world.mount}/licence", "scope": scope}
    socket = f"{world.directory}/api.sock"
    with box(world) as aidbox:
        world.configure(
            watch={"extra": [licence]},
            api={"socket": socket, "listen": ""},
            consumers=[
                consumer(world, aidbox, "drop_cache", "verify"),
                consumer(world, aidbox, "drop_cache", "audit_event", name="audited"),
            ],
        )
        with world.daemon() as daemon:
            world.publish(licence=b"2")
            wait_until(lambda: aidbox.resources("AuditEvent"))
            wait_until(lambda: ask(socket, "/v1/status")[1]["consumers"]["audited"]["pending"] == 0)
            assert aidbox.requests("/$drop-cache") == aidbox.requests("/fhir/Patient") == []
            assert list(secrets(socket)["licence"]["consumers"]) == ["audited"]
            world.publish(app=b"2")
            daemon.wait_for("adoption.adopted", secret="app")
            assert not daemon.logged("adoption.not_verifiable")
        wanted = ["check", "-c", world.config, "--aidbox", aidbox.urls[0], "--format", "json"]
        findings = json.loads(world.run(*wanted).stdout)["findings"]
        assert [item for item in findings if "licence" in str(item)] == []


def test_a_collision_that_comes_later(world: World) -> None:
    """A vault config that takes the name of such a file is rejected, and the one before stays."""
    world.publish(a=b"1", b=b"1")
    world.map("a")
    world.configure(watch={"extra": [{"name": "tls", "path": f"{world.mount}/b"}]})
    with world.daemon() as daemon:
        world.map("a", paths={"tls": f"{world.mount}/c"})
        line = daemon.wait_for("vault_config.finding", code="extra-conflict")["finding"]
        assert "$.secret.tls: is also the name of watch.extra[0]" in line
        daemon.wait_for("vault_config.rejected")
        world.publish(a=b"2", b=b"2")
        daemon.wait_for("secret.changed", secret="tls")
        world.map("a")
        daemon.wait_for("vault_config.loaded")


def test_one_of_the_names_is_wrong(world: World) -> None:
    """One clear line for each mistake, by `check` and by `run` alike."""
    world.publish(a=b"1", b=b"1")
    world.map("a")
    path = f"{world.mount}/b"
    mistakes: list[tuple[list[Any], str]] = [
        ([{"name": "a", "path": path}], "$.secret.a: is also the name of watch.extra[0]"),
        ([{"name": "b", "path": f"{world.mount}/a"}], "$.secret.a.path: is also the file of watch"),
        ([path, {"name": "b", "path": path}], "watch.extra[1].path: is written twice"),
        ([{"name": "b", "path": path}, {"name": "b", "path": "/x"}], "[1].name: is used twice"),
        (["tls.key"], "watch.extra[0]: is a string, but must be an absolute path"),
        ([{"path": "./tls.key"}], "watch.extra[0].path: is a string, but must be an absolute path"),
        ([{"path": f"{path}/../c"}], "watch.extra[0].path: is not normalized"),
        ([{"name": "", "path": path}], "watch.extra[0].name: is empty"),
        ([{"name": "b"}], "watch.extra[0].path: is missing"),
        ([{"path": path, "format": "pem"}], "watch.extra[0].format: must be one of certificate"),
    ]
    for extra, line in mistakes:
        world.configure(watch={"extra": extra})
        checked = world.run("check", "-c", world.config)
        assert checked.returncode == 1
        assert len([found for found in checked.stdout.splitlines() if line in found]) == 1
        ran = world.run("run", "-c", world.config)
        (told,) = ran.stderr.splitlines()
        assert line in told
        assert ran.returncode == 2


def test_how_contents_are_judged(world: World) -> None:
    """By their format if it is given, else by what they are; a newline is right in most."""
    world.publish(a=b"1")
    world.map("a")
    directory = f"{world.directory}/files"
    jwt = b"-----BEGIN NATS USER JWT-----\ne30.e30\n------END NATS USER JWT------\n\n"
    seed = b"-----BEGIN USER NKEY SEED-----\nSUAB\n------END USER NKEY SEED------\n"
    files: dict[str, tuple[bytes, str | None]] = {
        "licence": (b"licence\n", None),
        "value": (b"value\n", "value"),
        "json": (b"{\n", "json"),
        "soon": (certificate(not_after=time.time() + 86400.0), None),
        "key": (b"none", "private-key"),
        "creds": (jwt + seed, "nats-credentials"),
        "half": (jwt, "nats-credentials"),
    }
    publish(directory, {name: content for name, (content, _) in files.items()})
    extra = [
        {"name": name, "path": f"{directory}/{name}", **({"format": format_} if format_ else {})}
        for name, (_, format_) in files.items()
    ]
    world.configure(watch={"extra": extra})
    checked = world.run("check", "-c", world.config, "--format", "json")
    found = {
        files_name: item["code"]
        for item in json.loads(checked.stdout)["findings"]
        for files_name in [list(files)[int(item["where"].split("[")[1].split("]")[0])]]
    }
    assert found == {
        "value": "secret-newline",
        "json": "secret-malformed",
        "soon": "certificate-expiring",
        "key": "secret-malformed",
        "half": "secret-malformed",
    }
    # until it is there, a program that needs it waits
    publish(directory, {"value": b"value"})
    waited = world.run("wait", "-c", world.config, "--timeout", "0")
    assert waited.returncode == 1
    assert "secret licence is missing" in waited.stderr


def test_the_documented_example(world: World) -> None:
    """It is a valid configuration: all that is wrong is that its files are not there."""
    world.publish(a=b"1")
    world.map("a")
    (block,) = blocks_of(document("docs/mounts.md"), "yaml")
    world.configure(**yaml.safe_load(block))
    checked = json.loads(world.run("check", "-c", world.config, "--format", "json").stdout)
    assert [item["code"] for item in checked["findings"]] == ["secret-missing"] * 3
