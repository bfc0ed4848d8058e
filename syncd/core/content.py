"""What the content of a secret's file is, and whether the field that uses it can have that.

A value is described in memory, and what is kept of it is the description: its format, and of a
certificate when it ends and a hash of its public key. Aidbox documents the formats: a destination's
`header` is the whole `Name: Value`, its `serviceAccountKey` a JSON object, its `saslJaasConfig` a
JAAS login module; an IdentityProvider's `private-key` and `certificate` are PEM.
"""

from __future__ import annotations

import enum
import hashlib
import math
import re
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPIRES_SOON: Final = 30 * 86400.0
"""Seconds before a certificate's end from which on that is reported."""

_HEADER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[\x21-\xff][\t\x20-\xff]*")
_JAAS: Final = re.compile(
    rb"\s*[\w.$]+\s+(?:required|requisite|sufficient|optional)\b"
    rb"(?:[^;\"']|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')*;\s*",
    re.IGNORECASE,
)
"""One login module, as Kafka demands of `sasl.jaas.config`; a value in quotes may hold anything."""
_BEGIN: Final = b"-----BEGIN "
_NATS: Final = (
    re.compile(rb"-----BEGIN NATS USER JWT-----\s+\S+\s+-+END NATS USER JWT-+"),
    re.compile(rb"-----BEGIN USER NKEY SEED-----\s+SU[A-Z2-7]+\s+-+END USER NKEY SEED-+"),
)
"""As `nsc generate creds` writes it (NATS documentation, "User credentials")."""
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN (?:(?:DSA|EC|ENCRYPTED|RSA) )?PRIVATE KEY-----")
"""RFC 7468, sections 10 and 11, and the older labels of OpenSSL; not those of OpenSSH or PGP."""


class Format(enum.StrEnum):
    """What a field of Aidbox expects."""

    VALUE = "a single value"
    HEADER = "a header as `Name: Value`"
    JSON = "a JSON object"
    JAAS = "a JAAS configuration, such as `org.…PlainLoginModule required …;`"
    PRIVATE_KEY = "a private key in PEM"
    CERTIFICATE = "a certificate in PEM"
    NATS_CREDENTIALS = "a NATS credentials file, with a user JWT and its seed"


_FORMATS: Final = {
    "header": Format.HEADER,
    "serviceAccountKey": Format.JSON,
    "saslJaasConfig": Format.JAAS,
    "private-key": Format.PRIVATE_KEY,
    "certificate": Format.CERTIFICATE,
}


FORMAT_NAMES: Final = {
    "value": Format.VALUE,
    "header": Format.HEADER,
    "json": Format.JSON,
    "jaas": Format.JAAS,
    "private-key": Format.PRIVATE_KEY,
    "certificate": Format.CERTIFICATE,
    "nats-credentials": Format.NATS_CREDENTIALS,
}
"""The formats by the names that the configuration has for them (`watch.extra[].format`)."""


def format_of(field: str) -> Format:
    """The format that a field of Aidbox expects, by its name."""
    return _FORMATS.get(field, Format.VALUE)


class Pem(msgspec.Struct, frozen=True):
    """What a PEM file holds.

    Attributes:
        certificate: Whether it holds a certificate.
        private_key: Whether it holds a private key.
        not_after: When the first certificate to end does so, seconds since the epoch, or None.
        public_key: Hash of the public key of the certificate or the private key, or None.
        problem: Why it cannot be read, or None.
    """

    certificate: bool = False
    private_key: bool = False
    not_after: float | None = None
    public_key: bytes | None = None
    problem: str | None = None


