"""The main job, end to end: the real daemon, real inotify, real sockets, real signals."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.mount import swapping
from support.receiver import Receiver, Request, reply
from support.waiting import DEADLINE
from support.world import CANARY, World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        with open(f"{world.directory}/webhook.key", "w") as file:
            file.write(KEY + "\n")
        yield world


def hook(world: World, receiver: Receiver, **more: Any) -> dict[str, Any]:
    """A webhook that gets one delivery at a time, so that secrets arrive in their order, too."""
    return {
        "name": "hook",
        "kind": "webhook",
        "url": receiver.url,
        "signing_key_file": f"{world.directory}/webhook.key",
        "max_in_flight": 1,
        **more,
    }


def data(request: Request) -> dict[str, Any]:
    (event,) = request.events
    found: dict[str, Any] = event["data"]
    return found


def settled(receiver: Receiver, world: World, name: str) -> list[dict[str, Any]]:
    """Rotates one more secret as a marker, and returns the data of all that came before it."""
    world.publish({name: secret("marker")})
    count = 1
    while True:
        requests = receiver.wait(count)
        if data(requests[-1])["secret"] == name:
            return [data(request) for request in requests[:-1]]
        count = len(requests) + 1


def test_the_first_start_is_quiet(world: World, receiver: Receiver) -> None:
    """The first start with an empty ledger records what is there and sends nothing."""
    world.publish(a=secret("1"), b=secret("1"), marker=secret("0"))
    world.map("a", "b", "marker")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon():
        assert settled(receiver, world, "marker") == []


def test_one_of_three_secrets_changes(world: World, receiver: Receiver) -> None:
    """One change is exactly one event: right scope, valid signature, a CloudEvent by its SDK."""
    world.publish(a=secret("1"), b=secret("1"), c=secret("1"), marker=secret("0"))
    world.map("a", "c", "marker", b={"resource_type": "IdentityProvider"})
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon():
        world.publish(b=secret("2"))
        assert [change["secret"] for change in settled(receiver, world, "marker")] == ["b"]
    request = receiver.requests[0]
    request.verify(KEY)
    (event,) = request.cloud_events()
    assert event.get_type() == "io.syncd.secret.changed"
    assert event.get_subject() == "b"
    assert request.headers["webhook-id"] == event.get_id()
    change = data(request)
    assert change["change"] == "modified"
    assert change["scope"] == {"resource_type": "IdentityProvider"}
    assert change["path"] == f"{world.mount}/b"
    assert change["version"] != change["previous_version"]
    assert CANARY not in request.body


def test_a_swap_that_changes_nothing(world: World, receiver: Receiver) -> None:
    """A new generation with the same contents makes no event."""
    world.publish(a=secret("1"), marker=secret("0"))
    world.map("a", "marker")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon() as daemon:
        before = len(daemon.logged("mount.scanned"))
        world.publish()
        daemon.wait_for("mount.scanned", before + 1)
        assert settled(receiver, world, "marker") == []


def test_events_of_one_swap(world: World, receiver: Receiver) -> None:
    """All events of one swap carry one time and come in the order of their names."""
    names = [f"s{number:02}" for number in range(12)]
    world.publish({name: secret("1") for name in names})
    world.map(*names)
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon():
        world.publish({name: secret("2") for name in names})
        events = [request.events[0] for request in receiver.wait(12)]
    assert [event["subject"] for event in events] == names
    assert len({event["time"] for event in events}) == 1
    sequences = [int(event["id"].rpartition("-")[2]) for event in events]
    assert sequences == list(range(sequences[0], sequences[0] + 12))


def test_added_and_removed(world: World, receiver: Receiver) -> None:
    """A secret that appears is `added`, one that a generation lacks is `removed`."""
    world.publish(a=secret("1"), marker=secret("0"))
    world.map("a", "late", "marker")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon():
        world.publish(late=secret("1"))
        receiver.wait(1)
        world.withdraw("a")
        receiver.wait(2)
    added, removed = (data(request) for request in receiver.requests)
    assert (added["secret"], added["change"], added["previous_version"]) == ("late", "added", None)
    assert (removed["secret"], removed["change"], removed["version"]) == ("a", "removed", None)


def test_what_changed_while_the_daemon_was_down(world: World, receiver: Receiver) -> None:
    """A later start sends what changed meanwhile, and nothing else."""
    world.publish(a=secret("1"), b=secret("1"), marker=secret("0"))
    world.map("a", "b", "marker")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon():
        pass
    world.publish(a=secret("2"))
    with world.daemon():
        assert [change["secret"] for change in settled(receiver, world, "marker")] == ["a"]


def test_five_rotations_and_a_kill_while_the_receiver_is_down(
    world: World, receiver: Receiver
) -> None:
    """Afterwards exactly the newest state arrives, told against what was acknowledged last."""
    world.publish(a=secret("0"), b=secret("0"), marker=secret("0"))
    world.map("a", "b", "marker")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon() as daemon:
        world.publish(a=secret("acknowledged"))
        receiver.wait(1)
        daemon.wait_for("delivery.acknowledged")
        receiver.stop()
        for number in range(1, 6):
            world.publish(a=secret(str(number)))
            daemon.wait_for("secret.changed", number + 1, secret="a")
            if number == 3:
                daemon.kill()
                daemon.start()
        daemon.kill()
    receiver.start()
    with world.daemon():
        (newest,) = settled(receiver, world, "marker")[1:]
    acknowledged = data(receiver.requests[0])
    assert newest["secret"] == "a"
    assert newest["previous_version"] == acknowledged["version"]
    assert newest["version"] != acknowledged["version"]


def test_a_crash_between_delivery_and_acknowledgement(world: World, receiver: Receiver) -> None:
    """What was delivered but not recorded as such is delivered again, under the same id."""
    world.publish(a=secret("0"))
    world.map("a")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon() as daemon:
        receiver.script(reply(204, before=daemon.kill))
        world.publish(a=secret("1"))
        receiver.wait(1)
        daemon.wait_for_end()
    with world.daemon():
        first, second = receiver.wait(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert data(first) == data(second)


def test_generations_are_never_mixed(world: World, receiver: Receiver) -> None:
    """While a publisher swaps as fast as it can, all events of one time are of one generation.

    Every generation holds one number in all of its 20 files, so each batch of events must tell of
    all 20 secrets, and the ledger's last state must be the mount's.
    """
    names = [f"s{number}" for number in range(20)]
    world.publish(dict.fromkeys(names, b"start"))
    world.map(*names)
    world.configure(consumers=[hook(world, receiver, max_batch=1000)])
    with world.daemon() as daemon:
        with swapping(world.mount, names):
            daemon.wait_for("secret.changed", 30 * 20)
        scanned = len(daemon.logged("mount.scanned"))
        world.publish(dict.fromkeys(names, b"end"))
        daemon.wait_for("mount.scanned", scanned + 1)
        by_time: dict[str, set[str]] = {}
        for line in world.events():
            by_time.setdefault(line["time"], set()).add(line["subject"])
    assert len(by_time) >= 20
    torn = {time: subjects for time, subjects in by_time.items() if subjects != set(names)}
    assert torn == {}


def test_ten_thousand_files(world: World, receiver: Receiver) -> None:
    """A mount of 10,000 files is rotated by one swap and arrives whole."""
    names = [f"secret-{number:05}" for number in range(10_000)]
    world.publish({name: name.encode() for name in names})
    world.map(*names)
    world.configure(consumers=[hook(world, receiver, max_batch=1000)])
    with world.daemon():
        world.publish({name: name.encode() + b"'" for name in names})
        seen = [subject for request in receiver.wait(10) for subject in request.subjects]
    assert seen == names


def test_plain_files(world: World, receiver: Receiver) -> None:
    """Files written in place or renamed into place are noticed; half-written ones are not."""
    world.write_plain("a", secret("1"))
    world.write_plain("b", secret("1"))
    world.map("a", "b")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon() as daemon:
        world.write_plain("b", secret("2"))
        receiver.wait(1)
        with open(f"{world.mount}/a", "wb", buffering=0) as file:
            scanned = len(daemon.logged("mount.scanned"))
            file.writelines(bytes([byte]) for byte in secret("2"))
            daemon.wait_for("mount.scanned", scanned + 3)
            assert len(receiver.requests) == 1
        receiver.wait(2)
    assert [data(request)["secret"] for request in receiver.requests] == ["b", "a"]


def test_polling_without_inotify(world: World, receiver: Receiver) -> None:
    """In poll mode the rescan alone finds changes."""
    world.publish(a=secret("1"))
    world.map("a")
    world.configure(
        consumers=[hook(world, receiver)], watch={"mode": "poll", "rescan_interval": "200ms"}
    )
    with world.daemon() as daemon:
        assert daemon.logged("daemon.ready")[0]["watch"] == "poll"
        world.publish(a=secret("2"))
        assert data(receiver.wait(1)[0])["secret"] == "a"


def test_mount_vanishes_and_returns(world: World, receiver: Receiver) -> None:
    """A mount that goes away and comes back announces what changed, and never a removal."""
    world.publish(a=secret("1"), b=secret("1"))
    world.map("a", "b")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon() as daemon:
        os.rename(world.mount, f"{world.mount}.away")
        daemon.wait_for("secret.problem", secret="a", state="missing")
        world.publish(a=secret("2"))
        assert data(receiver.wait(1)[0])["secret"] == "a"
        world.publish(b=secret("2"))
        receiver.wait(2)
    assert [data(request)["change"] for request in receiver.requests] == ["modified", "modified"]


def test_several_mounts_and_nested_paths(world: World, receiver: Receiver) -> None:
    """Each mount is followed on its own, and paths below its first level too."""
    second = World()
    with second:
        world.publish({"deep/er/a": secret("1")})
        second.publish({"b": secret("1")})
        world.map(paths={"a": f"{world.mount}/deep/er/a", "b": f"{second.mount}/b"})
        world.configure(consumers=[hook(world, receiver)])
        with world.daemon():
            world.publish({"deep/er/a": secret("2")})
            receiver.wait(1)
            second.publish({"b": secret("2")})
            receiver.wait(2)
    assert [data(request)["secret"] for request in receiver.requests] == ["a", "b"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a directory"),
        (lambda path: os.symlink("nowhere", path), "is a dangling symlink"),
        (lambda path: os.symlink(os.path.basename(path), path), "a loop of symlinks"),
        (lambda path: os.symlink("/etc/hostname", path), "outside the watch roots"),
        (lambda path: os.symlink("/dev/zero", path), "outside the watch roots"),
        (lambda path: _sparse(path, 2 << 20), "larger than max_secret_size"),
    ],
)
def test_one_bad_file_blocks_no_other(
    world: World, receiver: Receiver, spoil: Any, reason: str
) -> None:
    """The secret alone is unreadable, with the reason; every other one goes on."""
    world.write_plain("bad", secret("1"))
    world.write_plain("good", secret("1"))
    world.map("bad", "good")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon() as daemon:
        os.unlink(f"{world.mount}/bad")
        receiver.wait(1)
        spoil(f"{world.mount}/bad")
        problem = daemon.wait_for("secret.problem", secret="bad", state="unreadable")["problem"]
        world.write_plain("good", secret("2"))
        receiver.wait(2)
    assert reason in problem
    assert [(data(r)["secret"], data(r)["change"]) for r in receiver.requests] == [
        ("bad", "removed"),
        ("good", "modified"),
    ]


def test_the_vault_config_changes(world: World, receiver: Receiver) -> None:
    """A changed vault config is followed and announced; a broken one leaves the last good one."""
    world.publish(a=secret("1"), b=secret("1"), c=secret("1"))
    world.map("a", "b")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon() as daemon:
        world.write_vault_config('{"secret": {"a": {"path": "relative"}}}')
        daemon.wait_for("vault_config.rejected")
        world.publish(a=secret("2"))
        assert data(receiver.wait(1)[0])["secret"] == "a"
        world.map("c", a={"resource_type": "TokenIntrospector"})
        config, removed, added = (r.events[0] for r in receiver.wait(4)[1:])
    assert config["type"] == "io.syncd.vault_config.changed"
    assert config["subject"] == world.vault_config
    assert config["data"] == {
        "added": ["c"], "removed": ["b"], "rescoped": ["a"], "repointed": []
    }  # fmt: skip
    assert (removed["subject"], removed["data"]["change"]) == ("b", "removed")
    assert (added["subject"], added["data"]["change"]) == ("c", "added")


def test_reload(world: World, receiver: Receiver) -> None:
    """SIGHUP takes a valid configuration without losing an event, and leaves an invalid one."""
    world.publish(a=secret("1"))
    world.map("a")
    world.configure(consumers=[hook(world, receiver)])
    with Receiver() as other, world.daemon() as daemon:
        world.configure(consumers=[{"name": "hook"}])
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("daemon.reload_rejected")
        receiver.script(reply(503), reply(503))
        world.publish(a=secret("2"))
        receiver.wait(1)
        world.configure(consumers=[hook(world, receiver), {**hook(world, other), "name": "second"}])
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("daemon.reloaded")
        daemon.wait_for("mount.scanned", reason="reload")
        daemon.wait_for("delivery.acknowledged", consumer="hook")
        world.publish(a=secret("3"))
        assert data(other.wait(1)[0])["secret"] == "a"
    assert data(receiver.requests[-1])["version"] == data(other.requests[0])["version"]


EARLY = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
os.kill(os.getpid(), signal.SIGHUP)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_reload_at_the_start(world: World) -> None:
    """A SIGHUP that comes before the daemon listens ends nothing, and is heard when it does."""
    world.publish(a=secret("1"))
    world.map("a")
    world.configure()
    with world.daemon(wrapper=[sys.executable, "-c", EARLY]) as daemon:
        daemon.wait_for("daemon.reloaded")


def test_signals_end_it(world: World, receiver: Receiver) -> None:
    """SIGTERM and SIGINT end the daemon with exit code 0, whatever a consumer does."""
    world.publish(a=secret("1"))
    world.map("a")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon() as daemon:
        assert daemon.stop() == 0
    with world.daemon() as daemon:
        daemon.signal(signal.SIGINT)
        assert daemon.process is not None
        assert daemon.process.wait(DEADLINE) == 0


def test_run_once(world: World, receiver: Receiver) -> None:
    """`run --once` delivers what is pending and exits 0, or 1 when something stayed."""
    world.publish(a=secret("1"))
    world.map("a")
    world.configure(consumers=[hook(world, receiver)])
    assert world.run("run", "--once", "-c", world.config).returncode == 0
    world.publish(a=secret("2"))
    assert world.run("run", "--once", "-c", world.config).returncode == 0
    assert data(receiver.wait(1)[0])["secret"] == "a"
    receiver.stop()
    world.publish(a=secret("3"))
    failed = world.run("run", "--once", "--timeout", "500ms", "-c", world.config)
    assert failed.returncode == 1
    last = json.loads(failed.stderr.splitlines()[-1])
    assert (last["event"], last["consumer"], last["pending"]) == ("delivery.unfinished", "hook", 1)
    receiver.start()
    assert world.run("run", "--once", "-c", world.config).returncode == 0
    assert len(receiver.wait(2)) == 2


def test_wait(world: World) -> None:
    """`wait` ends when the last secret is there, and names what is missing at the timeout."""
    world.publish(a=secret("1"))
    world.map("a", "b")
    world.configure()
    late = world.run("wait", "--timeout", "100ms", "-c", world.config)
    assert late.returncode == 1
    assert late.stderr.splitlines() == [
        f"{world.mount}/b: secret b is missing: there is no file {world.mount}/b"
    ]
    assert late.stdout == f"waiting: {late.stderr}"
    publisher = threading.Thread(target=lambda: world.publish(b=secret("1")))
    publisher.start()
    assert world.run("wait", "--timeout", "50s", "-c", world.config).returncode == 0
    publisher.join()


@pytest.mark.parametrize("variable", ["BOX_VAULT_CONFIG", "AIDBOX_VAULT_CONFIG"])
def test_environment_alone(world: World, receiver: Receiver, variable: str) -> None:
    """The vault config and one consumer in the environment are a complete configuration."""
    world.publish(a=secret("1"))
    world.map("a")
    environment = {
        variable: world.vault_config,
        "SYNCD_STATE_DIR": world.state,
        "SYNCD_WEBHOOK_URL": receiver.url,
        "SYNCD_WEBHOOK_SIGNING_KEY_FILE": f"{world.directory}/webhook.key",
    }
    with world.daemon_from_environment(**environment):
        world.publish(a=secret("2"))
        receiver.wait(1)[0].verify(KEY)


def test_bad_input_at_the_start(world: World) -> None:
    """One clear line each on standard error, exit code 2, and no traceback."""
    world.map("a")
    for config, expected in (
        ('{"vault_config": "/nowhere/x.json"}', "/nowhere/x.json: cannot be read"),
        ('{"vault_config": 5}', "vault_config: is a number, but must be an absolute path"),
        ('{"vault_confg": "/x"}', "vault_confg: unknown key; did you mean vault_config?"),
        ("{]", "not valid YAML at line 1 column 2"),
    ):
        with open(world.config, "w") as file:
            file.write(config)
        done = world.run("run", "-c", world.config, SYNCD_STATE_DIR=world.state)
        assert done.returncode == 2
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert all(line.startswith("syncd: ") for line in done.stderr.splitlines())
    missing = world.run("run", "-c", "/nowhere.yaml")
    assert missing.returncode == 2
    assert "/nowhere.yaml: cannot be read" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["frobnicate"], "syncd: No such command 'frobnicate'; see syncd --help"),
        (["run", "--onec"], "syncd: No such option '--onec'"),
        (
            ["wait", "--timeout", "soon"],
            "syncd: Invalid value for '--timeout': 'soon' is not a duration; write one such as",
        ),
        (
            ["schema"],
            "syncd: Missing argument '{vault-config|config|relay|event}'. Choose",
        ),
        (
            ["schema", "x"],
            "syncd: Invalid value for '{vault-config|config|relay|event}': 'x'",
        ),
        (["status", "--format", "xml"], "syncd: Invalid value for '--format': 'xml' is not one of"),
    ],
)
def test_a_mistyped_command(world: World, arguments: list[str], expected: str) -> None:
    """One line that names the mistake and the command whose help explains it, exit code 2."""
    done = world.run(*arguments)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(expected)
    assert line.endswith("--help")


@pytest.mark.parametrize("arguments", [["schema", "event"], ["check", "-c", "/nowhere.yaml"]])
def test_output_that_cannot_be_written(arguments: list[str]) -> None:
    """A full disk behind standard output is one line, not a traceback."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "syncd", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "syncd: cannot write to standard output: No space left on device; "
        "free disk space, or redirect it elsewhere\n"
    )


