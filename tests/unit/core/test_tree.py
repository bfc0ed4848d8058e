"""syncd.core.tree and syncd.core.yaml_text: text to tree."""

from __future__ import annotations

import re
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from syncd.core import yaml_text
from syncd.core.tree import LARGEST_JSON, Node, Scalar, TreeError, parse_json, values
from syncd.core.yaml_text import parse_first_yaml, parse_yaml

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "hunter2-canary"
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


BOMB = b"- &a0 x\n" + b"".join(
    b"- &a%d [%s]\n" % (level, b", ".join([b"*a%d" % (level - 1)] * 10)) for level in range(1, 9)
)
"""Eight lines that stand for a hundred million words."""


class TestJson:
    def test_objects_are_nodes_that_remember_repeated_keys(self) -> None:
        """A key that is written twice keeps its first value and is remembered."""
        tree = parse_json(b'{"a": 1, "b": {"c": 2, "c": 3, "c": 4}, "a": 5}')
        assert tree == {"a": 1, "b": {"c": 2}}
        assert tree.duplicates == ["a"]
        assert tree["b"].duplicates == ["c", "c"]

    def test_a_byte_order_mark_is_no_content(self) -> None:
        """A UTF-8 byte order mark is skipped (RFC 8259, section 8.1)."""
        assert parse_json(b"\xef\xbb\xbf{}") == {}

    def test_a_surrogate_pair_is_one_character(self) -> None:
        """An escaped pair is a character of Unicode like any other."""
        assert parse_json(rb'["\ud83d\ude00", "\u00e9"]') == ["😀", "é"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"{\n  ]", "not valid JSON at line 2 column 3"),
            (b"", "not valid JSON at line 1 column 1"),
            (b"{'a': 1}", "not valid JSON at line 1 column 2"),
            (b'"ab\xff"', "not UTF-8 at byte 3"),
            (b"[NaN]", "a number out of range, NaN or Infinity"),
            (b"[-Infinity]", "a number out of range, NaN or Infinity"),
            (b"9" * 5000, "a number out of range"),
            (b"[" * 100_000, "nested too deeply"),
            (rb'"\ud800"', "half of a surrogate pair"),
            (rb'{"\udfff": 1}', "half of a surrogate pair"),
        ],
    )
    def test_what_is_not_json_is_refused_with_its_place(self, text: bytes, message: str) -> None:
        """Whatever is not JSON is a TreeError that says where."""
        with pytest.raises(TreeError, match=message):
            parse_json(text)

    @settings(max_examples=60)
    @given(JSON_VALUES)
    def test_every_json_value_survives(self, value: object) -> None:
        """Parsing what the standard library wrote gives the value back."""
        import json

        assert parse_json(json.dumps(value).encode()) == value


