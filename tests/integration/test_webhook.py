"""Webhooks end to end: real mailboxes, real loops, real sockets and TLS, real files."""

from __future__ import annotations

import base64
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
import structlog
from standardwebhooks import WebhookVerificationError
from structlog.testing import capture_logs
from support import receiver as answers
from support.mail import Mail, Naps, change, delivery, drained, running, version
from support.receiver import Receiver, hang, reply
from support.tls import EXPIRED, Authority, replace

from syncd import __version__
from syncd.config.settings import BasicAuth, ScopeSettings, Webhook, grant
from syncd.consumers.webhook import WebhookConsumer
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.events import Stamp
from syncd.core.model import Grant, Scope
from syncd.net import credentials, rotation
from syncd.telemetry.log import configure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KAFKA = Scope("AidboxTopicDestination", "kafka")


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path / "state"))
    yield mail
    mail.close()


def key(text: str) -> str:
    return "whsec_" + base64.b64encode(text.encode() * 2).decode()


def webhook(receiver: Receiver, mail: Mail, **settings: Any) -> WebhookConsumer:
    settings = {"name": "hook", "url": receiver.url, "timeout": 5.0, **settings}
    for option, value in settings.items():
        settings[option] = os.fspath(value) if hasattr(value, "__fspath__") else value
    return WebhookConsumer(Webhook(**settings), Stamp(mail.ledger.epoch, "/syncd/h"))


async def test_structured_mode_is_accepted_by_both_libraries(
    receiver: Receiver, mail: Mail, tmp_path: Path
) -> None:
    """One event: its signature verified, its body read by the CloudEvents SDK."""
    (tmp_path / "key").write_text(key("signing-key-one!") + "\n")
    loop = delivery(
        webhook(receiver, mail, signing_key_file=tmp_path / "key", headers={"X-Env": "prod"}), mail
    )
    (sent,) = await mail.put(change("client-secret", 2, 1))
    async with running(loop):
        await drained(loop)
    (request,) = receiver.requests
    request.verify(key("signing-key-one!"))
    with pytest.raises(WebhookVerificationError):
        request.verify(key("another-key-----"))
    (event,) = request.cloud_events()
    assert event.get_id() == f"{mail.ledger.epoch}-{sent.sequence}" == request.headers["webhook-id"]
    assert event.get_type() == "io.syncd.secret.changed"
    assert event.get_source() == "/syncd/h"
    assert event.get_subject() == "client-secret"
    assert request.events[0]["data"] == {
        "secret": "client-secret",
        "change": "modified",
        "path": "/run/vault-secrets/client-secret",
        "scope": {"resource_type": "Client", "id": "app"},
        "version": version(2),
        "previous_version": version(1),
    }
    assert (request.method, request.target) == ("POST", "/secret-events")
    assert request.headers["user-agent"] == f"syncd/{__version__}"
    assert request.headers["x-env"] == "prod"
    assert request.headers["content-type"] == "application/cloudevents+json"
    assert "authorization" not in request.headers
    assert "cookie" not in request.headers


async def test_batch_mode_is_accepted_by_both_libraries(
    receiver: Receiver, mail: Mail, tmp_path: Path
) -> None:
    """Several events in one request, signed under the id of the last one."""
    (tmp_path / "key").write_text(key("signing-key-one!"))
    consumer = webhook(receiver, mail, signing_key_file=tmp_path / "key", max_batch=2)
    loop = delivery(consumer, mail)
    await mail.put(*(change(name, 2, 1) for name in "abc"))
    async with running(loop):
        await drained(loop)
    assert [request.subjects for request in receiver.requests] == [["a", "b"], ["c"]]
    for request in receiver.requests:
        request.verify(key("signing-key-one!"))
        assert [e.get_subject() for e in request.cloud_events()] == request.subjects
        assert request.headers["webhook-id"] == request.events[-1]["id"]
    assert receiver.requests[1].headers["content-type"] == "application/cloudevents-batch+json"


