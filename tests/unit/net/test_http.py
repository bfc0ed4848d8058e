"""HTTP as consumers speak it: how long to wait, and what is said of a failure."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest
from support.mail import NOW

from syncd.net.credentials import CredentialFiles, Keyring
from syncd.net.http import Connection, parse_retry_after, reason_of
from syncd.net.tls import RotatingContext, Trust


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


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ECONNREFUSED, "canary"), "Connection refused; start it"),
        (OSError(errno.ECONNRESET, "canary"), "Connection reset by peer"),
        (socket.gaierror(socket.EAI_NONAME, "canary"), "cannot be resolved"),
        (ssl.SSLError(1, "canary"), "TLS failed"),
        (ValueError("canary"), "closed before an answer"),
    ],
)
def test_reasons_are_words_of_ours(error: Exception, reason: str) -> None:
    """However deep the cause, its class and number make the reason, never its text."""
    said = reason_of(_wrapped(error))
    assert reason in said
    assert "canary" not in said


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> RotatingContext | None:
    """No TLS, or a context over the system's CAs that has been built."""
    if request.param == "plain":
        return None
    context = RotatingContext(Trust())
    context.current()
    return context


async def test_nothing_configured_needs_no_thread(
    tls: RotatingContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without files there is nothing to read; the system's CAs are read once."""
    connection = Connection(Keyring(CredentialFiles()), tls, timeout=1)
    monkeypatch.setattr("anyio.to_thread.run_sync", None)
    credentials, context = await connection._read_files(again=False)
    assert (credentials.signer, credentials.authorization) == (None, None)
    assert (context is None) == (tls is None)
