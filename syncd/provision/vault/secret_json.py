"""JSON as Go writes it: values, and a whole response as the structure that upstream writes. Pure.

A file without `secretKey` holds `json.Marshal(api.Secret)`: the fields of the structure in its
order, zero values where the server sent nothing, `auth` and `wrap_info` as structures of their own,
and nothing else that the server sent.

Source: hashicorp/vault `api/secret.go` (v1.23); Go `encoding/json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from syncd.provision.yaml_v3 import timestamp

_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}
T = TypeVar("T")
_Encode = Callable[[object], bytes]
SECRET_FIELDS = (
    "request_id",
    "lease_id",
    "lease_duration",
    "renewable",
    "data",
    "warnings",
    "auth",
    "wrap_info",
    "mount_type",
)
_NO_TIME = "0001-01-01T00:00:00Z"


class ShapeError(ValueError):
    """The response has a field of another type; the text is for messages and quotes no value."""


def go_json(value: object) -> bytes:
    """A value as Go's `encoding/json` writes it.

    Compact, keys sorted, numbers as received, `<`, `>` and `&` escaped.

    Raises:
        UnicodeEncodeError: A string is not Unicode.
        RecursionError: It is nested too deeply.
    """
    text = msgspec.json.encode(value, order="deterministic").decode()
    return re.sub("[<>&\u2028\u2029]", lambda found: _ESCAPES[found[0]], text).encode()


def whole_secret(tree: dict[str, Any]) -> bytes:
    """A whole response as upstream writes it.

    Args:
        tree: The parsed body, numbers as `msgspec.Raw`.

    Raises:
        ShapeError: A field has a type that Go's decoder refuses.
        UnicodeEncodeError: A string is not Unicode.
        RecursionError: It is nested too deeply.
    """
    return _SECRET(tree)


def _text(value: object) -> bytes:
    return go_json("" if value is None else _expect(value, str))


def _integer(value: object) -> bytes:
    if value is None:
        return b"0"
    written = bytes(_expect(value, msgspec.Raw))
    if not re.fullmatch(rb"-?[0-9]{1,19}", written):
        raise ShapeError
    return b"%d" % int(written)


def _flag(value: object) -> bytes:
    return go_json(False if value is None else _expect(value, bool))


def _time(value: object) -> bytes:
    written = timestamp(_NO_TIME if value is None else _expect(value, str))
    if written is None:
        raise ShapeError
    return go_json(written)


def _tree(value: object) -> bytes:
    return go_json(None if value is None else _expect(value, dict))


def _expect(value: object, type_: type[T]) -> T:
    if not isinstance(value, type_):
        raise ShapeError
    return value


def _list(item: _Encode) -> _Encode:
    def encode(value: object) -> bytes:
        if value is None:
            return b"null"
        return b"[" + b",".join(map(item, _expect(value, list))) + b"]"

    return encode


def _map(item: _Encode) -> _Encode:
    def encode(value: object) -> bytes:
        if value is None:
            return b"null"
        pairs = sorted(_expect(value, dict).items())
        return b"{" + b",".join(go_json(key) + b":" + item(held) for key, held in pairs) + b"}"

    return encode


def _pointer(item: _Encode) -> _Encode:
    return lambda value: b"null" if value is None else item(value)


def _structure(**fields: _Encode) -> _Encode:
    """A structure; a field whose name ends with `_` is left out where it is empty (`omitempty`)."""

    def encode(value: object) -> bytes:
        held = {} if value is None else _expect(value, dict)
        members = []
        for name, item in fields.items():
            key = name.removesuffix("_")
            try:
                written = item(held.get(key))
            except ShapeError as error:
                path = f"{key}.{error}" if str(error) else key
                raise ShapeError(path) from None
            if key == name or written not in _EMPTY:
                members.append(b'"%s":%s' % (key.encode(), written))
        return b"{" + b",".join(members) + b"}"

    return encode


_EMPTY = (b"null", b'""', b"0", b"false", b"[]", b"{}")
_MFA_METHOD = _structure(type_=_text, id_=_text, uses_passcode_=_flag, name_=_text)
_MFA_CONSTRAINT = _structure(any_=_list(_pointer(_MFA_METHOD)))
_MFA = _structure(mfa_request_id_=_text, mfa_constraints_=_map(_pointer(_MFA_CONSTRAINT)))
_AUTH = _structure(
    client_token=_text,
    accessor=_text,
    policies=_list(_text),
    token_policies=_list(_text),
    identity_policies=_list(_text),
    metadata=_map(_text),
    orphan=_flag,
    entity_id=_text,
    lease_duration=_integer,
    renewable=_flag,
    mfa_requirement=_pointer(_MFA),
)
_WRAP_INFO = _structure(
    token=_text,
    accessor=_text,
    ttl=_integer,
    creation_time=_time,
    creation_path=_text,
    wrapped_accessor=_text,
)
_SECRET = _structure(
    request_id=_text,
    lease_id=_text,
    lease_duration=_integer,
    renewable=_flag,
    data=_tree,
    warnings=_list(_text),
    auth_=_pointer(_AUTH),
    wrap_info_=_pointer(_WRAP_INFO),
    mount_type_=_text,
)
