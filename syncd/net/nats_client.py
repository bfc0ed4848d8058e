"""nats-py's client, presenting the login of the moment, and only over TLS where that was asked for.

The library's traps below a connection, and its methods that are replaced for them (nats-py 2.16):

- It would speak plain text to a server that offers no TLS although TLS was asked for, and send
  passwords over it. This client refuses.
- Cancelled at the wrong moment, it considers itself closed with its socket open: `force_close`.
- It reports how closing failed as it reports any error, and would replace the refusal by it.
- What the server says before it closes a connection is kept: `ended_by` has its `-ERR`, and
  `syncd.net.nats_transport` what the library did not read.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
import nats.errors
from nats.aio.client import DEFAULT_BUFFER_SIZE, Client, Srv

from syncd.net.nats_errors import is_of_permission, server_error
from syncd.net.nats_transport import LastWordsTransport

if TYPE_CHECKING:
    from syncd.net.nats_login import Login

CLOSE_TIMEOUT: Final = 1.0
"""Seconds that closing may take: a server that is gone does not answer."""


class NatsClient(Client):
    """A client that presents the current login, and only over TLS where that was asked for.

    Args:
        login: What to present; it can be replaced while the client runs.
        requires_tls: Whether to refuse a server without TLS.

    Attributes:
        login: What the next attempt to connect presents.
        ended_by: Why the server ended the connection, or None.
    """

    def __init__(self, login: Login, *, requires_tls: bool) -> None:
        super().__init__()
        self.login = login
        self.requires_tls = requires_tls
        self.ended_by: nats.errors.Error | None = None

    def login_options(self) -> dict[str, Any]:
        """The options of `connect` that ask for the login, again for each connection."""
        login = self.login
        return {
            **({"user": login.user, "password": lambda: self.login.password} if login.user else {}),
            **({"token": lambda: self.login.token} if login.token else {}),
            **({"signature_cb": lambda nonce: self.login.sign(nonce)} if login.seed else {}),  # noqa: PLW0108 - the login of then
            **({"user_jwt_cb": lambda: str(self.login.jwt).encode()} if login.jwt else {}),
        }

    async def _connect_to_server(self, s: Srv) -> None:
        s.last_attempt, self.ended_by = time.monotonic(), None
        self._transport = LastWordsTransport()  # type: ignore[no-untyped-call] # the library's
        timeout = self.options["connect_timeout"]
        await self._transport.connect(s.uri, DEFAULT_BUFFER_SIZE, timeout)

    async def _process_err(self, err_msg: str) -> None:
        said = server_error(err_msg.strip().strip("'"))
        if not is_of_permission(said):  # which ends nothing
            self.ended_by = said
        await super()._process_err(err_msg)

    def reason(self, error: BaseException) -> BaseException:
        """Why an operation failed: what the server said at the end, else the error."""
        transport = self._transport
        said = transport.last_words() if isinstance(transport, LastWordsTransport) else None
        return self.ended_by or error if said is None else server_error(said)

    @property
    def is_encrypted(self) -> bool:
        """Whether it is connected over TLS now."""
        return isinstance(self._transport, LastWordsTransport) and self._transport.is_encrypted

    async def force_close(self) -> None:
        """Closes it in any state, within a bounded time."""
        self._error_cb = _ignore  # how closing fails says nothing of why it is closed
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True), contextlib.suppress(Exception):
            await self.close()
        # a `connect` that was cancelled leaves the socket open
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call] # it lacks annotations

    def _connect_command(self) -> bytes:
        """Makes the first message, the one with the credentials (called for each connection)."""
        if self.requires_tls and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        login = self.login
        if login.seed is not None:
            self._public_nkey = None if login.jwt is not None else login.public_key()
        return super()._connect_command()


async def _ignore(_error: Exception) -> None:
    pass
