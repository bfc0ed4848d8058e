"""Aidbox's vault config: which file holds a secret, and which resources may use it.

The file that `BOX_VAULT_CONFIG` names looks like this, and a scope without `id` means every
resource of its type:

    {"secret": {"client-secret": {"path": "/run/vault-secrets/client-secret",
                                  "scope": {"resource_type": "Client", "id": "my-client"}}}}

Its rules, after Aidbox's documentation of external secrets (release 2602):

- an entry has a name, a path and one scope object; without one of them it is an error;
- a path is absolute and normalized, because Aidbox opens it as it is written;
- a key that is written twice is an error, since JSON does not define which one counts;
- a warning is for what Aidbox accepts and is probably not intended: unknown keys and resource
  types, an empty map, two names for one file;
- the list form of a scope (`["Client/my-client", "TokenIntrospector"]`), which older published
  pages showed, is accepted with a warning that shows the new form.

Every problem is reported at once, with its JSON path and without quoting a value: a secret that was
pasted into the wrong place must not be logged. Whether the files exist is checked elsewhere
(`syncd.mount.read`, `syncd.lint.check`).
"""

from __future__ import annotations

import json
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from syncd.core.decode import did_you_mean, keys_of
from syncd.core.findings import CODES, Finding, Severity, finding, json_path
from syncd.core.model import Entry, Scope
from syncd.core.placeholders import FILL_IN, correction, holds_placeholder, unfilled
from syncd.core.tree import Node, TreeError, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RESOURCE_TYPES = ("AidboxTopicDestination", "Client", "IdentityProvider", "TokenIntrospector")
"""The resource types that Aidbox documents fields with secret references for."""

_Text = Annotated[str, msgspec.Meta(min_length=1)]


class ScopeObject(msgspec.Struct):
    """Which resources may use a secret: all of a type, or with an id only that one."""

    resource_type: Annotated[_Text, msgspec.Meta(examples=list(RESOURCE_TYPES))]
    id: _Text | msgspec.UnsetType = msgspec.UNSET


_ScopeList = Annotated[
    list[_Text],
    msgspec.Meta(
        min_length=1,
        description="Older form, of Type or Type/id; write one scope object instead.",
        extra_json_schema={"deprecated": True},
    ),
]


class SecretEntry(msgspec.Struct):
    """One secret: its file, and the resources that may use it."""

    path: Annotated[str, msgspec.Meta(pattern="^/", description="Absolute path of the file.")]
    scope: ScopeObject | _ScopeList


class Document(msgspec.Struct):
    """The whole file: every secret by the name that resources refer to."""

    secret: dict[_Text, SecretEntry]


MOST_FINDINGS = 200
"""Errors, and warnings, that are reported of one file; the others are counted."""

LONGEST_NAME = 1024
"""Characters of a name, type or id."""

LONGEST_PATH = 4095
"""Characters of a path (PATH_MAX without its end, limits.h)."""

_FHIR_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")


def text_problem(value: str, longest: int) -> str | None:
    """Why a text cannot be a name or a path, as the end of a sentence, or None."""
    if not value:
        return "is empty"
    if len(value) > longest:
        return f"is longer than {longest:,} characters"
    return "has a control or invisible character" if _UNSEEN.search(value) else None


def is_normalized(path: str) -> bool:
    """Whether an absolute path has no `.`, `..` or `//`, and no `/` at its end."""
    return {"", ".", ".."}.isdisjoint(path.split("/")[1:])


def is_fhir_id(text: str) -> bool:
    """Whether a text can be the id of a resource (FHIR R4, data type `id`)."""
    return _FHIR_ID.fullmatch(text) is not None


