"""Credentials of units, from the real daemon; `tests/system` asks with the real systemd."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from support.waiting import DEADLINE
from support.world import World, secret

from syncd.api.systemd_credentials import REFUSAL

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's word about units counts")
TAKEN = 1 << 20
"""Bytes that systemd takes for a credential."""

ASK = """
import os, socket, sys
caller = socket.socket(socket.AF_UNIX)
os.setuid(int(sys.argv[1]))
caller.bind("\\0" + sys.argv[2])
caller.connect(sys.argv[3])
while part := caller.recv(65536):
    sys.stdout.buffer.write(part)
"""


def path(world: World) -> str:
    return f"{world.directory}/credentials.sock"


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        os.chmod(world.directory, 0o755)
        world.publish(a=secret("0"), empty=b"")
        world.map("a", "b", "empty")
        configure(world, a="a", b="b", empty="empty")
        yield world


def configure(world: World, **granted: str) -> None:
    """Grants each credential of `app.service` a secret."""
    grants = [
        {"unit": "app.service", "credential": name, "secret": value}
        for name, value in granted.items()
    ]
    world.configure(credentials={"socket": path(world), "grants": grants})


def connect(world: World, credential: str, unit: str = "app.service") -> socket.socket:
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(DEADLINE)
    caller.bind(f"\0{secrets.token_hex(8)}/unit/{unit}/{credential}")
    caller.connect(path(world))
    caller.shutdown(socket.SHUT_WR)
    return caller


def take(caller: socket.socket) -> bytes:
    """Everything up to the end, without systemd's limit."""
    answer = b""
    with caller:
        while part := caller.recv(1 << 20):
            answer += part
    return answer


def ask(world: World, credential: str, unit: str = "app.service") -> bytes:
    return take(connect(world, credential, unit))


def test_a_granted_secret(world: World) -> None:
    """A unit gets the value of now, byte for byte; other users cannot even connect."""
    with world.daemon() as daemon:
        assert ask(world, "a") == secret("0")
        world.publish(a=secret("1") + b"\xff\n")
        assert ask(world, "a") == secret("1") + b"\xff\n"
        daemon.wait_for("credential.served", 2, unit="app.service", name="a", secret="a")
        assert os.stat(path(world)).st_mode & 0o777 == 0o600
    assert not os.path.exists(path(world))


@pytest.mark.parametrize(
    ("credential", "unit", "event"),
    [
        ("a", "other.service", "credential.denied"),
        ("other", "app.service", "credential.denied"),
        ("a", "app.service/x", "credential.denied"),
        ("b", "app.service", "credential.unavailable"),
        ("empty", "app.service", "credential.unavailable"),
    ],
)
def test_a_refusal_is_more_than_systemd_takes(
    world: World, credential: str, unit: str, event: str
) -> None:
    """Neither a value nor an end of the stream, which would make an empty credential."""
    with world.daemon() as daemon:
        assert ask(world, credential, unit) == bytes(REFUSAL)
        daemon.wait_for(event)


def test_who_is_not_root(world: World) -> None:
    """Another user's word about units does not count, even where the socket is open to him."""
    with world.daemon() as daemon:
        os.chmod(path(world), 0o666)
        address = f"{secrets.token_hex(8)}/unit/app.service/a"
        done = subprocess.run(
            [sys.executable, "-c", ASK, "4242", address, path(world)],
            capture_output=True,
            timeout=DEADLINE,
            check=True,
        )
        assert done.stdout == bytes(REFUSAL)
        daemon.wait_for("credential.denied", uid=4242)


def test_systemd_outside_of_the_user_namespace(world: World) -> None:
    """Its root is then not mapped, and cannot be told from any other user."""
    with world.daemon(wrapper=["unshare", "--user"]) as daemon:
        assert ask(world, "a") == bytes(REFUSAL)
        denied = daemon.wait_for("credential.denied", uid=65534)
        assert "not mapped into the user namespace" in denied["reason"]