class TestYaml:
    @pytest.fixture(autouse=True, params=["libyaml", "PyYAML"])
    def _parser(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """By both parsers; the second is alone where libyaml is not built in."""
        assert len(yaml_text._CORE) == len(yaml_text._RAW) == 2
        if request.param == "PyYAML":
            monkeypatch.setattr(yaml_text, "_CORE", yaml_text._CORE[-1:])
            monkeypatch.setattr(yaml_text, "_RAW", yaml_text._RAW[-1:])

    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("true", True),
            ("FALSE", False),
            ("on", "on"),
            ("yes", "yes"),
            ("~", None),
            ("", None),
            ("Null", None),
            ("12", 12),
            ("-7", -7),
            ("0o17", 15),
            ("0x1F", 31),
            ("0660", 660),
            ("1:30", "1:30"),
            ("1_000", "1_000"),
            ("2026-01-01", "2026-01-01"),
            (".5", 0.5),
            ("1e3", 1000.0),
            (".inf", ".inf"),
            ("'true'", "true"),
            ('"12"', "12"),
            ("!!str 12", "12"),
            ("!!int '12'", 12),
            ("!!float 1", 1.0),
            (r'"\ud83d\ude00"', "😀"),
            ("[1, [a]]", [1, ["a"]]),
        ],
    )
    def test_scalars_follow_the_core_schema(self, written: str, value: object) -> None:
        """Scalars mean what YAML 1.2's core schema says, not what YAML 1.1 did."""
        (tree,) = parse_yaml(f"key: {written}".encode())
        assert tree == {"key": value}
        assert type(tree["key"]) is type(value)

    def test_mappings_are_nodes_that_remember_repeated_keys(self) -> None:
        """A key that is written twice keeps its first value and is remembered."""
        (tree,) = parse_yaml(b"a: 1\na: 2\n1: x\n")
        assert isinstance(tree, Node)
        assert tree == {"a": 1, "1": "x"}
        assert tree.duplicates == ["a"]

    def test_anchors_work_and_merge_keys_do_not(self) -> None:
        """An alias repeats a value; `<<` is a key like any other."""
        (tree,) = parse_yaml(b"a: &x {b: 1}\nc: *x\n<<: *x\n")
        assert tree == {"a": {"b": 1}, "c": {"b": 1}, "<<": {"b": 1}}

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("<<: *x", {"a": 1, "b": 2}),
            ("{<<: *x, b: 5}", {"b": 5, "a": 1}),
            ("{b: ~, <<: *x}", {"b": None, "a": 1}),
            ("{<<: [*x, *y]}", {"a": 1, "b": 2, "c": 4}),
            ("{<<: [*y, {d: 1}]}", {"b": 3, "c": 4, "d": 1}),
            ("{<<: {d: 1}}", {"d": 1}),
            ("{'<<': 1}", {"<<": 1}),
            ("{c: {<<: *x}}", {"c": {"a": 1, "b": 2}}),
        ],
    )
    def test_raw_mappings_have_merge_keys(self, written: str, expected: object) -> None:
        """A key that is written, also as null, precedes merged ones, and these each other."""
        text = f"- &x {{a: 1, b: 2}}\n- &y {{b: 3, c: 4}}\n- {written}\n"
        (tree,) = parse_yaml(text.encode(), raw=True)
        assert values(tree[2]) == expected

    def test_two_merge_keys_are_a_duplicate(self) -> None:
        """As any other key that is written twice."""
        (tree,) = parse_yaml(b"{<<: {a: 1}, <<: {b: 1}}", raw=True)
        assert tree.duplicates == ["<<"]

    @pytest.mark.parametrize("value", ["x", "~", "[x]", "[[{a: 1}]]"])
    def test_a_merge_key_takes_mappings_only(self, value: str) -> None:
        """Said with its place."""
        with pytest.raises(TreeError, match="at line 1 column 1: a merge key takes a mapping"):
            parse_yaml(f"<<: {value}".encode(), raw=True)

    def test_text_by_tag_is_as_good_as_quoted(self) -> None:
        """`!!str 07` is not a number."""
        (tree,) = parse_yaml(b"[!!str 07, 07, !!str '07']", raw=True)
        assert [(item.value, item.plain) for item in tree] == [
            ("07", False),
            (7, True),
            ("07", False),
        ]

    @pytest.mark.parametrize(
        ("text", "first", "more"),
        [
            (b"", [], False),
            (b"# nothing", [], False),
            (b"a", ["a"], False),
            (b"---\na\n...\n", ["a"], False),
            (b"---\n---\na", [""], True),
            (b"a\n---\nb", ["a"], True),
            (b"a\n---\n[", ["a"], True),
            (b"a\n...\n@", ["a"], True),
            (b"a\n...\n%YAML 1." + b"9" * 5000 + b"\n---\n", ["a"], True),
        ],
    )
    def test_the_first_document_alone(self, text: bytes, first: list[object], more: bool) -> None:
        """What follows is not read, but noticed."""
        assert parse_first_yaml(text) == (first, more)

    def test_the_first_document_must_be_yaml(self) -> None:
        """As for all of them."""
        with pytest.raises(TreeError, match="not valid YAML at line 1"):
            parse_first_yaml(b"[")

    def test_every_document_is_parsed(self) -> None:
        """A stream gives one tree per document; an empty one gives none."""
        assert parse_yaml(b"a: 1\n---\n- b\n") == [{"a": 1}, ["b"]]
        assert parse_yaml(b"# nothing\n") == []

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"a: 'x", "at line 1 column 6: found unexpected end of stream"),
            (b"a: b: c", "at line 1 column 5: mapping values are not allowed here"),
            (b"a: \xff", "not UTF-8 at byte 3"),
            (b"a: \x01", "a character that YAML does not allow"),
            (b"[" * 5000, "nested too deeply"),
            (b"- " * 5000 + b"x", "nested too deeply"),
            (BOMB, "too large, counting what its aliases repeat"),
            (b"? [a]\n: b", "at line 1 column 3: a key must be a plain word"),
            (b"a: &x [*x]", "unconstructable recursive node"),
            (b"&x a: {b: &y {c: *y}}", "unconstructable recursive node"),
            (b"!!python/object:os.system x", "could not determine a constructor"),
            (b"!!set {a}", "could not determine a constructor"),
            (b"!!binary aGk=", "could not determine a constructor"),
            (b"!!timestamp x", "could not determine a constructor"),
            (b"!!int abc", "does not match its tag"),
            (b"!!bool maybe", "does not match its tag"),
            (b"!!map abc", "not a mapping"),
            (b"!!seq abc", "not a sequence"),
            (b"!!int [a]", "expected a scalar node"),
            (b"a: " + b"1" * 65, "too long"),
            (b'"\\UFFFFFFFF"', "a number out of range"),
            (b'"\\ud800"', "half of a surrogate pair"),
            (b"%YAML 1." + b"9" * 5000 + b"\n---\n", "a number out of range"),
        ],
    )
    def test_what_is_not_plain_yaml_is_refused(self, text: bytes, message: str) -> None:
        """Whatever is not plain YAML is a TreeError that says where."""
        with pytest.raises(TreeError, match=message):
            parse_yaml(text)

    def test_a_raw_scalar_keeps_its_characters(self) -> None:
        """Raw scalars know how they are written, what they mean, and whether they are quoted."""
        (tree,) = parse_yaml(b"a: 007\nb: '1e3'\nc: [~]\n", raw=True)
        assert (tree["a"], tree["a"].value, tree["a"].plain) == ("007", 7, True)
        assert (tree["b"], tree["b"].value, tree["b"].plain) == ("1e3", "1e3", False)
        assert isinstance(tree["c"][0], Scalar)
        assert values(tree) == {"a": 7, "b": "1e3", "c": [None]}

    def test_values_leave_plain_trees_alone(self) -> None:
        """A tree without raw scalars has itself as values."""
        assert values([1, {"a": None}]) == [1, {"a": None}]


