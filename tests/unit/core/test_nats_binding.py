"""Events as NATS messages: subjects that hold any name, both content modes, and back."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_binary_event, from_structured_event
from hypothesis import given, strategies as st
from support.mail import TIME, change

from syncd.core.event_data import (
    SECRET_ADOPTED,
    VAULT_CONFIG_CHANGED,
    AdoptionData,
    SecretData,
    VaultConfigData,
)
from syncd.core.events import Event, Origin, Stamp
from syncd.core.model import Scope
from syncd.core.nats_binding import (
    DEFAULT_SUBJECT,
    LARGEST_SECRET,
    MESSAGE_ID,
    BindingError,
    ContentMode,
    PingError,
    decode,
    encode,
    encode_ping,
    escape,
    filter_problem,
    render,
    render_ping,
    subject_problem,
    without_places,
)

STAMP = Stamp("5f0c2a91", "/syncd/node-1")
EVERY = "<instance>.<resource_type>.<resource_id>.<secret>"
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
CONFIG = Event(
    7,
    TIME,
    VAULT_CONFIG_CHANGED,
    "/etc/aidbox/vault-config.json",
    VaultConfigData(("a",), (), (), ()),
    {},
)


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_a_test_of_the_way_is_told_apart(mode: ContentMode) -> None:
    """A ping has a subject of its own, and a relay knows that it is about nothing."""
    ping = STAMP.ping("bus", "1", TIME)
    subject = render_ping(f"syncd.{EVERY}", STAMP.source)
    assert subject == "syncd.node-1.~ping.~.~"
    headers, payload = encode_ping(ping, subject, mode)
    assert headers[MESSAGE_ID].endswith(f"{ping.id}/{subject}")
    with pytest.raises(PingError):
        decode(headers, payload)


@given(NAMES)
def test_any_name_is_one_token(name: str) -> None:
    """No dot, wildcard, space or `~` comes out, and what is not cut can be decoded."""
    token = escape(name)
    assert re.fullmatch(r"[A-Za-z0-9_%-]+(~[0-9a-f]{32})?", token)
    assert len(token) <= 200
    if "~" not in token:
        assert unquote(token) == name


@given(NAMES, NAMES)
def test_different_names_have_different_tokens(one: str, other: str) -> None:
    """So no two secrets share a subject."""
    assert (escape(one) == escape(other)) == (one == other)


def test_long_names_are_told_apart() -> None:
    """What is cut ends in a hash of the whole."""
    one, other = escape("x" * 500 + "a"), escape("x" * 500 + "b")
    assert len(one) == len(other) <= 200
    assert one != other
    assert len(escape("x" * 200)) == 200


def test_the_default_subject() -> None:
    """Instance, resource type and secret, after `syncd`."""
    event = change("db.pass *>", 2, 1)
    assert render(DEFAULT_SUBJECT, event, "/syncd/node-1") == (
        "syncd.node-1.Client.db%2Epass%20%2A%3E"
    )
    assert render(DEFAULT_SUBJECT, CONFIG, "/syncd/a/b.c") == "syncd.a%2Fb%2Ec.~vault_config.~"


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (Scope("Client", "app"), "h.Client.app.a"),
        (Scope("Client"), "h.Client.~.a"),
        ([Scope("Client", "app"), Scope("Job")], "h.~.~.a"),
        (Scope("~", "~"), "h.%7E.%7E.a"),
    ],
)
def test_scopes_in_subjects(scopes: Scope | list[Scope], expected: str) -> None:
    """`~` where there is no single answer, which no name can be."""
    event = change("a", 2, 1)
    assert isinstance(event.data, SecretData)
    event = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, scope=scopes))
    assert render(EVERY, event, "/syncd/h") == expected


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (DEFAULT_SUBJECT, None),
        ("a-<secret>-b", None),
        ("syncd.<host>.x", "an unknown placeholder (known are <instance>, <resource_type>"),
        ("syncd.*.<secret>", "has a wildcard"),
        ("syncd.>", "has a wildcard"),
        ("syncd..x", "empty token"),
        ("", "is empty"),
        ("$JS.<secret>", "reserved for the server"),
        ("sync d", "visible ASCII"),
        ("syncd.é", "visible ASCII"),
        ("s" * 600, "longer than"),
    ],
)
def test_templates(template: str, problem: str | None) -> None:
    """What no server would take is told at once."""
    found = subject_problem(template)
    assert (found is None) if problem is None else (problem in (found or ""))


@pytest.mark.parametrize(
    ("subject", "fine"),
    [
        ("syncd.>", True),
        ("syncd.*.Client.*", True),
        (">", True),
        ("*", True),
        ("syncd.*", True),
        ("syncd.>.x", False),
        ("syncd.a*", False),
        ("syncd.a>", False),
    ],
)
def test_filters(subject: str, *, fine: bool) -> None:
    """Wildcards stand for whole tokens, `>` for the rest."""
    assert (filter_problem(subject) is None) == fine


ADOPTED = Event(
    44,
    TIME,
    SECRET_ADOPTED,
    "a",
    AdoptionData("a", Scope("Client", "app"), "k1:00", "aidbox", 0.2, ()),
)
EVENTS = [
    msgspec.structs.replace(change("a", 2, 1), sequence=42),
    msgspec.structs.replace(change('ключ "%" \U0001f600', None, 1), sequence=43),
    CONFIG,
    ADOPTED,
    msgspec.structs.replace(change("a", 1, None), origin=Origin("0a-1", "/syncd/other")),
]


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize("event", EVENTS)
def test_both_modes_as_the_sdk_reads_them(event: Event, mode: ContentMode) -> None:
    """Headers and payload are those of the HTTP binding, which the CloudEvents SDK can read."""
    headers, payload = encode(event, STAMP, "s.x", mode)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    origin = STAMP.origin(event)
    assert unquote(headers.pop(MESSAGE_ID)) == f"{origin.source}/{origin.id}/s.x"
    if mode == "structured":
        assert headers == {"content-type": "application/cloudevents+json"}
        read = from_structured_event(HTTPMessage(headers, payload))
        data: Any = read.get_data()
    else:
        # the HTTP binding has datacontenttype in Content-Type; NATS has it beside the others
        assert headers.pop("ce-datacontenttype") == "application/json"
        read = from_binary_event(
            HTTPMessage({**headers, "content-type": "application/json"}, payload)
        )
        data = read.get_data()
    assert (read.get_id(), read.get_source()) == (origin.id, origin.source)
    assert (read.get_type(), read.get_subject()) == (event.type, event.subject)
    assert data == msgspec.json.decode(msgspec.json.encode(event.data))


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize("event", EVENTS)
def test_what_is_sent_is_what_is_received(event: Event, mode: ContentMode) -> None:
    """With the origin instead of a sequence, whatever the case of the headers."""
    headers, payload = encode(event, STAMP, "s.x", mode)
    received = decode({name.title(): value for name, value in headers.items()}, payload)
    assert received == msgspec.structs.replace(
        event, sequence=0, visible_to=None, origin=STAMP.origin(event)
    )
    if event is CONFIG:
        assert received.audience == {}
    else:
        assert received.audience == {event.subject: (Scope("Client", "app"),)}


def test_structured_mode_without_headers() -> None:
    """A publisher without headers sends the JSON format alone; other attributes are ignored."""
    content = msgspec.json.decode(STAMP.encode(EVENTS[0]))
    payload = msgspec.json.encode({**content, "traceparent": "00-1", "datacontenttype": None})
    assert decode(None, payload).origin == Origin("5f0c2a91-42", "/syncd/node-1")


def test_quoted_header_values() -> None:
    """Older versions of the binding put values with spaces into double quotes."""
    headers, payload = encode(EVENTS[0], STAMP, "s.x", "binary")
    headers["ce-source"] = '"/syncd/node\\-1"'
    assert decode(headers, payload).origin == Origin("5f0c2a91-42", "/syncd/node-1")


GOOD = msgspec.json.decode(STAMP.encode(EVENTS[0]))


@pytest.mark.parametrize(
    ("change_of", "problem"),
    [
        ({"specversion": "0.3"}, "not a CloudEvent"),
        ({"id": ""}, "not a CloudEvent"),
        ({"source": "a b"}, "not a CloudEvent"),
        ({"type": "org.example.other"}, "has a type that"),
        ({"type": "io.syncd.reset"}, "has a type that"),
        ({"time": "yesterday"}, "no valid time"),
        ({"time": "2026-11-23T20:40:28"}, "no valid time"),
        ({"time": "0001-01-01T00:00:00+23:59"}, "no valid time"),
        ({"subject": "b"}, "contradicts its data"),
        ({"data": {**GOOD["data"], "scope": []}}, "contradicts its data"),
        ({"data": {**GOOD["data"], "version": "plain"}}, "not a CloudEvent"),
        ({"data": None}, "not a CloudEvent"),
    ],
)
def test_what_is_no_event_is_refused(change_of: dict[str, Any], problem: str) -> None:
    """Each with a reason that quotes nothing of it."""
    with pytest.raises(BindingError, match=problem):
        decode(
            {"content-type": "application/cloudevents+json"},
            msgspec.json.encode({**GOOD, **change_of}),
        )


def test_a_file_outside_the_vault_config_has_no_scope() -> None:
    """It is passed on all the same; a secret of the vault config has one."""
    event = change("a", 2, 1)
    data = msgspec.structs.replace(event.data, scope=[], extra=True)
    extra = msgspec.structs.replace(event, data=data)
    assert render("s.<resource_type>.<resource_id>", extra, "/syncd/n") == "s.~.~"
    headers, payload = encode(extra, STAMP, "s.x", "structured")
    assert decode(headers, payload).data == data
    payload = payload.replace(b',"extra":true', b"")
    with pytest.raises(BindingError, match="scope"):
        decode(headers, payload)


def test_an_adoption_of_another_secret_is_refused() -> None:
    """Whoever may see the subject must not be told of another secret."""
    content = msgspec.json.decode(STAMP.encode(ADOPTED))
    with pytest.raises(BindingError, match="contradicts its data"):
        decode(None, msgspec.json.encode({**content, "subject": "b"}))


DEEP = b'{"x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\xfe", b"[]", b'"x"', DEEP])
def test_payloads_that_are_no_json(payload: bytes) -> None:
    """In both modes."""
    with pytest.raises(BindingError):
        decode(None, payload)
    headers, _ = encode(EVENTS[0], STAMP, "s.x", "binary")
    with pytest.raises(BindingError):
        decode(headers, payload)


def test_header_values_that_are_no_utf8() -> None:
    """An overlong encoding is refused, as the binding asks."""
    headers, payload = encode(EVENTS[0], STAMP, "s.x", "binary")
    headers["ce-subject"] = "%C0%A0"
    with pytest.raises(BindingError):
        decode(headers, payload)


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_a_large_event_about_one_secret_is_refused(mode: ContentMode) -> None:
    """A relay keeps what it is about, for each secret."""
    event = change("a", 1, None)
    for length, taken in ((1000, True), (LARGEST_SECRET, False)):
        data: Any = msgspec.structs.replace(event.data, path="/" + "p" * length)
        headers, payload = encode(msgspec.structs.replace(event, data=data), STAMP, "s.x", mode)
        if taken:
            assert decode(headers, payload).data == data
        else:
            with pytest.raises(BindingError, match="has more than 16 KiB about one secret"):
                decode(headers, payload)


def test_a_template_without_its_places() -> None:
    """What is left is text, in which other placeholders are mistakes."""
    assert without_places("a.<instance>.<other>.${X}") == "a...${X}"
