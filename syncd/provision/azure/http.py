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
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from azure.core.exceptions import AzureError
from azure.core.pipeline.transport import RequestsTransport

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.requests_session import (
    RotatingSession,
    Sockets,
    TooLongError,
    interrupted,
    unavailable,
)

if TYPE_CHECKING:
    import requests

    from syncd.net.tls import Trust

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 15.0
REQUEST_LIMIT = 30.0
"""Seconds that one request may take from connecting to the last byte."""
RETRIES: Final = 3
LONGEST_BACKOFF: Final = 10.0
LONGEST_PAUSE = 20.0
"""Seconds to wait within a pass, at most; a longer `Retry-After` ends the pass instead."""
OPERATION_LIMIT: Final = 60.0
"""Seconds that a request and its repetitions may take."""


class Interruption:
    """Ends whatever one provider waits for, in any of its transports."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.sockets = Sockets()
        self.what = "read the vault"
        """Purpose of the current requests, for messages: `read client-secret`."""

    @property
    def requested(self) -> bool:
        """Whether requests are interrupted now."""
        return self._event.is_set()

    def request(self) -> None:
        """Ends the running request or pause, and fails others. For any thread."""
        self._event.set()
        self.sockets.shut()

    def withdraw(self) -> None:
        """Allows requests again."""
        self._event.clear()

    def wait(self, seconds: float) -> bool:
        """Waits; returns whether it was interrupted."""
        return self._event.wait(seconds)


class Transport(RequestsTransport):
    """One server's transport.

    Args:
        address: URL of the server, for messages and the choice of a proxy.
        trust: The configuration of TLS; its files are read again when they change.
        interruption: Shared with the provider's other transports.
    """

    def __init__(self, address: str, trust: Trust, interruption: Interruption) -> None:
        super().__init__(use_env_settings=False)
        self.session: requests.Session | None = None
        self._address = address
        self._sessions = RotatingSession(address, trust, interruption.sockets)
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
        interruption = self._interruption
        if interruption.requested:
            raise interrupted(interruption.what, self._address)
        # before the timer starts: what it ends must count as having reached the limit
        started = time.monotonic()
        limit = threading.Timer(REQUEST_LIMIT, interruption.sockets.shut)
        limit.daemon = True
        limit.start()
        self.status = 0
        try:
            response = super().send(request, **options)
        except TooLongError as error:
            problem = f"cannot {interruption.what}: {self._address} {error}"
            raise RefusedError(problem, "check that it is a Key Vault") from None
        except AzureError:
            if interruption.requested:
                raise interrupted(interruption.what, self._address) from None
            if time.monotonic() - started >= REQUEST_LIMIT:
                said = f"did not finish within {REQUEST_LIMIT:.0f} s"
                raise unavailable(interruption.what, self._address, said) from None
            raise
        finally:
            limit.cancel()
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
        if self._interruption.wait(duration):
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