def _refusal(parse: Callable[[bytes], object], text: bytes) -> str:
    """The message of the only error that a parser may raise, empty when it raises none."""
    try:
        parse(text)
    except TreeError as error:
        return str(error)
    return ""


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_parsed_or_refused(data: bytes) -> None:
    """No input makes a parser raise anything but TreeError, on one line."""
    raw = (parse_first_yaml, lambda text: parse_yaml(text, raw=True))
    for parse in (parse_json, parse_yaml, *raw):
        assert "\n" not in _refusal(parse, data)


FRAGMENTS = st.sampled_from(
    [
        *"-?:,[]{}#&*!|>'\"%@` \n\t\\a1~",
        "key: ",
        "\n  - ",
        "!!int ",
        "!!map ",
        "&a ",
        "*a",
        "<<: ",
        "---\n",
        "%YAML 1.1\n",
        "\\ud800",
        "\\x",
        "{}",
        "true",
        "1e999",
        CANARY,
    ]
)


@settings(max_examples=200)
@given(st.lists(FRAGMENTS, max_size=25).map("".join))
def test_no_refusal_quotes_the_text(text: str) -> None:
    """However a text is broken, a secret in it does not reach the message."""
    for parse in (parse_json, parse_yaml):
        assert CANARY not in _refusal(parse, text.encode())


def _written(tree: object) -> object:
    """A tree with everything that raw scalars and mappings know."""
    if isinstance(tree, Scalar):
        return (str(tree), repr(tree.value), tree.plain)
    if isinstance(tree, Node):
        return ([(key, _written(item)) for key, item in tree.items()], tree.duplicates)
    if isinstance(tree, list):
        return [_written(item) for item in tree]
    return tree


@settings(max_examples=300)
@given(st.lists(FRAGMENTS.filter(lambda text: text != "!"), max_size=25).map("".join))
def test_both_parsers_read_the_same(text: str) -> None:
    """libyaml accepts more, a tab behind a word and `#` right behind `|`: so do Go's libraries.

    And it takes nothing with the tag `!` for a text, not for null.
    """
    fast, own = yaml_text._RAW
    try:
        found = [_written(tree) for tree in yaml_text._documents(fast(text))]
    except (yaml.YAMLError, TreeError):
        return
    try:
        assert found == [_written(tree) for tree in yaml_text._documents(own(text))]
    except yaml.YAMLError:
        assert re.search(r"\t|[|>][-+0-9]*#", text)


@pytest.mark.parametrize("item", [b"[]", b"{}", b'{"a": [0, {"b": []}]}', b"0"], ids=repr)
def test_json_of_too_many_values(item: bytes) -> None:
    """They are counted before anything is parsed, since a byte can take a hundred of memory."""
    text = b"[" + b",".join([item] * (LARGEST_JSON + 1)) + b"]"
    tracemalloc.start()
    try:
        with pytest.raises(TreeError, match="too many values: 750,000 brackets"):
            parse_json(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000
    assert len(parse_json(b"[" + b",".join([b"0"] * (LARGEST_JSON - 1)) + b"]")) > 1000


@pytest.mark.parametrize("text", [b"a:\n\tb: 1", b"a:\n  b: 1\n\tc: 2", b"a:\n \t- 1", b"\ta: 1"])
def test_a_tab_is_named(text: bytes) -> None:
    """YAML does not allow it in an indentation, and an editor does not show it."""
    with pytest.raises(TreeError, match=r"at line \d column \d: a tab; indent with spaces"):
        parse_yaml(text)
