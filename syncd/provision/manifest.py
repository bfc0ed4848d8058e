"""The manifest: the Secrets Store CSI driver's `SecretProviderClass`, read without Kubernetes.

Takes the same file that is applied to a cluster. What the API server would refuse is an error here
(wrong types, values of parameters that are not strings); what it would prune or a provider ignore
is a warning, because a key that does nothing was meant to do something. What Go's libraries read
alike is accepted everywhere: null is the same as no key, merge keys are resolved, a `kind: List` is
its items, and of the documents in a string the first one counts. Each provider's own module decodes
the parameters (`syncd.provision.vault.objects`, `syncd.provision.azure.objects`).

Source: the CRD of secrets-store.csi.x-k8s.io, v1 and v1alpha1.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from syncd.core.decode import Problem, Text, decode, did_you_mean, keys_of
from syncd.core.findings import Finding, finding, key_path
from syncd.core.payload import path_problem
from syncd.core.placeholders import correction, holds_placeholder
from syncd.core.tree import Node, Scalar, TreeError
from syncd.core.yaml_text import parse_first_yaml, parse_yaml
from syncd.provision.yaml_v3 import resolve

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


API_GROUP = "secrets-store.csi.x-k8s.io"
_LISTS = ("List", "SecretProviderClassList")
PROVIDERS = ("azure", "openbao", "vault")
ALL_PERMISSIONS = 0o777
"""No set-user-ID, set-group-ID or sticky bit is ever taken."""

_GO_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_GO_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))

Path = tuple[str | int, ...]


class Report(msgspec.Struct):
    """Findings about one manifest, in order of appearance.

    Attributes:
        source: The manifest's file.
        prefix: Which document of a file or item of a list with several, such as `document 2: `;
            else empty.
        findings: The findings so far.
    """

    source: str
    prefix: str = ""
    findings: list[Finding] = msgspec.field(default_factory=list)

    def error(self, path: Path, message: str, hint: str, code: str = "manifest-invalid") -> None:
        """Adds an error: the manifest cannot be used."""
        self._add(code, path, message, hint)

    def warn(self, path: Path, message: str, hint: str, code: str = "manifest-ignored") -> None:
        """Adds a warning."""
        self._add(code, path, message, hint)

    def problems(self, base: Path, problems: Iterable[Problem]) -> None:
        """Adds problems of typed decoding, each an error below `base`."""
        for problem in problems:
            self.error((*base, *problem.path), problem.message, problem.hint)

    def duplicates(self, base: Path, node: Node) -> None:
        """Adds an error for each key that a mapping has twice."""
        for key in node.duplicates:
            self.error((*base, key), "is written twice", "keep one of them")

    def unknown(self, base: Path, keys: Iterable[str], known: Collection[str]) -> None:
        """Adds a warning for each key that is not among the known ones."""
        for key in keys:
            if key not in known:
                hint = did_you_mean(key, known, otherwise="remove it")
                self.warn((*base, key), "is not a known key and does nothing", hint)

    def placeholders(self, base: Path, text: str) -> None:
        """Adds a warning where a template was not filled in; the vault has nothing of that name."""
        if holds_placeholder(text):
            message = "holds a placeholder that nothing has replaced"
            hint = "use the manifest that Helm or envsubst makes of it"
            self.warn(base, message, hint, "manifest-placeholder")

    @property
    def errors(self) -> int:
        """How many errors were found."""
        return sum(item.is_error for item in self.findings)

    def _add(self, code: str, path: Path, message: str, hint: str) -> None:
        where = (self.prefix + key_path(*path)).removesuffix(": ")
        self.findings.append(finding(code, self.source, where, message, hint))


class Manifest(msgspec.Struct, frozen=True):
    """One SecretProviderClass.

    Attributes:
        source: The file that it stands in.
        prefix: As in `Report`.
        name: `metadata.name`, else the file's name without its extension.
        provider: `azure`, `openbao` or `vault`.
        parameters: `spec.parameters`, as written; not in `repr`, since `secretArgs` can be secret.
    """

    source: str
    prefix: str
    name: str
    provider: str
    parameters: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Manifest({self.name!r}, {self.source!r})"

    def report(self) -> Report:
        """A new report about this manifest."""
        return Report(self.source, self.prefix)


class _SecretObjectData(msgspec.Struct, frozen=True, rename="camel"):
    object_name: Text
    key: Text


class _SecretObject(msgspec.Struct, frozen=True, rename="camel"):
    secret_name: Text
    type: Text
    data: tuple[_SecretObjectData, ...] = ()
    labels: dict[str, Text] = {}
    annotations: dict[str, Text] = {}


def decode_manifests(text: bytes, source: str) -> tuple[tuple[Manifest, ...], list[Finding]]:
    """Reads every SecretProviderClass of a file.

    Args:
        text: The file's content: YAML (or JSON), one or several documents or lists of them.
        source: The file's path, for findings.

    Returns:
        The manifests without errors, and all findings.
    """
    report = Report(source)
    try:
        documents = [tree for tree in parse_yaml(text, raw=True) if not _empty(tree)]
    except TreeError as error:
        hint = correction(text, "fix the YAML at that line")
        report.error((), error.problem, hint, "manifest-malformed")
        return (), report.findings
    manifests = []
    for prefix, tree in _flat(map(without_nulls, documents), "", "document"):
        report.prefix = prefix
        manifest = _manifest(tree, report)
        if manifest is not None:
            manifests.append(manifest)
    report.prefix = ""
    if not manifests and not report.errors:
        hint = "add a document with kind: SecretProviderClass"
        report.error((), "contains no SecretProviderClass", hint, "manifest-malformed")
    return tuple(manifests), report.findings


def _flat(trees: Iterable[Any], prefix: str, noun: str) -> Iterator[tuple[str, Any]]:
    """Objects, and the items of lists as `kubectl get -o yaml` prints them, with their prefixes."""
    numbered = list(trees)
    for number, tree in enumerate(numbered, 1):
        where = f"{prefix}{noun} {number}: " if len(numbered) > 1 else prefix
        if isinstance(tree, Node) and tree.get("kind") in _LISTS and _is_items(tree.get("items")):
            yield from _flat(tree.get("items", []), where, "item")
        else:
            yield where, tree


def _is_items(items: object) -> bool:
    return items is None or isinstance(items, list)


def without_nulls(tree: Any) -> Any:  # noqa: ANN401 - a tree has no narrower type
    """The tree without keys whose value is null: for Go's decoders the same as no key."""
    if isinstance(tree, list):
        return [without_nulls(item) for item in tree]
    if not isinstance(tree, Node):
        return tree
    kept = Node([(key, without_nulls(item)) for key, item in tree.items() if not _empty(item)])
    kept.duplicates = tree.duplicates
    return kept


