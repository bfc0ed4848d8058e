"""A world for the real daemon: a mount on tmpfs, a vault config, a configuration, a process.

    with World() as world:
        world.publish(a=b"one", b=b"two")                # a CSI-layout generation
        world.configure(consumers=[{...}])
        with world.daemon() as daemon:                   # returns when it is ready
            world.publish(a=b"three")
            daemon.wait_for("secret.changed", secret="a")

Everything the daemon says is on record; leaving checks that it never said a planted value.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from syncd.core.payload import File
from syncd.provision.publish import Publisher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

DEADLINE = 20.0
CANARY = b"CANARY-" + b"5ecre7"


def secret(text: str) -> bytes:
    """A value that every scan for leaks will recognise."""
    return CANARY + b"-" + text.encode()


class World:
    """A directory with everything that a daemon needs."""

    def __init__(self) -> None:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = tempfile.mkdtemp(prefix="syncd-test-", dir=base)
        self.mount = f"{self.directory}/mount"
        self.vault_config = f"{self.directory}/vault-config.json"
        self.config = f"{self.directory}/syncd.yaml"
        self.state = f"{self.directory}/state"
        self.values: dict[str, bytes] = {}
        self._publisher = Publisher(self.mount)
        self.daemons: list[DaemonProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self.daemons:
            daemon.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def publish(self, values: Mapping[str, bytes] | None = None, /, **named: bytes) -> None:
        """Publishes a generation that holds what was there, with these values changed."""
        self.values |= {**(values or {}), **named}
        self._publisher.publish([File(name, value) for name, value in self.values.items()])

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

    def map(self, *names: str, **scopes: Mapping[str, str]) -> None:
        """Writes a vault config: secrets of this mount, by default of the Client of that name."""
        entries = {
            name: {
                "path": f"{self.mount}/{name}",
                "scope": scopes.get(name, {"resource_type": "Client", "id": name}),
            }
            for name in dict.fromkeys([*names, *scopes])
        }
        self.write_vault_config(json.dumps({"secret": entries}))

    def write_vault_config(self, text: str) -> None:
        temporary = f"{self.vault_config}.new"
        with open(temporary, "w") as file:
            file.write(text)
        os.rename(temporary, self.vault_config)

    def configure(self, **settings: Any) -> None:
        """Writes the configuration: vault config and state directory, and what is given."""
        content = {"vault_config": self.vault_config, "state_dir": self.state, **settings}
        with open(self.config, "w") as file:
            json.dump(content, file)

    def daemon(
        self, *, ready: bool = True, wrapper: Sequence[str] = (), **environment: str
    ) -> DaemonProcess:
        """A daemon process over this world; as a context manager it is ready, and stops.

        A wrapper is a command that ends by executing the daemon in its own place.
        """
        arguments = ["run", "-c", self.config]
        daemon = DaemonProcess(arguments, environment, ready=ready, wrapper=wrapper)
        self.daemons.append(daemon)
        return daemon

    def relay(self, *options: str, **settings: Any) -> DaemonProcess:
        """A `syncd relay` process with a configuration of its own in this world."""
        with open(f"{self.directory}/relay.yaml", "w") as file:
            json.dump({"state_dir": f"{self.directory}/relay", **settings}, file)
        arguments = ["relay", "-c", f"{self.directory}/relay.yaml", *options]
        relay = DaemonProcess(arguments, {}, ready=True)
        self.daemons.append(relay)
        return relay

    def daemon_from_environment(self, **environment: str) -> DaemonProcess:
        """A daemon process without a configuration file."""
        daemon = DaemonProcess(["run"], environment, ready=True)
        self.daemons.append(daemon)
        return daemon

    def events(self) -> list[dict[str, str]]:
        """The event log, oldest first, straight from the ledger."""
        path = f"file:{self.state}/ledger.sqlite3?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True)) as ledger:
            ledger.row_factory = sqlite3.Row
            rows = ledger.execute("SELECT * FROM event ORDER BY sequence").fetchall()
        return [dict(row) for row in rows]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, and checks that it never said a planted value."""
        done = subprocess.run(
            [sys.executable, "-m", "syncd", *arguments],
            env=_environment(environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert CANARY.decode() not in done.stdout + done.stderr
        return done


class DaemonProcess:
    """A running `syncd run`, and its log."""

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        *,
        ready: bool,
        wrapper: Sequence[str] = (),
    ) -> None:
        self._command = [*wrapper, sys.executable, "-m", "syncd", *arguments]
        self._environment = environment
        self._await_ready = ready
        self._condition = threading.Condition()
        self._over = False
        self.killed = False
        self.log: list[dict[str, Any]] = []
        self.output: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        self.killed, self._over = False, False
        self.process = subprocess.Popen(
            self._command,
            env=_environment({"SYNCD_LOG_LEVEL": "debug", **self._environment}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        if self._await_ready:
            self.wait_for("daemon.ready")
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._condition:
                self.output.append(line)
                if line.startswith("{"):
                    self.log.append(json.loads(line))
                self._condition.notify_all()
        with self._condition:
            self._over = True
            self._condition.notify_all()

    def wait_for(self, event: str, count: int = 1, /, **fields: Any) -> dict[str, Any]:
        """Waits for the n-th log event of that name with these fields."""
        deadline = time.monotonic() + DEADLINE
        with self._condition:
            while True:
                found = self.logged(event, **fields)
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if left <= 0 or self._over or not self._condition.wait(left):
                    said = "".join(self.output[-30:])
                    raise AssertionError(f"no {event} {fields} in the log:\n{said}")

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The log events of that name with these fields, so far."""
        return [
            item
            for item in self.log
            if item.get("event") == event and all(item.get(k) == v for k, v in fields.items())
        ]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and waits for the end; the exit code."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        code = self.process.wait(DEADLINE)
        self._finish()
        return code

    def kill(self) -> None:
        """SIGKILL; harmless when it is gone."""
        self.killed = True
        if self.process is not None:
            self.process.kill()
            self.process.wait(DEADLINE)
            self._finish()

    def wait_for_end(self) -> int:
        """Waits until the process has ended by itself or by somebody else's hand."""
        assert self.process is not None
        return self.process.wait(DEADLINE)

    def _finish(self) -> None:
        deadline = time.monotonic() + DEADLINE
        with self._condition:
            while not self._over:
                assert self._condition.wait(deadline - time.monotonic())
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is not None and not self.killed:
            code = self.stop()
            if kind is None:
                assert code == 0, "".join(self.output[-30:])
        assert CANARY.decode() not in "".join(self.output), "a value reached the log"


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SYNCD_", "BOX_", "AIDBOX_"))}
    return {**own, "SYNCD_LOG_FORMAT": "json", "PYTHONWARNINGS": "error", **extra}
