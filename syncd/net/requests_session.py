"""The way to a vault over HTTP: TLS as configured, and sockets that can be shut from outside.

Traps of requests that this module keeps shut (requests 2.34, urllib3 2.8):

- `verify=True` trusts certifi's bundle whatever the operating system trusts, and the environment
  can override it: TLS is one `SSLContext` of ours;
- `.netrc` would be taken as credentials: the environment gives proxies and nothing else;
- time limits are per socket operation, and a blocked read cannot be cancelled: every socket is
  known, so that shutting it ends the request under way;
- an answer is read whole however long it is: `LONGEST_ANSWER` bounds it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from syncd.core.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable


LONGEST_ANSWER = 32 << 20
"""Bytes, unpacked; Vault takes no larger request itself (`max_request_size`)."""


class TooLongError(Exception):
    """An answer that went on beyond `LONGEST_ANSWER`, and was cut off; its text says so."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to trust, and who to be, in TLS.

    Attributes:
        ca_file: PEM file of CAs; wins over `ca_directory` (upstream: `vaultCACertPath`).
        ca_directory: Directory of PEM files; without both the system's CAs are trusted.
        server_name: Name expected in the server's certificate, or None for the address's.
        client_cert: PEM file of the client certificate, or None.
        client_key: PEM file of its key, or None.
        skip_verify: Takes any certificate.
    """

    ca_file: str | None = None
    ca_directory: str | None = None
    server_name: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    skip_verify: bool = False

    def files(self) -> list[str]:
        """Every file that the context is made of."""
        named = [self.ca_file, self.client_cert, self.client_key]
        files = [name for name in named if name is not None]
        if self.ca_directory is not None and self.ca_file is None:
            with os.scandir(self.ca_directory) as entries:
                files += sorted(entry.path for entry in entries if entry.is_file())
        return files

    def context(self) -> ssl.SSLContext:
        """Reads the files.

        Raises:
            RefusedError: One of them is missing or is not what it should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        reading = "the system's CAs"
        try:
            if self.skip_verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            elif self.ca_file is None and self.ca_directory is None:
                context.load_default_certs()
            else:
                for reading in self.files():
                    if reading not in (self.client_cert, self.client_key):
                        context.load_verify_locations(reading)
            if self.client_cert is not None:
                reading = self.client_cert
                # an empty password, since otherwise OpenSSL would ask on the terminal for one
                context.load_cert_chain(self.client_cert, self.client_key, password="")
        except ssl.SSLError:
            raise RefusedError(
                f"cannot use {reading} for TLS: it is not PEM, or the key is not the"
                " certificate's; mend that file"
            ) from None
        except OSError as error:
            raise RefusedError(
                f"cannot read {reading} for TLS: {error.strerror}; make it readable for this user"
            ) from None
        return context

    def fingerprint(self) -> tuple[tuple[str, int, int, int], ...]:
        """Changes when one of the files does.

        Raises:
            RefusedError: One of them is missing.
        """
        found = []
        try:
            for name in self.files():
                status = os.stat(name)
                found.append((name, status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError as error:
            raise RefusedError(
                f"cannot read {error.filename} for TLS: {error.strerror};"
                " make it readable for this user"
            ) from None
        return tuple(found)


def new_session(address: str, trust: Trust, sockets: Sockets) -> requests.Session:
    """A session for one server, with no retries of its own.

    Args:
        address: URL of the server; decides about the proxies of the environment.
        trust: How TLS is done; its files are read now.
        sockets: Knows every socket that the session opens.

    Raises:
        RefusedError: A file of the TLS configuration cannot be used.
    """
    session = requests.Session()
    session.trust_env = False
    session.proxies = get_environ_proxies(address)
    session.verify = not trust.skip_verify
    if trust.skip_verify:  # `syncd check` and the start of the daemon say so, once and in the log
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    session.mount("http://", _Adapter(sockets, None, None))
    if address.startswith("https:"):  # the system's CAs take a megabyte of memory
        session.mount("https://", _Adapter(sockets, trust.context(), trust.server_name))
    return session


class Sockets:
    """The sockets in use, so that a request under way can be ended from another thread."""

    def __init__(self) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def opened(self, sock: socket.socket) -> None:
        """Takes note of a socket."""
        with self._lock:
            self._open = {known for known in self._open if known.fileno() >= 0} | {sock}

    def shut(self) -> None:
        """Ends what is being sent and received."""
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._open.clear()


class _Adapter(HTTPAdapter):
    """requests' adapter with our TLS, sockets that can be shut, and answers of bounded length."""

    def __init__(
        self, sockets: Sockets, context: ssl.SSLContext | None, server_name: str | None
    ) -> None:
        self._sockets = sockets
        self._tls: dict[str, Any] = {}
        if context is not None:
            self._tls = {"ssl_context": context, "server_hostname": server_name}
        super().__init__(max_retries=0)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: FBT001, FBT002 - requests' signature
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> requests.Response:
        """Sends a request, and reads the answer unless it is streamed.

        Raises:
            TooLongError: The answer is.
        """
        response = super().send(request, stream, *args, **kwargs)
        if not stream:
            content = bytearray()
            for chunk in response.iter_content(1 << 16):
                content += chunk
                if len(content) > LONGEST_ANSWER:
                    response.close()
                    raise TooLongError(f"answers with more than {LONGEST_ANSWER >> 20} MiB")
            response._content = bytes(content)  # noqa: SLF001 - where requests puts it itself
        return response

    def init_poolmanager(
        self,
        connections: int,
        maxsize: int,
        block: bool = False,  # noqa: FBT001, FBT002 - requests' signature
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **kwargs, **self._tls)
        self.poolmanager.pool_classes_by_scheme = _pool_classes(self._sockets.opened)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401 - requests' signature
        manager = super().proxy_manager_for(proxy, **kwargs, **self._tls)
        manager.pool_classes_by_scheme = _pool_classes(self._sockets.opened)
        return manager

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: Any,  # noqa: ANN401 - requests' signature
        cert: Any = None,  # noqa: ANN401
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # noqa: ANN401
        """Leaves the pool alone: requests would add certifi's bundle to our context."""


def _pool_classes(opened: Callable[[socket.socket], None]) -> dict[str, type[HTTPConnectionPool]]:
    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