_UNSEEN = re.compile(  # controls, line ends, zero widths, changes of direction
    r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
)
_KINDS = {Node: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
_EXAMPLE = '{"resource_type": "Client", "id": "my-client"}'

Steps = tuple[str | int, ...]


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a vault config.

    `decode_vault_config` has more rules than a schema can express, and accepts nothing that the
    schema does not.
    """
    return msgspec.json.schema(Document)


def decode_vault_config(
    text: bytes, source: str
) -> tuple[Mapping[str, Entry] | None, list[Finding]]:
    """Decodes a vault config whose path is `source`.

    Returns:
        The entries by name, in the order of the file, or None when any finding is an error; and
        every finding.
    """
    entries, findings = lint_vault_config(text, source)
    return None if any(found.is_error for found in findings) else entries, findings


def lint_vault_config(text: bytes, source: str) -> tuple[Mapping[str, Entry], list[Finding]]:
    """Decodes as much of a vault config as possible, for a linter that goes on after an error.

    Returns:
        Every entry with a usable name and path, with no scopes where its scope is unusable; and
        every finding.
    """
    reader = _Reader(source)
    try:
        tree = parse_json(text)
    except TreeError as error:
        hint = correction(text, "correct the JSON")
        reader.report("vault-config-malformed", (), str(error), hint)
        return MappingProxyType({}), reader.findings
    entries = reader.document(tree)
    return MappingProxyType(entries), reader.all_findings()


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.findings: list[Finding] = []
        self.counts = dict.fromkeys(Severity, 0)
        self.omitted: dict[Severity, str] = {}

    def report(self, code: str, at: Steps, message: str, hint: str) -> None:
        severity = CODES[code]
        self.counts[severity] += 1
        if self.counts[severity] > MOST_FINDINGS:
            self.omitted[severity] = code
            return
        where = json_path(*at) if at else ""
        self.findings.append(finding(code, self.source, where, message, hint))

    def unknown(self, code: str, word: str, at: Steps, message: str, known: Iterable[str]) -> None:
        # finding a word that is close takes longer than all the rest
        wanted = self.counts[CODES[code]] < MOST_FINDINGS
        self.report(code, at, message, did_you_mean(word, known) if wanted else "")

    def all_findings(self) -> list[Finding]:
        """The findings, and how many there were beyond the limit."""
        for severity, code in self.omitted.items():
            more = self.counts[severity] - MOST_FINDINGS
            message, hint = f"has {more} more {severity.value}s", "correct the ones above first"
            self.findings.append(finding(code, self.source, "", message, hint))
        return self.findings

    def document(self, tree: object) -> dict[str, Entry]:
        top = self.fields(tree, (), Document, 'write {"secret": {"<name>": {…}}}')
        if top is None or "secret" not in top:
            return {}
        at: Steps = ("secret",)
        secrets = top["secret"]
        if not isinstance(secrets, Node):
            self.mistyped(at, "an object", secrets, 'write "secret": {"<name>": {…}}')
            return {}
        for name in secrets.duplicates:
            hint = "keep one of them: which one Aidbox uses is not defined"
            self.report("name-duplicate", (*at, name), "is written twice", hint)
        if not secrets:
            self.report("vault-config-empty", at, "has no entries", "add one for each secret")
        entries = {}
        for name, item in secrets.items():
            entry = self.entry(name, item, (*at, name))
            if entry is not None:
                entries[name] = entry
        self.shared_paths(entries, at)
        return entries

    def entry(self, name: str, item: object, at: Steps) -> Entry | None:
        named = self.plain("name-invalid", name, at, "use visible characters")
        hint = f'write {{"path": "/…", "scope": {_EXAMPLE}}}'
        fields = self.fields(item, at, SecretEntry, hint)
        if fields is None:
            return None
        scopes = self.scopes(fields["scope"], (*at, "scope")) if "scope" in fields else ()
        path = self.path(fields["path"], (*at, "path")) if "path" in fields else None
        return Entry(name, path, scopes) if named and path is not None else None

    def path(self, value: object, at: Steps) -> str | None:
        hint = "write the absolute path of the file"
        if not isinstance(value, str):
            self.mistyped(at, "a string", value, hint)
            return None
        if not self.plain("path-invalid", value, at, hint, LONGEST_PATH):
            return None
        if not value.startswith("/"):
            hint = FILL_IN if holds_placeholder(value) else "start it with /"
            self.report("path-not-absolute", at, "is not absolute", hint)
            return None
        if not is_normalized(value):
            hint = "remove ., .., // and a / at the end"
            self.report("path-not-normalized", at, "is not normalized", hint)
            return None
        return value

    def scopes(self, value: object, at: Steps) -> tuple[Scope, ...]:
        if isinstance(value, list):
            return self.scope_list(value, at)
        fields = self.fields(value, at, ScopeObject, f"write {_EXAMPLE}")
        if fields is None or "resource_type" not in fields:
            return ()
        hint = f"write one of {', '.join(RESOURCE_TYPES)}"
        type_ = self.text(fields["resource_type"], (*at, "resource_type"), hint)
        if type_ is not None:
            self.resource_type(type_, (*at, "resource_type"))
        if "id" not in fields:
            return () if type_ is None else (Scope(type_),)
        hint = f"write the resource's id, or leave id out for every {type_ or 'resource'}"
        id_ = self.text(fields["id"], (*at, "id"), hint)
        if id_ is not None and not is_fhir_id(id_) and not holds_placeholder(id_):
            hint = "write the id alone, without its type: letters, digits, - and ., 64 at most"
            self.report("scope-id-unusual", (*at, "id"), "is not a FHIR id", hint)
        return () if type_ is None or id_ is None else (Scope(type_, id_),)

    def scope_list(self, items: list[Any], at: Steps) -> tuple[Scope, ...]:
        """The older form, in which each element is `Type` or `Type/id`."""
        scopes = []
        hint = f"write {_EXAMPLE}"
        for index, item in enumerate(items):
            here = (*at, index)
            if not isinstance(item, str):
                self.mistyped(here, "a string", item, f"one scope object per entry: {hint}")
                continue
            self.placeholder(item, here)
            type_, slash, id_ = item.partition("/")
            unusable = _UNSEEN.search(item) or len(item) > LONGEST_NAME
            if not type_ or unusable or (slash and not is_fhir_id(id_)):
                self.report("scope-invalid", here, "is neither Type nor Type/id", hint)
                continue
            self.resource_type(type_, here)
            scopes.append(Scope(type_, id_ or None))
        if not items:
            self.report("scope-invalid", at, "names no resource", hint)
        if len(scopes) < len(items):
            return ()
        distinct = tuple(dict.fromkeys(scopes))
        if distinct:
            self.report("scope-list", at, "is written in the older list form", _rewritten(distinct))
        return distinct

    def resource_type(self, value: str, at: Steps) -> None:
        if value not in RESOURCE_TYPES and not holds_placeholder(value):
            message = "is not a resource type that refers to secrets"
            self.unknown("resource-type-unknown", value, at, message, RESOURCE_TYPES)

    def shared_paths(self, entries: Mapping[str, Entry], at: Steps) -> None:
        first: dict[str, str] = {}
        for entry in entries.values():
            other = first.setdefault(entry.path, entry.name)
            if other != entry.name:
                message = f"is also the file of {json_path(*at, other)}"
                hint = "keep one of them, unless each has its own scope"
                self.report("path-shared", (*at, entry.name, "path"), message, hint)

    def fields(
        self, value: object, at: Steps, structure: type[msgspec.Struct], hint: str
    ) -> Node | None:
        if not isinstance(value, Node):
            self.mistyped(at, "an object", value, hint)
            return None
        known = keys_of(structure)
        for key in value.duplicates:
            self.report("key-duplicate", (*at, key), "is written twice", "keep one of them")
        for key in value:
            if key not in known:
                self.unknown("key-unknown", key, (*at, key), "is unknown", known)
        for key, field in known.items():
            if key not in value and field.required:
                self.report("key-missing", (*at, key), "is missing", hint)
        return value

    def text(self, value: object, at: Steps, hint: str) -> str | None:
        if not isinstance(value, str):
            self.mistyped(at, "a string", value, hint)
            return None
        return value if self.plain("scope-invalid", value, at, hint) else None

    def plain(
        self, code: str, value: str, at: Steps, hint: str, longest: int = LONGEST_NAME
    ) -> bool:
        """Checks that a string is neither empty nor too long, and its characters are visible."""
        problem = text_problem(value, longest)
        if problem is not None:
            self.report(code, at, problem, hint)
        else:
            self.placeholder(value, at)
        return problem is None

    def placeholder(self, value: str, at: Steps) -> None:
        problem = unfilled(value)
        if problem is not None:
            self.report("vault-config-placeholder", at, *problem)

    def mistyped(self, at: Steps, expected: str, value: object, hint: str) -> None:
        kind = _KINDS.get(type(value), "a number")
        self.report("type-wrong", at, f"must be {expected}, not {kind}", hint)


def _rewritten(scopes: tuple[Scope, ...]) -> str:
    texts = ['"scope": ' + json.dumps(msgspec.to_builtins(scope)) for scope in scopes]
    if len(texts) == 1:
        return f"write {texts[0]}"
    return (
        f"an entry has one scope, so split it into {len(texts)} entries with different names and"
        f" the same path, {' and '.join(texts)}, and refer to the right name from each resource"
    )
