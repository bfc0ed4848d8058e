"""syncd.core.decode: trees to types, every problem at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from syncd.core.decode import (
    Duration,
    FileMode,
    Path,
    Problem,
    Size,
    Text,
    decode,
    did_you_mean,
    schema,
)
from syncd.core.tree import parse_json
from syncd.core.yaml_text import parse_yaml

CANARY = "hunter2-canary"


class Cat(msgspec.Struct, frozen=True, tag="cat", tag_field="kind"):
    lives: Annotated[int, msgspec.Meta(ge=1, le=9)] = 9


class Dog(msgspec.Struct, frozen=True, tag="dog", tag_field="kind"):
    name: str


class Box(msgspec.Struct, frozen=True):
    pets: tuple[Cat | Dog, ...] = ()
    cat: Cat | None = None
    labels: dict[str, str] = {}
    sizes: list[int] = []
    color: Literal["red", "blue"] = "red"
    only: Literal["one"] = "one"
    open: bool = False
    weight: float = 1.0
    code: Annotated[str, msgspec.Meta(pattern="^x", description="an x", examples=["xy"])] = "x"
    port: Annotated[int, msgspec.Meta(ge=1)] | Literal[""] = ""
    wait: Duration = Duration(1)
    limit: Size = Size(1)
    mode: FileMode = FileMode(0o600)
    free: Any = None
    inner: Inner | None = None


class Inner(msgspec.Struct, frozen=True):
    must: str


class Loose(msgspec.Struct, frozen=True):
    """What may be written in a short form and in a long one."""

    items: tuple[Inner | str, ...] = ()
    inner: Inner | tuple[Inner, ...] | None = None


class Written(msgspec.Struct, frozen=True):
    text: Text = Text("t")
    free: Any = None
    open: bool = False
    sizes: tuple[int, ...] = ()


class Outer(msgspec.Struct, frozen=True):
    box: Box
    name: str = "n"


def problems_of(yaml: str, type_: type = Box) -> list[tuple[Path, str, str]]:
    """Every problem of a YAML text."""
    _, problems = decode(parse_yaml(yaml.encode())[0], type_)
    return [(problem.path, problem.message, problem.hint) for problem in problems]


class TestGood:
    def test_every_kind_of_type_is_decoded(self) -> None:
        """Structures, unions, lists, mappings and leaves come out typed."""
        tree = parse_yaml(
            b"pets: [{kind: cat, lives: 3}, {kind: dog, name: rex}]\ncat: ~\nlabels: {a: b}\n"
            b"sizes: [1, 2]\ncolor: blue\nopen: true\nweight: 2\ncode: xyz\nport: 80\n"
            b'wait: 250ms\nlimit: 1MiB\nmode: "0660"\nfree: {a: [1]}\ninner: {must: x}\n'
        )[0]
        box, problems = decode(tree, Box)
        assert problems == []
        assert box == Box(
            pets=(Cat(3), Dog("rex")),
            labels={"a": "b"},
            sizes=[1, 2],
            color="blue",
            open=True,
            weight=2.0,
            code="xyz",
            port=80,
            wait=Duration(0.25),
            limit=Size(1 << 20),
            mode=FileMode(0o660),
            free={"a": [1]},
            inner=Inner("x"),
        )

    def test_short_and_long_forms(self) -> None:
        """The form of the value decides; a mistake is reported in the form that it resembles."""
        for yaml, inner in (
            ("{must: a}", Inner("a")),
            ("[{must: a}]", (Inner("a"),)),
            ("null", None),
        ):
            tree = parse_yaml(f"{{items: [a, {{must: b}}], inner: {yaml}}}".encode())[0]
            assert decode(tree, Loose) == (Loose(("a", Inner("b")), inner), [])
        assert problems_of("{items: [1, {mast: b}, []], inner: 7}", Loose) == [
            (("items", 0), "is a number, but must be a string", "put it in quotes"),
            (("items", 1, "mast"), "unknown key", "did you mean must?"),
            (("items", 1, "must"), "is missing", "add must"),
            (("items", 2), "is a list, but must be a string", "put it in quotes"),
            (("inner",), "must be a mapping, not a number", "write key: value"),
        ]

    def test_raw_scalars_mean_what_they_are_or_what_they_say(self) -> None:
        """A `Text` keeps its characters; any other type takes the scalar's value."""
        (tree,) = parse_yaml(b"text: 007\nopen: true\nfree: [1, a]\nsizes: [1]\n", raw=True)
        assert decode(tree, Written) == (Written(Text("007"), [1, "a"], True, (1,)), [])
        (tree,) = parse_yaml(b"text: ~", raw=True)
        assert decode(tree, Written)[0] == Written(text=Text())

    @pytest.mark.parametrize(
        ("written", "seconds"),
        [
            ("250ms", 0.25),
            ("30s", 30),
            ("1.5m", 90),
            ("1h", 3600),
            ("30d", 2592000),
            ("7", 7),
            (7, 7),
            (0.5, 0.5),
        ],
    )
    def test_durations(self, written: object, seconds: float) -> None:
        """Durations carry a unit, or are seconds."""
        assert decode(written, Duration) == (seconds, [])

    @pytest.mark.parametrize(
        ("written", "size"),
        [("64KiB", 1 << 16), ("1MiB", 1 << 20), ("2GiB", 2 << 30), ("5B", 5), ("5", 5), (5, 5)],
    )
    def test_sizes(self, written: object, size: int) -> None:
        """Sizes carry a unit, or are bytes."""
        assert decode(written, Size) == (size, [])

    @pytest.mark.parametrize("written", ["0660", "660", "0o660"])
    def test_file_modes(self, written: str) -> None:
        """A mode is an octal string."""
        assert decode(written, FileMode) == (0o660, [])


