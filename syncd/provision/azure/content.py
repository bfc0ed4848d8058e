"""Contents of files from Key Vault's secrets, keys and certificates. Pure.

Rules (specification, "provider: azure"; upstream: `pkg/provider/provider.go`):

- a plain secret is written as it is, and so is a certificate-backed secret in PEM, or in PKCS#12
  with `objectFormat: pfx`;
- any other PKCS#12 becomes the private key (PKCS#8) and then the certificates, leaf to root;
- of a key the public part is written (SubjectPublicKeyInfo), of a certificate the certificate
  without its chain, both as PEM.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs12,
)
from cryptography.x509 import load_der_x509_certificate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.x509 import Certificate

PKCS12: Final = "application/x-pkcs12"
"""`contentType` of a certificate-backed secret that is a PKCS#12, base64 encoded."""

_CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {
    "P-256": ec.SECP256R1,
    "P-256K": ec.SECP256K1,
    "P-384": ec.SECP384R1,
    "P-521": ec.SECP521R1,
}


class PublicJwk(Protocol):
    """The public members of a key as Key Vault returns them (RFC 7517), numbers big-endian.

    The SDK's own class declares none of them.
    """

    kty: object
    n: bytes | None
    e: bytes | None
    crv: object
    x: bytes | None
    y: bytes | None


def pem_of_pkcs12(value: str) -> bytes:
    """The private key and the certificates of a PKCS#12, leaf to root.

    Args:
        value: Base64, without a password, as Key Vault returns it.

    Raises:
        ValueError: It is not a PKCS#12, or has no key; the text is for messages.
    """
    try:
        content = base64.b64decode(value, validate=True)
        bundle = pkcs12.load_pkcs12(content, None)
    except (binascii.Error, ValueError):
        raise ValueError("the value is not a PKCS#12 without a password") from None
    if bundle.key is None or bundle.cert is None:
        raise ValueError("the PKCS#12 lacks the private key or its certificate")
    key = bundle.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    others = [item.certificate for item in bundle.additional_certs]
    chain = order_chain(bundle.cert.certificate, others)
    return key + b"".join(item.public_bytes(Encoding.PEM) for item in chain)


def order_chain(leaf: Certificate, others: Iterable[Certificate]) -> list[Certificate]:
    """Sorts certificates from leaf to root, as TLS servers send them (RFC 8446, 4.4.2).

    Those that are not part of the chain come after it, in their order.
    """
    chain, left = [leaf], list(others)
    while chain[-1].issuer != chain[-1].subject:
        issuer = next((item for item in left if _issued(item, chain[-1])), None)
        if issuer is None:
            break
        left.remove(issuer)
        chain.append(issuer)
    return chain + left


def _issued(issuer: Certificate, issued: Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - many types, for a name, key or signature that does not match
        return False
    return True


def pem_of_key(jwk: PublicJwk) -> bytes:
    """A public key as SubjectPublicKeyInfo (RFC 5280, section 4.1), PEM.

    Raises:
        ValueError: The key has no public part, an unknown curve or invalid numbers; the text is for
            messages.
    """
    numbers: rsa.RSAPublicNumbers | ec.EllipticCurvePublicNumbers
    # type and curve are text or the SDK's enumerations
    kind = str(getattr(jwk.kty, "value", jwk.kty)).removesuffix("-HSM")
    if kind == "RSA" and jwk.n and jwk.e:
        numbers = rsa.RSAPublicNumbers(int.from_bytes(jwk.e), int.from_bytes(jwk.n))
    elif kind == "EC" and jwk.x and jwk.y:
        curve = _CURVES.get(str(getattr(jwk.crv, "value", jwk.crv)))
        if curve is None:
            raise ValueError("the key has an unknown curve")
        x, y = int.from_bytes(jwk.x), int.from_bytes(jwk.y)
        numbers = ec.EllipticCurvePublicNumbers(x, y, curve())
    else:
        raise ValueError("the key has no public part")
    try:
        public = numbers.public_key()
    except ValueError:  # its text is the library's
        raise ValueError("the public key is not valid") from None
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def pem_of_certificate(der: bytes) -> bytes:
    """A certificate as PEM.

    Raises:
        ValueError: It is not a certificate; the text is for messages.
    """
    try:
        return load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    except ValueError:
        raise ValueError("the vault's answer is not a certificate") from None
