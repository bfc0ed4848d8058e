"""The pure parts of the webhook: what an answer means, how long to wait, what is shown."""

from __future__ import annotations

import pytest
from support.mail import NOW

from syncd.config.settings import BasicAuth, Webhook
from syncd.consumers.webhook import WebhookConsumer
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.events import Stamp
from syncd.net.http import Answer

STAMP = Stamp("5f0c2a91", "/syncd/host")


def webhook(**changes: object) -> WebhookConsumer:
    settings = {"name": "hook", "url": "http://127.0.0.1:8080/path?code=canary", **changes}
    return WebhookConsumer(
        Webhook(**settings),  # type: ignore[arg-type] # given by the tests
        STAMP,
        clock=lambda: NOW,
    )


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_acknowledges(status: int) -> None:
    """Any success is an acknowledgement."""
    assert webhook()._judge(Answer(status)) is None


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_busy_or_broken_is_temporary(status: int) -> None:
    """The contract's list of statuses is retried, as long as `Retry-After` says."""
    error = webhook()._judge(Answer(status, 120.0))
    assert isinstance(error, TemporaryError)
    assert error.retry_after == 120
    assert str(status) in str(error)


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 403, 404, 409, 410, 422])
def test_everything_else_is_a_rejection(status: int) -> None:
    """Only a person can change a redirect or any other answer."""
    error = webhook()._judge(Answer(status, 120.0))
    assert isinstance(error, RefusedError)
    assert str(status) in str(error)
    assert error.remedy


def test_errors_name_the_origin_only() -> None:
    """A token in path or query stays out of messages."""
    consumer = webhook()
    shown = repr(consumer) + str(consumer._judge(Answer(404)))
    assert "http://127.0.0.1:8080" in shown
    assert "canary" not in shown
    assert "path" not in repr(consumer)


def test_unusable_url_is_refused() -> None:
    """What the configuration's check let through and no request can use."""
    with pytest.raises(RefusedError, match="cannot use the url of consumer hook"):
        webhook(url="http://[::1")


def test_unauthorized_names_the_files() -> None:
    """The remedy names the files to replace."""
    auth = BasicAuth(username="u", password_file="/etc/syncd/password")
    assert "/etc/syncd/password" in str(webhook(basic_auth=auth)._judge(Answer(401)))
    assert "configure credentials" in str(webhook()._judge(Answer(401)))
