"""azure-core's transport over our own session: TLS as configured, time limits, interruption.

Traps of azure-core 1.41 that this module avoids; for those of requests see
`syncd.net.requests_session`:

- its retries sleep for as long as `Retry-After` asks, and cannot be woken: here a pause ends when
  syncd stops, and one that is too long ends the pass instead;
- its time limits are per socket operation: here a whole request has one, too;
- its loggers can print requests and answers: they are silenced.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from azure.core.pipeline.transport import RequestsTransport

from syncd.core.errors import TemporaryError
from syncd.net.interruption import CONNECT_TIMEOUT, READ_TIMEOUT, Interruption, interrupted
from syncd.net.requests_session import make_session
from syncd.net.rotating_session import RotatingSession

if TYPE_CHECKING:
    import requests

    from syncd.net.tls import Trust

RETRIES: Final = 3
LONGEST_BACKOFF: Final = 10.0
LONGEST_PAUSE = 20.0
"""Seconds to wait within a pass, at most; a longer `Retry-After` ends the pass instead."""
OPERATION_LIMIT: Final = 60.0
"""Seconds that a request and its repetitions may take."""


class NamedInterruption(Interruption):
    """Ends the requests of one provider, in all of its transports.

    Attributes:
        what: Purpose of the current ones, for messages: `read client-secret`.
    """

    what = "read the vault"


class Transport(RequestsTransport):
    """One server's transport.

    Args:
        address: URL of the server, for messages and the choice of a proxy.
        trust: The configuration of TLS; its files are read again when they change.
        interruption: Shared with the provider's other transports.
    """

    def __init__(self, address: str, trust: Trust, interruption: NamedInterruption) -> None:
        super().__init__(use_env_settings=False)
        self.session: requests.Session | None = None
        self._address = address
        self._sessions = RotatingSession(address, trust, make_session)
        self._interruption = interruption
        self.status = 0
        """The status of the last answer, for errors of the SDK that have none."""

    def open(self) -> None:
        """Uses the TLS configuration of the files as they are now.

        Raises:
            RefusedError: One of them cannot be used.
        """
        self.session = self._sessions.current()
        super().open()

    def close(self) -> None:
        """Closes its connections."""
        super().close()
        self._sessions.close()

    def send(self, request: Any, **options: Any) -> Any:  # noqa: ANN401 - azure-core's overloads
        """Sends a request and reads the whole answer.

        Raises:
            TemporaryError: It was interrupted, or took too long.
            RefusedError: The answer is too long.
        """
        self.status = 0
        send = super().send
        response = self._interruption.call(
            lambda: send(request, **options),
            what=self._interruption.what,
            server=self._address,
            check="check that it is a Key Vault",
        )
        self.status = response.status_code
        return response

    def sleep(self, duration: float) -> None:
        """A pause between two attempts.

        Raises:
            TemporaryError: It would be too long, or was interrupted.
        """
        what = self._interruption.what
        if duration > LONGEST_PAUSE:
            problem = f"cannot {what}: {self._address} limits requests"
            raise TemporaryError(problem, "raise the interval", retry_after=duration)
        if self._interruption.pause(duration):
            raise interrupted(what, self._address)


def pipeline_options(transport: Transport) -> dict[str, Any]:
    """The options of every client of the SDK."""
    # their loggers print answers; our messages are made from their exceptions
    for name in ("azure", "msal"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return {
        "transport": transport,
        "connection_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "retry_total": RETRIES,
        "retry_backoff_max": LONGEST_BACKOFF,
        "timeout": OPERATION_LIMIT,
        "permit_redirects": False,
    }
