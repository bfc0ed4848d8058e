"""Provisioning by the real daemon from a real OpenBao server: put, swap, event."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from support.openbao import OpenBao, free_ports, manifest_text
from support.receiver import hang
from support.subscriber import ask
from support.waiting import DEADLINE
from support.world import CANARY, World as Plain, secret

from syncd.net.interruption import READ_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.receiver import Receiver

AIDBOX_MANIFEST = """\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: aidbox-vault-secrets
spec:
  provider: vault
  parameters:
    vaultAddress: "http://vault.default:8200"
    roleName: "aidbox"
    objects: |
      - objectName: "client-secret"
        secretPath: "secret/data/aidbox/client"
        secretKey: "client-secret"
"""


class World(Plain):
    """A world with a manifest and a target."""

    def __init__(self) -> None:
        super().__init__()
        self.target = f"{self.directory}/provisioned"
        self.manifest = f"{self.directory}/secret-provider-class.yaml"
        with open(self.manifest, "w") as file:
            file.write(AIDBOX_MANIFEST)
        self.map_target("client-secret")

    def map_target(self, *names: str, **others: str) -> None:
        """Writes a vault config: secrets of the target, and others by their paths."""
        self.map(paths={name: f"{self.target}/{name}" for name in names} | others)


@pytest.fixture
def bao(openbao: OpenBao) -> OpenBao:
    openbao.put("aidbox/client", **{"client-secret": secret("1").decode()})
    return openbao


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def entry(world: World, bao: OpenBao, **more: Any) -> dict[str, Any]:
    return {
        "manifest": world.manifest,
        "target": world.target,
        "interval": "2s",
        "vault_url": bao.address,
        "auth": {"method": "token", "token_file": bao.token_file},
        **more,
    }


def configure(world: World, bao: OpenBao, receiver: Receiver, **more: Any) -> None:
    world.configure(
        consumers=[{"name": "hook", "kind": "webhook", "url": receiver.url}],
        provision=[entry(world, bao, **more)],
    )


def content(world: World, name: str = "client-secret") -> bytes:
    with open(f"{world.target}/{name}", "rb") as file:
        return file.read()


def test_a_put_changes_the_file_and_fires_the_webhook_within_the_interval(
    world: World,
    bao: OpenBao,
    receiver: Receiver,
    record_property: Callable[[str, object], None],
) -> None:
    """The manifest of Aidbox's tutorial, unchanged; `bao kv put`; one event, in time."""
    configure(world, bao, receiver)
    with world.daemon() as daemon:
        daemon.wait_for("provision.published", provider="aidbox-vault-secrets", files=1)
        assert content(world) == secret("1")
        assert not receiver.requests  # a first start is quiet, provisioned or not
        worst = 0.0
        for round_ in (2, 3):
            bao.cli(
                "kv", "put", "secret/aidbox/client", f"client-secret={secret(str(round_)).decode()}"
            )
            put = time.monotonic()
            requests = receiver.wait(round_ - 1)
            worst = max(worst, requests[-1].at - put)
            (event,) = requests[-1].events
            assert event["data"]["secret"] == "client-secret"
            assert event["data"]["change"] == "modified"
            assert content(world) == secret(str(round_))
        record_property("put_to_webhook_seconds", round(worst, 2))
        assert worst < 2 * 1.1 + 10  # the interval, its jitter, and a busy machine
        assert CANARY.decode() not in repr([request.body for request in receiver.requests])


def test_sigusr1_refreshes_now(world: World, bao: OpenBao, receiver: Receiver) -> None:
    """Not after the interval."""
    configure(world, bao, receiver, interval="1h")
    with world.daemon() as daemon:
        bao.put("aidbox/client", **{"client-secret": secret("now").decode()})
        daemon.signal(signal.SIGUSR1)
        receiver.wait(1)
        assert content(world) == secret("now")
        daemon.wait_for("daemon.refreshing", providers=1)


