"""Errors of a connection to NATS: translated by class, number or known phrase."""

from __future__ import annotations

import nats.errors
import nats.js.errors
import pytest

from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.nats_errors import NatsErrors, server_error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (nats.errors.Error("nats: maximum connections exceeded CANARY"), "max_connections"),
        (nats.errors.Error("nats: CANARY"), "the connection failed (Error)"),
        (nats.errors.StaleConnectionError(), "pings are not answered"),
        (nats.errors.TimeoutError(), "no answer in time"),
        (nats.errors.NoRespondersError(), "JetStream does not answer"),
        (nats.js.errors.ServerError(code=500, err_code=9, description="CANARY"), "error 9"),
        (nats.js.errors.ServiceUnavailableError(code=503, err_code=10008), "has no leader; wait"),
        (nats.js.errors.ServiceUnavailableError(), "JetStream does not answer, or the consumer"),
        (nats.js.errors.APIError(code=409, description="CANARY"), "has it now; wait"),
        (nats.js.errors.NotFoundError(code=404, err_code=10014), "is found or made again"),
        (nats.js.errors.NotFoundError(code=404, err_code=10059), "no stream takes subject a"),
        (OSError("CANARY"), "the connection failed (OSError)"),
    ],
)
def test_foreign_texts_stay_out(error: Exception, text: str) -> None:
    """An error is link by its class or a known phrase."""
    said = str(NatsErrors("h:4222", ()).of_request(error, "a"))
    assert text in said
    assert "CANARY" not in said


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (nats.errors.AuthorizationError(), "not accepted; replace them in /password"),
        (nats.errors.Error("nats: user authentication revoked CANARY"), "are not accepted"),
        (
            nats.errors.Error('nats: permissions violation for publish to "a.b CANARY"'),
            "this user may not publish to its subject",
        ),
        (
            nats.errors.Error('nats: permissions violation for publish to "a.B"'),
            "this user may not publish to a.B; grant this permission",
        ),
        (
            nats.errors.Error('nats: permissions violation for subscription to "_inbox.x.*"'),
            "this user may not subscribe to _INBOX.>",
        ),
        (nats.errors.SecureConnRequiredError(), "the server does not offer TLS; enable TLS there"),
    ],
)
def test_what_only_a_person_can_change_is_refused(error: Exception, text: str) -> None:
    """Credentials, permissions and TLS, each with its remedy."""
    translated = NatsErrors("h:4222", ("/password",)).of_connection(error, ("a.B",))
    assert isinstance(translated, RefusedError)
    assert text in str(translated)
    assert "CANARY" not in str(translated)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("Authorization Violation", "the credentials are {} accepted"),
        ("User Authentication Expired", "the credentials are {} accepted"),
        ("Stale Connection", "pings are not answered"),
        ("maximum connections exceeded", "the server has too many connections"),
    ],
)
def test_what_a_server_says_before_it_closes(said: str, text: str) -> None:
    """A login that it had accepted is tried again with what the files hold; a new one is not."""
    errors = NatsErrors("h:4222", ["/creds"])
    for established, how, kind in (
        (False, "not", RefusedError),
        (True, "no longer", TemporaryError),
    ):
        error = errors.of_connection(server_error(said), established=established)
        assert text.format(how) in str(error)
        assert isinstance(error, kind if "credentials" in text else TemporaryError)
