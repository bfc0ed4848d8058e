"""Why a connection failed, and how long a server asked to wait."""

from __future__ import annotations

import errno
import socket
import ssl
import subprocess
import sys
from typing import Any

import pytest
from support.mail import NOW
from support.waiting import DEADLINE

from syncd.net.reasons import parse_retry_after, reason_of


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 17 ", 17.0),
        ("999999999999999999999", 999999999999999.0),
        ("Mon, 23 Nov 2026 20:42:30 GMT", 120.0),
        ("Monday, 23-Nov-26 20:42:30 GMT", 120.0),
        ("Mon Nov 23 20:42:30 2026", 120.0),
        ("Mon, 23 Nov 2026 20:00:00 GMT", 0.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Mon, 99 Nov 2026 20:42:30 GMT", None),
        ("\u0661\u0662", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """Seconds or any of the three date forms of RFC 9110; anything else is ignored."""
    assert parse_retry_after(value, NOW) == seconds


def _wrapped(error: BaseException) -> Exception:
    outer = ConnectionError("canary")
    outer.__cause__ = ExceptionGroup("canary", [OSError("canary")])
    outer.__cause__.__context__ = error
    return outer


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "canary")
    error.reason = reason
    return error


def certificate_error(code: int, message: str = "") -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "canary")
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.ECONNREFUSED, "canary"),
            "Connection refused; check that the server is up and reachable",
        ),
        (
            OSError(errno.ENOENT, "canary"),
            "No such file or directory; start the server, or correct socket",
        ),
        (
            socket.gaierror(socket.EAI_NONAME, "canary"),
            "the host name cannot be resolved; correct url or the DNS",
        ),
        (
            UnicodeError("label empty or too long: canary"),
            "the host name cannot be resolved; correct url or the DNS",
        ),
        (socket.gaierror(socket.EAI_AGAIN, "canary"), "the DNS does not answer; check the DNS"),
        (
            socket.gaierror(socket.EAI_SYSTEM, "canary"),
            "the resolver lacks memory or descriptors; free memory",
        ),
        (OSError(errno.EMFILE, "canary"), "Too many open files; raise syncd's limit of open files"),
        (OSError(errno.EACCES, "canary"), "Permission denied; let syncd's user connect there"),
        (OSError(errno.EADDRNOTAVAIL, "canary"), "Cannot assign requested address; check that"),
        (ssl.SSLError(1, "canary"), "TLS failed: unexpected end; check that url is"),
        (
            tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"),
            "TLS failed: tlsv13 alert certificate required; configure a client certificate that",
        ),
        (
            certificate_error(10),
            "the certificate has expired; renew the certificate",
        ),
        (
            certificate_error(20),
            "the certificate is signed by a CA that is not trusted; set ca_file to its CA",
        ),
        (
            certificate_error(62),
            "the certificate is for another host name; correct url, or replace the certificate",
        ),
        (
            certificate_error(9, "certificate is not yet valid"),
            "the certificate is not valid yet; set this machine's clock, or replace the",
        ),
        (
            certificate_error(26, "unsupported certificate purpose"),
            "the certificate is not valid: unsupported certificate purpose; replace the",
        ),
        (
            certificate_error(2),
            "the certificate is signed by a CA that is not trusted; set ca_file to its CA",
        ),
        (
            tls_error("WRONG_VERSION_NUMBER"),
            "the server answers without TLS; write http:// in url, or enable TLS on the server",
        ),
        (
            tls_error("RECORD_LAYER_FAILURE"),
            "the server answers without TLS; write http:// in url",
        ),
        (TimeoutError("canary"), "no answer in time; check that the server is up"),
        (
            ValueError("canary"),
            "the connection ended without a complete answer; check",
        ),
    ],
)
def test_a_reason_is_made_of_class_and_number(error: Exception, text: str) -> None:
    """However deep the cause, never of its text."""
    reason = reason_of(_wrapped(error), address="url")
    assert f"{reason.problem}; {reason.remedy}".startswith(text)
    assert reason.is_certificate == isinstance(error, ssl.SSLCertVerificationError)
    assert reason.is_known == (type(error) is not ValueError)


def test_remedies_name_the_options_of_the_caller() -> None:
    """A manifest has other names than a configuration."""
    names: dict[str, Any] = {
        "address": "vaultAddress",
        "ca": "vaultCACertPath",
        "server_name": "vaultTLSServerName",
    }
    untrusted = reason_of(certificate_error(19), **names)
    assert untrusted.remedy == "set vaultCACertPath to its CA"
    other_name = reason_of(certificate_error(64), **names)
    assert other_name.remedy == (
        "correct vaultAddress, set vaultTLSServerName to the certificate's name, or replace the"
        " certificate"
    )


def test_clients_wrap_in_their_own_ways() -> None:
    """In `args`, in `reason`, in `inner_exception`, in each other."""
    cause = OSError(errno.ECONNRESET, "canary")
    in_args = ValueError("canary", cause)
    in_attribute = ValueError("canary")
    in_attribute.inner_exception = in_args  # type: ignore[attr-defined]
    in_attribute.__context__ = in_attribute
    assert reason_of(in_attribute, address="url").problem == "Connection reset by peer"


def test_the_address_that_is_tried_last_counts() -> None:
    """A machine without IPv6 fails at it first, which is not news."""
    tried = [OSError(errno.ENETUNREACH, "canary"), OSError(errno.ECONNREFUSED, "canary")]
    assert reason_of(ExceptionGroup("", tried), address="url").problem == "Connection refused"


def test_a_client_has_timeouts_of_its_own() -> None:
    """They count where nothing else is known."""

    class SlowError(Exception):
        pass

    assert not reason_of(SlowError(), address="url").is_known
    reason = reason_of(SlowError(), address="url", timeouts=(SlowError,))
    assert reason.problem == "no answer in time"


def test_no_client_is_imported() -> None:
    """Asking for a reason imports no client."""
    program = "import sys, syncd.net.reasons; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"requests", "urllib3", "httpx2", "httpcore2", "azure", "hvac", "nats"}