async def test_a_connection_is_used_again(receiver: Receiver, mail: Mail) -> None:
    """Requests follow each other on one connection."""
    loop = delivery(webhook(receiver, mail, max_in_flight=1), mail)
    await mail.put(*(change(name, 2, 1) for name in "abcd"))
    receiver.script(reply(200, b"thanks"), reply(500, b"x" * 10_000), reply(200, b"again"))
    async with running(loop):
        await drained(loop)
    assert {request.connection for request in receiver.requests} == {1}


@pytest.mark.parametrize("max_batch", [1, 10])
async def test_a_commit_is_posted_to_an_idle_webhook(
    receiver: Receiver, mail: Mail, max_batch: int
) -> None:
    """By the thread that made it, on the connection that was used last, as any other request."""
    loop = delivery(webhook(receiver, mail, max_batch=max_batch), mail)

    async def commit(number: int) -> None:
        events = await mail.put(change("a", number, number - 1))
        await anyio.to_thread.run_sync(loop.post, events)
        if number > 2:
            receiver.wait(number - 1)  # before the loop hears of it
        loop.wake(events)
        await drained(loop)

    receiver.script(reply(), reply(202), reply(200, b"thanks"), reply(500), reply(503), reply(503))
    async with running(loop):
        await drained(loop)
        for number in range(2, 8):
            await commit(number)
    first, *others = receiver.requests
    assert [one.connection for one in others[:3]] == [first.connection] * 3
    assert len(receiver.requests) == 9
    found = [one.cloud_events()[0] for one in receiver.requests]
    assert [one.get_subject() for one in found] == ["a"] * 9
    ids = [one.get_id() for one in found]
    assert len(set(ids)) == 6
    assert first.headers.keys() == others[0].headers.keys()
    assert await mail.left() == 0


@pytest.mark.parametrize("kind", ["plain", "signed", "encrypted"])
async def test_what_needs_a_file_is_not_posted(mail: Mail, tmp_path: Path, kind: str) -> None:
    """To read one can take long, and that is for another thread than the one that commits."""
    (tmp_path / "key").write_text(key("signing-key-one!"))
    authority = Authority(tmp_path)
    files = {
        "signed": {"signing_key_file": tmp_path / "key"},
        "encrypted": {"ca_file": authority.file},
    }
    with Receiver(tls=authority.server() if kind == "encrypted" else None) as receiver:
        consumer = webhook(receiver, mail, **files.get(kind, {}))
        await consumer.deliver(await mail.put(change("a", 2, 1)))
        posting = consumer.reserve()
        assert (posting is None) == (kind != "plain")
        if posting is not None:
            posting.withdraw()
        await consumer.aclose()


async def test_scope_is_respected(receiver: Receiver, mail: Mail) -> None:
    """A consumer gets what lies within its scope and nothing else."""
    scope = tuple(
        ScopeSettings(resource_type=type_, id=id_)
        for type_, id_ in (("AidboxTopicDestination", "kafka"), ("Client", "app"))
    )
    mail.grants["hook"] = grant(scope)
    loop = delivery(webhook(receiver, mail, scope=scope), mail)
    await mail.put(
        change("a", 2, 1),
        change("b", 2, 1, Scope("Client", "other")),
        change("c", 2, 1, KAFKA),
        change("d", 2, 1, Scope("Client")),
    )
    async with running(loop):
        await drained(loop)
    assert [request.subjects for request in receiver.requests] == [["a"], ["c"]]


async def test_receiver_down_through_rotations_gets_the_newest(
    receiver: Receiver, mail: Mail
) -> None:
    """While it is down rotations merge; afterwards the newest, against the last acknowledged."""
    naps = Naps(held=True)
    loop = delivery(webhook(receiver, mail), mail, naps=naps)
    async with running(loop):
        await mail.put(change("a", 2, 1))
        loop.wake()
        await drained(loop)
        await anyio.to_thread.run_sync(receiver.stop)
        for number in range(3, 8):
            await mail.put(change("a", number, number - 1))
            loop.wake()
        await naps.begun()
        assert loop.health.last_error is not None
        assert "cannot deliver to http://127.0.0.1" in loop.health.last_error
        await anyio.to_thread.run_sync(receiver.start)
        naps.held = False
        naps.end()
        await drained(loop)
    told = [request.events[0]["data"] for request in receiver.requests]
    assert [(d["previous_version"], d["version"]) for d in told] == [
        (version(1), version(2)),
        (version(2), version(7)),
    ]


