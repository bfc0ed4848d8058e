"""A real NATS server with a state bucket, and installations that exist in it only."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import nats
from nats.js.api import DiscardPolicy, StreamConfig

from benchmarks.processes import DEADLINE, Process
from benchmarks.vault import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

BUCKET: Final = "state"
STREAM: Final = "events"
SECRETS: Final = 50
HEARTBEAT: Final = 60.0
"""Seconds: the default of `state_heartbeat`."""

_AT_ONCE: Final = 500


class Bus(Process):
    """A server with one stream and one bucket, on the disk.

    Args:
        directory: Where its configuration, log and storage go.
    """

    def __init__(self, directory: str) -> None:
        self.port = free_ports()
        self.url = f"nats://127.0.0.1:{self.port}"
        settings = {
            "listen": f"127.0.0.1:{self.port}",
            "jetstream": {"store_dir": f"{directory}/store", "max_file_store": 4 << 30},
        }
        with open(f"{directory}/server.json", "w") as file:
            json.dump(settings, file)
        binary = os.path.join(os.path.dirname(sys.executable), "nats-server")
        super().__init__([binary, "-c", f"{directory}/server.json"], f"{directory}/server.log")
        self.wait_for_text("Server is ready")
        asyncio.run(self._prepare())

    async def _prepare(self) -> None:
        client = await nats.connect(self.url)
        js = client.jetstream()
        await js.add_stream(StreamConfig(name=STREAM, subjects=[f"{STREAM}.>"]))
        bucket = StreamConfig(
            name=f"KV_{BUCKET}",
            subjects=[f"$KV.{BUCKET}.>"],
            max_msgs_per_subject=1,
            discard=DiscardPolicy.NEW,
            allow_rollup_hdrs=True,
            allow_direct=True,
        )
        await js.add_stream(bucket)
        await client.close()


class Crowd:
    """Installations with one key and the same secrets, which write to a bucket.

    Args:
        bus: The server.
        count: How many there are.
    """

    def __init__(self, bus: Bus, count: int) -> None:
        self.count = count
        self._socket = socket.create_connection(("127.0.0.1", bus.port), DEADLINE)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(b'CONNECT {"verbose":false,"lang":"bench","version":"1"}\r\n')
        self._changed_at: str | None = None
        self._generation = 0

    def rotate(self) -> None:
        """Makes every secret of every installation another one, from the next document on."""
        self._generation += 1
        self._changed_at = _now()

    def documents(self) -> list[bytes]:
        """The document of each installation now, as it goes over the wire."""
        found = {}
        for number in range(SECRETS):
            name, value = f"secret-{number:02}", f"{number} {self._generation}".encode()
            version = f"k1:{blake2b(value, digest_size=16).hexdigest()}"
            found[name] = {
                "version": version,
                **({"changed_at": self._changed_at} if self._changed_at else {}),
                "scope": [{"resource_type": "Client", "id": f"app-{number}"}],
            }
        shared = json.dumps(found, separators=(",", ":"))
        return [self._document(f"node-{number:05}", shared) for number in range(self.count)]

    def _document(self, name: str, secrets: str) -> bytes:
        head = {"instance": name, "syncd": "0", "time": _now(), "key": "k", "ttl": 3 * HEARTBEAT}
        content = f'{json.dumps(head)[:-1]},"secrets":{secrets}}}'.encode()
        return f"PUB $KV.{BUCKET}.{name} {len(content)}\r\n".encode() + content + b"\r\n"

    def write(self, documents: list[bytes], seconds: float = 0.0) -> None:
        """Publishes documents; at an even pace within some seconds, or as fast as possible."""
        size = min(_AT_ONCE, max(1, round(len(documents) / max(seconds, 1) / 10)))
        size = _AT_ONCE if not seconds else size
        began = time.perf_counter()
        for start in range(0, len(documents), size):
            self._send(documents[start : start + size])
            ahead = began + seconds * (start + size) / len(documents) - time.perf_counter()
            if seconds and ahead > 0:
                time.sleep(ahead)

    def _send(self, documents: Iterable[bytes]) -> None:
        self._socket.sendall(b"".join(documents) + b"PING\r\n")
        while (line := self._file.readline().strip()) != b"PONG":
            if line == b"PING":
                self._socket.sendall(b"PONG\r\n")
            elif not line or line.startswith(b"-ERR"):
                raise RuntimeError(f"the NATS server says {line!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._socket.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
