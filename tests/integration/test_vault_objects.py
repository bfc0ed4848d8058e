"""What a manifest's objects become, read from a real OpenBao server."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.openbao import ROOT, Clock, RefusalError, contents, vault_class

from syncd.config.auth import AppRole, TokenFile
from syncd.core.errors import RefusedError
from syncd.provision.manifest import decode_manifests
from syncd.provision.publish import Publisher
from syncd.provision.vault.objects import decode_vault

if TYPE_CHECKING:
    from pathlib import Path

    from support.openbao import OpenBao

    from syncd.config.auth import VaultAuth

AIDBOX_MANIFEST = """
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: aidbox-vault-secrets
spec:
  provider: vault
  parameters:
    vaultAddress: "http://vault.default:8200"
    roleName: "aidbox"
    objects: |
      - objectName: "client-secret"
        secretPath: "secret/data/aidbox/client"
        secretKey: "client-secret"
"""


def test_the_manifest_of_the_aidbox_tutorial_is_taken_as_it_is(openbao: OpenBao) -> None:
    """The CSI manifest of Aidbox's own documentation, unchanged, without a single finding."""
    (manifest,), findings = decode_manifests(AIDBOX_MANIFEST.encode(), "manifest.yaml")
    decoded, more = decode_vault(manifest)
    assert not findings + more
    assert decoded is not None
    assert decoded.address == "http://vault.default:8200"
    assert decoded.role == "aidbox"
    openbao.put("aidbox/client", **{"client-secret": "s3cr3t"})
    provider = openbao.provider("- {objectName: x, secretPath: x, secretKey: x}")
    provider._vault = decoded
    assert contents(provider.fetch()) == {"client-secret": b"s3cr3t"}


def test_kv_v2_gives_the_value_as_it_is(openbao: OpenBao) -> None:
    """Strings verbatim, anything else as compact JSON with sorted keys, numbers as received."""
    openbao.put("kv2", text=" ü\n", number=1, deep={"b": [1.5, None, True], "a": "<&>"}, empty="")
    provider = openbao.provider(
        "\n".join(
            f"- {{objectName: {key}, secretPath: secret/data/kv2, secretKey: {key}}}"
            for key in ("text", "number", "deep", "empty")
        )
    )
    payload = provider.fetch()
    assert contents(payload) == {
        "text": " ü\n".encode(),
        "number": b"1",
        "deep": b'{"a":"\\u003c\\u0026\\u003e","b":[1.5,null,true]}',
        "empty": b"",
    }
    assert payload.due is None


@pytest.mark.parametrize("path", ["secret/data/n", "/secret/data/n", "v1/secret/data/n"])
def test_spellings_of_a_path_mean_the_same(openbao: OpenBao, path: str) -> None:
    """A leading `/` or `v1/` is fine."""
    openbao.put("n", k="v")
    objects = f"- {{objectName: f, secretPath: {path}, secretKey: k}}"
    assert contents(openbao.provider(objects).fetch()) == {"f": b"v"}


def test_a_query_passes_through(openbao: OpenBao) -> None:
    """`?version=1` reads the first version of a KV v2 secret, beside the newest."""
    openbao.put("versions", k="one")
    openbao.put("versions", k="two")
    provider = openbao.provider(
        """
        - {objectName: old, secretPath: "secret/data/versions?version=1", secretKey: k}
        - {objectName: new, secretPath: secret/data/versions, secretKey: k}
        """
    )
    assert contents(provider.fetch()) == {"old": b"one", "new": b"two"}


def test_names_with_special_characters_are_quoted(openbao: OpenBao) -> None:
    """Blank, percent sign and hash belong to the name, as with upstream's client."""
    openbao.ask("POST", "secret/data/a%20b%25%23c", {"data": {"k": "v"}})
    objects = "- {objectName: f, secretPath: 'secret/data/a b%#c', secretKey: k}"
    assert contents(openbao.provider(objects).fetch()) == {"f": b"v"}


