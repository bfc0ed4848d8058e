"""Events as NATS messages: subject, headers and payload, and back.

The wire is the CloudEvents NATS protocol binding (1.0.3-wip, which adds headers to 1.0.2): in
structured mode the payload is the JSON event format and `content-type` says so; in binary mode each
attribute is a header `ce-<name>`, percent-encoded as its section 3.1.3.2 asks, and the payload is
the data.

Subjects are made from a template. The values put into it may contain any character, also those
with a meaning in NATS (`.`, `*`, `>`, spaces), so they are percent-encoded: every byte but ASCII
letters, digits, `-` and `_` becomes `%XX`. So different names never share a subject, none adds a
token or a wildcard, and percent-decoding restores the name. The encoding never produces `~`, which
stands where there is no name (see `render`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import quote, unquote

import msgspec

from syncd.core.event_data import DECODERS, PING, FleetData, SecretData, VaultConfigData
from syncd.core.events import STRUCTURED, Attributes, CloudEvent, Event, Origin, encode_event
from syncd.core.model import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.core.event_data import Data
    from syncd.core.events import Stamp

ContentMode = Literal["structured", "binary"]

DEFAULT_SUBJECT: Final = "syncd.<instance>.<resource_type>.<secret>"

MESSAGE_ID: Final = "Nats-Msg-Id"
"""Header by which JetStream drops a message that it has already stored."""

LARGEST_SECRET: Final = 16 << 10
"""Bytes of an event's data about one secret, at most: a relay keeps them for each."""

_PLACES: Final = ("instance", "resource_type", "resource_id", "secret")
_PLACE: Final = re.compile(r"<([^<>.]*)>")
_NONE: Final = "~"
_VAULT_CONFIG: Final = "~vault_config"
_PING: Final = "~ping"
_PLAIN_TOKEN: Final = re.compile(r"[-_A-Za-z0-9]*")
_LONGEST_TOKEN: Final = 200  # a server takes 4096 bytes for command, subject and reply subject
_LONGEST_TEMPLATE: Final = 512
_HEADER_SAFE: Final = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
_ATTRIBUTES: Final = Attributes.__struct_fields__
_CLOUD_EVENTS: Final = "application/cloudevents"


class BindingError(ValueError):
    """A message is not an event of syncd; the text gives the reason and quotes nothing of it."""


class PingError(BindingError):
    """A message is an `io.syncd.ping`: a test of the way, about nothing."""


def escape(name: str) -> str:
    """A name as one token of a subject.

    A token of more than 200 characters is cut, and ends in `~` and a hash of the whole name.
    """
    token = name
    if not _PLAIN_TOKEN.fullmatch(name):
        token = quote(name, safe="").replace(".", "%2E").replace("~", "%7E")
    if len(token) > _LONGEST_TOKEN:
        return f"{token[:160]}~{blake2b(name.encode(), digest_size=16).hexdigest()}"
    return token


def subject_problem(template: str) -> str | None:
    """The problem of a template, as the end of a sentence, or None."""
    unknown = [place for place in _PLACE.findall(template) if place not in _PLACES]
    if unknown:
        return f"has an unknown placeholder (known are {', '.join(f'<{p}>' for p in _PLACES)})"
    return filter_problem(_PLACE.sub("x", template), wildcards=False)


def without_places(template: str) -> str:
    """A template without the parts that `render` fills in, or refuses (`subject_problem`)."""
    return _PLACE.sub("", template)


def filter_problem(subject: str, *, wildcards: bool = True) -> str | None:
    """The problem of a subject, as the end of a sentence, or None.

    With `wildcards`, `*` and, at the end, `>` may stand for tokens.
    """
    if not subject.isascii() or not subject.isprintable() or " " in subject:
        return "has characters other than visible ASCII"
    if len(subject) > _LONGEST_TEMPLATE:
        return f"is longer than {_LONGEST_TEMPLATE} characters"
    tokens = subject.split(".")
    if "" in tokens:
        return "has an empty token (a dot at an end, or two in a row)" if subject else "is empty"
    if subject.startswith(("$", "_INBOX")):
        return "is reserved for the server"
    if wildcards:
        tokens = [part for part in tokens if part != "*"] or ["x"]
        tokens = tokens[:-1] if subject.endswith(".>") or subject == ">" else tokens
    if any(character in token for token in tokens for character in "*>"):
        return "has a wildcard where none is allowed"
    return None


def render(template: str, event: Event, source: str) -> str:
    """The subject of an event.

    `<instance>` is the last part of the source (`/syncd/INSTANCE`). `<resource_type>` and
    `<resource_id>` are those of the secret's scope: `~` where it has no id, has several scopes in
    the older list form, or is a file outside the vault config without one. A change of the vault
    config has `~vault_config` as resource type, and `~` as id and secret.
    """
    values = _places(source)
    data = event.data
    if isinstance(data, VaultConfigData):
        values["resource_type"] = _VAULT_CONFIG
    else:
        values["secret"] = escape(data.secret)
        if isinstance(data.scope, Scope):
            values["resource_type"] = escape(data.scope.resource_type)
            if data.scope.id is not None:
                values["resource_id"] = escape(data.scope.id)
    return _fill(template, values)


