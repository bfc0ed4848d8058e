"""A fleet for tests: installations with one key, which write to a bucket of a real NATS server."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from support.daemon import environment
from support.nats import NatsServer, bucket, documents
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.world import DaemonProcess

_numbers = itertools.count(1)


class Fleet:
    """Installations that write to one bucket.

    Attributes:
        daemons: The processes, by instance.
    """

    def __init__(self, server: NatsServer, key: Path, stack: ExitStack) -> None:
        self.server = server
        self.bucket = f"fleet-{next(_numbers)}"
        self.daemons: dict[str, DaemonProcess] = {}
        self.worlds: dict[str, World] = {}
        self.key = key
        self._stack = stack
        key.write_bytes(secret("the key of the fleet"))
        server.ask(bucket(self.bucket))

    def start(self, *names: str, **more: Any) -> None:
        for name in names:
            world = self.worlds[name] = self._stack.enter_context(World())
            world.publish(db=secret("1"))
            world.map("db")
            bus = {"name": "bus", "kind": "nats", "urls": [self.server.url], "subject": "none.x"}
            world.configure(
                instance=name,
                fingerprint_key_file=str(self.key),
                consumers=[{**bus, "state_bucket": self.bucket, "state_heartbeat": "1s", **more}],
            )
            self.daemons[name] = self._stack.enter_context(world.daemon())
        wait_until(lambda: documents(self.server, self.bucket).keys() >= set(names))

    def rotate(self, value: str, *names: str) -> None:
        for name in names:
            self.worlds[name].publish(db=secret(value))
            self.daemons[name].wait_for("secret.changed", len(self.worlds[name].events()) or 1)

    @property
    def options(self) -> list[str]:
        return ["--nats", self.server.url, "--bucket", self.bucket]

    def status(self, *options: str) -> tuple[int, Any]:
        done = World.run(self.worlds["n1"], "fleet", "status", *self.options, *options)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    def secret(self) -> dict[str, Any]:
        """What `fleet status` says of the one secret."""
        code, output = self.status("--format", "json", "--secret", "db")
        (found,) = json.loads(output)["secrets"]
        assert code == (0 if found["converged"] else 1)
        item: dict[str, Any] = found
        return item

    @contextmanager
    def waiting(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """A `fleet wait` that has said what it waits for."""
        command = ["fleet", "wait", *self.options, "--secret", "db", *options]
        with subprocess.Popen(
            [sys.executable, "-m", "syncd", *command],
            env=environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            yield process
            process.kill()
