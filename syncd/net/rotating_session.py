"""A session for one server that is made anew when a file of its TLS configuration changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.tls import RotatingContext

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from syncd.net.tls import Trust


class _Closable(Protocol):
    def close(self) -> None: ...


S = TypeVar("S", bound=_Closable)


class RotatingSession(Generic[S]):
    """Makes the session when it is needed. Blocks.

    Args:
        address: URL of the server.
        trust: The configuration of TLS.
        make: Makes a session of these two and of the context, which is None without TLS.
    """

    def __init__(
        self,
        address: str,
        trust: Trust,
        make: Callable[[str, Trust, ssl.SSLContext | None], S],
    ) -> None:
        self._address = address
        self._trust = trust
        self._make = make
        # the system's CAs take a megabyte of memory
        self._tls = RotatingContext(trust) if urlsplit(address).scheme == "https" else None
        self._context: ssl.SSLContext | None = None
        self._session: S | None = None

    def current(self) -> S:
        """The session; another one when a file has changed since, and the one before is closed.

        Raises:
            RefusedError: A file of the TLS configuration cannot be used.
        """
        try:
            context = self._tls.current() if self._tls else None
        except TemporaryError as error:
            # a provider reports a file that is missing as a person's task
            raise RefusedError(error.problem, error.remedy) from None
        if self._session is None or context is not self._context:
            self.close()
            self._session = self._make(self._address, self._trust, context)
            self._context = context
        return self._session

    def close(self) -> None:
        """Closes its connections; `current` opens it again."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
