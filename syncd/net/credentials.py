"""A consumer's own credentials: read from their files when used, never kept past a change.

Whoever rotates the secrets of Aidbox rotates these too, without a restart of syncd. Before every
use each file is looked at, and read again when its device, inode, size, modification or change
time differs; a `..data` swap changes the inode. All files of one consumer take one trip to a
worker thread.

The traps, and what is done about them:

- A file that changes twice within one tick of the file system's clock (4 ms on many kernels) keeps
  its times; so what was read shortly after a change is read once more at the next use.
- `SSLContext.load_cert_chain` reads certificate and key by path, one after the other, and a swap
  may come between: they are looked at before and after, and loaded again if they moved.
- OpenSSL asks on the terminal for the passphrase of an encrypted key: here it gets none.
- `base64.b64decode` skips characters that do not belong; a damaged signing key is refused instead.

No error holds anything that was read: all are made here, from the path and a reason of ours.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import ssl
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import anyio.to_thread
import httpx2
from standardwebhooks import Webhook as Signer

from syncd.core.errors import RefusedError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SECRET_SIZE: Final = 64 << 10
"""Bytes that a signing key, password or token may have."""

MAX_PEM_SIZE: Final = 4 << 20
"""Bytes that a CA bundle, certificate or key may have."""

_DOUBTFUL: Final = (
    100_000_000  # nanoseconds since a change within which another one may go unnoticed
)
_KEY_PREFIX: Final = b"whsec_"
_TOKEN: Final = re.compile(rb"[\x21-\x7e]+")

_Signature = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialFiles:
    """Where a consumer's credentials are; None where it uses none of that kind.

    Attributes:
        signing_key: Holds `whsec_<base64>` (Standard Webhooks, "Signature scheme").
        username: For Basic authentication, together with `password`.
        password: Holds the password.
        bearer_token: Holds a token (RFC 6750).
        ca: The certificates to trust instead of the system's, PEM.
        client_cert: For mutual TLS, PEM, with its chain; together with `client_key`.
        client_key: Its private key, PEM, not encrypted.
        password_option: The option that names `password`, for messages.
    """

    signing_key: str | None = None
    username: str | None = None
    password: str | None = None
    bearer_token: str | None = None
    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    password_option: str = "password_file"  # noqa: S105 - the name of an option


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What a request needs, as the files have it now.

    Attributes:
        signer: Signs the body, or None.
        authorization: Value of the header `Authorization`, or None.
        tls: Verifies the server and presents the client's certificate; the same object until one
            of its files changes. None where the connection has no TLS.
    """

    signer: Signer | None = None
    authorization: str | None = None
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        held = [name for name in self.__slots__ if getattr(self, name) is not None]
        return f"Credentials({', '.join(held)})"


class Keyring:
    """The credentials of one consumer.

    Args:
        files: Where they are.
        tls: Whether the connection uses TLS; without, no certificate is ever loaded.

    Attributes:
        secret_files: Paths of the signing key, password and token in use.
    """

    def __init__(self, files: CredentialFiles, *, tls: bool) -> None:
        self._username = files.username
        self._signing_key = _secret("signing_key_file", files.signing_key)
        self._password = _secret(files.password_option, files.password)
        self._token = _secret("bearer_token_file", files.bearer_token)
        self._tls = TlsFiles(files) if tls else None
        self.secret_files = tuple(
            file.path for file in (self._signing_key, self._password, self._token) if file
        )

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self.secret_files)})"

    async def current(self, *, reread: bool = False) -> Credentials:
        """The credentials, read again where their files have changed.

        Args:
            reread: Read secrets again in any case, because the consumer did not accept them.

        Raises:
            TemporaryError: A file is missing, empty or cannot be read.
            RefusedError: A file does not hold what it should.
        """
        if not self.secret_files and (self._tls is None or self._tls.is_fixed):
            return self._load(reread=False)
        return await anyio.to_thread.run_sync(lambda: self._load(reread=reread))

    def _load(self, *, reread: bool) -> Credentials:
        signer = authorization = None
        if self._signing_key:
            signer = _signer(self._signing_key.path, self._signing_key.read(again=reread))
        if self._password:
            password = self._password.read(again=reread)
            pair = (self._username or "").encode() + b":" + password
            authorization = "Basic " + base64.b64encode(pair).decode()
        elif self._token:
            token = self._token.read(again=reread)
            if not _TOKEN.fullmatch(token):
                raise RefusedError(
                    f"cannot use bearer_token_file {self._token.path}: it is not one line of "
                    "visible ASCII characters; write the token alone"
                )
            authorization = "Bearer " + token.decode()
        return Credentials(signer, authorization, self._tls.context() if self._tls else None)


class SecretFile:
    """A small file that holds one secret."""

    __slots__ = ("_content", "_option", "_signature", "path")

    def __init__(self, option: str, path: str) -> None:
        self._option = option
        self.path = path
        self._signature: _Signature | None = None
        self._content = b""

    def read(self, *, again: bool) -> bytes:
        """The content without one trailing newline; from memory if the file is as it was."""
        if again or _look(self._option, self.path, MAX_SECRET_SIZE) != self._signature:
            self._read()
        if not self._content:
            raise TemporaryError(
                f"cannot use {self._option} {self.path}: it is empty; write the secret into it"
            )
        return self._content

    def _read(self) -> None:
        try:
            # a FIFO would block whoever opens it
            with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                _require(self._option, self.path, status, MAX_SECRET_SIZE)
                content = file.read(MAX_SECRET_SIZE + 1)
        except OSError as error:
            _unreadable(self._option, self.path, error)
        self._signature = None if _doubtful(status.st_ctime_ns) else _signature(status)
        line, newline, rest = content.partition(b"\n")
        self._content = line.removesuffix(b"\r") if newline and not rest else content


