"""One mount hangs or fails: the others are served, it is reported, and it comes back at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.fanotify import HeldDirectory
from support.faults import Books, MountNamespace, hook, is_root
from support.fuse import FuseServer
from support.mount import publish
from support.nats import free_port
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
needs_root = pytest.mark.skipif(not is_root(), reason="mounting needs root")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def directory(world: World, name: str) -> str:
    path = f"{world.directory}/{name}"
    os.makedirs(path)
    return path


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def plain(path: str, value: bytes) -> None:
    with open(path, "wb") as file:
        file.write(value)


@needs_root
def test_one_of_twenty_mounts_hangs(
    world: World, books: Books, count: Callable[[str], None]
) -> None:
    """The others' changes arrive; the hanging one is reported, and read when it answers again."""
    port = free_port()
    names = [f"m{number}" for number in range(19)]
    for name in names:
        publish(directory(world, name), {name: secret("0")})
    hung = directory(world, "hung")
    plain(f"{hung}/a", secret("0"))
    plain(f"{hung}/a.new", secret("1"))
    paths = {name: f"{world.directory}/{name}/{name}" for name in names}
    world.map(paths={"stuck": f"{hung}/a", **paths})
    world.configure(
        consumers=[hook(books)],
        watch={"rescan_interval": "1h"},
        api={"listen": f"127.0.0.1:{port}"},
    )
    problem = f"the mount {hung} does not answer"
    with world.daemon() as daemon:
        assert get(port, "/readyz")[0] == 200
        with HeldDirectory(hung) as held:
            os.rename(f"{hung}/a.new", f"{hung}/a")
            slowest = [rotate(world, books, name, turn) for turn, name in enumerate(names)]
            daemon.wait_for("mount.unreadable", root=hung, problem=problem)
            daemon.wait_for("secret.problem", secret="stuck", state="unreadable", problem=problem)
            slowest += [rotate(world, books, name, turn + 19) for turn, name in enumerate(names)]
            code, body = get(port, "/readyz")
            assert (code, json.loads(body)["reasons"]) == (503, [problem])
            assert get(port, "/healthz")[0] == 200
            assert "syncd_unreadable_roots 1.0" in get(port, "/metrics")[1]
            began = time.monotonic()
            held.release()
            wait_until(lambda: "stuck" in books.versions)
            recovered = time.monotonic() - began
        daemon.wait_for("mount.recovered", root=hung)
        wait_until(lambda: get(port, "/readyz")[0] == 200)
        with HeldDirectory(hung) as held:
            held.wait()  # nothing changed: that every root still answers is looked at now and then
            began = time.monotonic()
            assert daemon.stop() == 0
            stopped = time.monotonic() - began
    count(
        f"slowest of the others {max(slowest):.2f} s, recovered in {recovered:.2f} s, "
        f"stopped in {stopped:.2f} s"
    )
    assert books.removed == 0


def rotate(world: World, books: Books, name: str, turn: int) -> float:
    """Rotates a secret and waits until it has arrived; after how many seconds."""
    began = time.monotonic()
    publish(f"{world.directory}/{name}", {name: secret(f"turn {turn}")})
    wait_until(lambda: books.received == turn + 1)
    return time.monotonic() - began


@needs_root
def test_a_mount_loses_its_server(world: World, books: Books) -> None:
    """ENOTCONN ends nothing: the daemon lives, and so do the commands beside it."""
    dead, alive = directory(world, "dead"), directory(world, "alive")
    publish(alive, {"b": secret("0")})
    world.map(paths={"a": f"{dead}/a", "b": f"{alive}/b"})
    world.configure(consumers=[hook(books)], watch={"rescan_interval": "1h"})
    reason = "Transport endpoint is not connected"
    with FuseServer(dead, {"a": secret("0")}) as server, world.daemon() as daemon:
        server.die()
        found = daemon.wait_for("mount.unreadable", root=dead)
        assert reason in found["problem"]
        publish(alive, {"b": secret("1")})
        wait_until(lambda: books.received == 1)
        for command in (("check",), ("wait", "--timeout", "100ms")):
            done = world.run(*command, "-c", world.config)
            assert done.returncode == 1
            assert reason in done.stdout + done.stderr
            assert "internal error" not in done.stdout + done.stderr
        checked = world.run("check", "-c", world.config).stdout
        assert "[mount-unreadable]" in checked
        assert "let syncd's user read" not in checked
    assert books.removed == 0


