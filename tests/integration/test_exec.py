"""Consumers of kind `exec` with the real daemon and real commands."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml
from support.documents import blocks_of, document
from support.waiting import wait_until
from support.world import CANARY, World, secret

from syncd.config.settings import COMMAND_PATH, Exec, Settings
from syncd.lint.commands import check_commands

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish(a=secret("0"), b=secret("0"))
        world.map("a", "b")
        yield world


def command(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "exec", "command": ["/bin/sh", "-c", script], **more}


def lines(path: str) -> list[Any]:
    """What a command wrote, one JSON text for each run."""
    if not os.path.exists(path):
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_what_exit_codes_mean(world: World) -> None:
    """0 acknowledges, 75 and a timeout are tried again, anything else is a rejection.

    And what `syncd test` shows of each; with a scope, batches, and a value in the output.
    """
    out, at = f"{world.directory}/out", ("--socket", f"{world.directory}/s")
    told = f"(cat; echo) >> {out}"
    leak = f"cat {world.mount}/a >&2; cat {world.mount}/a"
    once = f"[ -e {out}.$0 ] || {{ touch {out}.$0; exit 75; }}"
    consumers = [
        command(
            "takes", f"(cat; echo) >> {out}.takes", scope=[{"resource_type": "Client", "id": "a"}]
        ),
        command("batch", f"(cat; echo) >> {out}.batch", max_batch=10, max_in_flight=2),
        {**command("later", once), "command": ["sh", "-c", f"{once}; {told}.later", "later"]},
        command("refuses", f"{leak}; exit 3"),
        command("hangs", "sleep 1000 & wait", timeout="100ms"),
        {"name": "away", "kind": "exec", "command": ["/none/such", CANARY.decode()]},
    ]
    world.configure(api={"socket": at[1]}, consumers=consumers)
    with world.daemon() as daemon:
        daemon.wait_for("consumer.unusable", consumer="away")
        world.publish(a=secret("1"), b=secret("1"))
        for name in ("takes", "batch", "later"):
            daemon.wait_for("delivery.acknowledged", consumer=name)
        (event,) = lines(f"{out}.takes")
        assert (event["specversion"], event["subject"]) == ("1.0", "a")
        assert event["type"] == "io.syncd.secret.changed"
        assert [[e["subject"] for e in batch] for batch in lines(f"{out}.batch")] == [["a", "b"]]
        shell = "cannot deliver to /bin/sh: "
        for name, kind, reason in (
            ("later", "retry", "cannot deliver to sh: it exited with 75 (EX_TEMPFAIL)"),
            ("hangs", "retry", f"{shell}it did not exit within 0.1 s"),
            (
                "refuses",
                "rejected",
                (
                    f"{shell}it exited with 3; run it by hand with an event on "
                    "standard input, and correct it"
                ),
            ),
            (
                "away",
                "rejected",
                (
                    "cannot run /none/such: No such file or directory; correct "
                    "command, or the program's first line (#!)"
                ),
            ),
        ):
            assert daemon.wait_for(f"delivery.{kind}", consumer=name)["reason"] == reason
        for name, code, shown in (
            ("takes", 0, "  status   0\n"),
            ("refuses", 1, "  status   3\n"),
            ("hangs", 1, "it did not exit within 0.1 s"),
            ("away", 1, "  status   no answer\n"),
        ):
            done = world.run("test", name, *at)
            assert (done.returncode, shown in done.stdout) == (code, True), done.stdout
        assert lines(f"{out}.takes")[-1]["type"] == "io.syncd.ping"
        world.run("test", "batch", *at)
        assert [event["type"] for event in lines(f"{out}.batch")[-1]] == ["io.syncd.ping"]
        done = world.run("check", "-c", world.config, "--consumers", "--format", "json")
        assert [item["where"] for item in json.loads(done.stdout)["findings"]] == [
            "consumers[5].command[0]"
        ]


def test_the_end_of_the_daemon(world: World) -> None:
    """Commands that run end with it when it is stopped; what was not acknowledged comes again.

    After a SIGKILL nothing can end the command; its event comes again beside it.
    """
    pids, go = Path(f"{world.directory}/pids"), Path(f"{world.directory}/go")
    script = f"sleep 1000 & echo $! >> {pids}; [ -e {go} ] || wait"
    world.configure(consumers=[command("slow", script, timeout="1h")])

    def runs(count: int) -> list[int]:
        wait_until(lambda: pids.exists() and pids.read_text().count("\n") >= count)
        return [int(pid) for pid in pids.read_text().split()]

    with world.daemon() as daemon:
        world.publish(a=secret("1"))
        first = runs(1)[0]
        daemon.kill()
        assert is_alive(first)
        os.kill(first, signal.SIGKILL)
    with world.daemon() as daemon:
        second = runs(2)[1]
        daemon.stop()
        wait_until(lambda: not is_alive(second))
        daemon.kill()
    go.touch()
    with world.daemon() as daemon:
        daemon.wait_for("delivery.acknowledged", consumer="slow", subject="a")
        wait_until(lambda: not is_alive(runs(3)[2]))


def test_the_example() -> None:
    """The consumer of the documentation is valid, and its defaults are those of the table."""
    page = document("docs/exec.md")
    (found,) = yaml.safe_load(blocks_of(page, "yaml")[0])["consumers"]
    settings = msgspec.convert(found, Exec)
    for key in ("timeout", "max_batch", "max_in_flight"):
        value = getattr(settings, key)
        assert f"| `{key}` | `{value:g}{'s' if key == 'timeout' else ''}` |" in page
    assert COMMAND_PATH in page


def test_a_program_that_everybody_can_replace(tmp_path: Path) -> None:
    """By its own permissions, or by those of a directory on its real path."""
    program = tmp_path / "bin" / "run"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    link = tmp_path / "link"
    link.symlink_to(program)
    program.chmod(0o755)
    settings = Settings(vault_config="/v", consumers=(Exec(name="run", command=(str(link),)),))
    assert not check_commands(settings, "here")
    program.chmod(0o757)
    (found,) = check_commands(settings, "here")
    assert (found.code, "can be changed by every user" in found.message) == (
        "command-exposed",
        True,
    )
    program.chmod(0o755)
    program.parent.chmod(0o777)
    (found,) = check_commands(settings, "here")
    assert f"who may write to {program.parent}" in found.message
    program.parent.chmod(0o1777)  # only owners replace their files there
    assert not check_commands(settings, "here")
    program.chmod(0o644)
    (found,) = check_commands(settings, "here")
    assert (found.code, found.where) == ("command-unusable", "consumers[0].command[0]")