def _empty(tree: object) -> bool:
    return isinstance(tree, Scalar) and tree.value is None


def _manifest(tree: object, report: Report) -> Manifest | None:
    before = report.errors
    if not isinstance(tree, Node):
        hint = "start with kind: SecretProviderClass"
        report.error((), "is not a mapping", hint, "manifest-malformed")
        return None
    kind = tree.get("kind")
    if isinstance(kind, Scalar) and kind and kind != "SecretProviderClass":
        message = "is not SecretProviderClass, so the document is ignored"
        report.warn(("kind",), message, "move it to another file")
        return None
    _check_keys(tree, (), ("apiVersion", "kind", "metadata", "spec", "status"), report)
    if kind is None:
        report.error(("kind",), "is missing", "write kind: SecretProviderClass")
    if tree.get("apiVersion") not in (f"{API_GROUP}/v1", f"{API_GROUP}/v1alpha1"):
        message = "is not a known version" if "apiVersion" in tree else "is missing"
        report.error(("apiVersion",), message, f"write apiVersion: {API_GROUP}/v1")
    spec = tree.get("spec")
    if not isinstance(spec, Node):
        message = "is not a mapping" if "spec" in tree else "is missing"
        report.error(("spec",), message, "write spec: with provider and parameters below it")
        return None
    _check_keys(spec, ("spec",), ("provider", "parameters", "secretObjects"), report)
    provider = _provider(spec, report)
    parameters = _parameters(spec, report)
    _secret_objects(spec, report)
    name = _name(tree, report)
    if report.errors > before or provider is None or parameters is None:
        return None
    return Manifest(report.source, report.prefix, name, provider, parameters)


def _check_keys(node: Node, path: Path, known: Collection[str], report: Report) -> None:
    report.duplicates(path, node)
    report.unknown(path, node, known)


def _name(tree: Node, report: Report) -> str:
    metadata = tree.get("metadata")
    if metadata is not None and not isinstance(metadata, Node):
        report.error(("metadata",), "is not a mapping", "write metadata: {name: …}")
        return ""
    name = None if metadata is None else metadata.get("name")
    if name is None or name == "":
        return os.path.splitext(os.path.basename(report.source))[0]
    if not isinstance(name, Scalar) or not isinstance(name.value, str):
        report.error(("metadata", "name"), "must be a string", "put quotes around it")
        return ""
    report.placeholders(("metadata", "name"), name)
    if not name.isprintable():
        message = "holds a character that cannot be printed"
        report.error(("metadata", "name"), message, "write a name such as aidbox-secrets")
        return ""
    return str(name)


def _provider(spec: Node, report: Report) -> str | None:
    provider = spec.get("provider")
    if isinstance(provider, Scalar) and provider in PROVIDERS:
        return str(provider)
    message = "is not a supported provider" if "provider" in spec else "is missing"
    report.error(("spec", "provider"), message, "use one of " + ", ".join(PROVIDERS))
    return None