@needs_root
def test_credentials_on_a_mount_that_hangs(world: World, books: Books) -> None:
    """Consumers whose keys cannot be read say so, and take no thread from the others."""
    hung, alive = directory(world, "hung"), directory(world, "alive")
    names = [f"s{number}" for number in range(60)]
    publish(alive, dict.fromkeys(names, secret("0")))
    world.map(paths={name: f"{alive}/{name}" for name in names})
    plain(f"{hung}/key", b"a token")
    stuck = [
        {**hook(books), "name": f"stuck-{number}", "bearer_token_file": f"{hung}/key"}
        for number in range(5)
    ]
    world.configure(consumers=[*({**item, "timeout": "1s"} for item in stuck), hook(books)])
    with world.daemon() as daemon, HeldDirectory(hung):
        for turn in range(1, 4):
            publish(alive, dict.fromkeys(names, secret(str(turn))))
            wait_until(lambda: books.received == 60 * turn)  # noqa: B023 - called at once
        for item in stuck:
            found = daemon.wait_for("delivery.retry", consumer=item["name"])["reason"]
            assert "the file system of its credentials or certificates does not answer" in found
        threads = Path(f"/proc/{daemon.pid}/status").read_text()
        count = int(threads.partition("Threads:")[2].split()[0])
        assert count < 40, count


@needs_root
@pytest.mark.parametrize("command", ["wait", "check", "once"])
def test_commands_return_from_a_mount_that_hangs(world: World, command: str) -> None:
    """Neither a timeout nor the end of the process waits for a system call."""
    hung, alive = directory(world, "hung"), directory(world, "alive")
    publish(alive, {"b": secret("0")})
    world.map(paths={"a": f"{hung}/a", "b": f"{alive}/b"})
    world.configure()
    arguments = {
        "wait": ["wait", "--timeout", "500ms"],
        "check": ["check"],
        "once": ["run", "--once", "--timeout", "1s"],
    }[command]
    plain(f"{hung}/a", secret("0"))
    with HeldDirectory(hung):
        done = world.run(*arguments, "-c", world.config)
    printed = done.stdout + done.stderr
    assert done.returncode == 1
    if command == "once":
        assert '"event":"run.unfinished"' in printed
    else:
        assert f"the mount {hung} does not answer" in printed
        assert "secret b" not in printed


@needs_root
def test_a_mount_beside_plain_files_keeps_its_grace(world: World, books: Books) -> None:
    """A remount with the same content announces nothing, whatever lies next to the mount."""
    with MountNamespace() as namespace:
        secrets = directory(world, "secrets")
        mount = directory(world, "secrets/vault")
        namespace.run("mount", "-t", "tmpfs", "tmpfs", mount)
        publish(namespace.path(mount), {"a": secret("0")})
        with open(f"{secrets}/license", "wb") as file:
            file.write(secret("1"))
        world.map(paths={"a": f"{mount}/a", "license": f"{secrets}/license"})
        world.configure(consumers=[hook(books)], watch={"rescan_interval": "1h"})
        with world.daemon(wrapper=namespace.wrapper) as daemon:
            namespace.run("umount", "--lazy", mount)  # a scan may be looking at it
            daemon.wait_for("secret.problem", secret="a", state="missing")
            namespace.run("mount", "-t", "tmpfs", "tmpfs", mount)
            publish(namespace.path(mount), {"a": secret("0")})
            daemon.wait_for("secret.recovered", secret="a")
            publish(namespace.path(mount), {"a": secret("1")})
            wait_until(lambda: books.received)
    assert (books.received, books.removed) == (1, 0)


def swap_link(path: str, target: str) -> None:
    os.symlink(target, f"{path}.new")
    os.rename(f"{path}.new", path)


@pytest.mark.parametrize("place", ["above", "middle"])
def test_a_link_on_the_way_is_swapped(world: World, books: Books, place: str) -> None:
    """As git-sync and sops-nix do it above the directory, or in the middle of a chain."""
    base = directory(world, "tree")
    for release in ("r1", "r2"):
        os.makedirs(f"{base}/.releases/{release}/prod")
        with open(f"{base}/.releases/{release}/prod/pw", "wb") as file:
            file.write(secret(release))
    os.symlink(".releases/r1", f"{base}/current")
    if place == "above":
        path = f"{base}/current/prod/pw"
    else:
        os.makedirs(f"{base}/mount")
        os.symlink(f"{base}/current/prod/pw", f"{base}/mount/pw")
        path = f"{base}/mount/pw"
    world.map(paths={"pw": path})
    roots = [base] if place == "middle" else []
    world.configure(consumers=[hook(books)], watch={"rescan_interval": "1h", "roots": roots})
    with world.daemon():
        swap_link(f"{base}/current", ".releases/r2")
        wait_until(lambda: books.received == 1)


