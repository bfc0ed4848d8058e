"""Text to tree: JSON and YAML as plain values that keep what a decoder would lose.

Both parsers report duplicate keys instead of letting the last one win, and YAML is read by the core
schema of YAML 1.2 (section 10.3): `true` and `false` are the only booleans, `on`, `1:30` and
`2026-01-01` are strings. For formats with their own rules, scalars can be kept as written. Typed
decoding of the tree is in `syncd.core.decode`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import yaml

from syncd.core.errors import SyncdError

DEEPEST = 100
"""Levels of nested YAML. PyYAML's time grows with their square."""

LARGEST = 100_000
"""Nodes of YAML, each counted as often as aliases repeat it: a few lines can mean billions."""

LARGEST_JSON = 750_000
"""Brackets, braces and commas of JSON, which bound its values: a byte of text can take a hundred
bytes of memory. Those in strings count, too, since that is known before anything is parsed."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class TreeError(SyncdError):
    """The text is not JSON or YAML; the message names the place and quotes nothing of the text."""


class Node(dict[str, Any]):
    """A mapping that knows which of its keys were written more than once.

    Attributes:
        duplicates: The keys that occur again, in order; the first value is the one that is kept.
    """

    __slots__ = ("duplicates",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.duplicates: list[str] = []
        for key, value in pairs:
            if key in self:
                self.duplicates.append(key)
            else:
                self[key] = value


class Scalar(str):
    """A YAML scalar as written, for formats with their own rules for scalars.

    Attributes:
        value: Its value by the core schema: a string, number or boolean, or None.
        plain: Whether it is written without quotes, not as a block and not as `!!str`.
    """

    __slots__ = ("plain", "value")

    value: str | float | bool | None
    plain: bool


def parse_json(text: bytes) -> Any:  # noqa: ANN401 - a tree of JSON values has no narrower type
    """Parses JSON (RFC 8259), objects as `Node`.

    Raises:
        TreeError: Not UTF-8 or not JSON; names line and column. Or it has too many values.
    """
    if sum(map(text.count, (b"{", b"[", b","))) > LARGEST_JSON:
        raise TreeError(f"too many values: {LARGEST_JSON:,} brackets, braces and commas at most")
    try:
        tree = json.loads(
            text.decode("utf-8-sig"), object_pairs_hook=Node, parse_constant=_no_constant
        )
        if b"\\u" in text:
            json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise TreeError(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise TreeError("not valid JSON: an escape is half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise TreeError(
            f"not valid JSON at line {error.lineno} column {error.colno}: {_calm(error.msg)}"
        ) from None
    except RecursionError:
        raise TreeError("nested too deeply") from None
    except ValueError:
        raise TreeError("not valid JSON: a number out of range, NaN or Infinity") from None
    return tree


def parse_yaml(text: bytes, *, raw: bool = False) -> list[Any]:
    """Parses every document of a YAML stream, mappings as `Node`, with `raw` scalars as `Scalar`.

    Only `raw` knows merge keys (`<<`): they belong to formats that Go's libraries read.

    Raises:
        TreeError: Not UTF-8 or not YAML; names line and column.
    """
    with _explained():
        return list(
            yaml.load_all(text.decode("utf-8-sig"), Loader=_RawLoader if raw else _CoreLoader)
        )


def parse_first_yaml(text: bytes) -> tuple[list[Any], bool]:
    """Parses the first document of a YAML stream, as Go's `yaml.Unmarshal` does.

    What follows is not read, so that it need not even be YAML.

    Returns:
        The document with scalars as `Scalar`, or nothing where there is none; and whether another
        one follows.

    Raises:
        TreeError: The first document is not UTF-8 or not YAML; names line and column.
    """
    with _explained():
        loader = _RawLoader(text.decode("utf-8-sig"))
        if not loader.check_data():  # type: ignore[no-untyped-call]
            return [], False
        document = loader.get_data()
    try:
        return [document], bool(loader.check_data())  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, TreeError, ValueError, OverflowError):  # as below
        return [document], True


def _is_tab(mark: yaml.Mark) -> bool:
    """Whether a tab is at a place, or in the indentation before it."""
    text = mark.buffer or ""
    start = max(text.rfind("\n", 0, mark.pointer), text.rfind("\r", 0, mark.pointer)) + 1
    before = text[start : mark.pointer]
    return text[mark.pointer : mark.pointer + 1] == "\t" or (not before.strip() and "\t" in before)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise TreeError(f"not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        if mark is not None and _is_tab(mark):
            raise TreeError(f"not valid YAML{place}: a tab; indent with spaces") from None
        raise TreeError(f"not valid YAML{place}: {_calm(error.problem)}") from None
    except yaml.YAMLError:
        raise TreeError("not valid YAML: a character that YAML does not allow") from None
    except (ValueError, OverflowError):  # PyYAML checks neither "\\UFFFFFFFF" nor %YAML 1.<digits>
        raise TreeError("not valid YAML: a number out of range") from None


def values(tree: Any) -> Any:  # noqa: ANN401 - a tree has no narrower type
    """The tree with every `Scalar` replaced by its value."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, dict):
        return {key: values(item) for key, item in tree.items()}
    if isinstance(tree, list):
        return [values(item) for item in tree]
    return tree