_SIGNS: list[object] = ["", "-1", -1, True, None, []]
UNREADABLE: list[tuple[Any, list[object]]] = [
    (Duration, [*_SIGNS, "1w", "1 s", "\N{ARABIC-INDIC DIGIT ONE}s", "9" * 500, 1e300]),
    (Duration, [float("inf"), float("nan")]),
    (Size, [*_SIGNS, "1MB", "1.5MiB", 1.5, "9" * 5000]),
    (FileMode, [*_SIGNS, "0888", "06600", 0o660]),
    (Text, [1, None, []]),
]


class TestBad:
    @pytest.mark.parametrize(
        ("type_", "tree"), [(type_, tree) for type_, trees in UNREADABLE for tree in trees]
    )
    def test_leaves_of_our_own_say_how_to_write_them(self, type_: Any, tree: object) -> None:
        """What cannot be read as a duration, size, mode or text gets an example."""
        value, (problem,) = decode(tree, type_)
        assert value is None
        names = {Duration: "duration", Size: "size", FileMode: "file mode", Text: "string"}
        assert problem.message.endswith(f"is not a {names[type_]}")
        assert problem.hint.startswith("write a")

    @pytest.mark.parametrize(
        ("yaml", "path", "message", "hint"),
        [
            ("pets: 1", ("pets",), "must be a list, not a number", "start each item with -"),
            ("labels: x", ("labels",), "must be a mapping, not a string", "write key: value"),
            ("labels: {a: 1}", ("labels", "a"), "must be a string", "put it in quotes"),
            ("[]", (), "must be a mapping, not a list", "write key: value"),
            ("inner: true", ("inner",), "must be a mapping, not a boolean", "write key: value"),
            ("inner: {}", ("inner", "must"), "is missing", "add must"),
            ("colour: red", ("colour",), "unknown key", "did you mean color?"),
            ("a: 1\na: 2", ("a",), "is written twice", "keep one of them"),
            ("labels: {a: x, a: y}", ("labels", "a"), "is written twice", "keep one of them"),
            ("color: green", ("color",), "must be one of blue, red", "one of these values"),
            ("color: bleu", ("color",), "must be one of blue, red", "did you mean blue?"),
            ("color: 1", ("color",), "must be one of blue, red", "one of these values"),
            ("only: two", ("only",), "must be one of one", "one of these values"),
            ("open: yes", ("open",), "must be a boolean", "write true or false"),
            ("weight: x", ("weight",), "must be a number", "in digits"),
            ("code: y", ("code",), "is a string, but must be an x", "write it like xy"),
            ("sizes: [1, x]", ("sizes", 1), "must be an integer", "in digits"),
            ("port: 0", ("port",), "must be an integer from 1", "in digits"),
            ("cat: {kind: cat, lives: 10}", ("cat", "lives"), "from 1 to 9", "in digits"),
            ("cat: x", ("cat",), "must be a mapping, not a string", "start with kind:"),
            ("pets: [{}]", ("pets", 0, "kind"), "is missing", "use one of cat, dog"),
            ("pets: [{kind: dgo}]", ("pets", 0, "kind"), "must be one of cat, dog", "mean dog?"),
            ("pets: [{kind: [a]}]", ("pets", 0, "kind"), "must be one of cat, dog", "one of these"),
            ("pets: [~]", ("pets", 0), "must be a mapping, not empty", "start with kind:"),
        ],
    )
    def test_a_problem_says_where_what_and_how(
        self, yaml: str, path: Path, message: str, hint: str
    ) -> None:
        """Each problem has its key path, what is wrong, and what to write."""
        found = problems_of(yaml)
        assert path in [place for place, _, _ in found]
        (said,) = [(m, h) for place, m, h in found if place == path and m != "unknown key"] or [
            (m, h) for place, m, h in found if place == path
        ]
        assert message in said[0]
        assert hint in said[1]

    def test_all_problems_are_told_in_order(self) -> None:
        """One pass finds everything that is wrong, wherever it stands."""
        found = problems_of("box: {pets: [1, {kind: dog}], zzz: 1, open: 3}\nname: 4\nx: 1", Outer)
        assert [path for path, _, _ in found] == [
            ("box", "pets", 0),
            ("box", "pets", 1, "name"),
            ("box", "zzz"),
            ("box", "open"),
            ("name",),
            ("x",),
        ]

    def test_no_problem_quotes_a_value(self) -> None:
        """A secret that stands where something else belongs is not repeated."""
        fields = [field.encode_name for field in msgspec.structs.fields(Box)]
        yaml = "".join(f"{field}: [{CANARY}]\n" for field in fields if field != "free")
        found = problems_of(yaml)
        assert len(found) == len(fields) - 1
        assert CANARY not in repr(found)


