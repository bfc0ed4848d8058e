"""Tree to types: typed decoding that reports every problem at once, each with its key path.

msgspec stops at the first error, which makes a user mend a file one run at a time. Here the
msgspec types are walked: structures are taken apart, and only the leaves are handed to
`msgspec.convert`, so one pass finds all unknown keys, missing keys, duplicates and wrong types.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import msgspec

from syncd.core.tree import Node, Scalar, values

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that keeps a tree from being decoded.

    Attributes:
        path: Keys and indices from the top to the place.
        message: What is wrong, never quoting the value.
        hint: What to write instead.
    """

    path: Path
    message: str
    hint: str


class Duration(float):
    """Seconds, written `250ms`, `30s`, `2m`, `1h` or as a number of seconds."""

    __slots__ = ()


class Size(int):
    """Bytes, written `64KiB`, `1MiB` or as a number of bytes."""

    __slots__ = ()


class FileMode(int):
    """Permission bits, written as an octal string such as `"0660"`."""

    __slots__ = ()


class Text(str):
    """A string, or any YAML scalar as it is written: `007` and `1e3` keep their characters."""

    __slots__ = ()


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_SIZE = re.compile(r"([0-9]+)(B|KiB|MiB|GiB)?")
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, None: 1}
_MODE = re.compile(r"0?[0-7]{3}|0o[0-7]{3}")
_FOREVER = 10 * 365 * 86400.0
_KINDS = {dict: "a mapping", list: "a list", str: "a string", bool: "a boolean"}


def decode(tree: object, type_: type[T]) -> tuple[T | None, list[Problem]]:
    """Decodes a tree into `type_`.

    Returns:
        The value and no problems, or None and every problem in order of appearance.
    """
    problems: list[Problem] = []
    value = _walk(tree, type_, (), problems)
    return (None if problems else value), problems


def schema(type_: type) -> dict[str, Any]:
    """The JSON Schema (2020-12) of what `decode` takes for `type_`."""
    document = msgspec.json.schema(type_, schema_hook=_schema_hook)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


def _schema_hook(type_: type) -> dict[str, Any]:
    if type_ is Duration:
        pattern = f"^{_DURATION.pattern}$"
        return {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": pattern}]}
    if type_ is Size:
        pattern = f"^{_SIZE.pattern}$"
        return {
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": pattern}]
        }
    return {"type": "string", "pattern": f"^({_MODE.pattern})$"}


def _walk(tree: object, type_: Any, path: Path, problems: list[Problem]) -> Any:  # noqa: C901, PLR0911 - one branch a kind of type
    if isinstance(tree, Scalar) and type_ is not Text:
        tree = tree.value
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is not None and origin not in (list, tuple, dict):  # a union
        if tree is None and type(None) in arguments:
            return None
        members = [member for member in arguments if member is not type(None)]
        if len(members) == 1:
            return _walk(tree, members[0], path, problems)
        if all(
            isinstance(member, type) and issubclass(member, msgspec.Struct) for member in members
        ):
            return _walk_tagged(tree, members, path, problems)
    if origin in (list, tuple):
        if not isinstance(tree, list):
            return _reject(
                path, f"must be a list, not {_kind(tree)}", "start each item with -", problems
            )
        items = [_walk(item, arguments[0], (*path, i), problems) for i, item in enumerate(tree)]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        if not isinstance(tree, dict):
            return _reject(
                path, f"must be a mapping, not {_kind(tree)}", "write key: value", problems
            )
        _report_duplicates(tree, path, problems)
        return {
            key: _walk(item, arguments[1], (*path, key), problems) for key, item in tree.items()
        }
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        if type_.__struct_config__.tag is not None:
            return _walk_tagged(tree, [type_], path, problems)
        return _walk_struct(tree, type_, path, problems)
    return _leaf(tree, type_, path, problems)


def _walk_struct(tree: object, type_: Any, path: Path, problems: list[Problem]) -> Any:
    if not isinstance(tree, dict):
        return _reject(path, f"must be a mapping, not {_kind(tree)}", "write key: value", problems)
    _report_duplicates(tree, path, problems)
    before = len(problems)
    fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}
    config = type_.__struct_config__
    values = {}
    for key, item in tree.items():
        if key in fields:
            values[fields[key].name] = _walk(item, fields[key].type, (*path, key), problems)
        elif key != config.tag_field:
            problems.append(Problem((*path, key), "unknown key", did_you_mean(key, fields)))
    problems.extend(
        Problem((*path, name), "is missing", f"add {name}")
        for name, field in fields.items()
        if field.required and name not in tree
    )
    return type_(**values) if len(problems) == before else None


