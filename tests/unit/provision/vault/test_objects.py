"""Manifests for Vault and OpenBao: every parameter and every object key of the specification."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import asdict

from syncd.provision.manifest import Manifest
from syncd.provision.vault.objects import VaultClass, VaultObject, decode_vault

OBJECT = "- {objectName: f, secretPath: secret/data/app, secretKey: k}"


def decode(
    objects: str = OBJECT, provider: str = "vault", **parameters: str
) -> tuple[VaultClass | None, list[str]]:
    manifest = Manifest("m.yaml", "", "app", provider, {**parameters, "objects": objects})
    decoded, findings = decode_vault(manifest)
    return decoded, [f"{item.severity} {item.where}: {item.message}" for item in findings]


def good(objects: str = OBJECT, provider: str = "vault", **parameters: str) -> VaultClass:
    decoded, findings = decode(objects, provider, **parameters)
    assert not findings
    assert decoded is not None
    return decoded


def one(objects: str) -> VaultObject:
    (item,) = good(objects).objects
    return item


def test_defaults() -> None:
    """Only `objects` is needed; the rest is as upstream has it."""
    assert asdict(good()) | {"objects": ()} == {
        "address": "https://127.0.0.1:8200",
        "namespace": "",
        "role": "",
        "login_mount": None,
        "ca_file": None,
        "ca_directory": None,
        "server_name": None,
        "client_cert": None,
        "client_key": None,
        "skip_verify": False,
        "objects": (),
        "address_key": "vaultAddress",
    }


PARAMETERS = [
    ("Address=https://v:8200/", "address", "https://v:8200"),
    ("Address=http://[::1]:8200/vault", "address", "http://[::1]:8200/vault"),
    ("Namespace=a/b/", "namespace", "a/b"),
    ("CACertPath=/ca.pem", "ca_file", "/ca.pem"),
    ("CADirectory=/ca", "ca_directory", "/ca"),
    ("TLSServerName=v.example", "server_name", "v.example"),
    ("KubernetesMountPath=k8s", "login_mount", "k8s"),
    ("AuthMountPath=/clusters/one/", "login_mount", "clusters/one"),
    ("SkipTLSVerify=0", "skip_verify", False),
    ("SkipTLSVerify=F", "skip_verify", False),
    ("SkipTLSVerify=False", "skip_verify", False),
]


@pytest.mark.parametrize(
    "spelling", ["vault vault", "openbao vault", "openbao openbao", "openbao bao"]
)
@pytest.mark.parametrize(("parameter", "field", "expected"), PARAMETERS)
def test_parameters_in_every_spelling(
    spelling: str, parameter: str, field: str, expected: object
) -> None:
    """Vault's keys for Vault; for OpenBao also with its own prefixes."""
    provider, prefix = spelling.split()
    name, _, value = parameter.partition("=")
    assert getattr(good(provider=provider, **{prefix + name: value}), field) == expected


def test_parameters_without_a_prefix_and_in_pairs() -> None:
    """`roleName`, and client certificate with key."""
    decoded = good(
        roleName="app", vaultTLSClientCertPath="/cert.pem", vaultTLSClientKeyPath="/key.pem"
    )
    found = (decoded.role, decoded.client_cert, decoded.client_key)
    assert found == ("app", "/cert.pem", "/key.pem")


@pytest.mark.parametrize("value", ["1", "t", "T", "TRUE", "true", "True"])
def test_skipping_verification_is_warned_about(value: str) -> None:
    """Go's spellings of true."""
    decoded, (finding,) = decode(vaultSkipTLSVerify=value)
    assert decoded is not None
    assert decoded.skip_verify
    assert finding.startswith(
        "warning spec.parameters.vaultSkipTLSVerify: TLS certificates are not verified"
    )


