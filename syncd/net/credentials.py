"""A consumer's own secrets: read from their files when used, never kept past a change.

What rotates the secrets of Aidbox rotates these too, without a restart of syncd. Before every use
each file is looked at, and read again when it has changed (`syncd.net.rotation`). Certificates are
the part of `syncd.net.tls`.

`base64.b64decode` skips characters that do not belong; a damaged signing key is refused instead.

No error holds anything that was read: all are made here, from the path and a reason of syncd's.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

import msgspec
from standardwebhooks import Webhook as Signer

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.rotation import Signature, is_settled, signature, stat_file, unreadable
from syncd.system.files import UnsuitableError, read_file

MAX_SECRET_SIZE: Final = 64 << 10
"""Bytes that a signing key, password or token may have."""

_KEY_PREFIX: Final = b"whsec_"
_TOKEN: Final = re.compile(rb"[\x21-\x7e]+")


class CredentialFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Where a consumer's secrets are; None where it uses none of that kind.

    Attributes:
        signing_key: Holds `whsec_<base64>` (Standard Webhooks, "Signature scheme").
        username: For Basic authentication, together with `password`.
        password: Holds the password.
        bearer_token: Holds a token (RFC 6750).
        password_option: The option that names `password`, for messages.
    """

    signing_key: str | None = None
    username: str | None = None
    password: str | None = None
    bearer_token: str | None = None
    password_option: str = "password_file"  # noqa: S105 - the name of an option


class Credentials(msgspec.Struct, frozen=True):
    """What a request needs, as the files have it now.

    Attributes:
        signer: Signs the body, or None.
        authorization: Value of the header `Authorization`, or None.
    """

    signer: Signer | None = None
    authorization: str | None = None

    def __repr__(self) -> str:
        held = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        return f"Credentials({', '.join(held)})"


class Keyring:
    """The secrets of one consumer. Reading blocks: for worker threads.

    Attributes:
        secret_files: Paths of the signing key, password and token in use.
    """

    def __init__(self, files: CredentialFiles) -> None:
        self._username = files.username
        self._signing_key = _secret("signing_key_file", files.signing_key)
        self._password = _secret(files.password_option, files.password)
        self._token = _secret("bearer_token_file", files.bearer_token)
        self.secret_files = tuple(
            file.path for file in (self._signing_key, self._password, self._token) if file
        )

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self.secret_files)})"

    def read(self, *, again: bool = False) -> Credentials:
        """The credentials, read again where their files have changed.

        Args:
            again: Read all again in any case, because the consumer did not accept them.

        Raises:
            TemporaryError: A file is missing, empty or cannot be read.
            RefusedError: A file does not hold what it should.
        """
        signer = authorization = None
        if self._signing_key:
            signer = parse_signing_key(self._signing_key.path, self._signing_key.read(again=again))
        if self._password:
            password = self._password.read(again=again)
            pair = (self._username or "").encode() + b":" + password
            authorization = "Basic " + base64.b64encode(pair).decode()
        elif self._token:
            token = self._token.read(again=again)
            if not _TOKEN.fullmatch(token):
                raise RefusedError(
                    f"cannot use bearer_token_file {self._token.path}: it is not one line of "
                    "visible ASCII characters",
                    "write the token alone",
                )
            authorization = "Bearer " + token.decode()
        return Credentials(signer, authorization)


class SecretFile:
    """A small file that holds one secret.

    Args:
        option: The option that names it, for messages.
        path: The file.
    """

    __slots__ = ("_content", "_option", "_signature", "path")

    def __init__(self, option: str, path: str) -> None:
        self._option = option
        self.path = path
        self._signature: Signature | None = None
        self._content = b""

    def read(self, *, again: bool) -> bytes:
        """The content without one trailing newline; from memory if the file has not changed.

        Args:
            again: Read it again in any case.

        Raises:
            TemporaryError: It is missing, empty or cannot be read.
            RefusedError: It is not a regular file, or too large.
        """
        if again or signature(stat_file(self._option, self.path)) != self._signature:
            self._read()
        if not self._content:
            raise TemporaryError(
                f"cannot use {self._option} {self.path}: it is empty", "write the secret into it"
            )
        return self._content

    def _read(self) -> None:
        try:
            content, status = read_file(self.path, MAX_SECRET_SIZE)
        except UnsuitableError as error:
            raise RefusedError(
                f"cannot use {self._option} {self.path}: {error.strerror}",
                f"set {self._option} to the file that holds the secret",
            ) from None
        except OSError as error:
            raise unreadable(self._option, self.path, error) from None
        self._signature = signature(status) if is_settled(status) else None
        line, newline, rest = content.partition(b"\n")
        self._content = line.removesuffix(b"\r") if newline and not rest else content


def parse_signing_key(path: str, content: bytes) -> Signer:
    """What signs with a key of Standard Webhooks.

    Args:
        path: Where the key was read, for messages.
        content: `whsec_<base64>`; padding may be missing.

    Raises:
        RefusedError: It is something else.
    """
    encoded = content.removeprefix(_KEY_PREFIX)
    try:
        key = binascii.a2b_base64(encoded + b"=" * (-len(encoded) % 4), strict_mode=True)
    except binascii.Error:
        key = b""
    if encoded == content or not key:
        raise RefusedError(
            f"cannot use signing_key_file {path}: it does not hold whsec_<base64>",
            "write a key into it, made by `echo whsec_$(openssl rand -base64 32)`",
        )
    return Signer(key)


def _secret(option: str, path: str | None) -> SecretFile | None:
    return None if path is None else SecretFile(option, path)
