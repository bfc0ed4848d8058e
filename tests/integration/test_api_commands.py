"""`syncd status` and `syncd events` with the real daemon, and all code of the documentation."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import yaml
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"
SYNCD = [sys.executable, "-m", "syncd"]


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish(a=secret("0"), b=secret("0"))
        world.map(a={"resource_type": "Client", "id": "my-client"}, b={"resource_type": "Client"})
        world.configure(api={"socket": path(world)})
        yield world


def path(world: World) -> str:
    return f"{world.directory}/syncd.sock"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_status(world: World) -> None:
    """A table and exit code 0 when all is well, 1 with a reason when not, 2 without a daemon."""
    with world.daemon() as daemon:
        world.publish(a=secret("1"))
        daemon.wait_for("secret.changed")
        done = world.run("status", SYNCD_SOCKET=path(world))
        assert (done.returncode, done.stderr) == (0, "")
        head, *_ = done.stdout.splitlines()
        assert head.startswith("syncd ")
        assert re.search(
            r"^a +Client/my-client +present +\d s ago +- +-$", done.stdout, re.MULTILINE
        )
        world.withdraw("b")
        daemon.wait_for("secret.changed", change="removed")
        done = world.run("status", "--socket", path(world))
        assert done.returncode == 1
        assert re.search(r"^needs attention:\n  secret b is missing", done.stdout, re.MULTILINE)
        done = world.run("status", "--socket", path(world), "--format", "json")
        assert done.returncode == 1
        answer = json.loads(done.stdout)
        assert [item["secret"] for item in answer["secrets"]] == ["a", "b"]
        assert answer["status"]["sequence"] == 2
    for command in ("status", "events"):
        done = world.run(command, "--socket", path(world))
        assert done.returncode == 2
        assert done.stderr.startswith(f"syncd: cannot reach the daemon at {path(world)}: ")
        assert len(done.stderr.splitlines()) == 1


def test_past_events(world: World) -> None:
    """All of the log, or what came after an id, of a secret, for a resource; as text or JSON."""
    with world.daemon() as daemon:
        for number, name in enumerate("aba", 1):
            world.publish({name: secret(f"n{number}")})
            daemon.wait_for("secret.changed", number)
        at = ("--socket", path(world))
        done = world.run("events", *at)
        assert done.returncode == 0
        assert [line.split()[1:4] for line in done.stdout.splitlines()] == [
            ["a", "modified", "Client/my-client"],
            ["b", "modified", "Client"],
            ["a", "modified", "Client/my-client"],
        ]
        events = [
            json.loads(x) for x in world.run("events", *at, "--format", "json").stdout.splitlines()
        ]
        assert [event["subject"] for event in events] == ["a", "b", "a"]
        for options, wanted in (
            (("--after", events[0]["id"]), events[1:]),
            (("--after", events[2]["id"]), []),
            (("--secret", "b"), events[1:2]),
            (("--resource", "Client/other"), events[1:2]),
        ):
            done = world.run("events", *at, "--format", "json", *options)
            assert [json.loads(line) for line in done.stdout.splitlines()] == wanted


def test_follow_through_a_restart(world: World) -> None:
    """--follow shows past and live events, survives a restart of the daemon, and ends quietly."""
    command = [*SYNCD, "events", "--follow", "--format", "json", "--socket", path(world)]
    with world.daemon() as daemon:
        world.publish(a=secret("1"))
        daemon.wait_for("secret.changed")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as follower:
            assert follower.stdout is not None
            assert follower.stderr is not None
            seen = [json.loads(follower.stdout.readline())]
            world.publish(a=secret("2"))
            seen.append(json.loads(follower.stdout.readline()))
            daemon.stop()
            world.publish(a=secret("3"))
            daemon.start()
            seen.append(json.loads(follower.stdout.readline()))
            follower.send_signal(signal.SIGINT)
            code = follower.wait(DEADLINE)
            complaints = follower.stderr.read().splitlines()
    assert [event["id"].rpartition("-")[2] for event in seen] == ["1", "2", "3"]
    assert code == 130, complaints
    assert len(complaints) <= 1
    assert all(line.endswith("; trying again") for line in complaints)


def test_a_reader_that_has_enough(world: World) -> None:
    """A reader that closes the pipe, as `head` does, ends the command without a word."""
    command = [*SYNCD, "events", "--follow", "--socket", path(world)]
    with (
        world.daemon(),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower,
    ):
        assert follower.stdout is not None
        assert follower.stderr is not None
        world.publish(a=secret("1"))
        follower.stdout.readline()
        follower.stdout.close()
        world.publish(a=secret("2"))
        assert follower.wait(DEADLINE) == -signal.SIGPIPE
        assert follower.stderr.read() == b""


def blocks(language: str) -> list[tuple[str, str]]:
    """Code of the documentation: where it is, and the code."""
    found = []
    for file in ("subscribing.md", "operating.md", "exec.md"):
        text = (DOCS / file).read_text()
        code = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        found += [(f"{file}:{text[: m.start()].count(chr(10)) + 1}", m[1]) for m in code]
    return found


@pytest.fixture(scope="module")
def documented() -> Iterator[World]:
    """A world under the addresses that the documentation uses, as far as a test can have them."""
    with World() as world:
        world.publish(a=secret("0"))
        world.map(a={"resource_type": "Client", "id": "my-client"})
        world.port = free_port()  # type: ignore[attr-defined] # of this module's use of it
        world.configure(api={"socket": path(world), "listen": f"127.0.0.1:{world.port}"})  # type: ignore[attr-defined] # as above
        os.makedirs(f"{world.directory}/bin")
        with open(f"{world.directory}/bin/syncd", "w") as file:
            file.write(f'#!/bin/sh\nexec {sys.executable} -m syncd "$@"\n')
        os.chmod(f"{world.directory}/bin/syncd", 0o755)
        with world.daemon() as daemon:
            world.publish(a=secret("1"))
            daemon.wait_for("secret.changed")
            yield world


def localised(world: World, code: str) -> str:
    return code.replace("/run/syncd/syncd.sock", path(world)).replace(
        "127.0.0.1:9753",
        f"127.0.0.1:{world.port}",  # type: ignore[attr-defined] # set above
    )


def environment(world: World) -> dict[str, str]:
    return {**os.environ, "PATH": f"{world.directory}/bin:{os.environ['PATH']}"}


@pytest.mark.parametrize(("place", "code"), blocks("sh"))
def test_commands_of_the_documentation(documented: World, place: str, code: str) -> None:
    """Every command in the documentation does what it says, with output and without complaint."""
    done = subprocess.run(
        ["bash", "-ec", localised(documented, code)],
        env=environment(documented),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    assert done.stdout
    assert not done.stderr


def follow(
    world: World,
    command: list[str],
    directory: pathlib.Path,
    done: Callable[[], bool] = lambda: True,
) -> None:
    """Runs a program that follows the stream until it has shown an event that came meanwhile.

    Args:
        world: Whose stream it is.
        command: The program.
        directory: Where to run it.
        done: What it has done besides, a little later.
    """
    follower = subprocess.Popen(
        command, cwd=directory, env=environment(world), stdout=subprocess.PIPE, text=True
    )
    assert follower.stdout is not None
    shown = threading.Event()

    def read(lines: Iterable[str]) -> None:
        for line in lines:
            if re.search(r"secret\.changed|  modified  ", line):
                shown.set()

    numbers = itertools.count()

    def rotate() -> bool:
        world.publish(a=secret(f"{directory.name}-{next(numbers)}"))
        return shown.wait(0.1) and done()

    reading = threading.Thread(target=read, args=(follower.stdout,))
    reading.start()
    try:
        wait_until(rotate, "nothing was shown")
    finally:
        follower.kill()
        follower.wait()
        reading.join()
        follower.stdout.close()


@pytest.mark.parametrize(("place", "code"), blocks("sh follow"))
def test_streams_of_the_documentation(
    documented: World, tmp_path: pathlib.Path, place: str, code: str
) -> None:
    """Every command that follows the stream shows what comes."""
    follow(documented, ["bash", "-ec", "exec " + localised(documented, code)], tmp_path)


def saved(directory: pathlib.Path) -> bool:
    """Whether a position is there that is not the one of before every event: whole, if any is."""
    try:
        position = (directory / "position").read_text()
    except FileNotFoundError:
        return False
    assert re.fullmatch(r"[0-9a-f]{8}-\d+", position)
    return True


def test_the_python_subscriber(documented: World, tmp_path: pathlib.Path) -> None:
    """The Python example shows what comes, and saves its position."""
    ((_, code),) = blocks("python")
    (tmp_path / "subscribe.py").write_text(localised(documented, code))
    follow(documented, [sys.executable, "subscribe.py"], tmp_path, lambda: saved(tmp_path))


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on this machine")
def test_the_java_subscriber(documented: World, tmp_path: pathlib.Path) -> None:
    """The Java example shows what comes, and saves its position."""
    ((_, code),) = blocks("java")
    (tmp_path / "Subscribe.java").write_text(localised(documented, code))
    command = ["java", "-XX:TieredStopAtLevel=1", "Subscribe.java"]
    follow(documented, command, tmp_path, lambda: saved(tmp_path))


def test_the_alert_rules() -> None:
    """The rules ask for metrics that there are, and the page names them all."""
    rules = yaml.safe_load((DOCS.parent / "observability/alerts.yaml").read_text())
    metrics, _, alerts = (DOCS / "operating.md").read_text().partition("## Alerts")
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert f"| `{rule['alert']}` |" in alerts
            for name in re.findall(r"syncd_\w+", rule["expr"]):
                assert f"`{name.removesuffix('_bucket')}" in metrics


def test_status_of_some_and_of_problems(world: World) -> None:
    """NAME shows all that is known of it, --problems what is wrong; a misspelt name is exit 2."""
    world.publish(bad=secret("0"))
    world.map("a", "bad", "gone")
    with world.daemon():
        done = world.run("status", "a", SYNCD_SOCKET=path(world))
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "secret a")
        assert f"  path     {world.mount}/a" in done.stdout
        assert "bad" not in done.stdout
        assert world.run("status", "gone", SYNCD_SOCKET=path(world)).returncode == 1
        done = world.run("status", "--problems", SYNCD_SOCKET=path(world))
        assert done.returncode == 1
        table = done.stdout.split("\n\n")[1]
        assert [line.split()[0] for line in table.splitlines()] == ["SECRET", "gone"]
        done = world.run("status", "bda", SYNCD_SOCKET=path(world))
        assert (done.returncode, "did you mean bad?" in done.stderr) == (2, True)


def test_status_again_and_again(world: World) -> None:
    """--watch repeats it until it is interrupted."""
    command = [*SYNCD, "status", "--watch", "10ms", "--format", "json", "--socket", path(world)]
    with (
        world.daemon(),
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as shown,
    ):
        assert shown.stdout is not None
        seen = 0
        for line in shown.stdout:
            seen += line.startswith("{")
            if seen == 3:
                break
        shown.send_signal(signal.SIGINT)
        assert shown.wait(DEADLINE) == 130


def test_status_fits_the_width(world: World) -> None:
    """Many consumers are counted; a line is never longer than the terminal."""
    hooks = [
        {"name": f"a-consumer-{i}", "kind": "webhook", "url": "http://127.0.0.1:1"}
        for i in range(6)
    ]
    world.configure(api={"socket": path(world)}, consumers=hooks)
    with world.daemon() as daemon:
        world.publish(a=secret("1"))
        daemon.wait_for("secret.changed")
        done = world.run("status", "--socket", path(world), COLUMNS="80")
        table = done.stdout.split("\n\n")[1].splitlines()
        assert max(map(len, table)) <= 80
        assert "6 of 6" in table[1]
