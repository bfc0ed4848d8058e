"""`syncd demo`: rotations from mount to receiver, without root, network or configuration.

A temporary mount in the CSI driver's layout, a vault config over it, the real daemon as a process
of its own, and a receiver on a Unix socket that verifies and prints each event on arrival.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import click
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.text import TextReceiveStream
from standardwebhooks import Webhook, WebhookVerificationError

from syncd.core.payload import File
from syncd.provision.publish import Publisher

if TYPE_CHECKING:
    from anyio.abc import ByteStream, Process, TaskStatus

_SCOPES: Final = {
    "client-secret": {"resource_type": "Client", "id": "my-client"},
    "kafka-jaas": {"resource_type": "AidboxTopicDestination", "id": "kafka"},
    "introspector-key": {"resource_type": "TokenIntrospector"},
}
_TIMEOUT: Final = 20.0


async def demo(rotations: int | None, interval: float) -> int:
    """Runs the demonstration.

    Args:
        rotations: How many; None to rotate until Ctrl-C.
        interval: Seconds between two.

    Returns:
        Exit code: 0 when every event arrived with a valid signature, 128 plus the signal's number
        after SIGINT or SIGTERM, 1 otherwise.
    """
    memory = "/dev/shm"  # noqa: S108 - a tmpfs, as the CSI driver mounts one
    with tempfile.TemporaryDirectory(
        prefix="syncd-demo-", dir=memory if os.access(memory, os.W_OK) else None
    ) as directory:
        return await _Demo(directory).run(rotations, interval)


class _Demo:
    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._mount = f"{directory}/mount"
        self._key = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
        self._publisher = Publisher(self._mount, step=self._mark)
        self._swapped = 0.0
        self._values = {name: secrets.token_bytes(16) for name in _SCOPES}
        self._expected: set[str] = set()
        self._arrived = anyio.Event()
        self._forged = 0
        self._signal = 0
        self._ready = False
        self._log_read = anyio.Event()

    async def run(self, rotations: int | None, interval: float) -> int:
        await anyio.to_thread.run_sync(self._prepare)
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._end_by_signal, tasks.cancel_scope)
            listener = await anyio.create_unix_listener(f"{self._directory}/receiver.sock")
            tasks.start_soon(listener.serve, self._receive)
            started = time.perf_counter()
            environment = {**os.environ, **self._environment()}
            async with await anyio.open_process(
                [sys.executable, "-m", "syncd", "run", "-c", f"{self._directory}/syncd.yaml"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
            ) as daemon:
                missed = 1
                try:
                    tasks.start_soon(self._read_log, daemon)
                    if await self._await_ready():
                        took = time.perf_counter() - started
                        click.echo(f"mount     {self._mount}: {len(_SCOPES)} secrets, CSI layout")
                        click.echo(f"daemon    pid {daemon.pid}, ready after {took:.2f} s")
                        missed = await self._rotate(rotations, interval)
                finally:
                    await _stop(daemon)
            tasks.cancel_scope.cancel()
        if self._signal:
            return 128 + self._signal
        click.echo(
            "all events received, all signatures valid" if missed == 0 else "failed", err=missed > 0
        )
        return int(missed > 0)

    def _prepare(self) -> None:
        self._publish()
        entries = {
            name: {"path": f"{self._mount}/{name}", "scope": scope}
            for name, scope in _SCOPES.items()
        }
        consumer = {
            "name": "demo",
            "kind": "webhook",
            "url": "http://receiver/secret-events",
            "socket": f"{self._directory}/receiver.sock",
            "signing_key_file": f"{self._directory}/webhook.key",
        }
        for name, content in (
            ("vault-config.json", json.dumps({"secret": entries})),
            ("syncd.yaml", json.dumps({"consumers": [consumer]})),
            ("webhook.key", self._key),
        ):
            with open(f"{self._directory}/{name}", "w") as file:
                file.write(content)

    def _environment(self) -> dict[str, str]:
        return {
            "BOX_VAULT_CONFIG": f"{self._directory}/vault-config.json",
            "SYNCD_STATE_DIR": f"{self._directory}/state",
            "SYNCD_LOG_FORMAT": "json",
            "SYNCD_LOG_LEVEL": "info",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    async def _end_by_signal(
        self,
        scope: anyio.CancelScope,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                self._signal = number
                scope.cancel()
                return

    async def _read_log(self, daemon: Process) -> None:
        # read to the end: the daemon would block on a full pipe
        if daemon.stderr is None:
            return
        async for text in TextReceiveStream(daemon.stderr):
            if "daemon.ready" in text:
                self._ready = True
                self._log_read.set()
            elif not self._ready:
                click.echo(text, err=True, nl=False)
        self._log_read.set()

    async def _await_ready(self) -> bool:
        with anyio.move_on_after(_TIMEOUT):
            await self._log_read.wait()
        if not self._ready:
            click.echo("the daemon did not start", err=True)
        return self._ready

    async def _rotate(self, rotations: int | None, interval: float) -> int:
        names = list(_SCOPES)
        number = 0
        while rotations is None or number < rotations:
            await anyio.sleep(interval)
            number += 1
            chosen = names if number % 4 == 0 else [names[number % len(names)]]
            for name in chosen:
                self._values[name] = secrets.token_bytes(16)
            self._expected, self._arrived = set(chosen), anyio.Event()
            click.echo(f"rotation  {number}: {', '.join(chosen)}")
            await anyio.to_thread.run_sync(self._publish)
            with anyio.move_on_after(_TIMEOUT):
                await self._arrived.wait()
            if self._expected:
                click.echo(f"no event for {', '.join(sorted(self._expected))}", err=True)
                return len(self._expected)
        return self._forged

    def _publish(self) -> None:
        files = [File(name, value, 0o644) for name, value in self._values.items()]
        self._publisher.publish(files)

    def _mark(self, step: str) -> None:
        if step == "swap":
            self._swapped = time.perf_counter()

    async def _receive(self, stream: ByteStream) -> None:
        # one keep-alive connection, with as much of HTTP/1.1 as the daemon's client needs
        async with stream:
            reader = BufferedByteReceiveStream(stream)
            while True:
                try:
                    head = await reader.receive_until(b"\r\n\r\n", 65536)
                except (anyio.IncompleteRead, anyio.EndOfStream):
                    return
                lines = head.decode("latin-1").split("\r\n")[1:]
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
                body = await reader.receive_exactly(int(headers["content-length"]))
                self._show(headers, body, (time.perf_counter() - self._swapped) * 1000)
                await stream.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    def _show(self, headers: dict[str, str], body: bytes, latency: float) -> None:
        try:
            event: dict[str, Any] = Webhook(self._key).verify(body, headers)
            verdict = "signature valid"
        except WebhookVerificationError:
            self._forged += 1
            event, verdict = json.loads(body), "SIGNATURE INVALID"
        data = event["data"]
        scope = "/".join(filter(None, (data["scope"]["resource_type"], data["scope"].get("id"))))
        click.echo(
            f"event     {event['id']}  {data['secret']} {data['change']}  {scope}  "
            f"{_short(data['previous_version'])} -> {_short(data['version'])}  "
            f"{latency:.1f} ms after the swap, {verdict}"
        )
        self._expected.discard(data["secret"])
        if not self._expected:
            self._arrived.set()


async def _stop(daemon: Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # Ctrl-C on a terminal ends the daemon, too
        daemon.terminate()
    with anyio.move_on_after(_TIMEOUT, shield=True):
        await daemon.wait()


def _short(version: str | None) -> str:
    return "none" if version is None else version[:11] + "…"