def _parameters(spec: Node, report: Report) -> dict[str, str] | None:
    node = spec.get("parameters")
    if not isinstance(node, Node):
        message = "is not a mapping" if "parameters" in spec else "is missing"
        report.error(
            ("spec", "parameters"), message, "write key: value lines, every value a string"
        )
        return None
    parameters = {}
    report.duplicates(("spec", "parameters"), node)
    for key, value in node.items():
        if isinstance(value, Scalar) and isinstance(value.value, str):
            parameters[key] = str(value)
            if "\0" in value:
                hint = "remove it: no name, path or URL can hold one"
                report.error(("spec", "parameters", key), "holds a NUL character", hint)
            if key != "objects":
                report.placeholders(("spec", "parameters", key), value)
        elif isinstance(value, Scalar):
            hint = "put quotes around it"
            report.error(("spec", "parameters", key), "must be a string", hint)
        else:
            hint = f"write {key}: | and indent the list below it"
            report.error(("spec", "parameters", key), "must be a string", hint)
    return parameters


def _secret_objects(spec: Node, report: Report) -> None:
    tree = spec.get("secretObjects")
    if tree is None:
        return
    before = len(report.findings)
    path: Path = ("spec", "secretObjects")
    _, problems = decode(tree, tuple[_SecretObject, ...])
    report.problems(path, problems)
    if len(report.findings) == before:
        hint = "remove it, or keep it for the cluster"
        report.warn(path, "does nothing here: syncd creates no Kubernetes Secrets", hint)


def parse_block(text: str | None, path: Path, hint: str, report: Report) -> Any:  # noqa: ANN401 - a tree has no narrower type
    """Parses the first YAML document that a string of the manifest holds.

    Args:
        text: The string, or None where the manifest has none.
        path: Where it is written.
        hint: What to write there.
        report: Takes the findings.

    Returns:
        The tree, or None after an error.
    """
    try:
        document, more = parse_first_yaml((text or "").encode("utf-8", "replace"))
    except TreeError as error:
        report.error(path, error.problem, "fix the YAML in this block")
        return None
    if not document:
        report.error(path, "is missing" if text is None else "is empty", hint)
        return None
    if more:
        message = "holds several documents, of which only the first one is used"
        report.warn(path, message, "put everything into the first one, or remove the others")
    return document[0]


def without_unknown(tree: Any, path: Path, type_: type[msgspec.Struct], report: Report) -> Any:  # noqa: ANN401 - a tree has no narrower type
    """One of `objects` without nulls, and without unknown keys, each of which is warned about."""
    if not isinstance(tree, Node):
        return tree
    known = keys_of(type_)
    report.unknown(path, tree, known)
    kept = Node([(key, item) for key, item in tree.items() if key in known and not _empty(item)])
    kept.duplicates = [key for key in tree.duplicates if key in known]
    return kept


def check_paths(paths: Iterable[tuple[Path, str]], report: Report) -> None:
    """Checks the paths of a target's files, each alone and all together.

    Reports the findings of `path_problem`, duplicates, and a path that would have to be a file and
    a directory at once (`a` and `a/b`).

    Args:
        paths: Where each path is written, and the path.
        report: Takes the findings.
    """
    good: dict[str, Path] = {}
    for where, path in paths:
        problem = path_problem(path)
        if problem is not None:
            report.error(where, problem, "write a relative path such as db/password")
        elif path in good:
            message = f"names the file {path!r}, which is another object's"
            report.error(where, message, "give each object a file of its own")
        else:
            good[path] = where
    for path, where in good.items():
        parts = path.split("/")
        parents = ("/".join(parts[:end]) for end in range(1, len(parts)))
        for parent in parents:
            if parent in good:
                message = f"needs a directory {parent!r}, which is another object's file"
                report.error(where, message, "rename one of them")


def go_bool(text: str, path: Path, report: Report) -> bool:
    """Reads a parameter as Go's `strconv.ParseBool` does; an empty one is false."""
    if text and text not in _GO_TRUE | _GO_FALSE:
        report.error(path, "is not a boolean", 'write "true" or "false"')
    return text in _GO_TRUE


def check_permission(mode: int, path: Path, report: Report) -> None:
    """Warns of permissions that a manifest gives to every user of the machine."""
    if mode & 0o007:
        message = f"is {mode:04o}: every user who can enter the target may use the file"
        hint = "write 0640, and set group in the provision entry"
        report.warn(path, message, hint, "manifest-world-readable")


def octal_permission(text: str) -> int | None:
    """Reads permission bits in octal (`0600`, `600`, `0o600`); None for anything else."""
    digits = text.removeprefix("0o")
    if not re.fullmatch("[0-7]{1,4}", digits):
        return None
    mode = int(digits, 8)
    return mode if mode <= ALL_PERMISSIONS else None


def number_permission(scalar: Scalar) -> int | None:
    """Reads permission bits: without quotes as Go reads a number, with quotes in octal.

    yaml.v3 takes `0600` and `0o600` as octal, `0x180` as hexadecimal and `384` as decimal. Returns
    None for anything else, and above 0777.
    """
    if not scalar.plain:
        return octal_permission(scalar)
    mode = resolve(scalar)
    if isinstance(mode, bool) or not isinstance(mode, int):
        return None
    return mode if 0 <= mode <= ALL_PERMISSIONS else None