@pytest.mark.parametrize(
    ("provider", "parameters", "expected"),
    [
        ("vault", {"vaultSkipTLSVerify": "yes"}, "error .vaultSkipTLSVerify: is not a boolean"),
        ("vault", {"vaultAddress": "vault:8200"}, "error .vaultAddress: is not the URL"),
        ("vault", {"vaultAddress": "unix:///agent.sock"}, "error .vaultAddress: is not the URL"),
        ("vault", {"vaultAddress": "http://u:CANARY@v"}, "error .vaultAddress: is not the URL"),
        ("vault", {"vaultAddress": "http://v:99999"}, "error .vaultAddress: is not the URL"),
        ("vault", {"vaultAddress": "http://v\nw"}, "error .vaultAddress: is not the URL"),
        ("vault", {"vaultAddress": "http://v w"}, "error .vaultAddress: is not the URL"),
        ("openbao", {"baoAddress": "v:8200"}, "error .baoAddress: is not the URL"),
        ("vault", {"vaultNamespace": "ü"}, "error .vaultNamespace: holds a character"),
        ("vault", {"vaultTLSClientCertPath": "/c"}, "error .vaultTLSClientKeyPath: is missing"),
        ("openbao", {"baoTLSClientKeyPath": "/c"}, "error .vaultTLSClientCertPath: is missing"),
        (
            "vault",
            {"vaultKubernetesMountPath": "a", "vaultAuthMountPath": "b"},
            "error .vaultKubernetesMountPath: is set beside vaultAuthMountPath",
        ),
        (
            "openbao",
            {"baoAddress": "http://a", "openbaoAddress": "http://b"},
            "error .openbaoAddress: contradicts baoAddress",
        ),
        ("vault", {"baoAddress": "http://a"}, "warning .baoAddress: is not a known key"),
        ("vault", {"vaultAdress": "http://a"}, "warning .vaultAdress: is not a known key"),
        ("vault", {"audience": "vault"}, "warning .audience: does nothing here"),
    ],
)
def test_parameters_that_are_wrong_or_do_nothing(
    provider: str, parameters: dict[str, str], expected: str
) -> None:
    """One finding each, at the parameter, without quoting it."""
    severity, rest = re.match(r"(error|warning) ?(.*)", expected).groups()  # type: ignore[union-attr]
    decoded, (finding,) = decode(provider=provider, **parameters)
    assert finding.startswith(f"{severity} spec.parameters{rest}")
    assert (decoded is None) == (severity == "error")
    assert "CANARY" not in finding


def test_two_spellings_that_agree_are_fine() -> None:
    """Only a contradiction is an error."""
    assert good(provider="openbao", baoNamespace="a", openbaoNamespace="a").namespace == "a"


@pytest.mark.parametrize(
    ("keys", "field", "expected"),
    [
        ("objectName: db/password", "path", "db/password"),
        ("objectName: 007", "path", "007"),
        ("objectName: on", "path", "on"),
        ("objectName: 1e3", "path", "1e3"),
        ("secretPath: /v1/secret/data/app", "secret_path", "secret/data/app"),
        ("secretPath: v1/secret/data/app", "secret_path", "secret/data/app"),
        ("secretPath: /secret/data/app", "secret_path", "secret/data/app"),
        ("secretPath: 'secret/data/app?version=2'", "secret_path", "secret/data/app"),
        ("secretPath: 'secret/data/app?version=2'", "query", "version=2"),
        ("secretKey: password", "key", "password"),
        ("secretKey: 5", "key", "5"),
        ("secretKey:", "key", ""),
        ("method: put", "method", "PUT"),
        ("method: LIST", "method", "LIST"),
        ("method: ''", "method", "GET"),
        (
            "method: PUT\n  secretArgs: {b: 1, a: [on, 1.5, null]}",
            "arguments",
            '{"a": ["on", 1.5, null], "b": 1}',
        ),
        (
            "method: PUT\n  secretArgs: {when: 2026-01-01}",
            "arguments",
            '{"when": "2026-01-01T00:00:00Z"}',
        ),
        (
            "method: PUT\n  secretArgs: {a: 0644, b: 1_000, c: 1.0}",
            "arguments",
            '{"a": 420, "b": 1000, "c": 1}',
        ),
        (
            "method: PUT\n  secretArgs: {a: '0644', b: !!str 07}",
            "arguments",
            '{"a": "0644", "b": "07"}',
        ),
        ("method: PUT\n  secretArgs: {<<: {a: 1}, a: ~}", "arguments", '{"a": null}'),
        ("secretArgs: {}", "arguments", "{}"),
        ("secretArgs:", "arguments", None),
        ("filePermission: 0600", "mode", 0o600),
        ("filePermission: 0o640", "mode", 0o640),
        ("filePermission: '0440'", "mode", 0o440),
        ("filePermission: 0", "mode", 0o644),
        ("encoding: base64", "encoding", "base64"),
        ("encoding: HEX", "encoding", "hex"),
        ("encoding: utf-8", "encoding", "utf-8"),
        ("encoding:", "encoding", "utf-8"),
    ],
)
def test_every_object_key(keys: str, field: str, expected: object) -> None:
    """Each row of the specification's table, in its spellings."""
    lines = {"objectName": "f", "secretPath": "p", "secretKey": "k"}
    name = keys.partition(":")[0]
    block = "\n  ".join([f"{k}: {v}" for k, v in lines.items() if k != name] + [keys])
    assert getattr(one(f"- {block}"), field) == expected