class TestCheck:
    def test_is_called_for_every_structure(self) -> None:
        """Neither an unknown key nor a bad value hides a contradiction."""

        def check(value: object, path: Path) -> list[Problem]:
            return [Problem(path, f"checked {type(value).__name__}", "none")]

        tree = parse_yaml(b"pets: [{kind: dog, name: a, x: 1}, {kind: cat, lives: 0}]")[0]
        box, problems = decode(tree, Box, check)
        assert box is None
        assert [(p.path, p.message) for p in problems] == [
            (("pets", 0, "x"), "unknown key"),
            (("pets", 0), "checked Dog"),
            (("pets", 1, "lives"), "is a number, but must be an integer from 1 to 9"),
            (("pets", 1), "checked Cat"),
            ((), "checked Box"),
        ]

    @pytest.mark.parametrize(
        ("yaml", "found"),
        [
            ("[{kind: dog}, {kind: dog, name: 3}, {kind: dgo, name: a}, 7]", []),
            ("[{kind: dog, name: a}, 7, {kind: dog, name: a}]", [("pets", 2, "name")]),
        ],
    )
    def test_a_stand_in_contradicts_nothing(self, yaml: str, found: list[Path]) -> None:
        """Only what was written is checked: two names that cannot be read are not one name."""

        def check(value: object, path: Path) -> list[Problem]:
            if not isinstance(value, Box):
                return []
            names = [getattr(pet, "name", None) for pet in value.pets]
            return [
                Problem((*path, "pets", index, "name"), "is used twice", "none")
                for index, name in enumerate(names)
                if name is not None and name in names[:index]
            ]

        problems = decode(parse_yaml(f"pets: {yaml}".encode())[0], Box, check)[1]
        assert [p.path for p in problems if p.message == "is used twice"] == found