def render_ping(template: str, source: str) -> str:
    """The subject of an `io.syncd.ping` event: `~ping` as resource type, else `~`."""
    return _fill(template, {**_places(source), "resource_type": _PING})


def _places(source: str) -> dict[str, str]:
    instance = escape(source.removeprefix("/syncd/"))
    return {**dict.fromkeys(_PLACES, _NONE), "instance": instance}


def _fill(template: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda place: values[place[1]], template)


def encode(
    event: Event, stamp: Stamp, subject: str, mode: ContentMode
) -> tuple[dict[str, str], bytes]:
    """Headers and payload of an event.

    The message id is source, id and subject together: an id alone is unique within one
    installation only, and one stream may take an event under two subjects.
    """
    return _message(stamp.cloud_event(event), subject, mode)


def encode_ping(ping: CloudEvent, subject: str, mode: ContentMode) -> tuple[dict[str, str], bytes]:
    """Headers and payload of an `io.syncd.ping` event; as `encode`."""
    return _message(ping, subject, mode)


def _message(
    cloud_event: CloudEvent, subject: str, mode: ContentMode
) -> tuple[dict[str, str], bytes]:
    message_id = {MESSAGE_ID: _percent(f"{cloud_event.source}/{cloud_event.id}/{subject}")}
    if mode == "structured":
        return {**message_id, "content-type": STRUCTURED}, encode_event(cloud_event)
    attributes = {f"ce-{name}": _percent(getattr(cloud_event, name)) for name in _ATTRIBUTES}
    return {**message_id, **attributes}, msgspec.json.encode(cloud_event.data)


class _Envelope(Attributes, frozen=True, kw_only=True):
    """An event that another publisher sent; it may have more attributes."""

    specversion: Literal["1.0"]
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    source: Annotated[str, msgspec.Meta(pattern=r"^\S+$", max_length=1024)]
    datacontenttype: Any = None  # not looked at: the data is JSON or it is refused
    data: msgspec.Raw


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def decode(headers: Mapping[str, str] | None, payload: bytes) -> Event:
    """The event that a message holds, with its origin, and no sequence yet.

    Raises:
        BindingError: It is not an event, or its type is unknown.
        PingError: It is a test.
    """
    named = {name.lower(): value for name, value in (headers or {}).items()}
    try:
        envelope = _envelope(named, payload)
        if envelope.type == PING:
            raise PingError("is a test")
        decode_data = DECODERS.get(envelope.type)
        data = None if decode_data is None else decode_data(envelope.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BindingError("is not a CloudEvent of syncd") from None
    if data is None:
        raise BindingError("has a type that this syncd does not know")
    if isinstance(data, SecretData) and len(bytes(envelope.data)) > LARGEST_SECRET:
        raise BindingError(f"has more than {LARGEST_SECRET >> 10} KiB about one secret")
    if not _is_time(envelope.time):
        raise BindingError("has no valid time")
    if not isinstance(data, VaultConfigData) and (
        data.secret != envelope.subject or not (data.scope or _is_extra(data))
    ):
        raise BindingError("has a subject or scope that contradicts its data")
    return Event(
        0,
        envelope.time,
        envelope.type,
        envelope.subject,
        data,
        origin=Origin(envelope.id, envelope.source),
    )


def _is_extra(data: Data) -> bool:
    """Whether it may be of a file outside the vault config, which may be without a scope."""
    return isinstance(data, FleetData) or (isinstance(data, SecretData) and data.extra is True)


def _envelope(headers: Mapping[str, str], payload: bytes) -> _Envelope:
    structured = headers.get("content-type", "").lower().startswith(_CLOUD_EVENTS)
    if structured or "ce-id" not in headers:
        return _decode_envelope(payload)
    attributes = {name: _unpercent(headers.get(f"ce-{name}", "")) for name in _ATTRIBUTES}
    return msgspec.convert({**attributes, "data": msgspec.Raw(payload)}, _Envelope)


def _is_time(text: str) -> bool:
    try:
        moment = datetime.fromisoformat(text)
        # one that has no UTC, before the year 1 or after 9999, no consumer could compare
        return moment.tzinfo is not None and bool(moment.astimezone(UTC))
    except (ValueError, OverflowError):
        return False


def _percent(text: str) -> str:
    return quote(text, safe=_HEADER_SAFE)


def _unpercent(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':  # older versions of the binding quoted
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return unquote(value, errors="strict")
