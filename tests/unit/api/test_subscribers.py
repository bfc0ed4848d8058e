"""Who asks and what they see."""

from __future__ import annotations

import os
import socket

import pytest
from structlog.testing import capture_logs

from syncd.api.subscribers import Peer, Subscribers, View, peer_of, resource
from syncd.core.model import Grant, Scope


def test_the_peer_of_a_socket() -> None:
    """The kernel identifies the process that connected, and its user."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == Peer(os.getpid(), os.geteuid(), os.getegid())


def test_callers() -> None:
    """Root and the daemon's own user see everything, others what is granted, the rest nothing."""
    subscribers = Subscribers({7: ("app", Grant([Scope("Client")]))})
    for uid in (0, os.geteuid()):
        caller = subscribers.caller(Peer(1, uid, 1))
        assert caller is not None
        assert caller.privileged
        assert caller.grant.scopes is None
    caller = subscribers.caller(Peer(1, 7, 1))
    assert caller is not None
    assert (caller.name, caller.privileged) == ("app", False)
    assert subscribers.caller(Peer(1, 8, 1)) is None


def test_the_uid_of_unmapped_users() -> None:
    """It is no user's: not by an entry, not as the daemon's own, and never worth an entry."""
    granted = {65534: ("app", Grant()), 7: ("other", Grant())}
    stranger = Peer(1, 65534, 1)
    assert Subscribers(granted).caller(stranger) is not None
    for unmapped in (65534, os.geteuid()):
        subscribers = Subscribers(granted, unmapped)
        with capture_logs() as lines:
            assert subscribers.caller(Peer(1, unmapped, 1)) is None
        assert "is not mapped into the user namespace" in lines[0]["reason"]
        assert "api.subscribers" not in str(lines) + subscribers.refusal(Peer(1, unmapped, 1))
        assert subscribers.caller(Peer(1, 7, 1)) is not None
    assert "add the uid to api.subscribers" in Subscribers({}).refusal(stranger)


def test_strangers_cannot_fill_the_log() -> None:
    """A denied uid is logged once a minute."""
    now = 0.0
    subscribers = Subscribers({}, clock=lambda: now)
    with capture_logs() as lines:
        for now in (0.0, 1.0, 59.0, 60.0, 61.0):  # noqa: B007 - the clock reads it
            subscribers.caller(Peer(1, 99, 1))
        subscribers.caller(Peer(1, 98, 1))
    assert [line["uid"] for line in lines] == [99, 99, 98]


def test_a_stranger_with_many_uids_cannot_fill_the_log_either() -> None:
    """Ten lines a minute in all; requests that were left out are counted in the next line."""
    now = 0.0
    subscribers = Subscribers({}, None, lambda: now)
    with capture_logs() as lines:
        for minute in range(3):
            now = minute * 60.0
            for uid in range(1000, 2000):
                subscribers.caller(Peer(1, uid, 1))
    assert len(lines) == 30
    assert [line["left_out"] for line in lines if "left_out" in line] == [990, 990]
    assert len(subscribers._logged) == 10


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("Client", Scope("Client")),
        ("Client/a/b", Scope("Client", "a/b")),
        ("", None),
        ("/a", None),
        ("Client/", None),
    ],
)
def test_resources(text: str, scope: Scope | None) -> None:
    """`Type` and `Type/id` name resources; anything else is refused."""
    assert resource(text) == scope


def test_filters_never_widen_a_grant() -> None:
    """A filter shows nothing that the grant does not."""
    view = View(Grant([Scope("Client", "a")]), ["x"], [Scope("IdentityProvider")])
    assert not view.shows("x", [Scope("IdentityProvider")])
    assert not view.shows("x", [Scope("Client", "a")])
    assert View(Grant([Scope("Client", "a")]), ["x"]).shows("x", [Scope("Client", "a")])
    assert not View(Grant(), ["x"]).shows("y", [Scope("Client", "a")])