def _no_constant(_name: str) -> None:
    raise ValueError


def _calm(problem: str | None) -> str:
    """Removes what PyYAML quotes of the text: a misplaced secret must not reach the message."""
    return re.sub(r"['\"].*", "…", problem or "syntax error", flags=re.DOTALL)


def _construct_mapping(loader: _CoreLoader, node: yaml.Node) -> Node:
    if not isinstance(node, yaml.MappingNode):
        raise _refusal("not a mapping", node)
    pairs = []
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refusal("a key must be a plain word", key_node)
        pairs.append((key_node.value, loader.construct_object(value_node, deep=True)))
    return Node(pairs)


def _construct_sequence(loader: _CoreLoader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _refusal("not a sequence", node)
    return [loader.construct_object(item, deep=True) for item in node.value]


def _construct_scalar(loader: _CoreLoader, node: yaml.ScalarNode) -> str | float | bool | None:
    text = loader.construct_scalar(node)
    pattern, _, convert = _SCALARS[node.tag]
    if len(text) > _LONGEST_NUMBER or not pattern.fullmatch(text):
        raise _refusal("does not match its tag, or is too long", node)
    return convert(text)


def _refusal(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2])
    return int(text) if base is None else int(text[2:], base)


_Convert = Callable[[str], str | float | bool | None]
_TAG = "tag:yaml.org,2002:"
_LONGEST_NUMBER = 64
_SCALARS: dict[str, tuple[re.Pattern[str], list[str], _Convert]] = {
    _TAG + "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""], lambda _: None),
    _TAG + "bool": (
        re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
        list("tTfF"),
        lambda text: text[0] in "tT",
    ),
    _TAG + "int": (
        re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
        list("-+0123456789"),
        _integer,
    ),
    _TAG + "float": (
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"),
        list("-+.0123456789"),
        float,
    ),
}


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's core scalars, and without merge keys and other tags."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's name
    yaml_constructors: ClassVar[dict[str | None, Callable[[Any, Any], Any]]] = {
        _TAG + "map": _construct_mapping,
        _TAG + "seq": _construct_sequence,
        _TAG + "str": yaml.SafeLoader.construct_yaml_str,
        **dict.fromkeys(_SCALARS, _construct_scalar),
        None: yaml.SafeLoader.construct_undefined,
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._size = 0
        self._sizes: dict[int, int] = {}

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Stops at too many brackets, before PyYAML looks for a key after each of them."""
        if self.flow_level >= DEEPEST:
            raise TreeError("nested too deeply")
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - PyYAML's signature
        """Composes one node, within bounds that count aliases as what they repeat."""
        alias, before = self.check_event(yaml.AliasEvent), self._size
        self._depth += 1
        if self._depth > DEEPEST:
            raise TreeError("nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._size += self._sizes.get(id(node), 1) if alias else 1
        if not alias:
            self._sizes[id(node)] = self._size - before
        if self._size > LARGEST:
            raise TreeError("too large, counting what its aliases repeat")
        return node

    def compose_scalar_node(self, anchor: dict[Any, Any]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if _SURROGATE.search(node.value):  # a pair of escapes, as JSON writes code points > U+FFFF
            try:
                node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise _refusal("an escape is half of a surrogate pair", node) from None
        return node


for _tag, (_pattern, _first, _) in _SCALARS.items():
    _CoreLoader.add_implicit_resolver(_tag, _pattern, _first)


class _RawLoader(_CoreLoader):
    """The core loader with merge keys, and with every scalar kept as it is written."""

    def compose_scalar_node(self, anchor: dict[Any, Any]) -> yaml.ScalarNode:
        is_text = self.peek_event().tag == _TAG + "str"  # type: ignore[no-untyped-call]
        node = super().compose_scalar_node(anchor)
        if is_text and node.style is None:
            node.style = "'"  # as good as quoted
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - PyYAML's signature
        value = super().construct_object(node, deep)
        if not isinstance(node, yaml.ScalarNode):
            return value
        scalar = Scalar(node.value)
        scalar.value = value
        scalar.plain = node.style is None
        return scalar


def _construct_merged(loader: _RawLoader, node: yaml.Node) -> Node:
    """A mapping with the keys that its merge key adds (https://yaml.org/type/merge.html)."""
    merged = _construct_mapping(loader, node)
    keys = [key for key, _ in node.value if key.value == "<<" and key.style is None]
    if not keys:
        return merged
    value = merged.pop("<<")
    for source in value if isinstance(value, list) else [value]:
        if not isinstance(source, Node):
            raise _refusal("a merge key takes a mapping or a list of mappings", keys[0])
        for key, item in source.items():
            merged.setdefault(key, item)
    return merged


_RawLoader.yaml_constructors = {**_CoreLoader.yaml_constructors, _TAG + "map": _construct_merged}
