"""What a connection to NATS presents, read from its files when used.

NKeys (https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth)
are Ed25519 keys written in base32 with a type and a CRC-16; credentials files hold a JWT and such a
seed. Both are read here with `cryptography`, which syncd has anyway: the `nkeys` package is a bare
source distribution over PyNaCl, a second libsodium-sized dependency for one signature.

Reading blocks, so it is done in a worker thread, before a connection is made and again whenever
one is lost or refused: nats-py's own reading of files would block the event loop.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from syncd.core.errors import RefusedError
from syncd.net.credentials import SecretFile
from syncd.net.tls import RotatingContext, Trust
from syncd.system.threads import Turn

if TYPE_CHECKING:
    import ssl

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from syncd.config.settings import NatsServer

_SEED_PREFIX: Final = 18 << 3
_USER_PREFIX: Final = 20 << 3
_JWT: Final = re.compile(r"-BEGIN NATS USER JWT-+\s+([\w.-]+)\s+-+END NATS USER JWT-")
_SEED: Final = re.compile(r"-BEGIN USER NKEY SEED-+\s+(\w+)\s+-+END USER NKEY SEED-")


@dataclass(frozen=True, slots=True, repr=False)
class Login:
    """The credentials to present, as the files have them now.

    Attributes:
        user: With `password`, or None.
        password: The password, or None.
        token: A token, or None.
        jwt: A user's JWT, or None.
        seed: 32 bytes of a private key, to sign the server's nonce with, or None.
        tls: Verifies the server; None where TLS is not asked for.
    """

    user: str | None = None
    password: str | None = None
    token: str | None = None
    jwt: str | None = None
    seed: bytes | None = None
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        held = [name for name in self.__slots__ if getattr(self, name) is not None]
        return f"Login({', '.join(held)})"

    def sign(self, nonce: str) -> bytes:
        """The signature that proves possession of the seed, in base64."""
        return base64.b64encode(self._private_key().sign(nonce.encode()))

    def public_key(self) -> str:
        """The public NKey of the seed (`U…`)."""
        public = self._private_key().public_key().public_bytes_raw()
        raw = bytes((_USER_PREFIX,)) + public
        return base64.b32encode(raw + _checksum(raw)).decode().rstrip("=")

    def _private_key(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - rarely used
            Ed25519PrivateKey,
        )

        assert self.seed is not None
        return Ed25519PrivateKey.from_private_bytes(self.seed)


class LoginFiles:
    """The files of one connection.

    Attributes:
        paths: Those that hold secrets.
        tls: Whether the connection must be encrypted.
    """

    def __init__(self, server: NatsServer) -> None:
        self._user = server.user
        named = {
            option: getattr(server, option)
            for option in ("password_file", "token_file", "nkey_seed_file", "credentials_file")
        }
        self._files = {o: SecretFile(o, path) for o, path in named.items() if path is not None}
        self.paths = tuple(file.path for file in self._files.values())
        by_scheme = any(url.startswith("tls:") for url in server.urls)
        self.tls = by_scheme or any((server.ca_file, server.client_cert))
        self._context = RotatingContext(Trust.of(server))
        self._reading: Turn[Login] = Turn()

    async def read(self, *, again: bool = False) -> Login:
        """Reads what has changed.

        Args:
            again: Read secrets again in any case.

        Raises:
            TemporaryError: A file is missing, empty or cannot be read.
            RefusedError: A file does not hold what it should.
        """
        return await self._reading.run(partial(self._read, again=again), join=not again)

    def _read(self, *, again: bool) -> Login:
        texts = {option: self._text(option, again=again) for option in self._files}
        jwt = seed = None
        if "credentials_file" in texts:
            text = texts["credentials_file"]
            jwt_found, seed_found = _JWT.search(text), _SEED.search(text)
            if jwt_found and seed_found:
                jwt, seed = jwt_found[1], _decode_seed(seed_found[1])
            if seed is None:
                problem = "it does not hold a user's JWT and seed"
                remedy = "write the file that `nsc generate creds` makes"
                raise self._refused("credentials_file", problem, remedy)
        elif "nkey_seed_file" in texts:
            seed = _decode_seed(texts["nkey_seed_file"])
            if seed is None:
                problem = "it does not hold a user's seed (SU…)"
                remedy = "write the seed that `nsc generate nkey --user` makes"
                raise self._refused("nkey_seed_file", problem, remedy)
        return Login(
            self._user,
            texts.get("password_file"),
            texts.get("token_file"),
            jwt,
            seed,
            self._context.current() if self.tls else None,
        )

    def _text(self, option: str, *, again: bool) -> str:
        try:
            return self._files[option].read(again=again).decode()
        except UnicodeDecodeError:
            raise self._refused(option, "it is not UTF-8 text", "write the secret alone") from None

    def _refused(self, option: str, problem: str, remedy: str) -> RefusedError:
        return RefusedError(f"cannot use {option} {self._files[option].path}: {problem}", remedy)


def _decode_seed(text: str) -> bytes | None:
    """The private key in a user's seed, or None if the text is not such a seed."""
    text = text.strip()
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        return None
    if len(raw) != 36 or raw[-2:] != _checksum(raw[:-2]):  # noqa: PLR2004 - 2, 32 and 2 bytes
        return None
    kind = (raw[0] & 7) << 5 | raw[1] >> 3
    return raw[2:-2] if raw[0] & 248 == _SEED_PREFIX and kind == _USER_PREFIX else None


def _checksum(raw: bytes) -> bytes:
    return binascii.crc_hqx(raw, 0).to_bytes(2, "little")