@pytest.mark.parametrize(
    "failure",
    [
        reply(500),
        reply(503, b"x" * 100_000),
        reply(429, retry_after="1"),
        reply(408),
        reply(425),
        answers.reset,
        answers.close,
        answers.garbage,
    ],
)
async def test_failures_that_heal_are_retried(
    receiver: Receiver, mail: Mail, failure: answers.Reply
) -> None:
    """After whatever failure the same event comes again, under the same id."""
    receiver.script(failure, failure)
    naps = Naps()
    loop = delivery(webhook(receiver, mail), mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await drained(loop)
    assert len(receiver.requests) == 3
    assert len({request.events[0]["id"] for request in receiver.requests}) == 1
    assert len(naps.taken) == 2
    assert naps.taken[0] <= 1.0


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("17", 17, 17), ("Mon, 23 Nov 2037 00:00:00 GMT", 3600, 3600), ("nonsense", 0, 0.5)],
)
async def test_retry_after_is_honoured(
    receiver: Receiver, mail: Mail, value: str, low: float, high: float
) -> None:
    """Seconds or a date, up to an hour; nonsense is ignored."""
    receiver.script(reply(503, retry_after=value))
    naps = Naps()
    loop = delivery(webhook(receiver, mail), mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await drained(loop)
    assert low <= naps.taken[0] <= high


async def test_hanging_receiver_times_out_as_a_whole(receiver: Receiver, mail: Mail) -> None:
    """The timeout bounds the attempt; the next one is a new connection."""
    receiver.script(hang)
    loop = delivery(webhook(receiver, mail, timeout=1.0), mail)
    await mail.put(change("a", 2, 1))
    with capture_logs() as logs:
        async with running(loop):
            await drained(loop)
    assert [request.connection for request in receiver.requests] == [1, 2]
    (retry,) = [entry for entry in logs if entry["event"] == "delivery.retry"]
    assert ": no answer within 1 s; " in retry["reason"]


async def test_2xx_counts_whatever_follows(receiver: Receiver, mail: Mail) -> None:
    """An acknowledgement with a body that breaks off or never ends is one."""
    receiver.script(answers.close_in_mid_answer, answers.trickle)
    loop = delivery(webhook(receiver, mail, timeout=1.0), mail)
    await mail.put(change("a", 2, 1), change("b", 2, 1), change("c", 2, 1))
    async with running(loop):
        await drained(loop)
    assert [request.subjects for request in receiver.requests] == [["a"], ["b"], ["c"]]


async def test_no_more_than_a_bound_of_an_answer_is_read(receiver: Receiver, mail: Mail) -> None:
    """A huge body is not waited for; the connection is given up instead."""
    receiver.script(answers.flood)
    loop = delivery(webhook(receiver, mail), mail)
    await mail.put(change("a", 2, 1), change("b", 2, 1))
    async with running(loop):
        await drained(loop)
    assert [request.connection for request in receiver.requests] == [1, 2]
    assert receiver.flooded < 16 << 20


async def test_redirect_is_a_rejection_and_gets_no_credential(
    receiver: Receiver, mail: Mail, tmp_path: Path
) -> None:
    """Nothing is ever sent where a redirect points, least of all the password."""
    (tmp_path / "token").write_text("canary-token")
    with Receiver() as elsewhere, capture_logs() as logs:
        receiver.script(reply(307, location=elsewhere.url))
        naps = Naps()
        loop = delivery(
            webhook(receiver, mail, bearer_token_file=tmp_path / "token"), mail, naps=naps
        )
        await mail.put(change("a", 2, 1))
        async with running(loop):
            await drained(loop)
        assert elsewhere.connections == 0
    assert len(receiver.requests) == 2
    assert naps.taken[0] >= 30
    (rejected,) = [entry for entry in logs if entry["event"] == "delivery.rejected"]
    assert "307, and redirects are not followed" in rejected["reason"]


async def test_environment_proxies_are_not_used(
    receiver: Receiver, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy from the environment would see every event."""
    with Receiver() as proxy:
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, proxy.url)
        loop = delivery(webhook(receiver, mail), mail)
        await mail.put(change("a", 2, 1))
        async with running(loop):
            await drained(loop)
        assert proxy.connections == 0
    assert len(receiver.requests) == 1


async def test_hanging_consumer_delays_no_other(receiver: Receiver, mail: Mail) -> None:
    """One receiver hangs in mid-request, the other gets everything meanwhile."""
    mail.grants["slow"] = Grant()
    with Receiver(default=hang) as slow:
        fast_loop = delivery(webhook(receiver, mail), mail)
        slow_loop = delivery(webhook(slow, mail, name="slow", timeout=60.0), mail)
        async with running(fast_loop, slow_loop):
            await mail.put(*(change(name, 2, 1) for name in "abc"))
            slow_loop.wake()
            fast_loop.wake()
            await slow.arrived(1)
            await drained(fast_loop)
            assert len(receiver.requests) == 3
            await slow.arrived(3)
            slow.release()
            await drained(slow_loop)


async def test_as_many_requests_as_configured_overlap(receiver: Receiver, mail: Mail) -> None:
    """16 of 40: 500 events at 100 ms take 3.2 s. The rest follows as answers come."""
    receiver.default = hang
    loop = delivery(webhook(receiver, mail), mail)
    await mail.put(*(change(f"s{number}", 2, 1) for number in range(40)))
    async with running(loop):
        await receiver.arrived(16)
        assert len({request.connection for request in receiver.requests}) == 16
        assert len(receiver.requests) == 16
        receiver.release()
        await drained(loop)
    subjects = [request.events[0]["subject"] for request in receiver.requests]
    assert sorted(subjects) == sorted(f"s{number}" for number in range(40))


async def test_crash_between_delivery_and_acknowledgement(
    receiver: Receiver, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the receiver got and the ledger did not record comes again, under the same id."""

    class CrashError(BaseException):
        pass

    def crash(*_: object) -> None:
        raise CrashError

    await mail.put(change("a", 2, 1))
    with monkeypatch.context() as patched:
        patched.setattr(mail.ledger, "acknowledge", crash)
        with pytest.raises(BaseExceptionGroup):
            await delivery(webhook(receiver, mail), mail).run()
    assert await mail.left() == 1
    loop = delivery(webhook(receiver, mail), mail)
    async with running(loop):
        await drained(loop)
    first, second = receiver.requests
    assert first.body == second.body
    assert await mail.left() == 0


async def test_shutdown_records_the_answer_in_flight(receiver: Receiver, mail: Mail) -> None:
    """A 2xx that comes in while the daemon stops is recorded."""
    receiver.script(hang)
    await mail.put(change("a", 2, 1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(delivery(webhook(receiver, mail), mail).run)
        await receiver.arrived(1)
        tasks.cancel_scope.cancel()
        receiver.release()
    assert await mail.left() == 0


async def test_basic_and_bearer(receiver: Receiver, mail: Mail, tmp_path: Path) -> None:
    """Password and token come from their files, for each request as they are then."""
    password, token = tmp_path / "password", tmp_path / "token"
    password.write_text("one\n")
    token.write_text("tok-1\n")
    auth = BasicAuth(username="syncd", password_file=str(password))
    basic = webhook(receiver, mail, basic_auth=auth)
    bearer = webhook(receiver, mail, bearer_token_file=token)
    events = await mail.put(change("a", 2, 1))
    await basic.deliver(events)
    await bearer.deliver(events)
    replace(password, "zwei: 2")
    token.write_text("tok-2")
    await basic.deliver(events)
    await bearer.deliver(events)
    sent = [request.headers["authorization"] for request in receiver.requests]
    assert sent[1::2] == ["Bearer tok-1", "Bearer tok-2"]
    assert [base64.b64decode(value.removeprefix("Basic ")) for value in sent[::2]] == [
        b"syncd:one",
        b"syncd:zwei: 2",
    ]
    await basic.aclose()
    await bearer.aclose()


async def test_rotated_signing_key_is_used_at_once(
    receiver: Receiver, mail: Mail, tmp_path: Path
) -> None:
    """The next request after a rotation is signed with the new key."""
    file = tmp_path / "key"
    file.write_text(key("signing-key-one!"))
    consumer = webhook(receiver, mail, signing_key_file=file)
    events = await mail.put(change("a", 2, 1))
    await consumer.deliver(events)
    replace(file, key("signing-key-two!"))
    await consumer.deliver(events)
    first, second = receiver.requests
    first.verify(key("signing-key-one!"))
    second.verify(key("signing-key-two!"))
    await consumer.aclose()


@pytest.mark.parametrize("status", [401, 403])
async def test_unauthorized_reads_again_and_tries_once_more(
    receiver: Receiver, mail: Mail, tmp_path: Path, status: int
) -> None:
    """A rotation between reading and answering costs one request, not a minute."""
    token = tmp_path / "token"
    token.write_text("old")
    receiver.script(reply(status, before=lambda: replace(token, "new")))
    naps = Naps()
    loop = delivery(webhook(receiver, mail, bearer_token_file=token), mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await drained(loop)
    sent = [request.headers["authorization"] for request in receiver.requests]
    assert sent == ["Bearer old", "Bearer new"]
    assert naps.taken == []


async def test_unauthorized_does_not_trust_the_times_of_a_file(
    receiver: Receiver, mail: Mail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a 401 a file is read even if it looks as it did."""
    monkeypatch.setattr(credentials, "signature", lambda status: (1, 2, 3))
    monkeypatch.setattr(rotation, "_UNSETTLED", 0)
    token = tmp_path / "token"
    token.write_text("old")
    receiver.script(reply(401, before=lambda: replace(token, "new")))
    consumer = webhook(receiver, mail, bearer_token_file=token)
    await consumer.deliver(await mail.put(change("a", 2, 1)))
    sent = [request.headers["authorization"] for request in receiver.requests]
    assert sent == ["Bearer old", "Bearer new"]
    await consumer.aclose()


async def test_unauthorized_twice_is_a_rejection(
    receiver: Receiver, mail: Mail, tmp_path: Path
) -> None:
    """One more try, not a storm; without credentials none at all."""
    (tmp_path / "token").write_text("wrong")
    receiver.default = reply(401)
    events = await mail.put(change("a", 2, 1))
    consumer = webhook(receiver, mail, bearer_token_file=tmp_path / "token")
    with pytest.raises(RefusedError, match=r"answered 401; replace the credentials in .*token"):
        await consumer.deliver(events)
    assert len(receiver.requests) == 2
    await consumer.aclose()
    bare = webhook(receiver, mail)
    with pytest.raises(RefusedError, match="answered 401; configure credentials"):
        await bare.deliver(events)
    assert len(receiver.requests) == 3
    await bare.aclose()


async def test_missing_credential_is_waited_for(
    receiver: Receiver, mail: Mail, tmp_path: Path
) -> None:
    """Nothing goes out unsigned because the key is not there yet."""
    file = tmp_path / "key"
    naps = Naps(held=True)
    loop = delivery(webhook(receiver, mail, signing_key_file=file), mail, naps=naps)
    await mail.put(change("a", 2, 1))
    async with running(loop):
        await naps.begun()
        assert receiver.connections == 0
        file.write_text(key("signing-key-one!"))
        naps.held = False
        naps.end()
        await drained(loop)
    (request,) = receiver.requests
    request.verify(key("signing-key-one!"))


async def test_unix_socket(mail: Mail, tmp_path: Path) -> None:
    """The same request over a Unix socket; the URL gives Host and path."""
    path = str(tmp_path / "events.sock")
    with Receiver(unix=path) as receiver:
        consumer = webhook(
            receiver, mail, socket=path, url="http://aidbox.local/hook?x=1", max_in_flight=1
        )
        loop = delivery(consumer, mail)
        await mail.put(change("a", 2, 1), change("b", 2, 1))
        async with running(loop):
            await drained(loop)
    assert [request.target for request in receiver.requests] == ["/hook?x=1"] * 2
    assert {request.headers["host"] for request in receiver.requests} == {"aidbox.local"}
    assert {request.connection for request in receiver.requests} == {1}


async def test_unix_socket_that_is_not_there(mail: Mail, tmp_path: Path) -> None:
    """The reason names the socket and what to do."""
    consumer = WebhookConsumer(
        Webhook(name="hook", url="http://aidbox/hook", socket=str(tmp_path / "none.sock")),
        Stamp("0", "/syncd/h"),
    )
    with pytest.raises(
        TemporaryError,
        match=r"none\.sock: No such file or directory; start the server, or correct socket",
    ):
        await consumer.deliver(await mail.put(change("a", 2, 1)))


async def test_tls_is_verified(mail: Mail, tmp_path: Path) -> None:
    """Right CA, wrong CA, expired: only the first gets anything, the others are told apart."""
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "other")
    events = await mail.put(change("a", 2, 1))
    for context, reason in (
        (ours.server(), None),
        (
            theirs.server(),
            "certificate is signed by a CA that is not trusted; set ca_file to its CA",
        ),
        (ours.server(expires=EXPIRED), "the certificate has expired; renew the certificate"),
    ):
        with Receiver(tls=context) as receiver:
            consumer = webhook(receiver, mail, ca_file=ours.file)
            if reason is None:
                await consumer.deliver(events)
                assert len(receiver.requests) == 1
            else:
                with pytest.raises(TemporaryError, match=reason):
                    await consumer.deliver(events)
                assert receiver.requests == []
            await consumer.aclose()


async def test_tls_without_ca_file_uses_the_systems(mail: Mail, tmp_path: Path) -> None:
    """A private CA is not trusted by itself."""
    with Receiver(tls=Authority(tmp_path).server()) as receiver:
        consumer = webhook(receiver, mail)
        with pytest.raises(TemporaryError, match="signed by a CA that is not trusted"):
            await consumer.deliver(await mail.put(change("a", 2, 1)))
        assert receiver.requests == []


async def test_name_of_the_certificate_is_verified(mail: Mail, tmp_path: Path) -> None:
    """Over a Unix socket too: the URL's host is whom we want to talk to."""
    authority, path = Authority(tmp_path), str(tmp_path / "tls.sock")
    with Receiver(tls=authority.server(), unix=path) as receiver:
        events = await mail.put(change("a", 2, 1))
        right = webhook(
            receiver, mail, url="https://localhost/", socket=path, ca_file=authority.file
        )
        await right.deliver(events)
        await right.aclose()
        wrong = webhook(receiver, mail, url="https://aidbox/", socket=path, ca_file=authority.file)
        with pytest.raises(
            TemporaryError, match="the certificate is for another host name; correct url"
        ):
            await wrong.deliver(events)
        assert len(receiver.requests) == 1


async def test_plain_http_at_a_tls_port_and_the_other_way_round(mail: Mail, tmp_path: Path) -> None:
    """A mixed-up scheme is a temporary error with a reason, not a bug."""
    events = await mail.put(change("a", 2, 1))
    authority = Authority(tmp_path)
    with Receiver(tls=authority.server()) as receiver:
        consumer = webhook(receiver, mail, url=receiver.url.replace("https", "http"))
        with pytest.raises(TemporaryError, match="cannot deliver to http://"):
            await consumer.deliver(events)
    with Receiver() as receiver:
        url = receiver.url.replace("http", "https")
        consumer = webhook(receiver, mail, url=url, ca_file=authority.file)
        with pytest.raises(TemporaryError, match="TLS failed: "):
            await consumer.deliver(events)


async def test_rotated_ca_is_used_at_once(mail: Mail, tmp_path: Path) -> None:
    """A server with a certificate of the new CA is trusted as soon as the file says so."""
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "other")
    trusted = tmp_path / "trusted.pem"
    replace(trusted, ours.pem)
    events = await mail.put(change("a", 2, 1))
    with Receiver(tls=ours.server()) as receiver:
        consumer = webhook(receiver, mail, ca_file=trusted)
        await consumer.deliver(events)
        receiver.stop()
        receiver.tls = theirs.server()
        receiver.start()
        with pytest.raises(TemporaryError):
            await consumer.deliver(events)
        replace(trusted, theirs.pem)
        await consumer.deliver(events)
        assert len(receiver.requests) == 2
        replace(trusted, ours.pem)
        with pytest.raises(TemporaryError):  # the connection that the old CA vouched for is gone
            await consumer.deliver(events)
        await consumer.aclose()


async def test_mutual_tls_and_its_rotation(mail: Mail, tmp_path: Path) -> None:
    """The client shows its certificate, and the new one after a rotation."""
    authority, strangers = Authority(tmp_path), Authority(tmp_path, "strangers")
    cert, private = tmp_path / "client.pem", tmp_path / "client.key"
    authority.write_client("syncd-1", cert, private)
    events = await mail.put(change("a", 2, 1))
    with Receiver(tls=authority.server(clients=authority)) as receiver:
        files = {"ca_file": authority.file, "client_cert": cert, "client_key": private}
        consumer = webhook(receiver, mail, **files)
        await consumer.deliver(events)
        authority.write_client("syncd-2", cert, private)
        await consumer.deliver(events)
        assert [request.client for request in receiver.requests] == ["syncd-1", "syncd-2"]
        strangers.write_client("stranger", cert, private)
        with pytest.raises(TemporaryError):
            await consumer.deliver(events)
        await consumer.aclose()
        bare = webhook(receiver, mail, ca_file=authority.file)
        with pytest.raises(TemporaryError):
            await bare.deliver(events)
        assert len(receiver.requests) == 2
        await bare.aclose()


@pytest.fixture
def _restored_log() -> Iterator[None]:
    """Undoes what a test configures."""
    handlers, level, hook = logging.root.handlers[:], logging.root.level, sys.excepthook
    yield
    structlog.reset_defaults()
    logging.root.handlers[:], sys.excepthook = handlers, hook
    logging.root.setLevel(level)


@pytest.mark.usefixtures("_restored_log")
async def test_no_credential_shows_anywhere(
    mail: Mail, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through every failure: neither logs, nor errors, nor reprs hold a credential."""
    canary = "canary-0a1b2c3d"
    files = {name: tmp_path / name for name in ("key", "password", "token")}
    files["key"].write_text("whsec_" + base64.b64encode(canary.encode() * 3).decode())
    files["password"].write_text(canary)
    files["token"].write_text(canary)
    configure("debug", "json")
    logging.root.setLevel(logging.DEBUG)
    echo = canary.encode() * 100
    auth = BasicAuth(username="syncd", password_file=str(files["password"]))
    shown = []
    with Receiver() as receiver:
        for own in ({"basic_auth": auth}, {"bearer_token_file": files["token"]}):
            consumer = webhook(receiver, mail, signing_key_file=files["key"], timeout=0.3, **own)
            receiver.script(
                *(reply(401, echo), reply(401, echo), reply(500, echo, x_echo=canary)),
                *(reply(302, echo, location=f"http://{canary}/"), answers.reset),
                *(answers.garbage, answers.close_in_mid_answer, hang),
            )
            events = await mail.put(change("a", 2, 1))
            for _ in range(7):
                try:
                    await consumer.deliver(events)
                except (TemporaryError, RefusedError) as error:
                    shown += traceback.format_exception(error)
                    inner: BaseException | None = error.__cause__ or error.__context__
                    assert inner is None
            loop = delivery(consumer, mail)
            async with running(loop):
                await drained(loop)
            shown += [repr(consumer), repr(loop), repr(loop.health), repr(consumer._keyring)]
        for file in files.values():
            replace(file, f"{canary} {canary}\x01")
        for option in ("signing_key_file", "bearer_token_file"):
            name = {"signing_key_file": "key", "bearer_token_file": "token"}[option]
            consumer = webhook(receiver, mail, **{option: files[name]})
            with pytest.raises(RefusedError) as refused:
                await consumer.deliver(events)
            shown += traceback.format_exception(refused.value)
    captured = capfd.readouterr()
    everything = "".join([*shown, captured.out, captured.err])
    assert "delivery.acknowledged" in captured.err
    encoded = {base64.b64encode(text.encode()).decode()[:12] for text in (canary, canary * 3)}
    for secret in {canary, base64.b64encode(f"syncd:{canary}".encode()).decode(), *encoded}:
        assert secret not in everything
