"""A whole run with a canary in everything secret, and a search for it in everything that is left.

The canary is in every secret, header, password, token and key, on the vault's side too, and in
what servers answer. It is looked for as it is, and in the encodings that it could leave in.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import tls
from support.faults import Books, hook, is_root
from support.openbao import OpenBao, manifest_text
from support.receiver import close, garbage, hang, reply
from support.subscriber import Subscription
from support.waiting import DEADLINE, wait_until
from support.world import CANARY, World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.world import DaemonProcess


def shapes() -> list[bytes]:
    """The canary as it is, and as it would look in other clothes."""
    plain = CANARY
    found = [plain, plain.hex().encode(), plain[::-1], json.dumps(plain.decode())[1:-1].encode()]
    found.append(urllib.parse.quote(plain, safe="").encode().replace(b"-", b"%2D"))
    for shift in range(3):  # base64 of a text that the canary is in, whatever comes before it
        whole = base64.b64encode(b"x" * shift + plain)
        found.append(whole[4 if shift else 0 : -4])
    return found


def leaks(content: bytes) -> int:
    return sum(content.count(shape) for shape in shapes())


def test_the_search_finds_it() -> None:
    """What is searched with recognises each of the shapes."""
    for text in (
        CANARY,
        CANARY.hex().encode(),
        base64.b64encode(b"user:" + secret("x")),
        base64.b64encode(b"syncd:" + secret("x")),
        base64.b64encode(b"1234567:" + secret("x")),
    ):
        assert leaks(b"... " + text + b" ..."), text
    assert not leaks(b"nothing to see")


@pytest.fixture
def bao() -> Iterator[OpenBao]:
    with OpenBao() as server:
        server.put("app", one=secret("vault-1").decode(), two=secret("vault-2").decode())
        yield server


@pytest.mark.skipif(not is_root(), reason="needs another user")
def test_a_whole_run(  # noqa: PLR0915 - a whole run is long
    tmp_path: Path, bao: OpenBao, count: Callable[[str], None]
) -> None:
    """Provisioning, delivery that fails in every way, reload, questions, a crash: 0 occurrences."""
    searched: dict[str, int] = {}

    def search(what: str, content: bytes | str) -> None:
        raw = content.encode() if isinstance(content, str) else content
        assert raw or what.startswith("child"), f"{what} is empty: nothing was searched"
        searched[what] = searched.get(what, 0) + leaks(raw)

    authority = tls.Authority(tmp_path)
    authority.write_client(secret("client").decode(), tmp_path / "cert", tmp_path / "key")
    with World() as world, Books() as good, Books(tls=authority.server()) as other:
        os.chmod(world.directory, 0o755)
        api = f"{world.directory}/syncd.sock"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        world.publish({f"s{number}": secret(f"{number}") for number in range(5)})
        target = f"{world.directory}/provisioned"
        plant(world, bao, target)
        settings = configuration(
            world,
            bao,
            good=good,
            other=other,
            authority=authority,
            tmp_path=tmp_path,
            target=target,
        )
        world.configure(**settings, api={"socket": api, "listen": f"127.0.0.1:{port}"})
        world.run("check", "-c", world.config)
        with world.daemon(wrapper=["prlimit", "--core=unlimited", "--"]) as daemon:
            daemon.wait_for("provision.published")
            search("command line", proc(daemon, "cmdline"))
            search("environment", proc(daemon, "environ"))
            with Subscription(api) as subscription:
                for turn in range(3):
                    good.script(reply(500, secret("answer")), close, garbage, reply(401), hang)
                    other.script(reply(403, secret("answer"), x_echo=secret("echo").decode()))
                    world.publish({name: secret(f"{turn}-{name}") for name in world.values})
                    bao.put("app", one=secret(f"v{turn}").decode(), two=secret("2").decode())
                    daemon.signal(signal.SIGUSR1)
                    search(
                        "event stream", "".join(e.event.__repr__() for e in subscription.take(5))
                    )
                    children(daemon, search)
                    good.release()
                bao.freeze(frozen=True)
                daemon.signal(signal.SIGUSR1)
                rewrite(world, "token", b"\xff" + secret("malformed"))
                daemon.signal(signal.SIGHUP)
                daemon.wait_for("daemon.ready", 2)
                bao.freeze(frozen=False)
                rewrite(world, "provision-token", secret("wrong-token"))
                daemon.signal(signal.SIGUSR1)
                daemon.wait_for("provision.refused")
            for command in (
                ("status", "--socket", api),
                ("status", "--socket", api, "--format", "json"),
                ("events", "--socket", api),
                ("check", "-c", world.config),
            ):
                done = world.run(*command)
                search(f"syncd {command[0]}", done.stdout + done.stderr)
            for page in ("metrics", "readyz", "healthz"):
                search(page, probe_page(port, page))
            refuses_to_be_read(daemon)
            search("log", "".join(daemon.output))
            dump(daemon)
            daemon.wait_for_end()
            daemon.kill()
        search("log", "".join(daemon.output))
        for directory, _, names in os.walk(world.state):
            for name in names:
                search(
                    "ledger" if "ledger" in name else "state", read(f"{directory}/{name}") or b"0"
                )
        cores = [name for name in os.listdir(".") if name.startswith("core")]
        events = json.dumps([{**r.headers, "body": ""} for r in good.requests])
        search("bodies of requests", b"".join(r.body for r in (*good.requests, *other.requests)))
        assert leaks(events.encode()), "the headers hold what they should: the search works"
    told = ", ".join(f"{what} {number}" for what, number in sorted(searched.items()))
    count(f"occurrences: {told}; core dumps {len(cores)}")
    assert set(searched.values()) == {0}
    assert cores == []


def plant(world: World, bao: OpenBao, target: str) -> None:
    """Credentials with a canary in each, and a manifest."""
    for name, content in {
        "password": secret("password"),
        "token": secret("token"),
        "signing-key": b"whsec_" + base64.b64encode(secret("signing-key")),
        "provision-token": read(bao.token_file),
    }.items():
        rewrite(world, name, content)
    Path(f"{world.directory}/manifest.yaml").write_text(
        manifest_text(
            """
            - {objectName: one, secretPath: secret/data/app, secretKey: one}
            - {objectName: two, secretPath: secret/data/app, secretKey: two}
            """
        )
    )
    world.map(*world.values, paths={name: f"{target}/{name}" for name in ("one", "two")})


def configuration(
    world: World,
    bao: OpenBao,
    *,
    good: Books,
    other: Books,
    authority: tls.Authority,
    tmp_path: Path,
    target: str,
) -> dict[str, Any]:
    at = world.directory
    signed = {"signing_key_file": f"{at}/signing-key", "timeout": "1s"}
    basic = {"basic_auth": {"username": "syncd", "password_file": f"{at}/password"}}
    certificate = {
        "ca_file": str(authority.file),
        "client_cert": str(tmp_path / "cert"),
        "client_key": str(tmp_path / "key"),
    }
    return {
        "consumers": [
            hook(good, "good", headers={"X-Token": secret("header").decode()}, **signed, **basic),
            hook(other, "other", bearer_token_file=f"{at}/token", **signed, **certificate),
        ],
        "provision": [
            {
                "manifest": f"{at}/manifest.yaml",
                "target": target,
                "interval": "1h",
                "vault_url": bao.address,
                "auth": {"method": "token", "token_file": f"{at}/provision-token"},
            }
        ],
        "watch": {"rescan_interval": "1s"},
    }


def rewrite(world: World, name: str, content: bytes) -> None:
    tls.replace(Path(f"{world.directory}/{name}"), content)


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def proc(daemon: DaemonProcess, name: str) -> bytes:
    return read(f"/proc/{daemon.pid}/{name}")


def children(daemon: DaemonProcess, search: Callable[[str, bytes], None]) -> None:
    """Searches the environment of every child there is; there should be none."""
    for task in os.listdir(f"/proc/{daemon.pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
            for child in read(f"/proc/{daemon.pid}/task/{task}/children").split():
                search("child", read(f"/proc/{child.decode()}/environ"))


def probe_page(port: int, page: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=DEADLINE) as answer:
        content: bytes = answer.read()
    return content


def refuses_to_be_read(daemon: DaemonProcess) -> None:
    """Another process of the same user, without privileges, gets nothing of the memory.

    The daemon runs as root here; so does the reader, but without a capability.
    """
    script = f"open('/proc/{daemon.pid}/mem', 'rb')"
    plain = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    done = subprocess.run(
        [*plain, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "PermissionError" in done.stderr, done.stderr
    limits = proc(daemon, "limits").decode()
    line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert line.split()[4:6] == ["0", "0"]


def dump(daemon: DaemonProcess) -> None:
    """Crashes the daemon, whose limit of core dumps was lifted before it set its own."""
    daemon.signal(signal.SIGABRT)
    wait_until(lambda: daemon.over, "it does not end")
    daemon.killed = True