def test_kv_v1_is_read_in_every_pass(openbao: OpenBao) -> None:
    """Its `lease_duration` is a hint without a lease: the value is not kept for 32 days."""
    openbao.write("sys/mounts/kv1", type="kv", options={"version": "1"})
    openbao.write("kv1/app", k="one", data="not a map")
    provider = openbao.provider("- {objectName: f, secretPath: kv1/app, secretKey: k}")
    assert contents(provider.fetch()) == {"f": b"one"}
    openbao.write("kv1/app", k="two")
    payload = provider.fetch()
    assert contents(payload) == {"f": b"two"}
    assert payload.due is None


def test_the_whole_response_is_written_but_compared_without_its_request_id(
    openbao: OpenBao, tmp_path: Path
) -> None:
    """Without `secretKey` the file holds the response; a new `request_id` alone is no rotation."""
    openbao.put("whole", k="v")
    provider = openbao.provider("- {objectName: all, secretPath: secret/data/whole}")
    first, second = contents(provider.fetch())["all"], contents(provider.fetch())["all"]
    assert json.loads(first)["data"]["data"] == {"k": "v"}
    assert json.loads(first)["request_id"] != json.loads(second)["request_id"]
    order = ["request_id", "lease_id", "lease_duration", "renewable", "data", "warnings"]
    assert list(json.loads(first)) == order
    publisher = Publisher(str(tmp_path / "target"))
    assert publisher.publish(provider.fetch().files)
    assert not publisher.publish(provider.fetch().files)
    openbao.put("whole", k="w")
    assert publisher.publish(provider.fetch().files)


@pytest.mark.parametrize(
    ("encoding", "stored", "expected"),
    [
        ("utf-8", "aGk=", b"aGk="),
        ("base64", "/+8A", b"\xff\xef\x00"),
        ("base64", "/+\n8A\r\n", b"\xff\xef\x00"),
        ("BASE64", "aGk=", b"hi"),
        ("hex", "ffEF00", b"\xff\xef\x00"),
    ],
)
def test_an_encoding_says_how_the_value_is_decoded(
    openbao: OpenBao, encoding: str, stored: str, expected: bytes
) -> None:
    """base64 and hex give the bytes behind the text."""
    openbao.put("encoded", k=stored)
    objects = (
        f"- {{objectName: f, secretPath: secret/data/encoded, secretKey: k, encoding: {encoding}}}"
    )
    assert contents(openbao.provider(objects).fetch()) == {"f": expected}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("secretKey: k, encoding: base64", "the value is not base64; correct"),
        ("secretKey: k, encoding: hex", "the value is not hex; correct"),
        ("secretKey: other", "there is no key 'other' at secret/data/errors; write the key there"),
    ],
)
def test_a_value_that_does_not_fit_is_named_without_being_shown(
    openbao: OpenBao, keys: str, says: str
) -> None:
    """One line: the object, what is wrong, the remedy."""
    openbao.put("errors", k="CANARY!")
    provider = openbao.provider(f"- {{objectName: f, secretPath: secret/data/errors, {keys}}}")
    with pytest.raises(RefusedError, match=f"cannot read f: {says}") as caught:
        provider.fetch()
    assert "CANARY" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("secret/data/nothing", r"there is nothing at secret/data/nothing \(404\); write the"),
        ("secret/data/gone", r"the version at secret/data/gone is deleted \(404\); undelete"),
        ("secret/data/gone?version=1", r"version 1 at secret/data/gone is deleted \(404\); undel"),
        ("secret/data/gone?version=9", r"there is no version 9 at secret/data/gone \(404\); corr"),
        (
            "secret/data/torn",
            r"the version at secret/data/torn is destroyed \(404\); write a new version$",
        ),
        (
            "secret/data/torn?version=1",
            r"version 1 at secret/data/torn is destroyed \(404\); write a new version, or correct",
        ),
        ("nowhere/x", r"there is nothing at nowhere/x \(404\)"),
        ("sys/seal-status/x?list=true", r"\(404\)|\(405\)"),
    ],
)
def test_what_is_not_there_is_one_clear_line(openbao: OpenBao, path: str, says: str) -> None:
    """A path that never was and a version that was deleted are told apart."""
    openbao.put("gone", k="v")
    openbao.ask("DELETE", "secret/data/gone")
    openbao.put("torn", k="v")
    openbao.ask("PUT", "secret/destroy/torn", {"versions": list(range(1, 20))})
    provider = openbao.provider(f"- {{objectName: f, secretPath: '{path}', secretKey: k}}")
    with pytest.raises(RefusedError, match=f"cannot read f: .*{says}"):
        provider.fetch()


