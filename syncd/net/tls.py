"""TLS from files that rotate: CAs, client certificate and key, as one SSL context.

The files are looked at before each use and the context is built again when one of them has changed
(`syncd.net.rotation`), so certificates rotate without a restart. A new context is a new object:
a caller that keeps connections closes those of the old one.

OpenSSL's traps:

- `load_cert_chain` reads certificate and key by path, one after the other, and a swap may come in
  between: they are looked at before and after, and loaded again if they changed.
- It asks on the terminal for the passphrase of an encrypted key: here the key is refused.
- `ssl.create_default_context` turns on checks from Python 3.13 on that many private CAs do not
  pass (`VERIFY_X509_STRICT`); `PROTOCOL_TLS_CLIENT` verifies chain and host name without them.
- It takes only roots for trust anchors, unless `VERIFY_X509_PARTIAL_CHAIN` is set: a file with just
  the CA that issued the server's certificate would not do. For curl, Go, Vault Agent and the CSI
  provider it does; whom the user names is trusted.
- The compiled-in paths of an OpenSSL that came with Python may not exist on this distribution.

No error holds anything that was read: the text of OpenSSL's exceptions is dropped.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from syncd.core.errors import RefusedError
from syncd.net.rotation import Signature, is_settled, signature, stat_file, unreadable
from syncd.system.files import size_text

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from syncd.config.settings import Aidbox, NatsServer, Webhook

MAX_PEM_SIZE: Final = 4 << 20
"""Bytes that a CA bundle, certificate or key may have."""

_CA_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_HASHED_NAME: Final = re.compile(r"[0-9a-fA-F]{8}\.\d")


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to trust in TLS, and which certificate to present.

    Attributes:
        ca_file: PEM file of CAs; wins over `ca_directory` (upstream: `vaultCACertPath`).
        ca_directory: Directory of PEM files; without both the system's CAs are trusted.
        server_name: Name expected in the server's certificate, or None for the address's.
        client_cert: PEM file of the client certificate with its chain, or None.
        client_key: PEM file of its key, not encrypted; None if `client_cert` holds it.
        skip_verify: Accepts any certificate.
        option_names: What the user calls the files, by attribute; for messages.
    """

    ca_file: str | None = None
    ca_directory: str | None = None
    server_name: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    skip_verify: bool = False
    option_names: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, settings: Webhook | Aidbox | NatsServer) -> Trust:
        """The TLS options of a consumer or a NATS server."""
        return cls(
            ca_file=settings.ca_file,
            client_cert=settings.client_cert,
            client_key=settings.client_key,
        )

    @property
    def has_files(self) -> bool:
        """Whether the context depends on files that can change."""
        cas = None if self.skip_verify else self.ca_file or self.ca_directory
        return (cas or self.client_cert) is not None

    def option(self, attribute: str) -> str:
        """What the user calls a file."""
        return self.option_names.get(attribute, attribute)


