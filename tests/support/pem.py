"""Certificates and keys in PEM, with the end that a test needs."""

from __future__ import annotations

import base64
import datetime as dt
from functools import cache
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.serialization import KeySerializationEncryption


@cache
def _key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def private_key(number: int = 0, *, password: bytes | None = None) -> bytes:
    """The private key with a number."""
    how: KeySerializationEncryption = NoEncryption()
    if password is not None:
        how = BestAvailableEncryption(password)
    return _key(number).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def openssh_key() -> bytes:
    """A private key in the format of OpenSSH."""
    return _key(0).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def altered(pem: bytes, old: bytes, new: bytes) -> bytes:
    """The same PEM with other bytes in its DER."""
    first, *lines, last = pem.splitlines()
    der = base64.b64decode(b"".join(lines))
    assert old in der
    return b"\n".join((first, base64.b64encode(der.replace(old, new, 1)), last, b""))


def certificate(number: int = 0, *, not_after: float = 4e9) -> bytes:
    """A certificate for the key with a number; it ends at a time since the epoch."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {number}")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(_key(number).public_key())
        .serial_number(1 + number)
        .not_valid_before(dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(not_after, dt.UTC))
        .sign(_key(number), hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
