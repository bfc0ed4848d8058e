"""YAML to a tree, by the core schema of YAML 1.2 (section 10.3).

`true` and `false` are the only booleans, `on`, `1:30` and `2026-01-01` are strings. For formats
with their own rules, scalars can be kept as written.

libyaml parses it, from which Go's libraries descend, in a tenth of the time. What it refuses is
parsed again by PyYAML itself, as is everything where libyaml is not built in: that knows the
escapes of JSON for code points beyond U+FFFF, and says the same of a mistake on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final, TypeVar

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from syncd.core.tree import Node, Scalar, TreeError, calm

T = TypeVar("T")

DEEPEST = 100
"""Levels of nested YAML. PyYAML's time grows with their square."""

LARGEST = 100_000
"""Nodes of YAML, each counted as often as aliases repeat it: a few lines can mean billions."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_yaml(text: bytes, *, raw: bool = False) -> list[Any]:
    """Parses every document of a YAML stream, mappings as `Node`, with `raw` scalars as `Scalar`.

    Only `raw` knows merge keys (`<<`): they belong to formats that Go's libraries read.

    Raises:
        TreeError: Not UTF-8 or not YAML; names line and column.
    """
    return _parse(text, _RAW if raw else _CORE, lambda loader: list(_documents(loader)))


def parse_first_yaml(text: bytes) -> tuple[list[Any], bool]:
    """Parses the first document of a YAML stream, as Go's `yaml.Unmarshal` does.

    What follows is not read, so that it need not even be YAML.

    Returns:
        The document with scalars as `Scalar`, or nothing where there is none; and whether another
        one follows.

    Raises:
        TreeError: The first document is not UTF-8 or not YAML; names line and column.
    """
    return _parse(text, _RAW, _first_document)


def _documents(loader: Any) -> Iterator[Any]:  # noqa: ANN401 - a class of `_over`
    while loader.check_data():
        yield loader.get_data()


def _first_document(loader: Any) -> tuple[list[Any], bool]:  # noqa: ANN401 - a class of `_over`
    if not loader.check_data():
        return [], False
    document = loader.get_data()
    try:
        return [document], bool(loader.check_data())
    except (yaml.YAMLError, TreeError, ValueError, OverflowError):  # as below
        return [document], True


def _parse(text: bytes, loaders: Sequence[Callable[[str], Any]], read: Callable[[Any], T]) -> T:
    with _explained():
        decoded = text.decode("utf-8-sig")
        for loader in loaders[:-1]:
            with suppress(yaml.YAMLError):
                return read(loader(decoded))
        return read(loaders[-1](decoded))


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
        raise TreeError(f"not valid YAML{place}: {calm(error.problem)}") from None
    except yaml.YAMLError:
        raise TreeError("not valid YAML: a character that YAML does not allow") from None
    except (ValueError, OverflowError):  # PyYAML checks neither "\\UFFFFFFFF" nor %YAML 1.<digits>
        raise TreeError("not valid YAML: a number out of range") from None


def _construct_mapping(loader: _Core, node: yaml.Node) -> Node:
    if not isinstance(node, yaml.MappingNode):
        raise _refusal("not a mapping", node)
    pairs = []
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refusal("a key must be a plain word", key_node)
        pairs.append((key_node.value, loader.construct_object(value_node, deep=True)))
    return Node(pairs)


def _construct_sequence(loader: _Core, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _refusal("not a sequence", node)
    return [loader.construct_object(item, deep=True) for item in node.value]


def _construct_scalar(loader: _Core, node: yaml.ScalarNode) -> str | float | bool | None:
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


class _Core(Composer, SafeConstructor, Resolver):
    """PyYAML's safe loader with YAML 1.2's core scalars, and without merge keys and other tags."""

    check_event: Callable[..., bool]
    peek_event: Callable[[], Any]

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's name
    yaml_constructors: ClassVar[dict[str | None, Callable[[Any, Any], Any]]] = {
        _TAG + "map": _construct_mapping,
        _TAG + "seq": _construct_sequence,
        _TAG + "str": yaml.SafeLoader.construct_yaml_str,
        **dict.fromkeys(_SCALARS, _construct_scalar),
        None: yaml.SafeLoader.construct_undefined,
    }

    def __init__(self) -> None:
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._depth = self._size = 0
        self._sizes: dict[int, int] = {}

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
    _Core.add_implicit_resolver(_tag, _pattern, _first)


class _Raw(_Core):
    """The core loader with merge keys, and with every scalar kept as it is written."""

    def compose_scalar_node(self, anchor: dict[Any, Any]) -> yaml.ScalarNode:
        is_text = self.peek_event().tag == _TAG + "str"
        node = super().compose_scalar_node(anchor)
        node.style = node.style or None  # that of a plain one is empty in libyaml
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


def _construct_merged(loader: _Raw, node: yaml.Node) -> Node:
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


_Raw.yaml_constructors = {**_Core.yaml_constructors, _TAG + "map": _construct_merged}


class _Own(Reader, Scanner, Parser):
    """PyYAML's own parser."""

    def __init__(self, stream: str) -> None:
        Reader.__init__(self, stream)
        Scanner.__init__(self)
        Parser.__init__(self)

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Stops at too many brackets, before PyYAML looks for a key after each of them."""
        if self.flow_level >= DEEPEST:
            raise TreeError("nested too deeply")
        super().fetch_flow_collection_start(token)


def _over(kind: type[_Core], parser: Any) -> Callable[[str], Any]:  # noqa: ANN401 - see `_PARSERS`
    class Loader(kind, parser):  # type: ignore[misc, valid-type]
        def __init__(self, stream: str) -> None:
            parser.__init__(self, stream)
            kind.__init__(self)

    return Loader


_PARSERS: Final = [*([yaml.cyaml.CParser] if yaml.__with_libyaml__ else []), _Own]  # type: ignore[attr-defined] # without "import … as"
"""The last one decides."""
_CORE: Final = [_over(_Core, parser) for parser in _PARSERS]
_RAW: Final = [_over(_Raw, parser) for parser in _PARSERS]