def test_an_interval_of_zero_fetches_once(world: World, bao: OpenBao, receiver: Receiver) -> None:
    """And again when asked."""
    configure(world, bao, receiver, interval=0)
    with world.daemon() as daemon:
        daemon.wait_for("provision.published")
        daemon.signal(signal.SIGUSR1)
        daemon.wait_for("provision.unchanged")
        assert len(daemon.logged("provision.unchanged")) == 1


def test_once_provisions_compares_and_delivers(
    world: World, bao: OpenBao, receiver: Receiver
) -> None:
    """For cron: 0 when all is done, and the change since the last run is delivered."""
    configure(world, bao, receiver)
    assert world.run("run", "--once", "-c", world.config).returncode == 0
    assert content(world) == secret("1")
    assert not receiver.requests
    bao.put("aidbox/client", **{"client-secret": secret("2").decode()})
    done = world.run("run", "--once", "-c", world.config)
    assert done.returncode == 0
    (request,) = receiver.requests
    assert request.subjects == ["client-secret"]
    assert CANARY.decode() not in done.stdout + done.stderr
    assert sorted(os.listdir(f"{world.target}/..data/")) == ["client-secret"]


def test_once_fails_when_the_vault_cannot_be_asked(
    world: World, bao: OpenBao, receiver: Receiver
) -> None:
    """For `ExecStartPre=`: 1, within the timeout, with the reason; a refusal at once."""
    configure(world, bao, receiver)
    assert world.run("run", "--once", "-c", world.config).returncode == 0
    configure(world, bao, receiver, vault_url="http://127.0.0.1:1")
    done = world.run("run", "--once", "--timeout", "5s", "-c", world.config)
    assert done.returncode == 1
    assert "Connection refused (http" in done.stderr
    configure(world, bao, receiver, auth={"method": "token", "token_file": "/nowhere"})
    done = world.run("run", "--once", "--timeout", "1h", "-c", world.config)  # it does not wait
    assert done.returncode == 1
    assert "cannot read auth.token_file /nowhere" in done.stderr
    assert content(world) == secret("1")


def test_once_has_one_deadline(world: World, bao: OpenBao, receiver: Receiver) -> None:
    """A vault and a consumer that both hang share the timeout; each gets its turn."""
    configure(world, bao, receiver)
    assert world.run("run", "--once", "-c", world.config).returncode == 0
    bao.put("aidbox/client", **{"client-secret": secret("2").decode()})
    receiver.default = hang
    timeout = 6.0
    with socket.create_server(("127.0.0.1", 0)) as silent:
        world.run("run", "--once", "--timeout", "2s", "-c", world.config)  # leaves an event
        receiver.wait(1)
        silence = f"http://127.0.0.1:{silent.getsockname()[1]}"
        configure(world, bao, receiver, vault_url=silence)
        started = time.monotonic()
        done = world.run("run", "--once", "--timeout", f"{timeout}s", "-c", world.config)
        took = time.monotonic() - started
    assert done.returncode == 1
    assert "delivery.unfinished" in done.stderr
    receiver.wait(2)  # it is tried, although the vault is silent
    # less than two limits that are used to their ends, and the grace of a delivery after them
    assert timeout <= took < 2 * timeout


def test_a_dead_vault_does_not_delay_notifications(
    world: World, bao: OpenBao, receiver: Receiver
) -> None:
    """A server that hangs: the daemon is up, other mounts' changes are delivered, it stops fast."""
    world.publish(other=secret("1"))
    world.map_target("client-secret", other=f"{world.mount}/other")
    with OpenBao() as dead:
        dead.put("aidbox/client", **{"client-secret": secret("1").decode()})
        world.configure(
            consumers=[{"name": "hook", "kind": "webhook", "url": receiver.url}],
            provision=[entry(world, dead, interval="1s")],
        )
        with world.daemon() as daemon:
            daemon.wait_for("provision.published")
        dead.freeze(frozen=True)
        with world.daemon() as daemon:
            assert not daemon.logged("provision.failed")  # it is ready before the vault times out
            world.publish(other=secret("2"))
            (request,) = receiver.wait(1)
            assert request.subjects == ["other"]
            assert content(world) == secret("1")
            started = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - started < READ_TIMEOUT  # what waiting for the vault takes
        dead.freeze(frozen=False)


