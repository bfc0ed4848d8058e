"""What a content is, and whether a field can have it."""

from __future__ import annotations

import math

import pytest
from support.pem import altered, certificate, openssh_key, private_key

from syncd.core.content import (
    EXPIRES_SOON,
    FORMAT_NAMES,
    Format,
    describe,
    format_of,
    is_mismatch,
    next_change,
    problems,
)

NOW = 1.8e9
JAAS = b'org.apache.kafka.common.security.plain.PlainLoginModule required user="a" password="b";'
V8 = altered(certificate(), b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07")
"""A certificate of a version that there is not."""
UNKNOWN_KEY = altered(
    private_key(), b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x7f"
)
"""A private key of an algorithm that cryptography does not know."""
DAMAGED = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("field", "content", "fits"),
    [
        ("header", b"Authorization: Bearer x", True),
        ("header", b"Authorization: Bearer x\n", True),
        ("header", b"Bearer x", False),
        ("header", b"Authorization: Bearer x\nX-More: y", False),
        ("header", b"Authorization:", False),
        ("header", b"Bad Name: x", False),
        ("serviceAccountKey", b' {"type": "service_account"}\n', True),
        ("serviceAccountKey", b"{not json}", False),
        ("serviceAccountKey", b'{"a":' * 5000, False),
        ("serviceAccountKey", b"[1]", False),
        ("saslJaasConfig", JAAS, True),
        ("saslJaasConfig", JAAS + b"\n", True),
        ("saslJaasConfig", JAAS.replace(b'"b"', b'"b;c\\" d"'), True),
        ("saslJaasConfig", JAAS.replace(b'"b"', b"'b;c'"), True),
        ("saslJaasConfig", JAAS.replace(b'"b"', b'"b'), False),
        ("saslJaasConfig", JAAS + JAAS, False),
        ("saslJaasConfig", JAAS.rstrip(b";"), False),
        ("saslJaasConfig", b"password", False),
        ("private-key", private_key(), True),
        ("private-key", certificate(), False),
        ("certificate", certificate(), True),
        ("certificate", private_key(), False),
        ("certificate", b"password", False),
        ("certificate", DAMAGED, True),  # its problem is another
        ("secret", b"anything", True),
        ("k", b"{}", True),
    ],
)
def test_a_field_needs_a_format(field: str, content: bytes, fits: bool) -> None:
    """Those that Aidbox documents; any other field takes any value."""
    assert (format_of(field) in describe(content).formats) is fits
    found = [item.code for item in problems(describe(content), format_of(field), NOW)]
    assert ("secret-malformed" in found) is (not fits or content == DAMAGED)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (DAMAGED, "its certificate is malformed"),
        (V8, "its certificate is malformed"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "its private key"),
        (certificate() + b"-----BEGIN PRIVATE KEY-----\nA\n", "its private key is malformed"),
    ],
)
def test_damaged_pem_is_a_problem_whatever_uses_it(content: bytes, problem: str) -> None:
    """Even where the field is not known."""
    (found,) = problems(describe(content), None, NOW)
    assert found.code == "secret-malformed"
    assert found.message.startswith(problem)


@pytest.mark.parametrize(
    ("left", "code", "said"),
    [
        (-1.0, "certificate-expired", "expired 0 days ago"),
        (-86400.0 * 1.5, "certificate-expired", "expired 1 day ago"),
        (EXPIRES_SOON - 1, "certificate-expiring", "expires in 29 days"),
        (EXPIRES_SOON + 1, None, ""),
    ],
)
def test_the_end_of_a_certificate(left: float, code: str | None, said: str) -> None:
    """The first to end in a file counts."""
    chain = certificate(0) + certificate(1, not_after=NOW + left)
    found = list(problems(describe(chain), Format.CERTIFICATE, NOW))
    assert [item.code for item in found] == ([] if code is None else [code])
    assert "".join(item.message for item in found) == said


@pytest.mark.parametrize(
    "left",
    [EXPIRES_SOON + 5, EXPIRES_SOON - 5, 259207.0, 259200.0, 7, 0.0, -7, -172800.0],
)
def test_when_something_else_will_be_said(left: float) -> None:
    """At that moment, and not before it."""
    facts = describe(certificate(not_after=NOW + left))

    def said(now: float) -> list[str]:
        return [item.message for item in problems(facts, None, now)]

    then = next_change(facts, NOW)
    assert then > NOW
    assert said(then - 1) == said(NOW + 0.001)
    assert said(then + 0.001) != said(NOW + 0.001)
    assert next_change(describe(b"password"), NOW) == math.inf
    assert next_change(describe(private_key()), NOW) == math.inf


def test_a_pair() -> None:
    """Known by the public key; an encrypted key says nothing."""
    ours, other = describe(certificate(0)), describe(private_key(1))
    assert not is_mismatch(ours, describe(private_key(0)))
    assert is_mismatch(ours, other)
    assert not is_mismatch(ours, describe(private_key(1, password=b"x")))
    assert not is_mismatch(ours, describe(b"password"))
    both = describe(certificate(0) + private_key(0))
    assert {Format.CERTIFICATE, Format.PRIVATE_KEY} <= both.formats


@pytest.mark.parametrize(
    ("content", "may"),
    [(b"x\n", False), (b"A: b\n", False), (b"{}\n", True), (JAAS, True), (private_key(), True)],
)
def test_a_newline_at_the_end(content: bytes, may: bool) -> None:
    """Means something only in a value that is compared."""
    assert describe(content).may_end_in_newline is may


def test_pem_without_certificate_or_key() -> None:
    """Such as parameters: nothing is known of it, and nothing wrong."""
    facts = describe(b"-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n")
    assert list(problems(facts, None, NOW)) == []


@pytest.mark.parametrize(
    "content", [openssh_key(), UNKNOWN_KEY, private_key(password=b"x")], ids=["ssh", "oid", "enc"]
)
def test_what_cannot_be_judged_is_not_called_wrong(content: bytes) -> None:
    """A key for another program, of another algorithm, or with a password."""
    assert list(problems(describe(content), None, NOW)) == []


def test_a_description_holds_no_part_of_the_value() -> None:
    """Whatever is printed of it."""
    for content in (b"Authorization: Bearer canary", b'{"key": "canary"}', private_key()):
        assert "canary" not in repr(describe(content))
        assert content[-20:].decode() not in repr(describe(content))


def test_credentials_of_nats() -> None:
    """A user JWT and the seed that belongs to it, as `nsc` writes them."""
    jwt = b"-----BEGIN NATS USER JWT-----\ne30.e30.x\n------END NATS USER JWT------\n\n"
    seed = b"-----BEGIN USER NKEY SEED-----\nSUAB23\n------END USER NKEY SEED------\n"
    wanted = FORMAT_NAMES["nats-credentials"]
    assert wanted in describe(jwt + b"**** IMPORTANT ****\n" + seed).formats
    assert wanted not in describe(jwt).formats
    assert wanted not in describe(seed).formats


@pytest.mark.parametrize(
    ("content", "public"),
    [
        (certificate(), True),
        (private_key(), False),
        (certificate() + private_key(), False),
        (b"password", False),
    ],
)
def test_what_everybody_may_read(content: bytes, public: bool) -> None:
    """A certificate, but not with its key."""
    assert describe(content).is_public is public
