"""What is known of consumers before anything is delivered."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Any

import pytest
from support.waiting import DEADLINE

from syncd.config.settings import Settings, Webhook
from syncd.lint import consumers
from syncd.lint.consumers import check_addresses


def settings(url: str = "https://hooks.example/x", path: str | None = None) -> Settings:
    return Settings(
        vault_config="/etc/vault.json", consumers=(Webhook(name="a", url=url, socket=path),)
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (socket.gaierror(socket.EAI_NONAME, "canary"), "there is no host hooks.example"),
        (UnicodeError("canary"), "there is no host hooks.example"),
        (
            socket.gaierror(socket.EAI_AGAIN, "canary"),
            "hooks.example cannot be looked up now: the DNS does not answer",
        ),
        (
            socket.gaierror(socket.EAI_FAIL, "canary"),
            "hooks.example cannot be looked up now: the DNS does not answer",
        ),
        (
            socket.gaierror(socket.EAI_MEMORY, "canary"),
            "hooks.example cannot be looked up now: the resolver lacks memory or descriptors",
        ),
        (
            OSError(errno.EMFILE, "canary"),
            "hooks.example cannot be looked up now: Too many open files",
        ),
    ],
)
def test_a_host_that_is_not_found(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    """Only the resolver's own answer says that there is none, not a shortage of this machine."""

    def resolve(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    (found,) = check_addresses(settings(), "here")
    assert found.message == message
    assert found.hint


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "hooks.example cannot be looked up now: no answer within 0.01 s"),
        ("/run/x.sock", "cannot look for the socket /run/x.sock: its file system does not answer"),
    ],
)
def test_an_address_without_an_answer(
    monkeypatch: pytest.MonkeyPatch, path: str | None, message: str
) -> None:
    """It is not known to be well."""
    release = threading.Event()
    monkeypatch.setattr(consumers, "_LIMIT", 0.01)
    monkeypatch.setattr(consumers, "_problem", lambda *_: release.wait(DEADLINE))
    try:
        (found,) = check_addresses(settings(path=path), "here")
    finally:
        release.set()
    assert found.message == message


def test_a_socket_that_may_not_be_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be there."""

    real = os.stat

    def refuse(path: str, **options: Any) -> os.stat_result:
        if path == "/run/x.sock":
            raise PermissionError(errno.EACCES, "canary")
        return real(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    (found,) = check_addresses(settings(path="/run/x.sock"), "here")
    assert found.message == "cannot look for the socket /run/x.sock: Permission denied"