def test_a_path_without_data_is_named_under_a_policy_for_it(openbao: OpenBao) -> None:
    """The policy allows `secret/data/app` alone, so that the server denies `secret/app`."""
    openbao.put("plain/app", k="v")
    openbao.policy("plain", 'path "secret/data/plain/app" { capabilities = ["read"] }')
    token = openbao.write("auth/token/create", policies=["plain"])["auth"]["client_token"]
    with open(f"{openbao.directory}/plain", "w") as file:
        file.write(token)
    auth = TokenFile(token_file=f"{openbao.directory}/plain")
    for path, says in (
        ("secret/plain/app", "secret/ is KV v2.*; write secretPath: secret/data/plain/app"),
        ("secret/data/plain/other", "the policy denies GET .*; allow it in the login's policy"),
        ("secret/metadata/plain/app", "the policy denies GET .*; allow it in the login's policy"),
        ("nowhere/app", "the policy denies GET .*; allow it in the login's policy"),
    ):
        objects = f"- {{objectName: f, secretPath: {path}, secretKey: k}}"
        with pytest.raises(RefusedError, match=f"cannot read f: .*{says}"):
            openbao.provider(objects, auth).fetch()
    with pytest.raises(RefusedError, match="write secretPath: secret/data/plain/app"):
        openbao.provider("- {objectName: f, secretPath: secret/plain/app}").fetch()


def test_the_first_error_ends_the_pass(openbao: OpenBao) -> None:
    """One object of two that cannot be read: nothing is handed over."""
    openbao.put("there", k="v")
    provider = openbao.provider(
        """
        - {objectName: a, secretPath: secret/data/there, secretKey: k}
        - {objectName: b, secretPath: secret/data/not-there, secretKey: k}
        """
    )
    with pytest.raises(RefusedError, match="cannot read b"):
        provider.fetch()


@pytest.fixture(scope="module")
def pki(openbao: OpenBao) -> OpenBao:
    openbao.write("sys/mounts/pki", type="pki", config={"max_lease_ttl": "8760h"})
    openbao.write("pki/root/generate/internal", common_name="root", ttl="8760h")
    openbao.write("pki/roles/web", allow_any_name=True, max_ttl="100h")
    openbao.write("pki/roles/leased", allow_any_name=True, max_ttl="100h", generate_lease=True)
    return openbao


PKI = """
- objectName: tls/cert
  secretPath: pki/issue/{role}
  secretKey: certificate
  method: PUT
  secretArgs: {{common_name: app.example.org, ttl: 1h}}
- objectName: tls/key
  secretPath: pki/issue/{role}
  secretKey: private_key
  method: PUT
  secretArgs: {{common_name: app.example.org, ttl: 1h}}
  filePermission: 0600
"""


@pytest.mark.parametrize("role", ["web", "leased"])
def test_a_certificate_and_its_key_are_one_response_kept_for_two_thirds(
    pki: OpenBao, role: str
) -> None:
    """PKI: the pair matches, is not issued anew per poll, and is replaced before it ends."""
    clock = Clock()
    provider = pki.provider(PKI.format(role=role), clock=clock)
    payload = provider.fetch()
    first = contents(payload)
    certificate = x509.load_pem_x509_certificate(first["tls/cert"])
    key = load_pem_private_key(first["tls/key"], None)
    assert certificate.public_key() == key.public_key()
    assert {file.path: file.mode for file in payload.files} == {"tls/cert": 0o644, "tls/key": 0o600}
    assert payload.due == pytest.approx(2400, abs=30)
    clock.ahead = 2300
    assert contents(provider.fetch()) == first
    clock.ahead = 2500
    assert contents(provider.fetch()) != first