def test_did_you_mean_offers_the_closest_word_or_all() -> None:
    """A slip of the pen is recognised; anything else gets the list."""
    assert did_you_mean("timeuot", ["timeout", "url"]) == "did you mean timeout?"
    assert did_you_mean("zzz", ["url", "timeout"]) == "use one of timeout, url"
    assert did_you_mean("zzz", ["url"], otherwise="remove it") == "remove it"
    assert did_you_mean("ulr", ["url"], otherwise="remove it") == "did you mean url?"


class TestSchema:
    def test_takes_what_decode_takes(self) -> None:
        """The JSON Schema is valid, and lets through durations, sizes and modes as written."""
        document = schema(Box)
        jsonschema.Draft202012Validator.check_schema(document)
        good = {"wait": "30s", "limit": 5, "mode": "0660", "pets": [{"kind": "cat"}]}
        jsonschema.validate(good, document)
        assert decode(good, Box)[1] == []

    @pytest.mark.parametrize(
        "bad", [{"wait": "soon"}, {"limit": "1 MB"}, {"mode": 432}, {"unknown": 1}, {"wait": True}]
    )
    def test_refuses_what_decode_refuses(self, bad: dict[str, object]) -> None:
        """Unknown keys and misspelt values fit neither."""
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema(Box))
        assert decode(bad, Box)[1] != []

    def test_tells_defaults_as_they_are_written(self) -> None:
        """A mode's default is the octal string that a user would write."""
        properties = schema(Box)["$defs"]["Box"]["properties"]
        assert properties["mode"]["default"] == "0600"
        assert properties["wait"]["default"] == 1


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["cat", "dog", "1s", "9" * 4999, "0660", "red", CANARY]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*(f.encode_name for f in msgspec.structs.fields(Box)), "kind", "zzz"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=200)
@given(TREES)
def test_any_tree_is_decoded_or_refused(tree: object) -> None:
    """No tree raises; a value and problems exclude each other; no problem quotes a value."""
    box, problems = decode(tree, Box)
    assert (box is None) == bool(problems)
    assert CANARY not in repr(problems)


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_any_json_is_decoded_or_refused(junk: bytes) -> None:
    """From bytes to types, nothing but the declared errors comes out."""
    from syncd.core.tree import TreeError

    try:
        tree = parse_json(junk)
    except TreeError:
        return
    value, problems = decode(tree, Box)
    assert (value is None) == bool(problems)


def test_a_long_word_is_not_compared() -> None:
    """Comparing takes time that grows with the length."""
    assert did_you_mean("k" * 1_000_000, ["key"]) == "use one of key"
    assert did_you_mean("kee", ["key"]) == "did you mean key?"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("30dd", "30dd is not a duration"),
        ("1.5 days", "1.5 days is not a duration"),
        # what may be a secret in the wrong place is not quoted
        ("soon", "is not a duration"),
        ("1a2b3c4d5e6f", "is not a duration"),
    ],
)
def test_a_number_with_a_bad_unit_is_shown(written: str, message: str) -> None:
    """A unit that was meant is easier to find by what was written."""
    _, (problem,) = decode(written, Duration)
    assert problem.message == message


def test_a_string_of_the_wrong_form_is_not_told_to_be_one() -> None:
    """Where nothing describes the form, the pattern does."""
    _, (problem,) = decode({"name": "A"}, Formed)
    assert problem.message == "does not have the form of such a value"
    assert problem.hint == "write one that matches ^[a-z]+$"


class Formed(msgspec.Struct):
    """A key with a form that nothing describes."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-z]+$")]
