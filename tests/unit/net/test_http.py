"""HTTP to consumers: what is read before a request."""

from __future__ import annotations

import pytest

from syncd.net.credentials import CredentialFiles, Keyring
from syncd.net.http import Connection
from syncd.net.tls import RotatingContext, Trust
from syncd.system import threads


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
    monkeypatch.setattr(threads, "start", None)
    credentials, context = await connection._read_files(again=False)
    assert (credentials.signer, credentials.authorization) == (None, None)
    assert (context is None) == (tls is None)
