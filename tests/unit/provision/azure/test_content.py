"""What Key Vault answers, as files: keys, certificates, and chains from leaf to root."""

from __future__ import annotations

import base64
import datetime as dt
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    NoEncryption,
    load_pem_private_key,
    load_pem_public_key,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from syncd.provision.azure.content import (
    order_chain,
    pem_of_certificate,
    pem_of_key,
    pem_of_pkcs12,
)

Key = ec.EllipticCurvePrivateKey


@dataclass
class Jwk:
    kty: object
    n: bytes | None = None
    e: bytes | None = None
    crv: object = None
    x: bytes | None = None
    y: bytes | None = None


def chain(*names: str) -> tuple[Key, list[x509.Certificate]]:
    """Certificates leaf to root, and the leaf's key."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in names]
    subjects = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in names]
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    made = []
    for index, (key, subject) in enumerate(zip(keys, subjects, strict=True)):
        issuer = min(index + 1, len(names) - 1)
        made.append(
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subjects[issuer])
            .public_key(key.public_key())
            .serial_number(index + 1)
            .not_valid_before(start)
            .not_valid_after(start + dt.timedelta(days=3650))
            .sign(keys[issuer], hashes.SHA256())
        )
    return keys[0], made


def bundle(key: Key, certificates: list[x509.Certificate], password: bytes | None = None) -> str:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    content = pkcs12.serialize_key_and_certificates(
        b"", key, certificates[0], certificates[1:], encryption
    )
    return base64.b64encode(content).decode()


def test_pkcs12_becomes_key_and_chain() -> None:
    """PKCS#8 first, then leaf to root, in whatever order the bundle has them."""
    key, certificates = chain("leaf", "middle", "upper", "root")
    for seed in range(6):
        others = certificates[1:]
        Random(seed).shuffle(others)
        pem = pem_of_pkcs12(bundle(key, [certificates[0], *others]))
        assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
        loaded = load_pem_private_key(pem, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        assert loaded.private_numbers() == key.private_numbers()
        assert x509.load_pem_x509_certificates(pem) == certificates
    for issued, issuer in pairwise(certificates):
        issued.verify_directly_issued_by(issuer)


def test_a_chain_with_bystanders_or_gaps_keeps_all() -> None:
    """What does not belong comes last, in its own order."""
    _, certificates = chain("leaf", "middle", "root")
    _, strangers = chain("stranger", "root")
    leaf, middle, root = certificates
    assert order_chain(leaf, [*strangers, root, middle]) == [leaf, middle, root, *strangers]
    assert order_chain(leaf, [root]) == [leaf, root]
    assert order_chain(root, [middle]) == [root, middle]


def test_pkcs12_that_cannot_be_read() -> None:
    """Not base64, not a PKCS#12, or behind a password: the reason is ours, without the value."""
    key, certificates = chain("leaf", "root")
    locked = bundle(key, certificates, b"CANARY")
    for value in ("CANARY!", base64.b64encode(b"CANARY").decode(), locked):
        with pytest.raises(ValueError, match=r"^the value is not a PKCS#12 without a password$"):
            pem_of_pkcs12(value)
    keyless = pkcs12.serialize_java_truststore(
        [pkcs12.PKCS12Certificate(certificates[0], b"x")], NoEncryption()
    )
    with pytest.raises(ValueError, match="lacks the private key"):
        pem_of_pkcs12(base64.b64encode(keyless).decode())


@pytest.mark.parametrize("kind", ["RSA", "RSA-HSM"])
def test_rsa_keys(kind: str) -> None:
    """Modulus and exponent become SubjectPublicKeyInfo."""
    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    jwk = Jwk(kind, n=b"\0" + numbers.n.to_bytes(256), e=numbers.e.to_bytes(3))
    public = load_pem_public_key(pem_of_key(jwk))
    assert isinstance(public, rsa.RSAPublicKey)
    assert public.public_numbers() == numbers


@pytest.mark.parametrize(
    ("name", "curve"),
    [
        ("P-256", ec.SECP256R1()),
        ("P-256K", ec.SECP256K1()),
        ("P-384", ec.SECP384R1()),
        ("P-521", ec.SECP521R1()),
    ],
)
def test_elliptic_keys(name: str, curve: ec.EllipticCurve) -> None:
    """Every curve of Key Vault."""
    numbers = ec.generate_private_key(curve).public_key().public_numbers()
    x, y = (item.to_bytes(66) for item in (numbers.x, numbers.y))
    public = load_pem_public_key(pem_of_key(Jwk("EC-HSM", crv=name, x=x, y=y)))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.public_numbers() == numbers


@pytest.mark.parametrize(
    "jwk", [Jwk("oct"), Jwk("RSA"), Jwk("EC", crv="P-999", x=b"1", y=b"1"), Jwk("EC", crv="P-256")]
)
def test_keys_without_a_public_part(jwk: Jwk) -> None:
    """Symmetric, incomplete or unknown ones are refused."""
    with pytest.raises(ValueError, match=r"no public part|unknown curve"):
        pem_of_key(jwk)


@pytest.mark.parametrize(
    "jwk", [Jwk("EC", crv="P-256", x=b"1", y=b"1"), Jwk("RSA", n=b"\x02", e=b"\x02")]
)
def test_numbers_that_are_not_a_public_key(jwk: Jwk) -> None:
    """The reason is in syncd's words, not in the library's."""
    with pytest.raises(ValueError, match=r"^the public key is not valid$"):
        pem_of_key(jwk)


def test_a_certificate() -> None:
    """DER in, PEM out, nothing else with it."""
    _, (leaf, _) = chain("leaf", "root")
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = pem_of_certificate(leaf.public_bytes(Encoding.DER))
    assert x509.load_pem_x509_certificates(pem) == [leaf]
    with pytest.raises(ValueError, match="is not a certificate"):
        pem_of_certificate(b"CANARY")