def test_an_unusable_state_directory(world: World) -> None:
    """The daemon refuses to start without its memory, in one line."""
    world.publish(a=secret("1"))
    world.map("a")
    world.configure(state_dir="/proc/syncd")
    done = world.run("run", "-c", world.config)
    assert done.returncode == 1
    assert done.stderr.startswith("syncd: cannot write to /proc/syncd")
    assert len(done.stderr.splitlines()) == 1


def test_no_value_reaches_the_state_directory(world: World, receiver: Receiver) -> None:
    """No file that syncd writes holds a value, nor does its command line or environment."""
    world.publish(a=secret("1"))
    world.map("a")
    world.configure(consumers=[hook(world, receiver)])
    with world.daemon() as daemon:
        world.publish(a=secret("2"))
        receiver.wait(1)
        for name in ("cmdline", "environ"):
            with (
                contextlib.suppress(PermissionError),  # only root may read its environment
                open(f"/proc/{daemon.pid}/{name}", "rb") as file,
            ):
                assert CANARY not in file.read()
        for name in os.listdir(world.state):
            with open(f"{world.state}/{name}", "rb") as file:
                assert CANARY not in file.read()
            assert os.stat(f"{world.state}/{name}").st_mode & 0o077 == 0


def _sparse(path: str, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