def test_a_vault_that_fails_leaves_the_files_and_recovers_by_itself(
    world: World, receiver: Receiver
) -> None:
    """Stopped and sealed in mid-life: old files stay, the reason is logged once, then it heals."""
    with OpenBao() as bao:
        bao.put("aidbox/client", **{"client-secret": secret("1").decode()})
        configure(world, bao, receiver, interval="300ms")
        with world.daemon() as daemon:
            daemon.wait_for("provision.published")
            bao.ask("PUT", "sys/seal")
            failed = daemon.wait_for("provision.failed", provider="aidbox-vault-secrets")
            assert "sealed or not ready (503); unseal it" in failed["reason"]
            assert failed["last_success_at"] is not None
            assert content(world) == secret("1")
            assert not receiver.requests
            bao.ask("PUT", "sys/unseal", {"key": bao.unseal_key})
            bao.await_active()
            bao.put("aidbox/client", **{"client-secret": secret("2").decode()})
            receiver.wait(1)
            assert content(world) == secret("2")
            assert len(daemon.logged("provision.failed", level="warning")) <= 3


def test_a_deleted_secret_keeps_its_file(world: World, bao: OpenBao, receiver: Receiver) -> None:
    """A version that was deleted is an error, not a removal; a new one heals it."""
    configure(world, bao, receiver, interval="200ms")
    with world.daemon() as daemon:
        daemon.wait_for("provision.published")
        bao.ask("DELETE", "secret/data/aidbox/client")
        refused = daemon.wait_for("provision.refused")
        assert "the version at secret/data/aidbox/client is deleted (404)" in refused["reason"]
        assert content(world) == secret("1")
        bao.put("aidbox/client", **{"client-secret": secret("2").decode()})
        (request,) = receiver.wait(1)
        assert request.events[0]["data"]["change"] == "modified"


@pytest.mark.parametrize("what", ["target", "owner"])
def test_a_target_that_cannot_be_written_is_told_and_heals(
    world: World, bao: OpenBao, receiver: Receiver, what: str
) -> None:
    """Something in the way, a user that does not exist (yet): one line, and no restart."""
    if what == "target":
        os.mkdir(world.target)
        with open(f"{world.target}/client-secret", "wb") as file:
            file.write(secret("by hand"))
        configure(world, bao, receiver, interval="200ms")
        says = "there is a client-secret that syncd did not write; move it out of the target"
    else:
        configure(world, bao, receiver, interval="200ms", owner="no-such-account")
        says = "there is no user no-such-account; create the user, or correct owner"
    with world.daemon() as daemon:
        assert says in daemon.wait_for("provision.refused")["reason"]
        if what == "target":
            assert content(world) == secret("by hand")
            os.rename(f"{world.target}/client-secret", f"{world.target}/old")
        else:
            configure(world, bao, receiver, interval="200ms")
            daemon.signal(signal.SIGHUP)
        daemon.wait_for("provision.published")