def test_a_file_that_is_being_written(world: World) -> None:
    """The answer waits until the file is at rest."""
    world.write_plain("plain", b"half")
    world.map("plain")
    world.configure(
        watch={"settle": "2s", "roots": [world.mount]},
        credentials={
            "socket": path(world),
            "grants": [{"unit": "app.service", "credential": "a", "secret": "plain"}],
        },
    )
    with world.daemon():
        world.write_plain("plain", b"ha")
        with connect(world, "a") as caller:
            world.write_plain("plain", secret("whole"))
            assert take(caller) == secret("whole")


def test_a_reload_of_the_grants(world: World) -> None:
    """What is granted follows the configuration; so does the socket."""
    with world.daemon() as daemon:
        configure(world, c="a")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("daemon.reloaded")
        assert ask(world, "c") == secret("0")
        assert ask(world, "a") == bytes(REFUSAL)
        world.configure()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("daemon.reloaded", 2)
        assert not os.path.exists(path(world))


def test_a_shutdown_leaves_no_truncated_credential(world: World) -> None:
    """Who has half of a value when the daemon stops gets the rest."""
    large = secret("large") * (1_000_000 // len(secret("large")))
    world.publish(a=large)
    with world.daemon() as daemon, connect(world, "a") as caller:
        daemon.wait_for("credential.served")
        begin = caller.recv(1000)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("daemon.stopping")
        assert begin + take(caller) == large
        assert daemon.wait_for_end() == 0
        daemon.kill()


def test_a_pending_request_of_a_daemon_that_stops(world: World) -> None:
    """Who is not answered yet when the daemon stops is refused."""
    world.write_plain("plain", b"half")
    world.map("plain")
    world.configure(
        watch={"settle": "3s", "roots": [world.mount]},
        credentials={
            "socket": path(world),
            "grants": [{"unit": "app.service", "credential": "a", "secret": "plain"}],
        },
    )
    with world.daemon() as daemon:
        world.write_plain("plain", b"ha")
        caller = connect(world, "a")
        answers: list[bytes] = []
        reader = threading.Thread(target=lambda: answers.append(take(caller)))
        reader.start()
        daemon.stop()
        daemon.killed = True
        reader.join(DEADLINE)
    assert len(answers[0]) > TAKEN


def test_a_socket_from_systemd(world: World) -> None:
    """A socket named `credentials` is served as such; without a grant, by refusals alone."""
    world.configure()
    starter = (
        "import os, socket, sys\n"
        f"unix = socket.socket(socket.AF_UNIX); unix.bind({path(world)!r}); unix.listen()\n"
        "os.dup2(unix.fileno(), 3); os.set_inheritable(3, True)\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1',\n"
        "               'LISTEN_FDNAMES': 'credentials'}\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    with world.daemon(wrapper=[sys.executable, "-c", starter]) as daemon:
        daemon.wait_for("credentials.listening", grants=0)
        assert ask(world, "a") == bytes(REFUSAL)
    assert os.path.exists(path(world))


def test_what_a_unit_never_gets(world: World) -> None:
    """Whoever writes the vault config gets no file of syncd's own through a granted unit."""
    key = f"{world.mount}/hook.key"
    with open(key, "w") as file:
        file.write("whsec_" + "c2VjcmV0LW9mLXN5bmNkLWl0c2VsZg==")
    world.configure(
        consumers=[
            {
                "name": "hook",
                "kind": "webhook",
                "url": "http://127.0.0.1:1/",
                "signing_key_file": key,
            }
        ],
        credentials={
            "socket": path(world),
            "grants": [{"unit": "app.service", "credential": "a", "secret": "a"}],
        },
        watch={"roots": [world.mount, world.state, os.path.dirname(world.config)]},
    )
    with world.daemon() as daemon:
        assert take(connect(world, "a")) == world.values["a"]
        targets = (key, f"{world.state}/fingerprint.key", world.config, world.vault_config)
        for turn, target in enumerate(targets):
            world.map(paths={"a": target})
            daemon.wait_for("vault_config.loaded", turn + 1)
            assert len(take(connect(world, "a"))) == REFUSAL
            daemon.wait_for("credential.unavailable", turn + 1, secret="a")
    assert {
        item["problem"].partition(": ")[2] for item in daemon.logged("credential.unavailable")
    } == {"is one of syncd's own files"}