def _walk_tagged(tree: object, members: list[Any], path: Path, problems: list[Problem]) -> Any:
    by_tag = {member.__struct_config__.tag: member for member in members}
    field = members[0].__struct_config__.tag_field
    tag = tree.get(field) if isinstance(tree, dict) else None
    if isinstance(tag, str) and tag in by_tag:
        return _walk_struct(tree, by_tag[tag], path, problems)
    choices = ", ".join(sorted(by_tag))
    if not isinstance(tree, dict):
        return _reject(
            path, f"must be a mapping, not {_kind(tree)}", f"start with {field}:", problems
        )
    if field not in tree:
        return _reject((*path, field), "is missing", f"use one of {choices}", problems)
    return _reject((*path, field), "is not a known value", f"use one of {choices}", problems)


def _leaf(tree: object, type_: Any, path: Path, problems: list[Problem]) -> Any:
    if type_ in _PARSERS:
        parse, hint = _PARSERS[type_]
        value = parse(tree)
        return value if value is not None else _reject(path, "cannot be read", hint, problems)
    if type_ is Any:
        return values(tree)
    try:
        return msgspec.convert(tree, type_, strict=True)
    except msgspec.ValidationError:
        return _reject(
            path, f"is {_kind(tree)} where it does not fit", _expectation(type_), problems
        )


def _expectation(type_: Any) -> str:
    described = msgspec.json.schema(type_)
    described = next(iter(described.get("$defs", {}).values()), described)
    if "enum" in described:
        return "use one of " + ", ".join(str(choice) for choice in described["enum"])
    return f"use {described.get('type', 'another type')} (quote a string that looks like a number)"


def _duration(tree: object) -> Duration | None:
    if isinstance(tree, bool) or not isinstance(tree, int | float | str):
        return None
    match = _DURATION.fullmatch(str(tree))
    if match is None:
        return None
    seconds = float(match[1]) * _SECONDS[match[2]]
    return Duration(seconds) if seconds <= _FOREVER else None


def _size(tree: object) -> Size | None:
    if isinstance(tree, bool) or not isinstance(tree, int | str):
        return None
    match = _SIZE.fullmatch(str(tree))
    return Size(int(match[1]) * _BYTES[match[2]]) if match else None


def _text(tree: object) -> Text | None:
    if isinstance(tree, Scalar) and tree.value is None:
        return Text()
    return Text(tree) if isinstance(tree, str) else None


def _mode(tree: object) -> FileMode | None:
    if not isinstance(tree, str) or not _MODE.fullmatch(tree):
        return None
    return FileMode(int(tree.removeprefix("0o"), 8))


_PARSERS: dict[Any, tuple[Any, str]] = {
    Duration: (_duration, "write a duration such as 250ms, 30s, 2m or 1h"),
    Size: (_size, "write a size such as 64KiB or 1MiB"),
    Text: (_text, "write a string"),
    FileMode: (_mode, 'write an octal mode in quotes, such as "0660"'),
}


def _report_duplicates(tree: dict[str, Any], path: Path, problems: list[Problem]) -> None:
    if isinstance(tree, Node):
        problems.extend(
            Problem((*path, key), "is written twice", "keep one of them") for key in tree.duplicates
        )


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """A hint for a word that is unknown: the closest one known, else all of them."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {close[0]}?" if close else "known here: " + ", ".join(sorted(known))


def _reject(path: Path, message: str, hint: str, problems: list[Problem]) -> None:
    problems.append(Problem(path, message, hint))


def _kind(tree: object) -> str:
    if tree is None:
        return "empty"
    return next((name for kind, name in _KINDS.items() if isinstance(tree, kind)), "a number")
