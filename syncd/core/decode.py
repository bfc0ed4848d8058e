"""Tree to types: typed decoding that reports every problem at once, each with its key path.

msgspec stops at the first error, so that a user would correct a file one run at a time. Here the
msgspec types are walked: structures are taken apart, and only the leaves are passed to
`msgspec.convert`, so one pass finds all unknown keys, missing keys, duplicates and wrong types.

What cannot be decoded does not hide what its neighbours contradict: a check of the structure sees
a stand-in for it, and its problems with the stand-in are dropped.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, NewType, TypeVar, Union, get_args, get_origin

import msgspec

from syncd.core.tree import Node, Scalar, values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")
Path = tuple[str | int, ...]
_KINDS_KEY = "x-kinds"
_LONGEST_WORD = 100


class Problem(msgspec.Struct, frozen=True):
    """One reason why a tree cannot be decoded.

    Attributes:
        path: Keys and indices from the top to the place.
        message: What is wrong, never quoting the value.
        hint: What to write instead.
    """

    path: Path
    message: str
    hint: str


Check = Callable[[object, Path], list[Problem]]


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB)?")
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, None: 1}
_NUMBER_LIKE = re.compile(r"[-+]?[0-9]{1,6}([.,][0-9]{1,3})? ?[A-Za-z]{0,7}")
_MODE = re.compile(r"0?[0-7]{3}|0o[0-7]{3}")


def _written(kinds: list[str], pattern: re.Pattern[str]) -> msgspec.Meta:
    return msgspec.Meta(extra_json_schema={_KINDS_KEY: kinds, "pattern": f"^({pattern.pattern})$"})


Duration = NewType("Duration", Annotated[float, _written(["number", "string"], _DURATION)])
"""Seconds, written `250ms`, `30s`, `2m`, `1h`, `30d` or as a number of seconds."""

Size = NewType("Size", Annotated[int, _written(["integer", "string"], _SIZE)])
"""Bytes, written `64KiB`, `1MiB` or as a number of bytes."""

FileMode = NewType("FileMode", Annotated[int, _written(["string"], _MODE)])
"""Permission bits, written as an octal string such as `"0660"`."""


class Text(str):
    """A string, or any YAML scalar as it is written: `007` and `1e3` keep their characters."""

    __slots__ = ()


_FOREVER = 10 * 365 * 86400.0
_KINDS = {dict: "a mapping", list: "a list", str: "a string", bool: "a boolean"}


def decode(
    tree: object, type_: type[T], check: Check | None = None
) -> tuple[T | None, list[Problem]]:
    """Decodes a tree into `type_`.

    `check` returns the problems of a structure whose types are right. It is called for each
    structure, inner ones first.

    Returns:
        The value and no problems, or None and every problem in order of appearance.
    """
    walk = _Walk(check)
    value = walk.value(tree, type_, ())
    return (None if walk.problems else value), walk.problems


def schema(type_: type) -> dict[str, Any]:
    """The JSON Schema (2020-12) of what `decode` takes for `type_`."""
    document: dict[str, Any] = _as_decoded(msgspec.json.schema(type_))
    return document


def _as_decoded(described: Any) -> Any:
    """Adds what msgspec's own schema lacks: no unknown keys, and `30s` beside 30."""
    if isinstance(described, list):
        return [_as_decoded(item) for item in described]
    if not isinstance(described, dict):
        return described
    widened = {key: _as_decoded(item) for key, item in described.items() if key != _KINDS_KEY}
    if _KINDS_KEY in described:
        widened["type"] = described[_KINDS_KEY]
        if "default" in widened and widened["type"] == ["string"]:
            widened["default"] = f"{widened['default']:04o}"
    if "properties" in widened:
        widened["additionalProperties"] = False
    return widened


