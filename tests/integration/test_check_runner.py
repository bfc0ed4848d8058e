"""`syncd check` for the user who will run syncd, as a real process that becomes that user."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.accounts import needs_root, reachable
from support.waiting import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["reachable"]
pytestmark = needs_root
CANARY = "hunter2-canary"
NOBODY = 65534


def check(directory: Path, *arguments: str, **settings: Any) -> tuple[int, list[str]]:
    """Runs the command over a configuration; gives its exit code, and code and place of each."""
    config = directory / "syncd.yaml"
    config.write_text(json.dumps({"vault_config": f"{directory}/vault-config.json", **settings}))
    done = subprocess.run(
        [sys.executable, "-m", "syncd", "check", "-c", str(config), "--format", "json", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ".")},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert CANARY not in done.stdout + done.stderr
    assert not done.stderr
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, [f"{item['code']} {item['where']}" for item in findings]


@pytest.fixture
def place(reachable: Path) -> Path:
    """A vault config with a secret of `nobody`, and a state directory of that user."""
    secrets = reachable / "secrets"
    secrets.mkdir()
    for name in ("mine", "roots"):
        (secrets / name).write_text(CANARY)
        (secrets / name).chmod(0o600)
    os.chown(secrets / "mine", NOBODY, NOBODY)
    entries = {
        name: {"path": f"{secrets}/{name}", "scope": {"resource_type": "Client", "id": name}}
        for name in ("mine", "roots")
    }
    (reachable / "vault-config.json").write_text(json.dumps({"secret": entries}))
    (reachable / "state").mkdir()
    os.chown(reachable / "state", NOBODY, NOBODY)
    return reachable


def test_what_root_can_read_is_no_claim_about_the_service(place: Path) -> None:
    """As root there is nothing to find; as the user, the file that only root may read."""
    state = {"state_dir": f"{place}/state"}
    found = check(place, "--as", "nobody", **state)
    assert found == (1, ["secret-unreadable $.secret.roots.path"])
    assert check(place, "--as", "root", state_dir=f"{place}/of-root") == (0, [])


def test_a_configuration_that_the_user_cannot_read(place: Path) -> None:
    """It is an input that cannot be read at all."""
    (place / "vault-config.json").chmod(0o600)
    code, found = check(place, "--as", str(NOBODY), state_dir=f"{place}/state")
    assert (code, found) == (2, ["vault-config-unreadable "])


def test_what_syncd_could_not_make_when_it_starts(place: Path) -> None:
    """State, sockets, port and groups, as `syncd run` of that user would be refused them."""
    (place / "file").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        code, found = check(
            place,
            "--as",
            "nobody",
            state_dir=f"{place}/of-root",
            api={
                "socket": f"{place}/api.sock",
                "socket_group": "daemon",
                "listen": f"127.0.0.1:{taken.getsockname()[1]}",
            },
            credentials={"socket": f"{place}/none/such.sock"},
            provision=[],
        )
    assert code == 1
    assert found[:4] == [
        "state-unusable state_dir",
        "listen-unusable api.socket",
        "listen-unusable credentials.socket",
        "group-foreign api.socket_group",
    ]
    code, found = check(
        place,
        "--as",
        "root",
        state_dir=f"{place}/file",
        api={
            "socket": f"{place}/file",
            "socket_group": "none-such",
            "listen": "192.0.2.1:9753",
        },
    )
    assert code == 1
    assert found[:4] == [
        "state-unusable state_dir",
        "listen-unusable api.socket",
        "listen-unusable api.listen",
        "user-unknown api.socket_group",
    ]


def test_a_relay_is_checked_as_well(place: Path) -> None:
    """Its credentials, consumers and addresses; it has no vault config."""
    config = place / "relay.yaml"
    config.write_text(
        json.dumps(
            {
                "relay": {
                    "urls": ["nats://192.0.2.1"],
                    "subject": "s.>",
                    "token_file": f"{place}/none",
                },
                "state_dir": f"{place}/relay-state",
                "consumers": [
                    {
                        "name": "hook",
                        "kind": "webhook",
                        "url": "http://127.0.0.1:1",
                        "scope": [{"resource_type": "Clinet"}],
                    }
                ],
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "syncd", "check", "-c", str(config), "--format", "json"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    found = [f"{item['code']} {item['where']}" for item in json.loads(done.stdout)["findings"]]
    assert (done.returncode, found) == (
        1,
        [
            "credential-unreadable relay.token_file",
            "credential-cleartext relay.urls[0]",
            "resource-type-unknown consumers[0].scope[0].resource_type",
        ],
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--as", "nobody-at-all"), "command line: --as: there is no user nobody-at-all"),
        (("--unit", "none-such"), "command line: --unit: there is no unit none-such"),
        (("--as", "root", "--unit", "x"), "--as and --unit contradict each other"),
    ],
)
def test_a_runner_that_does_not_exist(arguments: tuple[str, ...], line: str) -> None:
    """One line, exit 2."""
    done = subprocess.run(
        [sys.executable, "-m", "syncd", "check", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert line in done.stderr