class TlsFiles:
    """Certificates and keys, as one SSL context."""

    __slots__ = ("_ca", "_cert", "_context", "_key", "_options", "_signatures")

    def __init__(self, files: CredentialFiles) -> None:
        self._ca, self._cert, self._key = files.ca, files.client_cert, files.client_key
        named = {"ca_file": self._ca, "client_cert": self._cert, "client_key": self._key}
        self._options = {option: path for option, path in named.items() if path is not None}
        self._signatures: list[_Signature] | None = None
        self._context: ssl.SSLContext | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether there is a context and no file that could change it."""
        return self._context is not None and not self._options

    def context(self) -> ssl.SSLContext:
        """The context, built again if a file has changed since."""
        seen = self._look()
        if self._context is None or seen != self._signatures:
            context, built_from = self._build(), self._look()
            while seen != built_from:
                seen, context, built_from = built_from, self._build(), self._look()
            self._context = context
            unsettled = any(_doubtful(changed_at) for *_, changed_at in seen)
            self._signatures = None if unsettled else seen
        return self._context

    def _look(self) -> list[_Signature]:
        return [_look(option, path, MAX_PEM_SIZE) for option, path in self._options.items()]

    def _build(self) -> ssl.SSLContext:
        if self._ca is None:
            context = httpx2.create_ssl_context()
        else:
            # as the library does for the system's certificates: `ssl.create_default_context`
            # turns on checks from Python 3.13 on that many private CAs do not pass
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            ca = self._ca
            _load("ca_file", ca, lambda: context.load_verify_locations(ca))
        if self._cert is not None and self._key is not None:
            cert, key = self._cert, self._key
            _load(
                "client_cert",
                f"{cert} with client_key {key}",
                lambda: context.load_cert_chain(cert, key, password=_no_passphrase),
            )
        return context


def inspect(option: str, path: str, partner: str | None = None) -> None:
    """Reads one credential as a consumer would, and forgets it.

    Args:
        option: Name of the option that names the file.
        path: The file.
        partner: For `client_cert`, the private key that belongs to it.

    Raises:
        TemporaryError: The file is missing, empty or cannot be read.
        RefusedError: It does not hold what it should.
    """
    if option == "ca_file":
        TlsFiles(CredentialFiles(ca=path)).context()
    elif option in ("client_cert", "client_key"):
        _look(option, path, MAX_PEM_SIZE)
        if partner is not None and os.path.exists(partner):  # else it is missed by its own name
            TlsFiles(CredentialFiles(client_cert=path, client_key=partner)).context()
    elif option == "bearer_token_file":
        Keyring(CredentialFiles(bearer_token=path), tls=False)._load(reread=False)  # noqa: SLF001
    else:
        content = SecretFile(option, path).read(again=False)
        if option == "signing_key_file":
            _signer(path, content)


def _secret(option: str, path: str | None) -> SecretFile | None:
    return None if path is None else SecretFile(option, path)


def _signer(path: str, content: bytes) -> Signer:
    encoded = content.removeprefix(_KEY_PREFIX)
    try:
        key = binascii.a2b_base64(encoded + b"=" * (-len(encoded) % 4), strict_mode=True)
    except binascii.Error:
        key = b""
    if encoded == content or not key:
        raise RefusedError(
            f"cannot use signing_key_file {path}: it does not hold whsec_<base64>; write a key "
            "there as `echo whsec_$(openssl rand -base64 32)` makes one"
        )
    return Signer(key)


def _load(option: str, path: str, load: Callable[[], None]) -> None:
    """Lets OpenSSL read a file and says in our words what it did not like."""
    try:
        load()
    except ssl.SSLError as error:
        reason = (getattr(error, "reason", None) or "not PEM").lower().replace("_", " ")
    except _EncryptedKeyError:
        reason = "the key is encrypted"
    except OSError as error:
        _unreadable(option, path, error)
    else:
        return
    raise RefusedError(f"cannot use {option} {path}: {reason}; write PEM that belongs together")


class _EncryptedKeyError(Exception):
    """OpenSSL wants a passphrase."""


def _no_passphrase() -> str:
    raise _EncryptedKeyError


def _look(option: str, path: str, limit: int) -> _Signature:
    """What tells one state of a file from the next.

    Raises:
        TemporaryError: It is not there.
        RefusedError: It is no file to read a credential from.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        _unreadable(option, path, error)
    _require(option, path, status, limit)
    return _signature(status)


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _doubtful(changed_at: int) -> bool:
    return abs(time.time_ns() - changed_at) < _DOUBTFUL


def _require(option: str, path: str, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(f"cannot use {option} {path}: it is no regular file; name a file")
    if status.st_size > limit:
        raise RefusedError(
            f"cannot use {option} {path}: it is larger than {limit >> 10} KiB; name the right file"
        )


def _unreadable(option: str, path: str, error: OSError) -> NoReturn:
    reason = os.strerror(error.errno) if error.errno else "it cannot be read"
    raise TemporaryError(
        f"cannot read {option} {path}: {reason}; put it there, readable for syncd's user"
    ) from None
