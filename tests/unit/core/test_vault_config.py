"""syncd.core.vault_config: every problem at once, located, and never quoted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from jsonschema import Draft202012Validator

from syncd.core.findings import CODES
from syncd.core.model import Entry, Scope
from syncd.core.vault_config import (
    LONGEST_NAME,
    LONGEST_PATH,
    MOST_FINDINGS,
    RESOURCE_TYPES,
    decode_vault_config,
    lint_vault_config,
    schema,
)

SOURCE = "/etc/aidbox/vault-config.json"
SCOPE = {"resource_type": "Client", "id": "my-client"}
GOOD = {"path": "/run/vault-secrets/a", "scope": SCOPE}
CANARY = "hunter2-canary"


def text_of(**secrets: object) -> bytes:
    """A vault config with these entries."""
    return json.dumps({"secret": secrets}).encode()


def told(text: bytes) -> list[tuple[str, str]]:
    """Codes and places of all findings."""
    return [(found.code, found.where) for found in lint_vault_config(text, SOURCE)[1]]


def hint_of(code: str, text: bytes) -> str:
    """The remedy of the only finding with a code."""
    (found,) = [f for f in lint_vault_config(text, SOURCE)[1] if f.code == code]
    assert found.source == SOURCE
    return found.hint


class TestGood:
    def test_gives_its_entries_in_order(self) -> None:
        """Names, paths and scopes come out as they stand, with nothing to remark."""
        everybody = {"path": "/run/b", "scope": {"resource_type": "TokenIntrospector"}}
        config, findings = decode_vault_config(text_of(b=everybody, a=GOOD), SOURCE)
        assert findings == []
        assert config is not None
        assert list(config.values()) == [
            Entry("b", "/run/b", (Scope("TokenIntrospector"),)),
            Entry("a", "/run/vault-secrets/a", (Scope("Client", "my-client"),)),
        ]

    @pytest.mark.parametrize("resource_type", RESOURCE_TYPES)
    def test_knows_the_documented_resource_types(self, resource_type: str) -> None:
        """No documented type is remarked upon."""
        assert told(text_of(a={"path": "/a", "scope": {"resource_type": resource_type}})) == []

    def test_cannot_be_changed(self) -> None:
        """A vault config in force stays as it is."""
        config, _ = decode_vault_config(text_of(a=GOOD), SOURCE)
        assert config is not None
        with pytest.raises(TypeError):
            config["b"] = config["a"]  # type: ignore[index]


class TestListScope:
    def test_of_one_element_is_read_with_its_exact_replacement(self) -> None:
        """The older form works, and the warning holds what to write instead."""
        text = text_of(a={"path": "/a", "scope": ["Client/my-client"]})
        config, _ = decode_vault_config(text, SOURCE)
        assert config is not None
        assert config["a"].scopes == (Scope("Client", "my-client"),)
        assert told(text) == [("scope-list", "$.secret.a.scope")]
        replacement = '"scope": {"resource_type": "Client", "id": "my-client"}'
        assert hint_of("scope-list", text) == f"write {replacement}"
        assert told(text_of(a={"path": "/a", **json.loads(f"{{{replacement}}}")})) == []

    def test_of_a_whole_type_has_no_id_in_its_replacement(self) -> None:
        """`Type` alone means every resource of the type."""
        text = text_of(a={"path": "/a", "scope": ["TokenIntrospector"]})
        assert (
            hint_of("scope-list", text) == 'write "scope": {"resource_type": "TokenIntrospector"}'
        )

    def test_of_several_elements_says_how_to_split(self) -> None:
        """An entry has one scope object, so several elements become several entries."""
        text = text_of(a={"path": "/a", "scope": ["Client/c", "TokenIntrospector", "Client/c"]})
        config, _ = decode_vault_config(text, SOURCE)
        assert config is not None
        assert config["a"].scopes == (Scope("Client", "c"), Scope("TokenIntrospector"))
        hint = hint_of("scope-list", text)
        assert "split it into 2 entries" in hint
        assert '"scope": {"resource_type": "Client", "id": "c"}' in hint
        assert '"scope": {"resource_type": "TokenIntrospector"}' in hint

    def test_names_unknown_types_by_element(self) -> None:
        """Each element is looked at like a scope object."""
        assert told(text_of(a={"path": "/a", "scope": ["Client", "Clint/c"]})) == [
            ("resource-type-unknown", "$.secret.a.scope[1]"),
            ("scope-list", "$.secret.a.scope"),
        ]

    @pytest.mark.parametrize("element", ["", "/id", "Client/", "Client/a/b", "Cli\nent", "\x00"])
    def test_with_a_malformed_element_is_an_error(self, element: str) -> None:
        """What is neither `Type` nor `Type/id` names nobody."""
        text = text_of(a={"path": "/a", "scope": ["Client", element]})
        assert told(text) == [("scope-invalid", "$.secret.a.scope[1]")]

    def test_that_is_empty_is_an_error(self) -> None:
        """A secret that no resource may use is a mistake."""
        text = text_of(a={"path": "/a", "scope": []})
        assert told(text) == [("scope-invalid", "$.secret.a.scope")]

    def test_of_objects_is_an_error_that_says_so(self) -> None:
        """A list of scope objects is a mixture of both forms."""
        text = text_of(a={"path": "/a", "scope": [SCOPE]})
        assert told(text) == [("type-wrong", "$.secret.a.scope[0]")]
        assert "one scope object per entry" in hint_of("type-wrong", text)


class TestErrors:
    @pytest.mark.parametrize(
        ("entry", "found"),
        [
            ({"scope": SCOPE}, ("key-missing", "$.secret.a.path")),
            ({"path": "/a"}, ("key-missing", "$.secret.a.scope")),
            (
                {"path": "/a", "scope": {"id": "x"}},
                ("key-missing", "$.secret.a.scope.resource_type"),
            ),
            ([], ("type-wrong", "$.secret.a")),
            (None, ("type-wrong", "$.secret.a")),
            ({"path": 1, "scope": SCOPE}, ("type-wrong", "$.secret.a.path")),
            ({"path": "/a", "scope": "Client/c"}, ("type-wrong", "$.secret.a.scope")),
            (
                {"path": "/a", "scope": {"resource_type": True}},
                ("type-wrong", "$.secret.a.scope.resource_type"),
            ),
            ({"path": "/a", "scope": {**SCOPE, "id": None}}, ("type-wrong", "$.secret.a.scope.id")),
            (
                {"path": "/a", "scope": {**SCOPE, "id": ""}},
                ("scope-invalid", "$.secret.a.scope.id"),
            ),
            (
                {"path": "/a", "scope": {"resource_type": "Cli\tent"}},
                ("scope-invalid", "$.secret.a.scope.resource_type"),
            ),
            ({"path": "", "scope": SCOPE}, ("path-invalid", "$.secret.a.path")),
            ({"path": "/a\x00", "scope": SCOPE}, ("path-invalid", "$.secret.a.path")),
            ({"path": "/a\u202e", "scope": SCOPE}, ("path-invalid", "$.secret.a.path")),
            ({"path": "a", "scope": SCOPE}, ("path-not-absolute", "$.secret.a.path")),
            ({"path": "~/a", "scope": SCOPE}, ("path-not-absolute", "$.secret.a.path")),
            *(
                ({"path": path, "scope": SCOPE}, ("path-not-normalized", "$.secret.a.path"))
                for path in ("/", "/a/", "//a", "/a/./b", "/a/../b", "/..")
            ),
        ],
    )
    def test_keep_the_vault_config_from_being_used(
        self, entry: object, found: tuple[str, str]
    ) -> None:
        """Whatever an entry lacks, or has wrong, is one error at its place."""
        text = text_of(a=entry)
        assert told(text) == [found]
        assert decode_vault_config(text, SOURCE)[0] is None

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            (b"", ("vault-config-malformed", "")),
            (b"{", ("vault-config-malformed", "")),
            (b"\xff", ("vault-config-malformed", "")),
            (b"[]", ("type-wrong", "")),
            (b"{}", ("key-missing", "$.secret")),
            (b'{"secret": []}', ("type-wrong", "$.secret")),
        ],
    )
    def test_of_the_whole_file(self, text: bytes, found: tuple[str, str]) -> None:
        """A file that is no vault config at all says why."""
        assert told(text) == [found]
        assert decode_vault_config(text, SOURCE)[0] is None

    @pytest.mark.parametrize(("name", "place"), [("", "$.secret['']"), ("a\n", r"$.secret['a\n']")])
    def test_of_a_name_that_cannot_be_seen(self, name: str, place: str) -> None:
        """A name that nobody can see or write in one line is an error."""
        assert told(text_of(**{name: GOOD})) == [("name-invalid", place)]

    def test_of_keys_that_are_written_twice(self) -> None:
        """Repeated names, and repeated keys inside an entry and its scope, are errors."""
        scope = '{"resource_type": "Client", "id": "a", "id": "b"}'
        entry = f'{{"path": "/a", "path": "/b", "scope": {scope}}}'
        text = f'{{"secret": {{"a": {entry}, "a": 1}}, "secret": 1}}'.encode()
        assert told(text) == [
            ("key-duplicate", "$.secret"),
            ("name-duplicate", "$.secret.a"),
            ("key-duplicate", "$.secret.a.path"),
            ("key-duplicate", "$.secret.a.scope.id"),
        ]

    def test_are_told_all_at_once_with_every_entry_that_is_left(self) -> None:
        """One run names every mistake, and a linter can go on with what is usable."""
        text = text_of(good=GOOD, far={"path": "x", "scope": {}}, lost={"path": "/b"}, **{"": GOOD})
        entries, findings = lint_vault_config(text, SOURCE)
        assert [found.code for found in findings] == [
            "key-missing",
            "path-not-absolute",
            "key-missing",
            "name-invalid",
        ]
        assert entries == {
            "good": Entry("good", "/run/vault-secrets/a", (Scope("Client", "my-client"),)),
            "lost": Entry("lost", "/b", ()),
        }


class TestWarnings:
    def test_leave_the_vault_config_in_use(self) -> None:
        """What Aidbox tolerates is told and does no harm."""
        text = text_of(
            a={"path": "/a", "scope": {"resource_type": "client", "id": "Client/x"}, "Path": 1},
            b={"path": "/a", "scope": SCOPE},
        )
        config, findings = decode_vault_config(text, SOURCE)
        assert config is not None
        assert config["a"].scopes == (Scope("client", "Client/x"),)
        assert [(f.code, f.where) for f in findings] == [
            ("key-unknown", "$.secret.a.Path"),
            ("resource-type-unknown", "$.secret.a.scope.resource_type"),
            ("scope-id-unusual", "$.secret.a.scope.id"),
            ("path-shared", "$.secret.b.path"),
        ]
        assert not any(f.is_error for f in findings)
        assert "$.secret.a" in findings[-1].message

    def test_of_a_slip_of_the_pen_say_what_was_meant(self) -> None:
        """A close word is offered; without one, all that are known."""
        text = text_of(a={"path": "/a", "scope": {**SCOPE, "resourceType": "Client"}})
        assert hint_of("key-unknown", text) == "did you mean resource_type?"
        text = text_of(a={"path": "/a", "scope": {"resource_type": "Bundle"}})
        assert hint_of("resource-type-unknown", text).endswith(
            "AidboxTopicDestination, Client, IdentityProvider, TokenIntrospector"
        )
        text = text_of(a={"path": "/a", "scope": {"resource_type": "Clients"}})
        assert hint_of("resource-type-unknown", text) == "did you mean Client?"

    def test_of_an_empty_map(self) -> None:
        """A vault config without secrets is valid and probably not meant."""
        config, findings = decode_vault_config(b'{"secret": {}}', SOURCE)
        assert config is not None
        assert [f.code for f in findings] == ["vault-config-empty"]

    def test_of_a_forgotten_wrapper(self) -> None:
        """Entries at the top are an unknown key beside the missing `secret`."""
        assert told(json.dumps({"a": GOOD}).encode()) == [
            ("key-unknown", "$.a"),
            ("key-missing", "$.secret"),
        ]


@pytest.mark.parametrize(
    "text",
    [
        text_of(a={"path": CANARY, "scope": CANARY}),
        text_of(a={"path": f"/x/../{CANARY}", "scope": {"resource_type": CANARY, "id": CANARY}}),
        text_of(a=CANARY),
        text_of(a={"path": f"/{CANARY}", "scope": SCOPE}, b={"path": f"/{CANARY}", "scope": SCOPE}),
        b'{"secret": "' + CANARY.encode(),
        b'{"secret": "\\x' + CANARY.encode() + b'"}',
    ],
)
def test_no_finding_quotes_a_value(text: bytes) -> None:
    """A secret that was pasted into the wrong place does not travel on."""
    findings = lint_vault_config(text, SOURCE)[1]
    assert findings
    assert CANARY not in "".join(map(str, findings))


WORDS = st.sampled_from(
    ["/run/a", "a", "", "..", "/a/..", "//", "/\x00", "Client", "Client/x", "\n", "/é", "\ud800"]
)
VALUES = st.recursive(
    WORDS | st.none() | st.integers() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["path", "scope", "resource_type", "id", "secret", "resourceType", ""]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
SCOPES = (
    st.fixed_dictionaries({"resource_type": WORDS}, optional={"id": WORDS | VALUES})
    | st.lists(WORDS, max_size=3)
    | VALUES
)
SECRETS = st.fixed_dictionaries({"path": WORDS | VALUES, "scope": SCOPES}) | VALUES
CONFIGS = st.fixed_dictionaries({"secret": st.dictionaries(WORDS, SECRETS, max_size=4)}) | VALUES


def check_promises(text: bytes) -> None:
    """What holds for every input whatever."""
    config, findings = decode_vault_config(text, SOURCE)
    assert (config is None) == any(found.is_error for found in findings)
    for found in findings:
        assert found.code in CODES
        assert str(found).isprintable()
        assert found.message
        assert found.hint
    entries = config or {}
    for name, entry in entries.items():
        assert name == entry.name != ""
        assert entry.path.startswith("/")
        assert "\0" not in entry.path
        assert {"", ".", ".."}.isdisjoint(entry.path[1:].split("/"))
        assert entry.scopes
        assert all(scope.resource_type and scope.id != "" for scope in entry.scopes)
        entry.path.encode()


VALIDATOR = Draft202012Validator(schema())


@settings(max_examples=200)
@given(CONFIGS)
def test_what_is_decoded_fits_the_schema(config: Any) -> None:
    """The published schema refuses nothing that the decoder accepts."""
    if decode_vault_config(json.dumps(config).encode(), SOURCE)[0] is not None:
        assert VALIDATOR.is_valid(config)


@settings(max_examples=200)
@given(CONFIGS)
def test_mutated_configs_are_read_or_refused(config: Any) -> None:
    """However a vault config is bent, it raises nothing and lets no bad path through."""
    check_promises(json.dumps(config).encode())


@settings(max_examples=100)
@given(st.binary(max_size=100), CONFIGS, st.integers(0, 200), st.integers(0, 20))
def test_arbitrary_bytes_are_read_or_refused(
    junk: bytes, config: Any, start: int, length: int
) -> None:
    """Junk, and a vault config with junk in it, raises nothing."""
    check_promises(junk)
    text = json.dumps(config).encode()
    check_promises(text[:start] + junk[:length] + text[start + length :])


def test_many_mistakes_are_counted() -> None:
    """Of a hundred thousand, some are reported, errors and warnings for themselves."""
    wrong = ",".join(f'"n{number}": []' for number in range(1000))
    unknown = ",".join(f'"k{number}": 0' for number in range(1000))
    text = f'{{"secret": {{{wrong}, "x": {{{unknown}}}}}}}'.encode()
    entries, findings = lint_vault_config(text, "/v")
    assert entries == {}
    *shown, errors, warnings = findings
    assert len(shown) == 2 * MOST_FINDINGS
    assert (errors.is_error, errors.message) == (True, "has 802 more errors")
    assert (warnings.is_error, warnings.message) == (False, "has 800 more warnings")
    assert all(found.hint for found in findings)


def test_warnings_beyond_the_limit_are_no_errors() -> None:
    """A vault config with many warnings is in force."""
    entry = '{"path": "/p", "scope": {"resource_type": "X"}}'
    text = f'{{"secret": {{{",".join(f"{chr(34)}n{n}{chr(34)}: {entry}" for n in range(300))}}}}}'
    entries, findings = decode_vault_config(text.encode(), "/v")
    assert entries is not None
    assert len(entries) == 300
    assert len(findings) == MOST_FINDINGS + 1


@pytest.mark.parametrize(
    ("name", "path", "scope", "code"),
    [
        ("n" * (LONGEST_NAME + 1), "/p", '{"resource_type": "Client"}', "name-invalid"),
        ("n", "/" + "p" * LONGEST_PATH, '{"resource_type": "Client"}', "path-invalid"),
        ("n", "/p", f'{{"resource_type": "{"C" * (LONGEST_NAME + 1)}"}}', "scope-invalid"),
        ("n", "/p", f'{{"resource_type": "Client", "id": "{"i" * 2000}"}}', "scope-invalid"),
        ("n", "/p", f'["Client/{"i" * 2000}", "{"C" * 2000}"]', "scope-invalid"),
    ],
    ids=["name", "path", "type", "id", "list"],
)
def test_long_texts_are_refused(name: str, path: str, scope: str, code: str) -> None:
    """They would go into every event, metric and message."""
    text = f'{{"secret": {{"{name}": {{"path": "{path}", "scope": {scope}}}}}}}'
    entries, findings = decode_vault_config(text.encode(), "/v")
    assert entries is None
    assert code in {found.code for found in findings}
    assert max(len(str(found)) for found in findings) < 1000


class TestPlaceholders:
    """What nobody filled in is named where it is, instead of what follows from it."""

    @pytest.mark.parametrize("text", ["${X}", "<IDENTITY_CLIENT_ID>", "{{ .Values.x }}", "$(X)"])
    def test_in_every_value(self, text: str) -> None:
        """Names, paths and both forms of a scope."""
        path, scope = f"/run/{text}", {"resource_type": text, "id": text}
        found = told(text_of(**{text: {"path": path, "scope": scope}}))
        assert [code for code, _ in found] == ["vault-config-placeholder"] * 4
        assert decode_vault_config(text_of(a={"path": path, "scope": SCOPE}), SOURCE)[0]
        listed = told(text_of(a={"path": "/run/a", "scope": [text]}))
        assert ("vault-config-placeholder", "$.secret.a.scope[0]") in listed

    def test_where_a_value_is_wrong_because_of_one(self) -> None:
        """The remedy is to fill it in."""
        relative = text_of(a={"path": "${DIR}/a", "scope": SCOPE})
        assert "fill it in" in hint_of("path-not-absolute", relative)
        unquoted = b'{"secret": {"a": {"path": {{ .Values.path }}}}}'
        assert "fill in its placeholders" in hint_of("vault-config-malformed", unquoted)
        assert hint_of("vault-config-malformed", b"{") == "correct the JSON"
