"""Certificates for tests, made by trustme: both sides of TLS, valid or not."""

from __future__ import annotations

import datetime as dt
import ssl
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path

EXPIRED = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
FUTURE = dt.datetime(2037, 1, 1, tzinfo=dt.UTC)


class Authority:
    """A certificate authority, with its own certificate alone in a file.

    Args:
        directory: Where the file is.
        name: Of the file.
        root: Issues this authority's certificate, as a company's root does for an issuing CA;
            without one it is a root itself.
    """

    def __init__(self, directory: Path, name: str = "ca", *, root: Authority | None = None) -> None:
        self._directory = directory
        self._ca: trustme.CA = trustme.CA() if root is None else root._ca.create_child_ca()
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self.pem)

    @property
    def pem(self) -> bytes:
        return self._ca.cert_pem.bytes()

    def server(
        self,
        *,
        clients: Authority | None = None,
        begins: dt.datetime | None = None,
        expires: dt.datetime | None = None,
        names: tuple[str, ...] = ("127.0.0.1", "localhost"),
    ) -> ssl.SSLContext:
        """The server's side for 127.0.0.1; with `clients`, only their certificates are let in."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued = self._ca.issue_cert(*names, not_before=begins, not_after=expires)
        issued.configure_cert(context)
        if clients is not None:
            clients._ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def write_server(self, cert: Path, key: Path) -> None:
        """Issues a server's certificate for 127.0.0.1, into two files."""
        issued = self._ca.issue_cert("127.0.0.1", "localhost")
        replace(cert, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        replace(key, issued.private_key_pem.bytes())

    def write_client(self, name: str, cert: Path, key: Path) -> None:
        """Issues a client certificate of that name, into two files."""
        issued = self._ca.issue_cert("client@example.org", common_name=name)
        replace(cert, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        replace(key, issued.private_key_pem.bytes())


def replace(file: Path, content: bytes | str) -> None:
    """Puts new content in the place of a file, by rename as those who rotate do."""
    new = file.with_name(f".{file.name}.new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.rename(file)
