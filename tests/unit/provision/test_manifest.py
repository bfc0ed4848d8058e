"""SecretProviderClass manifests: what the API server and the CSI driver would say of them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from syncd.core.tree import Scalar
from syncd.core.yaml_text import parse_yaml
from syncd.provision.manifest import (
    Manifest,
    Report,
    check_paths,
    decode_manifests,
    number_permission,
    octal_permission,
)

GOOD = """\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: app
spec:
  provider: vault
  parameters:
    roleName: "app"
    objects: "[]"
"""


def decode(text: str) -> tuple[tuple[Manifest, ...], list[str]]:
    """The manifests, and each finding as `severity place: message; hint`."""
    manifests, findings = decode_manifests(text.encode(), "m.yaml")
    return manifests, [
        f"{item.severity} {item.where}: {item.message}; {item.hint}" for item in findings
    ]


def test_a_manifest_is_taken_as_it_is() -> None:
    """Provider, name and parameters, without a finding."""
    (manifest,), findings = decode(GOOD)
    assert not findings
    assert (manifest.name, manifest.provider, manifest.source) == ("app", "vault", "m.yaml")
    assert manifest.parameters == {"roleName": "app", "objects": "[]"}
    assert "roleName" not in repr(manifest)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/v1\n", "/v1alpha1\n"),
        ("vault\n", "openbao\n"),
        ("vault\n", "azure\n"),
        ("kind:", "# a comment\nkind:"),
        ("spec:", "status: {byPod: []}\nspec:"),
        ('"app"', "on"),
        ('"app"', "1:30"),
        ('"app"', "2026-01-01"),
        ('"app"', "0b1"),
    ],
)
def test_spellings_that_are_fine(old: str, new: str) -> None:
    """Both versions, every provider, comments, and words that YAML 1.1 would make something of."""
    (manifest,), findings = decode(GOOD.replace(old, new))
    assert not findings
    if old == '"app"':
        assert manifest.parameters["roleName"] == new


SECRET_OBJECTS = "  secretObjects: {}\n  parameters:"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("kind: SecretProviderClass\n", "", "error kind: is missing; write kind: Secret"),
        ("apiVersion: secrets-store.csi.x-k8s.io/v1\n", "", "error apiVersion: is missing; write"),
        ("/v1\n", "/v2\n", "error apiVersion: is not a known version; write"),
        ("metadata:\n  name: app\n", "metadata: app\n", "error metadata: is not a mapping"),
        ("name: app", "name: 5", "error metadata.name: must be a string; put quotes"),
        ("name: app", 'name: "a\\nb"', "error metadata.name: holds a character that"),
        ("name: app", "name: [app]", "error metadata.name: must be a string"),
        (
            "provider: vault",
            "provider: gcp",
            "error spec.provider: is not a supported provider; use one",
        ),
        ("  provider: vault\n", "", "error spec.provider: is missing; use one of azure, openbao"),
        ('"app"', "5", "error spec.parameters.roleName: must be a string; put quotes around it"),
        ('"app"', '"a\\0b"', "error spec.parameters.roleName: holds a NUL character; remove it"),
        ('"app"', "true", "error spec.parameters.roleName: must be a string; put quotes"),
        ('"app"', "0o644", "error spec.parameters.roleName: must be a string"),
        ('"app"', "1.5", "error spec.parameters.roleName: must be a string"),
        ('"[]"', "[{a: b}]", "error spec.parameters.objects: must be a string; write objects: |"),
        ("roleName:", "objects:", "error spec.parameters.objects: is written twice; keep one"),
        ("provider: vault", "provider: vault\n  provider: azure", "error spec.provider: is writ"),
        ("spec:", "spec:\n  foo: bar", "warning spec.foo: is not a known key and does nothing"),
        ("spec:", "sepc: {}\nspec:", "warning sepc: is not a known key and does nothing; did you"),
        (
            "  parameters:",
            SECRET_OBJECTS.replace("{}", "[]"),
            "warning spec.secretObjects: does nothing here: syncd creates no Kubernetes Secrets",
        ),
        (
            "  parameters:",
            SECRET_OBJECTS.replace(
                "{}", "[{secretName: a, type: Opaque, data: [{objectName: x}]}]"
            ),
            "error spec.secretObjects[0].data[0].key: is missing",
        ),
        (
            "  parameters:",
            SECRET_OBJECTS.replace("{}", "{a: b}"),
            "error spec.secretObjects: must be a list",
        ),
    ],
)
def test_each_mistake_is_one_located_finding(old: str, new: str, expected: str) -> None:
    """What the API server would refuse is an error, what it would drop is a warning."""
    manifests, findings = decode(GOOD.replace(old, new))
    (finding,) = findings
    assert finding.startswith(expected)
    assert bool(manifests) == finding.startswith("warning")


def test_all_mistakes_are_reported_at_once() -> None:
    """One run names them all."""
    text = GOOD.replace("/v1\n", "/v3\n").replace("vault\n", "x\n").replace('"app"', "5")
    assert len(decode(text)[1]) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "error : contains no SecretProviderClass"),
        ("---\n---\n", "error : contains no SecretProviderClass"),
        ("- a\n", "error : is not a mapping"),
        ("text", "error : is not a mapping"),
        ("a: [", "error : not valid YAML at line"),
        ("\tx: 1", "error : not valid YAML"),
        ("spec: CANARY: x", "error : not valid YAML"),
        (GOOD.replace("spec:", "spec: x\nold:"), "error spec: is not a mapping"),
        ("kind: SecretProviderClass", "error apiVersion: is missing"),
    ],
)
def test_what_is_no_manifest_at_all(text: str, expected: str) -> None:
    """Said as one line, without quoting the file."""
    manifests, findings = decode(text)
    assert not manifests
    assert any(finding.startswith(expected) for finding in findings)
    assert "CANARY" not in str(findings)


def test_bytes_that_are_no_text() -> None:
    """Not UTF-8."""
    _, (finding,) = decode_manifests(b"a: \xff", "m.yaml")
    assert finding.code == "manifest-malformed"


def test_several_documents() -> None:
    """Each is located by its number; objects of other kinds are skipped with a warning."""
    account = "apiVersion: v1\nkind: ServiceAccount\n"
    text = "---\n".join([account, GOOD, GOOD.replace("app\n", "other\n").replace('"app"', "5")])
    manifests, findings = decode(text)
    assert [manifest.prefix for manifest in manifests] == ["document 2: "]
    assert findings[0].startswith("warning document 1: kind: is not SecretProviderClass, so")
    assert findings[1].startswith("error document 3: spec.parameters.roleName: must be a string")


def test_a_list_is_its_items() -> None:
    """As `kubectl get -o yaml` prints them, of one kind or of several, located by number."""

    def items(*objects: str) -> str:
        lines = [f"- {item}".replace("\n", "\n  ").rstrip() for item in objects]
        return "\n".join(
            ["apiVersion: v1", "kind: List", "metadata: {resourceVersion: ''}", "items:", *lines]
        )

    (manifest,), findings = decode(items(GOOD))
    assert (manifest.name, manifest.prefix, findings) == ("app", "", [])
    account = "apiVersion: v1\nkind: ServiceAccount\n"
    bad = GOOD.replace('"app"', "5")
    manifests, findings = decode(items(account, GOOD, bad) + "\n---\n" + GOOD)
    prefixes = ["document 1: item 2: ", "document 2: "]
    assert [manifest.prefix for manifest in manifests] == prefixes
    assert findings[0].startswith("warning document 1: item 1: kind: is not SecretProviderClass")
    assert findings[1].startswith("error document 1: item 3: spec.parameters.roleName: must be")
    for empty in ("items: []", "items:"):
        _, (finding,) = decode(f"apiVersion: v1\nkind: List\n{empty}\n")
        assert finding.startswith("error : contains no SecretProviderClass")


@pytest.mark.parametrize("key", ["metadata", "status", "secretObjects"])
def test_null_is_the_same_as_no_key(key: str) -> None:
    """For every key that can be left out, also below `secretObjects`."""
    text = GOOD.replace("metadata:\n  name: app\n", "")
    text = text.replace("spec:", f"spec:\n  {key}:" if key == "secretObjects" else f"{key}:\nspec:")
    (_,), findings = decode(text)
    assert not findings


def test_merge_keys_of_a_manifest() -> None:
    """kubectl resolves them, too."""
    text = GOOD.replace("  parameters:\n", "  parameters:\n    <<: {audience: x, roleName: y}\n")
    (manifest,), findings = decode(text)
    assert not findings
    assert manifest.parameters == {"roleName": "app", "audience": "x", "objects": "[]"}


def test_a_manifest_without_a_name_is_called_after_its_file() -> None:
    """Status and metrics need a name."""
    text = GOOD.replace("metadata:\n  name: app\n", "")
    (manifest,), findings = decode_manifests(text.encode(), "/etc/syncd/classes/db.yaml")
    assert not findings
    assert manifest.name == "db"


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("0600", 0o600),
        ("0o600", 0o600),
        ("600", None),  # decimal, beyond 0777: the trap of the missing zero
        ("384", 0o600),
        ("0x180", 0o600),
        ("0", 0),
        ("0777", 0o777),
        ("01777", None),
        ("0999", None),
        ("-1", None),
        ("1e2", None),
        ("rw", None),
        ("", None),
        ('"0600"', 0o600),
        ('"600"', 0o600),
        ('"0o600"', 0o600),
        ("'0644'", 0o644),
        ('"384"', None),
        ('"1777"', None),
        ('"0x180"', None),
        ('""', None),
    ],
)
def test_a_permission_is_read_as_go_does(text: str, mode: int | None) -> None:
    """Without quotes a Go number, within quotes octal."""
    (tree,) = parse_yaml(f"p: {text}".encode(), raw=True)
    assert number_permission(tree["p"]) == mode


@given(st.text(max_size=8))
def test_a_permission_is_never_beyond_all_bits(text: str) -> None:
    """No set-user-ID bit gets through, whatever is written."""
    scalar = Scalar(text)
    for plain in (True, False):
        scalar.plain = plain
        assert 0 <= (number_permission(scalar) or 0) <= 0o777
    assert 0 <= (octal_permission(text) or 0) <= 0o777


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a", "b/c", "b/d", "ä/ö", "a..b", ".hidden"], []),
        ([""], ["is empty"]),
        (["/etc/passwd"], ["is not relative"]),
        (["a/../b"], ["leaves the target"]),
        (["../a"], ["leaves the target"]),
        (["..data"], ["starts with .."]),
        (["..a/b"], ["starts with .."]),
        (["."], ["is the target itself"]),
        (["a//b"], ["is not clean"]),
        (["./a"], ["is not clean"]),
        (["a/"], ["is not clean"]),
        (["a/./b"], ["is not clean"]),
        (["x" * 256], ["longer than 255 bytes"]),
        (["ä" * 128], ["longer than 255 bytes"]),
        (["/".join(["x" * 200] * 21)], ["longer than 4096 bytes"]),
        (["a\nb"], ["cannot be printed"]),
        (["a\x00b"], ["cannot be printed"]),
        (["\ud800"], ["not valid Unicode"]),
        (["a", "a"], ["names the file 'a'"]),
        (["a", "a/b"], ["needs a directory 'a'"]),
        (["a/b/c", "a"], ["needs a directory 'a'"]),
        (["a/b", "a/b/c", "a/b/c/d"], ["needs a directory 'a/b'", "'a/b'", "'a/b/c'"]),
    ],
)
def test_paths_follow_the_atomic_writer_s_rules(paths: list[str], expected: list[str]) -> None:
    """Each alone, and all together."""
    report = Report("m.yaml")
    check_paths([(("objects", index), path) for index, path in enumerate(paths)], report)
    messages = [finding.message for finding in report.findings]
    assert len(messages) == len(expected)
    for message, part in zip(messages, expected, strict=True):
        assert part in message