def test_defaults_of_an_object() -> None:
    """GET, 0644, utf-8, the whole response."""
    item = one("- {objectName: f, secretPath: p}")
    assert (item.method, item.mode, item.encoding, item.key) == ("GET", 0o644, "utf-8", "")
    assert (item.query, item.arguments) == ("", None)


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ("", "error: is empty"),
        ("[]", "error: contains no objects"),
        ("objectName: f", "error: contains no objects"),
        (f"---\n{OBJECT}\n---\n[", "warning: holds several documents, of which only the first"),
        ("- {objectName: f, secretPath: p, secretArgs: {a: .inf}}", "error [0].secretArgs: holds"),
        (
            "- {objectName: f, secretPath: p, method: PUT, secretArgs: {a: [{b: 1, b: 2}]}}",
            "error [0].secretArgs.a[0].b: is written twice",
        ),
        ("- [", "error: not valid YAML"),
        ("- text", "error [0]: must be a mapping"),
        ("- {secretPath: p}", "error [0].objectName: is empty"),
        ("- {objectName: ../f, secretPath: p}", "error [0].objectName: leaves the target"),
        ("- {objectName: f}", "error [0].secretPath: is missing"),
        ("- {objectName: f, secretPath: /}", "error [0].secretPath: is missing"),
        ("- {objectName: [f], secretPath: p}", "error [0].objectName: "),
        ("- {objectName: f, secretPath: p, method: a b}", "error [0].method: is not an HTTP"),
        ("- {objectName: f, secretPath: p, secretArgs: [a]}", "error [0].secretArgs: must be"),
        ("- {objectName: f, secretPath: p, secretKey: k, encoding: gzip}", "error [0].encoding"),
        ("- {objectName: f, secretPath: p, encoding: hex}", "warning [0].encoding: does nothing"),
        ("- {objectName: f, secretPath: p, filePermission: 644}", "error [0].filePermission: is"),
        ("- {objectName: f, secretPath: p, filePermission: 04755}", "error [0].filePermission: is"),
        ("- {objectName: f, secretPath: p, filePermission: [1]}", "error [0].filePermission: is"),
        ("- {objectName: f, secretPath: p, filePermission: 400}", "warning [0].filePermission: is"),
        ("- {objectName: f, secretPath: p, secretkey: k}", "warning [0].secretkey: is not a known"),
        ("- {objectName: f, objectName: g, secretPath: p}", "error [0].objectName: is written"),
        (
            "- {objectName: f, secretPath: p, secretArgs: {a: 1}}",
            "warning [0].secretArgs: does nothing with GET",
        ),
        (
            "- {objectName: f, secretPath: identity/oidc/token/app}",
            "warning [0].secretPath: makes a new credential in every pass",
        ),
        (
            "- {objectName: f, secretPath: '/v1/team/totp/code/app?x=y'}",
            "warning [0].secretPath: makes a new credential in every pass",
        ),
        ("- {objectName: f, secretPath: 'kv/{{ .Values.name }}'}", "warning [0].secretPath: holds"),
        ("- {objectName: f, secretPath: 'kv/${NAME}'}", "warning [0].secretPath: holds"),
        ("- {objectName: f, secretPath: kv/$ENV/app}", "warning [0].secretPath: holds"),
        ("- {objectName: $(NAME), secretPath: p}", "warning [0].objectName: holds"),
        ("- {objectName: f, secretPath: p, secretKey: '{{key}}'}", "warning [0].secretKey: holds"),
        (
            "- {objectName: f, secretPath: p, method: PUT, secretArgs: {a: [{b: '${X}'}]}}",
            "warning [0].secretArgs: holds",
        ),
        (f"{OBJECT}\n{OBJECT}", "error [1].objectName: names the file 'f'"),
        (f"{OBJECT}\n{OBJECT.replace('f,', 'f/g,')}", "error [1].objectName: needs a directory"),
    ],
)
def test_objects_that_are_wrong_or_do_nothing(objects: str, expected: str) -> None:
    """One finding each, at the key."""
    severity, rest = re.match(r"(error|warning) ?(.*)", expected).groups()  # type: ignore[union-attr]
    decoded, (finding,) = decode(objects)
    assert finding.startswith(f"{severity} spec.parameters.objects{rest}")
    assert (decoded is None) == (severity == "error")


