r"""Credentials for systemd's units: `LoadCredential=NAME:/run/syncd/credentials.sock`.

systemd connects when it starts a unit, from an abstract address that says for whom it asks:
`\0<random>/unit/<unit>/<credential>` (systemd.exec(5), `LoadCredential=`). It sends nothing, and
takes what it reads up to the end of the stream for the credential. What is given is the value that
the granted secret has now, and nothing that the configuration does not grant.

The traps:

- Anybody may bind such an address. It counts only from root, as the kernel tells (`SO_PEERCRED`).
- The end of the stream is success: a connection that is closed without a word makes an **empty
  credential**, and a Unix socket cannot be reset instead (`SO_LINGER` does nothing there,
  net/unix/af_unix.c `unix_release_sock`). What systemd does refuse is a credential that is too
  large (src/basic/fileio.c, `READ_FULL_FILE_FAIL_WHEN_LARGER`). So a refusal is an answer above
  that size, of zeros; the unit then fails with 243/CREDENTIALS.
- A value that was sent in part must not be left at that either: a shutdown goes on sending.

What nobody can close from here is the moment between accepting and answering: a daemon that is
killed there leaves an empty credential behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.api.subscribers import peer_of
from syncd.core.errors import SyncdError, TemporaryError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from anyio.abc import TaskStatus

    from syncd.telemetry.metrics import Metrics

REFUSAL: Final = 2 << 20
"""Bytes of an answer that systemd does not take: it takes 1 MiB, or 1.125 MiB encrypted
(src/shared/creds-util.h, `CREDENTIAL_ENCRYPTED_SIZE_MAX`)."""

PATIENCE: Final = 5.0
"""Seconds that a file may be in the middle of being written, and that an answer may take."""

_PAUSE: Final = 0.05
_CHUNK: Final = bytes(64 << 10)
_ROOT: Final = 0
log = structlog.get_logger()


class CredentialServer:
    """Answers on one listening socket.

    Args:
        listener: A listening Unix socket.
        grants: Names of secrets by unit and credential.
        read: Gives the value of a secret, or None while it changes; raises a `SyncdError` where
            there is none. Blocks.
        ready: Returns when values can be read.
        metrics: What operators scrape.
        trusted: The uid whose word about units counts.
    """

    def __init__(
        self,
        listener: socket.socket,
        grants: Mapping[tuple[str, str], str],
        read: Callable[[str], bytes | None],
        *,
        ready: anyio.Event,
        metrics: Metrics,
        trusted: int = _ROOT,
    ) -> None:
        self._listener = listener
        self.grants = grants
        self._read = read
        self._ready = ready
        self._metrics = metrics
        self._trusted = trusted

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answers until cancelled; whoever is being answered then gets a refusal."""
        async with anyio.create_task_group() as tasks:
            task_status.started()
            while True:
                await anyio.wait_readable(self._listener)
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    await anyio.sleep(_PAUSE)  # it went away, or descriptors are short
                    continue
                connection.setblocking(False)
                tasks.start_soon(self._serve, connection)

    async def _serve(self, connection: socket.socket) -> None:
        value, outcome = None, "unavailable"
        with connection:
            try:
                value, outcome = await self._decide(connection)
            finally:
                with anyio.move_on_after(PATIENCE, shield=True):
                    await _send(connection, value)
                self._metrics.credential(outcome)

    async def _decide(self, connection: socket.socket) -> tuple[bytes | None, str]:
        """The value to send, or None, and the outcome's name."""
        peer = peer_of(connection)
        if peer.uid != self._trusted:
            reason = "only systemd may ask"
            log.warning("credential.denied", uid=peer.uid, pid=peer.pid, reason=reason)
            return None, "denied"
        asked = parse_address(connection.getpeername())
        if asked is None:
            reason = "the address names no unit and credential"
            log.warning("credential.denied", uid=peer.uid, pid=peer.pid, reason=reason)
            return None, "denied"
        unit, credential = asked
        said = log.bind(unit=unit, name=credential)
        secret = self.grants.get(asked)
        if secret is None:
            said.warning("credential.denied", reason="not granted: see credentials.grants")
            return None, "denied"
        await self._ready.wait()
        try:
            value = await self._value(secret)
        except SyncdError as error:
            said.error("credential.unavailable", secret=secret, problem=str(error))
            return None, "unavailable"
        said.info("credential.served", secret=secret)
        return value, "served"

    async def _value(self, secret: str) -> bytes:
        """Waits for a file that is being written.

        Raises:
            SyncdError: There is no value.
        """
        with anyio.move_on_after(PATIENCE):
            while True:
                value = await anyio.to_thread.run_sync(self._read, secret)
                if value is not None:
                    return value
                await anyio.sleep(_PAUSE)
        raise TemporaryError("is being written")


def parse_address(address: object) -> tuple[str, str] | None:
    """Unit and credential of the address that systemd connects from, or None if it is another.

    Args:
        address: What `getpeername` gives: bytes that begin with a zero for an abstract address.
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
    """Sends a value, or what makes systemd fail the unit."""
    for chunk in [_CHUNK] * (REFUSAL // len(_CHUNK)) if value is None else [value]:
        left = memoryview(chunk)
        while left:
            try:
                left = left[connection.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(connection)
            except OSError:  # it has had enough
                return
