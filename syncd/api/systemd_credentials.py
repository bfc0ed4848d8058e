r"""Credentials for systemd's units: `LoadCredential=NAME:/run/syncd/credentials.sock`.

systemd connects when it starts a unit, from an abstract address that names the unit and the
credential: `\0<random>/unit/<unit>/<credential>` (systemd.exec(5), `LoadCredential=`). It sends
nothing, and reads the credential up to the end of the stream. The answer is the present value of
the granted secret, and nothing that the configuration does not grant.

The traps:

- Every user can bind such an address. It is trusted from root only (`SO_PEERCRED`).
- The end of the stream means success: a connection that is closed without data makes an **empty
  credential**, and a Unix socket cannot be reset instead (`SO_LINGER` does nothing there,
  net/unix/af_unix.c `unix_release_sock`). What systemd does refuse is a credential that is too
  large (src/basic/fileio.c, `READ_FULL_FILE_FAIL_WHEN_LARGER`). So a refusal is an answer above
  that size, of zeros; the unit then fails with 243/CREDENTIALS.
- A value sent in part would be a truncated credential: a shutdown waits until it is sent.
- A daemon that is killed after accepting a connection ends its stream, too. A connection that waits
  to be accepted is reset instead when its listener closes (net/unix/af_unix.c `unix_release_sock`,
  "embrion"), which fails the unit; and a listener that systemd owns keeps it for the next daemon.
  So no connection is accepted before values can be read.

One gap cannot be closed here: a daemon that is killed between accepting and answering leaves an
empty credential. docs/install.md has the guard for the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import msgspec
import structlog

from syncd.api.subscribers import UNMAPPED_REMEDY, peer_of, unmapped_reason
from syncd.core.errors import SyncdError, TemporaryError
from syncd.system.accounts import unmapped_uid

if TYPE_CHECKING:
    import socket

    from syncd.telemetry.metrics import Metrics

REFUSAL: Final = 2 << 20
"""Bytes of an answer that systemd refuses: it accepts 1 MiB, or 1.125 MiB encrypted
(src/shared/creds-util.h, `CREDENTIAL_ENCRYPTED_SIZE_MAX`)."""

TIMEOUT: Final = 5.0
"""Seconds to wait for a file that is being written, and for an answer to be sent."""

_THREADS: Final = 4
_PAUSE: Final = 0.05
_CHUNK: Final = bytes(64 << 10)
_ROOT: Final = 0
log = structlog.get_logger()


class CredentialSource(msgspec.Struct, frozen=True):
    """The secrets that units get.

    Attributes:
        socket: Path of the socket, or empty for none.
        grants: Names of secrets by unit and credential.
        read: Returns the value of a secret, or None while the file is being written; raises a
            `SyncdError` if it has none. Blocks.
    """

    socket: str
    grants: Mapping[tuple[str, str], str]
    read: Callable[[str], bytes | None]


class CredentialServer:
    """Answers systemd.

    Args:
        ready: Set when values can be read.
        metrics: Where answers are counted.

    Attributes:
        source: The secrets that units get; None for none. May change at any time.
    """

    def __init__(self, *, ready: anyio.Event, metrics: Metrics) -> None:
        self.source: CredentialSource | None = None
        self._ready = ready
        # a mount that does not answer must not take the threads that scans and deliveries use
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._metrics = metrics
        self._unmapped_uid: int | None = None

    async def run(self, listener: socket.socket) -> None:
        """Answers until cancelled; pending requests are then refused."""
        self._unmapped_uid = await anyio.to_thread.run_sync(unmapped_uid)
        await self._ready.wait()
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.wait_readable(listener)
                try:
                    connection, _ = listener.accept()
                except OSError:
                    await anyio.sleep(_PAUSE)  # the peer is gone, or descriptors are short
                    continue
                connection.setblocking(False)
                tasks.start_soon(self._serve, connection)

    async def _serve(self, connection: socket.socket) -> None:
        value, outcome = None, "unavailable"
        with connection:
            try:
                value, outcome = await self._decide(connection)
            finally:
                with anyio.move_on_after(TIMEOUT, shield=True):
                    await _send(connection, value)
                self._metrics.credential(outcome)

    async def _decide(self, connection: socket.socket) -> tuple[bytes | None, str]:
        """The value to send, or None, and the outcome's name."""
        peer = peer_of(connection)
        if peer.uid == self._unmapped_uid:
            reason = unmapped_reason(peer.uid)
            hint = UNMAPPED_REMEDY
            log.warning("credential.denied", uid=peer.uid, pid=peer.pid, reason=reason, hint=hint)
            return None, "denied"
        if peer.uid != _ROOT:
            reason = "the caller is not root: only systemd gets credentials"
            log.warning("credential.denied", uid=peer.uid, pid=peer.pid, reason=reason)
            return None, "denied"
        requested = parse_address(connection.getpeername())
        if requested is None:
            reason = "the address names no unit and credential"
            log.warning("credential.denied", uid=peer.uid, pid=peer.pid, reason=reason)
            return None, "denied"
        unit, credential = requested
        bound = log.bind(unit=unit, name=credential)
        source = self.source
        secret = None if source is None else source.grants.get(requested)
        if source is None or secret is None:
            bound.warning("credential.denied", reason="not granted: see credentials.grants")
            return None, "denied"
        try:
            value = await self._read(source, secret)
        except SyncdError as error:
            bound.error("credential.unavailable", secret=secret, problem=str(error))
            return None, "unavailable"
        bound.info("credential.served", secret=secret)
        return value, "served"

    async def _read(self, source: CredentialSource, secret: str) -> bytes:
        """Reads a value, and waits while the file is being written.

        Raises:
            SyncdError: There is no value.
        """
        with anyio.move_on_after(TIMEOUT):
            while True:
                value = await anyio.to_thread.run_sync(source.read, secret, limiter=self._threads)
                if value is not None:
                    return value
                await anyio.sleep(_PAUSE)
        raise TemporaryError("is being written")


def parse_address(address: object) -> tuple[str, str] | None:
    """The unit and credential in the address that systemd connects from; None for other addresses.

    Args:
        address: From `getpeername`: bytes that begin with a zero for an abstract address.
    """
    if not isinstance(address, bytes) or not address.startswith(b"\0"):
        return None
    try:
        parts = address[1:].decode().split("/")
    except UnicodeDecodeError:
        return None
    match parts:
        case [_, "unit", unit, credential] if unit and credential:
            return unit, credential
    return None


async def _send(connection: socket.socket, value: bytes | None) -> None:
    """Sends a value, or for None the refusal."""
    for chunk in [_CHUNK] * (REFUSAL // len(_CHUNK)) if value is None else [value]:
        left = memoryview(chunk)
        while left:
            try:
                left = left[connection.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(connection)
            except OSError:  # the peer closed the connection
                return