@pytest.mark.parametrize(
    "objects",
    [
        "- {objectName: f, secretPath: kv/a$b, secretKey: '$1{x}'}",
        "- {objectName: f, secretPath: database/creds/app}",
        "- {objectName: f, secretPath: identity/oidc/token/app, method: POST}",
    ],
)
def test_what_only_resembles_a_placeholder_or_a_token(objects: str) -> None:
    """A dollar is a character of a name, and a lease is reused."""
    good(objects)


def test_a_decimal_permission_says_what_it_means() -> None:
    """`400` without a zero is 0620, which is hardly meant."""
    decoded, (finding,) = decode("- {objectName: f, secretPath: p, filePermission: 400}")
    assert decoded is not None
    assert decoded.objects[0].mode == 0o620
    assert finding.endswith("is a decimal number, 0620 in octal")


def test_what_tells_requests_apart() -> None:
    """Path, method, query and arguments; not the key."""

    def request(keys: str) -> tuple[str, str, str, str | None]:
        return one("- {objectName: f, secretPath: p, " + keys + "}").request

    assert request("secretKey: a") == request("secretKey: b")
    assert request("method: GET") == request("method: get")
    assert request("method: PUT, secretArgs: {a: 1, b: 2}") == request(
        "method: PUT, secretArgs: {b: 2, a: 1}"
    )
    different = [
        request(keys)
        for keys in (
            "method: GET",
            "method: PUT",
            "method: PUT, secretArgs: {a: 1}",
            "method: PUT, secretArgs: {a: 2}",
        )
    ]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("permission", "warned"),
    [
        ("0600", False),
        ("0640", False),
        ("0o660", False),
        ("'0644'", True),
        ("0o604", True),
        ("0666", True),
        ("420", True),
        ("0601", True),
        ("0", False),
    ],
)
def test_a_permission_for_every_user_is_reported(permission: str, warned: bool) -> None:
    """If the manifest asks for it; the default is the driver's."""
    keys = f"{{objectName: a, secretPath: p, filePermission: {permission}}}"
    decoded, findings = decode(f"- {keys}")
    assert decoded is not None
    says = "every user who can enter the target may use the file"
    assert any(says in line for line in findings) == warned