class RotatingContext:
    """The SSL context of one connection. Blocks: for worker threads."""

    __slots__ = ("_context", "_signatures", "_trust")

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._signatures: dict[str, Signature] | None = None
        self._context: ssl.SSLContext | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether there is a context and no file that could change it: `current` will not block."""
        return self._context is not None and not self._trust.has_files

    def current(self) -> ssl.SSLContext:
        """The context; the same object until one of its files changes.

        Raises:
            TemporaryError: A file is missing or cannot be read.
            RefusedError: A file does not hold what it should.
        """
        seen, _ = self._look()
        if self._context is not None and seen == self._signatures:
            return self._context
        while True:
            context = self._build()
            before = seen
            seen, settled = self._look()
            if seen == before:
                break
            # replaced while OpenSSL read them: certificate and key may not belong together
        self._context = context
        self._signatures = seen if settled else None
        return context

    def _look(self) -> tuple[dict[str, Signature], bool]:
        """The signature of each file, and whether every later change will show in them."""
        signatures, settled = {}, True
        for attribute, path in self._files():
            status = stat_pem_file(self._trust.option(attribute), path)
            signatures[path] = signature(status)
            settled = settled and is_settled(status)
        return signatures, settled

    def _files(self) -> list[tuple[str, str]]:
        """Attribute of `Trust` and path of every file."""
        trust = self._trust
        pair = (("client_cert", trust.client_cert), ("client_key", trust.client_key))
        return self._ca_files() + [
            (attribute, path) for attribute, path in pair if path is not None
        ]

    def _ca_files(self) -> list[tuple[str, str]]:
        trust = self._trust
        if trust.skip_verify:
            return []
        if trust.ca_file is not None:
            return [("ca_file", trust.ca_file)]
        if trust.ca_directory is None:
            return []
        try:
            with os.scandir(trust.ca_directory) as entries:
                paths = sorted(entry.path for entry in entries if entry.is_file())
        except OSError as error:
            raise unreadable(trust.option("ca_directory"), trust.ca_directory, error) from None
        return [("ca_directory", path) for path in paths]

    def _build(self) -> ssl.SSLContext:
        import ssl  # noqa: PLC0415 - a daemon without TLS is 8 MiB smaller

        trust = self._trust
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if trust.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif trust.ca_file is None and trust.ca_directory is None:
            _load_system_cas(context)
        for attribute, path in self._ca_files():
            _load(trust.option(attribute), path, partial(context.load_verify_locations, path))
        cert, key = trust.client_cert, trust.client_key
        if cert is not None:
            _load(
                trust.option("client_cert"),
                cert if key is None else f"{cert} with {trust.option('client_key')} {key}",
                lambda: context.load_cert_chain(cert, key, password=_no_passphrase),
            )
        return context


def stat_pem_file(option: str, path: str) -> os.stat_result:
    """The status of a file that OpenSSL may read: by path, so it would wait for a FIFO's writer.

    Raises:
        TemporaryError: It is missing.
        RefusedError: It is not a regular file, or too large.
    """
    status = stat_file(option, path)
    if not stat.S_ISREG(status.st_mode):
        problem = "not a regular file"
    elif status.st_size > MAX_PEM_SIZE:
        problem = f"larger than {size_text(MAX_PEM_SIZE)}"
    else:
        return status
    raise RefusedError(f"cannot use {option} {path}: {problem}", f"correct {option}")


def _load_system_cas(context: ssl.SSLContext) -> None:
    import ssl  # noqa: PLC0415 - see above

    context.load_default_certs()  # heeds SSL_CERT_FILE and SSL_CERT_DIR
    paths = ssl.get_default_verify_paths()
    if not paths.cafile and not _holds_cas(paths.capath):
        bundle = next(filter(os.path.isfile, _CA_BUNDLES), None)
        if bundle is not None:
            context.load_verify_locations(bundle)


def _holds_cas(directory: str) -> bool:
    """Whether OpenSSL finds CAs in a directory: it looks for names made of a hash."""
    try:
        return bool(directory) and any(map(_HASHED_NAME.fullmatch, os.listdir(directory)))
    except OSError:  # OpenSSL finds none there, either
        return False


def _load(option: str, path: str, load: Callable[[], None]) -> None:
    """Lets OpenSSL read a file; its errors are translated."""
    import ssl  # noqa: PLC0415 - see above

    try:
        load()
    except ssl.SSLError as error:
        # a constant of OpenSSL's, such as NO_CERTIFICATE_OR_CRL_FOUND
        reason = (getattr(error, "reason", None) or "not PEM").lower().replace("_", " ")
    except _EncryptedKeyError:
        reason = "the key is encrypted"
    except OSError as error:
        raise unreadable(option, path, error) from None
    else:
        return
    remedy = {
        "the key is encrypted": "write the key without a passphrase",
        "key values mismatch": "write a certificate and the key it was issued for",
    }
    raise RefusedError(
        f"cannot use {option} {path}: {reason}", remedy.get(reason, "write PEM into it")
    )


class _EncryptedKeyError(Exception):
    """OpenSSL asks for a passphrase."""


def _no_passphrase() -> str:
    raise _EncryptedKeyError