def test_status_metrics_and_refresh_on_the_socket(
    world: World, bao: OpenBao, receiver: Receiver
) -> None:
    """`POST /v1/refresh` fetches now; status and metrics tell the last success and the failure."""
    port, name = free_ports(), "aidbox-vault-secrets"
    api = f"{world.directory}/api.sock"
    world.configure(
        consumers=[{"name": "hook", "kind": "webhook", "url": receiver.url}],
        provision=[entry(world, bao, interval="1h")],
        api={"socket": api, "listen": f"127.0.0.1:{port}"},
    )
    with world.daemon() as daemon:
        bao.put("aidbox/client", **{"client-secret": secret("2").decode()})
        status, answer = ask(api, "/v1/refresh", "POST")
        assert (status // 100, answer["providers"]) == (2, [name])
        receiver.wait(1)
        assert content(world) == secret("2")
        bao.ask("DELETE", "secret/data/aidbox/client")
        ask(api, "/v1/refresh", "POST")
        daemon.wait_for("provision.refused")
        health = ask(api, "/v1/status")[1]["providers"][name]
        assert health["last_success_at"] is not None
        assert "is deleted (404)" in health["last_error"]
        assert health["failures"] == 1
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as scrape:
            metrics = scrape.read().decode()
        told = daemon.wait_for("provision.published")["timestamp"]
        labels = f'provider="{name}"'
        assert f'syncd_provision_total{{outcome="refused",{labels}}} 1.0' in metrics
        assert f'syncd_provision_total{{outcome="success",{labels}}} 2.0' in metrics
        stamp = re.search(
            rf"^syncd_provision_last_success\S*{labels}}} (\S+)$", metrics, re.MULTILINE
        )
        assert stamp is not None
        assert float(stamp[1]) >= datetime.fromisoformat(told).timestamp() - 1
        assert CANARY.decode() not in metrics + json.dumps(health)


PKI = """
- {objectName: cert, secretPath: pki-reload/issue/web, secretKey: certificate, method: PUT,
   secretArgs: {common_name: a.example.org, ttl: 1h}}
"""


def test_a_reload_keeps_leases_and_takes_new_entries(
    world: World, bao: OpenBao, receiver: Receiver
) -> None:
    """SIGHUP with the same manifest issues no new certificate; a broken one changes nothing."""
    bao.write("sys/mounts/pki-reload", type="pki")
    bao.write("pki-reload/root/generate/internal", common_name="root", ttl="100h")
    bao.write("pki-reload/roles/web", allow_any_name=True)
    with open(world.manifest, "w") as file:
        file.write(manifest_text(PKI))
    world.map_target("cert")
    configure(world, bao, receiver, interval="1h")
    with world.daemon() as daemon:
        daemon.wait_for("provision.published")
        first = content(world, "cert")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("provision.unchanged")
        assert content(world, "cert") == first
        with open(world.manifest, "w") as file:
            file.write(manifest_text("- {objectName: /etc/x, secretPath: p}"))
        daemon.signal(signal.SIGHUP)
        rejected = daemon.wait_for("daemon.reload_rejected")
        assert "objects[0].objectName: is not relative to the target" in rejected["problem"]
        assert content(world, "cert") == first
        with open(world.manifest, "w") as file:
            file.write(manifest_text(PKI.replace("a.example", "b.example")))
        daemon.signal(signal.SIGHUP)
        receiver.wait(1)
        assert content(world, "cert") != first
    assert receiver.requests[0].subjects == ["cert"]


def test_a_killed_daemon_s_leftovers_are_cleaned_up(
    world: World, bao: OpenBao, receiver: Receiver
) -> None:
    """What a crash in mid-pass leaves goes with the next pass."""
    configure(world, bao, receiver)
    with world.daemon() as daemon:
        daemon.wait_for("provision.published")
        daemon.kill()
    os.symlink("..2026_01_01_00_00_00.x", f"{world.target}/..data_tmp")
    os.mkdir(f"{world.target}/..2026_01_01_00_00_00.x")
    with world.daemon() as daemon:
        daemon.wait_for("provision.unchanged")
        names = sorted(os.listdir(world.target))
        assert names == sorted(["..data", os.readlink(f"{world.target}/..data"), "client-secret"])


def test_check_covers_manifests_and_what_they_leave_out(world: World, bao: OpenBao) -> None:
    """Errors in the manifest, paths that no object writes, files without an entry."""
    world.configure(provision=[entry(world, bao)])
    assert world.run("run", "--once", "-c", world.config).returncode == 0
    found = findings(world)
    assert not [code for code in found if code.startswith(("manifest", "provision"))]
    world.map_target("other")
    found = findings(world)
    assert (
        f"no object of {world.manifest} writes {world.target}/other"
        in (found["provision-unproduced"])
    )
    assert f"uses {world.target}/client-secret" in found["provision-unused"]
    with open(world.manifest, "a") as file:
        file.write("      - {objectName: client-secret, secretPath: x, filePermission: 0999}\n")
    found = findings(world)
    assert "objects[1]" in found["manifest-invalid"]


def test_a_manifest_over_the_limit_publishes_nothing(world: World, bao: OpenBao) -> None:
    """`check` and the daemon name file and limit; the file's beginning alone would be valid."""
    world.configure(provision=[entry(world, bao)])
    padding = "      #".ljust((4 << 20) - len(AIDBOX_MANIFEST), "x") + "\n"
    last = "      - {objectName: last, secretPath: secret/data/aidbox/client}\n"
    with open(world.manifest, "w") as file:
        file.write(AIDBOX_MANIFEST + padding + last)
    for command in (["check"], ["run", "--once"], ["run"]):
        done = world.run(*command, "-c", world.config)
        assert done.returncode == 2
        said = f"{world.manifest}: cannot be read: larger than 4 MiB; split it"
        assert said in done.stdout + done.stderr
    assert not os.path.exists(world.target)


def findings(world: World) -> dict[str, str]:
    done = world.run("check", "-c", world.config, "--format", "json")
    assert CANARY.decode() not in done.stdout + done.stderr
    listed = json.loads(done.stdout)["findings"]
    return {item["code"]: f"{item['where']} {item['message']}" for item in listed}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"auth": None}, r"provision\[0\].auth: is missing: a manifest does not say how"),
        (
            {"auth": {"method": "managed_identity"}},
            r"provision\[0\].auth.method: is not a login of Vault",
        ),
        ({"auth": {"method": "cert"}}, "has no client certificate; set client_cert and client_key"),
        ({"manifest": "/nowhere"}, "/nowhere: cannot be read: No such file or directory"),
    ],
)
def test_what_entry_and_manifest_say_only_together_is_checked_at_the_start(
    world: World, bao: OpenBao, change: dict[str, Any], says: str
) -> None:
    """The daemon does not start, says why, and exits with 2."""
    world.configure(provision=[entry(world, bao, **change)])
    done = world.run("run", "-c", world.config)
    assert done.returncode == 2
    assert re.search(says, done.stderr)


