"""What the README shows is what happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
import yaml
from jsonschema import Draft202012Validator
from support.documents import REPOSITORY, blocks_of, document
from support.receiver import Receiver
from support.waiting import DEADLINE
from support.world import World, secret

from syncd.commands.schema import schema_of

if TYPE_CHECKING:
    from pathlib import Path

README = document("README.md")
blocks = partial(blocks_of, README)


def test_the_demonstration() -> None:
    """`make demo` runs `syncd demo`, which prints each event with its latency and ends well."""
    assert blocks("sh")[0] == "make demo\n"
    plan = subprocess.run(
        ["make", "-n", "demo"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert re.search(r"-m syncd demo --rotations \d+ --interval \w+", plan.stdout)
    done = subprocess.run(
        [sys.executable, "-m", "syncd", "demo", "--rotations", "4", "--interval", "10ms"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [line for line in done.stdout.splitlines() if line.startswith("event ")]
    assert len(events) == 1 + 1 + 1 + 3
    assert all(re.search(r"\d+\.\d ms after the swap, signature valid$", line) for line in events)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demonstration_that_is_ended(number: signal.Signals) -> None:
    """Without a number of rotations it goes on; when ended by a signal, nothing is left behind."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "syncd", "demo", "--interval", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    mount = pid = ""
    try:
        for line in demo.stdout:
            found = re.match(r"(?:mount +(\S+)/mount:|daemon +pid (\d+),)", line)
            if found:
                mount, pid = found[1] or mount, found[2] or pid
            if line.startswith("rotation  5:"):
                break
        demo.send_signal(number)
        rest = demo.communicate(timeout=DEADLINE)[0]
        assert demo.returncode == 128 + number, rest
        assert "Traceback" not in rest
        assert mount
        assert not os.path.exists(mount)
        assert not os.path.exists(f"/proc/{pid}")
    finally:
        demo.kill()
        demo.wait()


def test_checking_a_set_up() -> None:
    """The linter's command works as written after `make demo`, on a configuration of one's own."""
    command = blocks("sh")[1].split()
    assert command[-2:] == ["-c", "/etc/syncd/syncd.yaml"]
    with World() as world:
        world.publish(a=secret("1"))
        world.map("a")
        world.configure()
        done = subprocess.run(
            [*command[:-1], world.config],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "0 errors, 0 warnings\n")


def test_the_sidecar() -> None:
    """The sidecar's environment is a complete configuration."""
    (manifest,) = blocks("yaml")
    (container,) = yaml.safe_load(manifest)["initContainers"]
    assert container["restartPolicy"] == "Always"
    environment = {item["name"]: item["value"] for item in container["env"]}
    assert set(environment) == {"BOX_VAULT_CONFIG", "SYNCD_WEBHOOK_URL"}
    with World() as world, Receiver() as receiver:
        world.publish(a=secret("1"))
        world.map("a")
        environment |= {
            "BOX_VAULT_CONFIG": world.vault_config,
            "SYNCD_WEBHOOK_URL": receiver.url,
            "SYNCD_STATE_DIR": world.state,
        }
        with world.daemon_from_environment(**environment):
            world.publish(a=secret("2"))
            receiver.wait(1)


def test_the_event() -> None:
    """The event shown is one of the schema, but for its shortened versions."""
    event = json.loads(blocks("json")[0].replace("…", "00"))
    Draft202012Validator(schema_of("event")).validate(event)


@pytest.mark.parametrize("forged", [False, True])
def test_receiving_and_verifying(tmp_path: Path, *, forged: bool) -> None:
    """The key, the receiver in Python and the sender in curl work together as written."""
    make_key, send = blocks("sh")[2:]
    (receiver,) = (block for block in blocks("python") if "HTTPServer" in block)
    run = {"cwd": tmp_path, "shell": True, "executable": "/bin/bash"}
    subprocess.run(make_key, check=True, **run)  # type: ignore[call-overload]
    free = "HTTPServer(('127.0.0.1', 0), Receiver)"
    code = receiver.replace('HTTPServer(("127.0.0.1", 9000), Receiver)', f"server = {free}")
    code = code.replace(
        ".serve_forever()", "; print(server.server_port, flush=True); server.serve_forever()"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        command = send.replace("127.0.0.1:9000", f"127.0.0.1:{port}")
        if forged:
            command = command.replace("webhook-id: $id", "webhook-id: other")
        sent = subprocess.run(command, capture_output=True, check=False, **run)  # type: ignore[call-overload]
        assert sent.returncode == (22 if forged else 0), sent.stderr
        if not forged:
            assert process.stdout.readline() == "client-secret modified\n"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_the_configuration_reference() -> None:
    """Every key of the configuration is in the reference, and none that does not exist."""
    properties = schema_of("config")["$defs"]
    section = README.partition("## Configuration")[2].partition("## Commands")[0]
    shown = set(re.findall(r"`([a-z_.]+)(?:\[\])?`", section))
    for name in properties["Watch"]["properties"]:
        assert f"watch.{name}" in shown
    for name in properties["Webhook"]["properties"].keys() - {"kind", "basic_auth"}:
        assert name in shown
    for name in properties["Provision"]["properties"]:
        assert name in shown
    for name in properties["Api"]["properties"]:
        assert f"api.{name}" in shown or f".{name}" in shown
    for name in properties["Aidbox"]["properties"].keys() - {"kind"}:
        assert name in shown
    for name in properties["Kubernetes"]["properties"]:
        assert f"kubernetes.{name}" in shown
    for section in ("Recreate", "Rollout"):
        assert properties[section]["properties"].keys() <= shown
    for name in properties["Credentials"]["properties"]:
        assert f"credentials.{name}" in shown
    for name in properties["CredentialGrant"]["properties"]:
        assert name in shown