class _Walk:
    """One decoding: goes through tree and type together and collects the problems.

    A value that cannot be decoded is replaced by its field's default or by a stand-in.
    """

    def __init__(self, check: Check | None) -> None:
        self._check = check
        self._replaced: set[Path] = set()
        self.problems: list[Problem] = []

    def report(self, path: Path, message: str, hint: str) -> None:
        self.problems.append(Problem(path, message, hint))

    def reject(self, path: Path, type_: Any, message: str, hint: str) -> Any:
        self.report(path, message, hint)
        self._replaced.add(path)
        return _stand_in(type_)

    def value(self, tree: object, type_: Any, path: Path) -> Any:
        if isinstance(tree, Scalar) and type_ is not Text:
            tree = tree.value
        origin, arguments = get_origin(type_), get_args(type_)
        if origin in (Union, UnionType):
            return self.union(tree, arguments, path)
        if origin in (list, tuple):
            return self.items(tree, type_, path)
        if origin is dict:
            return self.mapping(tree, type_, path)
        if _is_struct(type_):
            if type_.__struct_config__.tag is not None:
                return self.tagged(tree, [type_], path)
            return self.struct(tree, type_, path)
        return self.leaf(tree, type_, path)

    def union(self, tree: object, arguments: tuple[Any, ...], path: Path) -> Any:
        if tree is None and NoneType in arguments:
            return None
        members = [member for member in arguments if member is not NoneType]
        if len(members) == 1:
            return self.value(tree, members[0], path)
        if all(map(_is_struct, members)):
            return self.tagged(tree, members, path)
        return self.mixed(tree, members, path)

    def mixed(self, tree: object, members: list[Any], path: Path) -> Any:
        """Of a structure, a list and scalars, what the value has the form of."""
        structs = [member for member in members if _is_struct(member)]
        lists = [member for member in members if get_origin(member) in (list, tuple)]
        scalars = [member for member in members if member not in (*structs, *lists)]
        if isinstance(tree, dict) and structs:
            return self.value(tree, structs[0], path)
        if isinstance(tree, list) and lists:
            return self.value(tree, lists[0], path)
        if scalars:
            return self.leaf(tree, reduce(or_, scalars), path)
        return self.value(tree, structs[0], path)

    def items(self, tree: object, type_: Any, path: Path) -> Any:
        if not isinstance(tree, list):
            message = f"must be a list, not {_kind(tree)}"
            return self.reject(path, type_, message, "start each item with -")
        item_type = get_args(type_)[0]
        return get_origin(type_)(
            [self.value(item, item_type, (*path, index)) for index, item in enumerate(tree)]
        )

    def mapping(self, tree: object, type_: Any, path: Path) -> Any:
        if not isinstance(tree, dict):
            return self.not_a_mapping(tree, type_, path)
        self.duplicates(tree, path)
        _, item_type = get_args(type_)
        return {key: self.value(item, item_type, (*path, key)) for key, item in tree.items()}

    def not_a_mapping(
        self, tree: object, type_: Any, path: Path, hint: str = "write key: value"
    ) -> Any:
        return self.reject(path, type_, f"must be a mapping, not {_kind(tree)}", hint)

    def struct(self, tree: object, type_: Any, path: Path) -> Any:
        if not isinstance(tree, dict):
            return self.not_a_mapping(tree, type_, path)
        self.duplicates(tree, path)
        fields = keys_of(type_)
        values = {}
        for key, item in tree.items():
            if key in fields:
                value = self.value(item, fields[key].type, (*path, key))
                if fields[key].required or (*path, key) not in self._replaced:
                    values[fields[key].name] = value
            elif key != type_.__struct_config__.tag_field:
                self.report((*path, key), "unknown key", did_you_mean(key, fields))
        for name, field in fields.items():
            if field.required and name not in tree:
                missing = self.reject((*path, name), field.type, "is missing", f"add {name}")
                values[field.name] = missing
        built = type_(**values)
        if self._check is not None:
            self.problems += filter(self.is_usable, self._check(built, path))
        return built

    def is_usable(self, problem: Problem) -> bool:
        """Whether a check's problem is about a value that was written, not about a stand-in."""
        path = problem.path
        return not any(path[:length] in self._replaced for length in range(len(path) + 1))

    def tagged(self, tree: object, members: list[Any], path: Path) -> Any:
        by_tag = {member.__struct_config__.tag: member for member in members}
        field = members[0].__struct_config__.tag_field
        if not isinstance(tree, dict):
            return self.not_a_mapping(tree, members[0], path, f"start with {field}:")
        tag = tree.get(field)
        if isinstance(tag, str) and tag in by_tag:
            return self.struct(tree, by_tag[tag], path)
        known = ", ".join(sorted(by_tag))
        message, hint = "is missing", f"use one of {known}"
        if field in tree:
            message, hint = f"must be one of {known}", _one_of(tag, by_tag)
        self.report((*path, field), message, hint)
        self._replaced.add(path)  # which keys it may have is unknown
        return _stand_in(members[0])

    def leaf(self, tree: object, type_: Any, path: Path) -> Any:
        if type_ in _PARSERS:
            parse, expected, hint = _PARSERS[type_]
            value = parse(tree)
            if value is None:
                return self.reject(path, type_, f"{_quoted(tree)}is not {expected}", hint)
            return value
        if type_ is Any:
            return values(tree)
        try:
            return msgspec.convert(tree, type_, strict=True)
        except msgspec.ValidationError:
            return self.reject(path, type_, *_expectation(tree, type_))

    def duplicates(self, tree: dict[str, Any], path: Path) -> None:
        for key in tree.duplicates if isinstance(tree, Node) else ():
            self.report((*path, key), "is written twice", "keep one of them")