def test_a_sidecar_does_not_load_the_sdk(world: World) -> None:
    """Without `provision` neither hvac nor requests is imported."""
    script = (
        "import sys; import syncd.daemon.daemon, syncd.daemon.engine;"
        "import syncd.lint.check, syncd.commands.main;"
        "sys.exit(any(m in sys.modules for m in ('hvac', 'requests', 'urllib3', 'azure')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_requests_is_loaded_without_its_character_sets() -> None:
    """3 MiB that JSON does not need; a program that imports the detector gets the real one."""
    script = """
import sys
from syncd.system.lean_import import import_requests
import_requests()
import syncd.provision.vault.provider, requests
assert "charset_normalizer" not in sys.modules and "chardet" not in sys.modules
answer = requests.Response()
answer._content = b"caf\\xc3\\xa9"
assert answer.text == "caf\\xe9"
import charset_normalizer
assert charset_normalizer.from_bytes(b"x").best() is not None
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


UNUSED = {
    "hvac.v1": "the client, with the classes of every API of Vault's",
    "hvac.api": "those classes",
    "cryptography": "8 MiB that only leases of PKI need",
    "azure": "20 MiB",
    "httpx2": "a fifth of a start, for webhooks",
    "starlette": "the API, which is not served",
    "nats": "for consumers that are not configured",
    "rich": "tracebacks that are never rendered",
    "charset_normalizer": "3 MiB that JSON does not need",
}


def test_a_first_fetch_imports_no_more_than_it_needs(world: World, bao: OpenBao) -> None:
    """The rest would be half of a start. An upgrade that brings an import back fails here."""
    world.configure(provision=[entry(world, bao)])
    script = (
        "import os, sys; from syncd.system import threads;"
        "threads.leave = lambda code: (print(*sys.modules, flush=True), os._exit(code));"
        "sys.argv = ['syncd', 'run', '--once', '-c', sys.argv[1]];"
        "from syncd.commands.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(world.config)],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "hvac.adapters" in loaded
    assert {name: why for name, why in UNUSED.items() if name in loaded} == {}