class Facts(msgspec.Struct, frozen=True):
    """A description of a content, without any part of it.

    Attributes:
        formats: The formats that it has; every content is a value.
        pem: What is in it, if it is PEM.
    """

    formats: frozenset[Format]
    pem: Pem | None = None

    @property
    def may_end_in_newline(self) -> bool:
        """Whether a newline at the end means nothing in this format."""
        return self.pem is not None or not self.formats.isdisjoint((Format.JSON, Format.JAAS))

    @property
    def is_public(self) -> bool:
        """Whether it is a certificate without a private key."""
        return self.pem is not None and self.pem.certificate and not self.pem.private_key


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a content; the attributes are those of a `Finding`."""

    code: str
    message: str
    hint: str


def is_pem(content: bytes) -> bool:
    """Whether a content is meant as PEM."""
    return _BEGIN in content and content.lstrip().startswith(_BEGIN)


def describe(content: bytes) -> Facts:
    """Describes a content; keeps none of it."""
    if is_pem(content):
        pem = _pem(content)
        formats = {Format.VALUE}
        if pem.private_key:
            formats.add(Format.PRIVATE_KEY)
        if pem.certificate:
            formats.add(Format.CERTIFICATE)
        if all(part.search(content) for part in _NATS):
            formats.add(Format.NATS_CREDENTIALS)
        return Facts(frozenset(formats), pem)
    formats = {Format.VALUE}
    if _HEADER.fullmatch(content.removesuffix(b"\n").removesuffix(b"\r")):
        formats.add(Format.HEADER)
    if _JAAS.fullmatch(content):
        formats.add(Format.JAAS)
    if content.lstrip()[:1] == b"{" and _is_json_object(content):
        formats.add(Format.JSON)
    return Facts(frozenset(formats))


def _is_json_object(content: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(content), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _pem(content: bytes) -> Pem:
    # 8 MiB, which only an installation with PEM files needs
    from cryptography import x509  # noqa: PLC0415
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )

    has_certificate = b"-----BEGIN CERTIFICATE-----" in content
    has_key = _PRIVATE_KEY.search(content) is not None
    not_after: float | None = None
    spki: bytes | None = None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        if has_certificate:
            certificates = x509.load_pem_x509_certificates(content)
            not_after = min(item.not_valid_after_utc.timestamp() for item in certificates)
            spki = certificates[0].public_key().public_bytes(*form)
        if has_key:
            key = load_pem_private_key(content, None)
            spki = spki or key.public_key().public_bytes(*form)
    except (TypeError, UnsupportedAlgorithm):
        # encrypted, with a password elsewhere, or of a kind that only others know
        return Pem(has_certificate, has_key, not_after)
    except Exception:  # noqa: BLE001 - cryptography has kinds of its own, such as InvalidVersion
        what = "certificate" if has_certificate and not_after is None else "private key"
        return Pem(has_certificate, has_key, not_after, problem=f"its {what} is malformed")
    public = None if spki is None else hashlib.sha256(spki).digest()
    return Pem(has_certificate, has_key, not_after, public)


def problems(facts: Facts, expected: Format | None, now: float) -> Iterator[Problem]:
    """What is wrong with a content.

    Args:
        facts: Its description.
        expected: What the field that uses it expects; None where the field is not known.
        now: Seconds since the epoch.
    """
    pem = facts.pem or Pem()
    if expected is not None and expected not in facts.formats:
        yield Problem("secret-malformed", f"is not {expected}", "write it in that format")
    elif pem.problem is not None:
        yield Problem("secret-malformed", pem.problem, "replace the file")
    left = math.inf if pem.not_after is None else pem.not_after - now
    if left <= 0:
        days = int(-left // 86400)
        yield Problem(
            "certificate-expired", f"expired {_days(days)} ago", "issue a new certificate"
        )
    elif left < EXPIRES_SOON:
        message = f"expires in {_days(int(left // 86400))}"
        yield Problem("certificate-expiring", message, "issue a new certificate in time")


def next_change(facts: Facts, now: float) -> float:
    """When `problems` will say something else; infinite where time changes nothing.

    Times are seconds since the epoch.
    """
    end = None if facts.pem is None else facts.pem.not_after
    if end is None:
        return math.inf
    left = end - now
    if left >= EXPIRES_SOON:
        return end - EXPIRES_SOON
    # the message counts whole days, of what is left and of what has passed
    days = math.ceil(left / 86400) - 1 if left > 0 else -int(-left // 86400) - 1
    return end - days * 86400


def _days(number: int) -> str:
    return f"{number} day{'s' * (number != 1)}"


def is_mismatch(certificate: Facts, private_key: Facts) -> bool:
    """Whether a certificate and a private key of one resource do not belong together."""
    ours = certificate.pem and certificate.pem.public_key
    theirs = private_key.pem and private_key.pem.public_key
    return ours is not None and theirs is not None and ours != theirs
