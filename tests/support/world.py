"""The one builder of what syncd works on: mount, vault config, configuration, state, processes.

    with World() as world:
        world.publish(a=b"one", b=b"two")                # a generation of a CSI mount
        world.map("a", "b")                              # the vault config
        world.configure(consumers=[{...}])
        with world.daemon() as daemon:                   # returns when it is ready
            world.publish(a=b"three")
            daemon.wait_for("secret.changed", secret="a")

Unit tests need the files only, in a directory of their own: `World(tmp_path)`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Self

from support import mount
from support.daemon import CANARY, DaemonProcess, environment
from support.waiting import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CANARY", "DaemonProcess", "World", "secret"]


def secret(text: str) -> bytes:
    """A value that every scan for leaks will recognise."""
    return CANARY + b"-" + text.encode()


class World:
    """A directory with everything that a daemon needs, and the daemons that run over it.

    Args:
        directory: An existing directory to use; by default a new one in memory, which is removed.

    Attributes:
        mount: The mount, made by the first `publish`.
        values: What the mount holds.
        vault_config: Path of the vault config, written by `map`.
        config: Path of the configuration, written by `configure`.
        state: The state directory.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self._temporary = directory is None
        if directory is None:
            memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            directory = tempfile.mkdtemp(prefix="syncd-test-", dir=memory)
        self.directory = os.fspath(directory)
        self.mount = f"{self.directory}/mount"
        self.vault_config = f"{self.directory}/vault-config.json"
        self.config = f"{self.directory}/syncd.yaml"
        self.state = f"{self.directory}/state"
        self.values: dict[str, bytes] = {}
        self.daemons: list[DaemonProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self.daemons:
            daemon.kill()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def publish(self, values: Mapping[str, bytes] | None = None, /, **named: bytes) -> None:
        """Publishes a generation with these values added or changed."""
        self.values |= {**(values or {}), **named}
        mount.publish(self.mount, self.values)

    def withdraw(self, *names: str) -> None:
        """Publishes a generation without these secrets."""
        for name in names:
            del self.values[name]
        self.publish()

    def write_plain(self, name: str, value: bytes) -> None:
        """Renames a file into place, as a careful script does."""
        os.makedirs(self.mount, exist_ok=True)
        with open(f"{self.mount}/.{name}.new", "wb") as file:
            file.write(value)
        os.rename(f"{self.mount}/.{name}.new", f"{self.mount}/{name}")

    def map(
        self, *names: str, paths: Mapping[str, str] | None = None, **scopes: Mapping[str, str]
    ) -> None:
        """Writes a vault config.

        Args:
            names: Secrets of this mount, for the Client of the same name.
            paths: Where secrets are that are not files of the same name in this mount.
            scopes: Scopes of secrets for other resources.
        """
        paths = paths or {}
        entries = {
            name: {
                "path": paths.get(name, f"{self.mount}/{name}"),
                "scope": scopes.get(name, {"resource_type": "Client", "id": name}),
            }
            for name in dict.fromkeys([*names, *paths, *scopes])
        }
        self.write_vault_config(json.dumps({"secret": entries}))

    def write_vault_config(self, text: str) -> None:
        temporary = f"{self.vault_config}.new"
        with open(temporary, "w") as file:
            file.write(text)
        os.rename(temporary, self.vault_config)

    def configure(self, **settings: Any) -> None:
        """Writes the configuration: vault config and state directory, and what is given.

        Where values may be sent out, `watch.roots` is required: this mount, if none are given.
        """
        content = {"vault_config": self.vault_config, "state_dir": self.state, **settings}
        verifies = any(
            "verify" in item.get("actions", ()) for item in settings.get("consumers", ())
        )
        if verifies or settings.get("credentials", {}).get("grants"):
            content["watch"] = {"roots": [self.mount], **settings.get("watch", {})}
        with open(self.config, "w") as file:
            json.dump(content, file)

    def daemon(
        self, *, ready: bool = True, wrapper: Sequence[str] = (), **more: str
    ) -> DaemonProcess:
        """A daemon process over this world, to be entered (see `DaemonProcess`).

        Args:
            ready: Whether entering waits until the daemon is ready.
            wrapper: A command that ends by executing the daemon.
            more: Environment variables besides those of the tests.
        """
        arguments = ["run", "-c", self.config]
        daemon = DaemonProcess(arguments, more, ready=ready, wrapper=wrapper)
        self.daemons.append(daemon)
        return daemon

    def relay(self, *options: str, wrapper: Sequence[str] = (), **settings: Any) -> DaemonProcess:
        """A `syncd relay` process with a configuration of its own in this world."""
        with open(f"{self.directory}/relay.yaml", "w") as file:
            json.dump({"state_dir": f"{self.directory}/relay", **settings}, file)
        arguments = ["relay", "-c", f"{self.directory}/relay.yaml", *options]
        relay = DaemonProcess(arguments, {}, ready=True, wrapper=wrapper)
        self.daemons.append(relay)
        return relay

    def daemon_from_environment(self, **more: str) -> DaemonProcess:
        """A daemon process without a configuration file."""
        daemon = DaemonProcess(["run"], more, ready=True)
        self.daemons.append(daemon)
        return daemon

    def events(self) -> list[dict[str, str]]:
        """The event log, oldest first, straight from the ledger."""
        path = f"file:{self.state}/ledger.sqlite3?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True)) as ledger:
            ledger.row_factory = sqlite3.Row
            rows = ledger.execute("SELECT * FROM event ORDER BY sequence").fetchall()
        return [dict(row) for row in rows]

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a syncd command to its end, and checks that it did not print a planted value."""
        done = subprocess.run(
            [sys.executable, "-m", "syncd", *arguments],
            env=environment(more),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert CANARY.decode() not in done.stdout + done.stderr
        return done