def test_arguments_tell_requests_apart(pki: OpenBao) -> None:
    """The same path with other arguments is another request (upstream's cache mixes them up)."""
    provider = pki.provider(
        """
        - {objectName: a, secretPath: pki/issue/web, secretKey: certificate, method: PUT,
           secretArgs: {common_name: a.example.org}}
        - {objectName: b, secretPath: pki/issue/web, secretKey: certificate, method: PUT,
           secretArgs: {common_name: b.example.org}}
        """
    )
    files = contents(provider.fetch())
    subjects = {
        n: x509.load_pem_x509_certificate(c).subject.rfc4514_string() for n, c in files.items()
    }
    assert subjects == {"a": "CN=a.example.org", "b": "CN=b.example.org"}


def test_a_ca_certificate_that_is_read_is_no_certificate_that_is_issued(pki: OpenBao) -> None:
    """Only the answer to a write is kept: what is read may change at any time."""
    provider = pki.provider("- {objectName: ca, secretPath: pki/cert/ca, secretKey: certificate}")
    assert provider.fetch().due is None


def test_what_was_issued_is_kept_although_a_later_object_fails(pki: OpenBao) -> None:
    """A failing pass that is repeated does not mint a certificate each time."""
    objects = (
        PKI.format(role="web") + "- {objectName: z, secretPath: secret/data/later, secretKey: k}"
    )
    provider = pki.provider(objects)
    before = len(pki.ask("LIST", "pki/certs")["data"]["keys"])
    for _ in range(3):
        with pytest.raises(RefusedError, match="cannot read z"):
            provider.fetch()
    pki.put("later", k="v")
    provider.fetch()
    assert len(pki.ask("LIST", "pki/certs")["data"]["keys"]) == before + 1


def test_namespaces(openbao: OpenBao) -> None:
    """`bao…Namespace` goes with every request."""
    openbao.write("sys/namespaces/team")
    openbao.ask(
        "POST", "sys/mounts/kv", {"type": "kv", "options": {"version": "2"}}, namespace="team"
    )
    openbao.ask("POST", "kv/data/app", {"data": {"k": "of the team"}}, namespace="team")
    objects = "- {objectName: f, secretPath: kv/data/app, secretKey: k}"
    provider = openbao.provider(objects, parameters="baoNamespace: team")
    assert contents(provider.fetch()) == {"f": b"of the team"}
    with pytest.raises(RefusedError, match="404"):
        openbao.provider(objects).fetch()


@pytest.mark.parametrize("method", ["token", "approle", "stale token"])
def test_a_namespace_that_does_not_exist_is_named(
    openbao: OpenBao, tmp_path: Path, method: str
) -> None:
    """By the login and by a read, and neither the auth method nor the path is blamed."""
    with suppress(RefusalError):  # an earlier test made it
        openbao.write("sys/namespaces/team")
    file = tmp_path / "credential"
    file.write_text("stale" if method == "stale token" else ROOT)
    auth: VaultAuth = TokenFile(token_file=str(file))
    if method == "approle":
        auth = AppRole(role_id_file=str(file))
    objects = "- {objectName: f, secretPath: kv/data/nothing, secretKey: k}"
    for name in ("nowhere", "team/nowhere"):
        parameters = f"vaultNamespace: {name}"
        with pytest.raises(RefusedError) as caught:
            openbao.provider(objects, auth, parameters=parameters).fetch()
        assert f"{openbao.address} has no namespace {name} (404)" in caught.value.problem
        assert caught.value.remedy == "create it, or correct vaultNamespace"
    with pytest.raises(RefusedError) as caught:
        openbao.provider(objects, auth, parameters="vaultNamespace: team").fetch()
    assert "has no namespace" not in str(caught.value)


def test_no_repr_shows_a_value_or_an_argument() -> None:
    """Payloads, files, manifests and objects can be logged."""
    decoded = vault_class(
        "- {objectName: f, secretPath: p, secretArgs: {pin: CANARY}, method: PUT}"
    )
    assert "CANARY" not in repr(decoded)
    assert decoded.objects[0].arguments == '{"pin": "CANARY"}'