def _quoted(tree: object) -> str:
    """A value that was meant as a number with a unit; what may be a secret is never quoted."""
    if isinstance(tree, str) and _NUMBER_LIKE.fullmatch(tree):
        return f"{tree} "
    return ""


def _is_struct(type_: object) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


class _Unknown(str):
    """A stand-in for a string: it equals no other string, so no check finds it twice."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _stand_in(type_: Any) -> Any:
    """A value of a type, for checks that look at what is around it."""
    while hasattr(type_, "__supertype__"):  # a NewType
        type_ = type_.__supertype__
    origin, arguments = get_origin(type_), get_args(type_)
    if origin in (Union, UnionType):
        return None if NoneType in arguments else _stand_in(arguments[0])
    if origin is Annotated:
        return _stand_in(arguments[0])
    if origin in (list, tuple, dict):
        return origin()
    if _is_struct(type_):
        fields = msgspec.structs.fields(type_)
        return type_(**{field.name: _stand_in(field.type) for field in fields if field.required})
    return -1 if type_ in (int, float) else _Unknown()


def _expectation(tree: object, type_: Any) -> tuple[str, str]:
    """What is wrong with a leaf, and how to write it, from the type's JSON Schema."""
    described = msgspec.json.schema(type_)
    described = described.get("anyOf", [described])[0]
    if "enum" in described:
        known = list(map(str, described["enum"]))
        return f"must be one of {', '.join(known)}", _one_of(tree, known)
    if "description" in described:
        expected, hint = described["description"], f"write it like {described['examples'][0]}"
    elif described["type"] == "string" and isinstance(tree, str):
        return (
            "does not have the form of such a value",
            f"write one that matches {described['pattern']}",
        )
    elif described["type"] == "integer":
        low, high = described.get("minimum"), described.get("maximum")
        limits = f" from {low}" * (low is not None) + f" to {high}" * (high is not None)
        expected, hint = f"an integer{limits}", "write it in digits, without quotes"
    else:
        expected, hint = _HINTS[described["type"]]
    return f"is {_kind(tree)}, but must be {expected}", hint


def _one_of(tree: object, known: Iterable[str]) -> str:
    otherwise = "write one of these values"
    return did_you_mean(tree, known, otherwise) if isinstance(tree, str) else otherwise


_HINTS = {
    "boolean": ("a boolean", "write true or false"),
    "number": ("a number", "write it in digits, without quotes"),
    "string": ("a string", "put it in quotes"),
}


def _duration(tree: object) -> Duration | None:
    if isinstance(tree, str):
        match = _DURATION.fullmatch(tree)
        seconds = float(match[1]) * _SECONDS[match[2]] if match else -1.0
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        seconds = tree
    else:
        return None
    return Duration(seconds) if 0 <= seconds <= _FOREVER else None


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


_PARSERS: dict[Any, tuple[Any, str, str]] = {
    Duration: (_duration, "a duration", "write a duration such as 250ms, 30s, 2m, 1h or 30d"),
    Size: (_size, "a size", "write a size such as 64KiB or 1MiB"),
    Text: (_text, "a string", "write a string"),
    FileMode: (_mode, "a file mode", 'write an octal mode in quotes, such as "0660"'),
}


@cache  # taking a structure apart costs more than decoding an entry of a vault config
def keys_of(type_: type[msgspec.Struct]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """The fields of a structure, by the key that a file has for each."""
    return {field.encode_name: field for field in msgspec.structs.fields(type_)}


def did_you_mean(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """A hint for an unknown word: the closest known one, or `otherwise`, or a list of all."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1) if len(word) <= _LONGEST_WORD else []
    if close:
        return f"did you mean {close[0]}?"
    return "use one of " + ", ".join(words) if otherwise is None else otherwise


def _kind(tree: object) -> str:
    if tree is None:
        return "empty"
    return next((name for kind, name in _KINDS.items() if isinstance(tree, kind)), "a number")