def test_a_vault_config_behind_a_link_is_followed(world: World) -> None:
    """The file that the link leads to is replaced, and then the link above it."""
    world.publish(a=secret("0"), b=secret("0"))
    world.map("a")
    text = Path(world.vault_config).read_text()
    for number in (1, 2):
        os.makedirs(f"{world.directory}/v{number}")
        with open(f"{world.directory}/v{number}/config.json", "w") as file:
            file.write(text)
    os.symlink("v1", f"{world.directory}/v")
    os.unlink(world.vault_config)
    os.symlink("v/config.json", world.vault_config)
    world.configure(watch={"rescan_interval": "1h"})
    with world.daemon() as daemon:
        with open(f"{world.directory}/new", "w") as file:
            file.write(text.replace('"a"', '"b"').replace("/a", "/b"))
        os.rename(f"{world.directory}/new", f"{world.directory}/v1/config.json")
        daemon.wait_for("vault_config.loaded")
        swap_link(f"{world.directory}/v", "v2")
        daemon.wait_for("vault_config.loaded", 2)


def test_a_writer_that_pauses_is_waited_for_without_inotify(world: World, books: Books) -> None:
    """While polling, too, a half-written file is no change."""
    os.makedirs(world.mount)
    path = f"{world.mount}/a"
    with open(path, "wb") as file:
        file.write(secret("old"))
    world.map("a")
    world.configure(
        consumers=[hook(books)],
        watch={"mode": "poll", "rescan_interval": "200ms"},
        log={"level": "debug"},
    )
    with world.daemon() as daemon:
        with open(path, "wb", buffering=0) as file:
            file.write(secret("first half"))
            scans = len(daemon.logged("mount.scanned"))
            daemon.wait_for("mount.scanned", scans + 4)
            file.write(secret("second half"))
        wait_until(lambda: books.received)
    assert books.received == 1


def test_writes_to_other_files_cause_no_scans(
    world: World, books: Books, count: Callable[[str], None]
) -> None:
    """A log file beside the secrets may be written a thousand times."""
    os.makedirs(world.mount)
    with open(f"{world.mount}/a", "wb") as file:
        file.write(secret("0"))
    world.map("a")
    world.configure(
        consumers=[hook(books)], watch={"rescan_interval": "1h"}, log={"level": "debug"}
    )
    with world.daemon() as daemon:
        before = len(daemon.logged("mount.scanned", reason="inotify"))
        with open(f"{world.mount}/access.log", "ab", buffering=0) as file:
            file.writelines(b"line\n" for _ in range(1000))
        world.write_plain("a", secret("1"))
        wait_until(lambda: books.received == 1)
        scans = len(daemon.logged("mount.scanned", reason="inotify")) - before
    count(f"scans {scans} for 1000 unrelated writes and 1 change")
    assert scans <= 4


@needs_root
def test_a_state_directory_that_is_frozen(world: World, books: Books) -> None:
    """It is reported, and the stop ends the process all the same; nothing is lost."""
    image, state = f"{world.directory}/image", directory(world, "state")
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, state]):
        subprocess.run(command, check=True, timeout=DEADLINE)
    port = free_port()
    world.publish(a=secret("0"))
    world.map("a")
    world.configure(consumers=[hook(books)], api={"listen": f"127.0.0.1:{port}"})
    try:
        with world.daemon() as daemon:
            subprocess.run(["fsfreeze", "--freeze", state], check=True, timeout=DEADLINE)
            try:
                world.publish(a=secret("1"))
                daemon.wait_for("ledger.unusable")
                code, body = get(port, "/readyz")
                assert code == 503
                assert "does not answer" in body
                daemon.signal(signal.SIGTERM)
                daemon.wait_for("daemon.stop_forced")
            finally:
                subprocess.run(["fsfreeze", "--unfreeze", state], check=True, timeout=DEADLINE)
            assert daemon.wait_for_end() == 1
            daemon.kill()
        with world.daemon():
            wait_until(lambda: books.received == 1)
    finally:
        subprocess.run(["umount", state], check=True, timeout=DEADLINE)
