"""`syncd check` finds what the first pass would hit, and with `--vault` makes a dry run."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from support.azure import Azure
from support.manifests import AZURE
from support.openbao import ROOT, OpenBao, RefusalError, manifest_text
from support.tls import Authority
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "CANARY-5ecre7"


class Place(World):
    """A world with an entry for one manifest."""

    def __init__(self) -> None:
        super().__init__()
        self.manifest = f"{self.directory}/manifest.yaml"
        self.target = f"{self.directory}/target"
        self.map(paths={})

    def enter(self, text: str, **entry: Any) -> None:
        with open(self.manifest, "w") as file:
            file.write(text)
        self.configure(provision=[{"manifest": self.manifest, "target": self.target, **entry}])

    def check(self, *options: str) -> dict[str, Any]:
        done = self.run("check", "-c", self.config, "--format", "json", *options)
        assert not done.stderr
        assert CANARY not in done.stdout
        assert not os.path.exists(self.target)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def found(self, prefix: str, *options: str) -> list[tuple[str, str, str]]:
        return [
            (item["code"], f"{item['where']} {item['message']}".strip(), item["hint"])
            for item in self.check(*options)["findings"]
            if item["code"].startswith(prefix)
        ]


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as place:
        yield place


def token(path: Path, value: str = ROOT) -> dict[str, str]:
    file = path / "token"
    file.write_text(value)
    file.chmod(0o600)
    return {"method": "token", "token_file": str(file)}


PARAMETER = "spec.parameters."


def test_the_manifest_s_own_files_are_read(place: Place, tmp_path: Path) -> None:
    """As the first pass reads them; those that the configuration replaces are not."""
    Authority(tmp_path, "ca")
    (tmp_path / "bad.pem").write_text(CANARY)
    objects = "- {objectName: f, secretPath: p}"
    text = manifest_text(
        objects,
        f"vaultCACertPath: {tmp_path}/bad.pem\nvaultTLSClientCertPath: {tmp_path}/none.pem\n"
        f"vaultTLSClientKeyPath: {tmp_path}/none.key",
    )
    place.enter(text, auth=token(tmp_path))
    bad, missing = place.found("credential-")
    assert bad[0] == "credential-malformed"
    assert bad[1].startswith(f"{PARAMETER}vaultCACertPath cannot use vaultCACertPath {tmp_path}")
    assert missing[0] == "credential-unreadable"
    assert f"vaultTLSClientCertPath {tmp_path}/none.pem: No such file" in missing[1]
    place.enter(text, auth=token(tmp_path), ca_file=f"{tmp_path}/ca.pem")
    assert [code for code, _, _ in place.found("credential-")] == ["credential-unreadable"]
    place.enter(
        manifest_text(objects, f"vaultCADirectory: {tmp_path}/nowhere"), auth=token(tmp_path)
    )
    ((code, message, _),) = place.found("credential-")
    assert (code, f"vaultCADirectory {tmp_path}/nowhere" in message) == (
        "credential-unreadable",
        True,
    )


def test_what_a_template_left_behind(place: Place, tmp_path: Path) -> None:
    """Parameters and objects, of Helm and envsubst, for both kinds of vault."""
    parameters = "roleName: ${ROLE}\nvaultNamespace: '{{ .Values.team }}'"
    text = manifest_text("- {objectName: f, secretPath: 'kv/data/{{ .Values.app }}'}", parameters)
    place.enter(text, auth=token(tmp_path))
    places = [message.split()[0] for _, message, _ in place.found("manifest-placeholder")]
    assert places == [
        f"{PARAMETER}roleName",
        f"{PARAMETER}vaultNamespace",
        f"{PARAMETER}objects[0].secretPath",
    ]


def accessors(openbao: OpenBao) -> list[str]:
    """Those of all tokens that there are."""
    found: list[str] = openbao.ask("LIST", "auth/token/accessors")["data"]["keys"]
    return found


def test_a_dry_run_of_vault(place: Place, openbao: OpenBao, tmp_path: Path) -> None:
    """Existence, permission and kind of each object; nothing is made or written, or shown."""
    openbao.put("dry/there", k=CANARY, raw="!")
    for path, body in (
        ("sys/mounts/pki", {"type": "pki"}),
        ("sys/auth/approle", {"type": "approle"}),
        ("pki/root/generate/internal", {"common_name": "root"}),
    ):
        with suppress(RefusalError):  # another test has it
            openbao.write(path, **body)
    openbao.write("pki/roles/dry", allow_any_name=True)
    openbao.policy(
        "dry",
        'path "secret/data/dry/*" { capabilities = ["read"] }\n'
        'path "pki/issue/dry" { capabilities = ["update"] }',
    )
    openbao.write("auth/approle/role/dry", token_policies="dry", bind_secret_id=False,
                  token_bound_cidrs="127.0.0.0/8", secret_id_bound_cidrs="127.0.0.0/8")  # fmt: skip
    role = tmp_path / "role-id"
    role.write_text(openbao.read("auth/approle/role/dry/role-id")["data"]["role_id"])
    issue = "secretPath: pki/issue/{}, method: PUT, secretArgs: {{common_name: a}}"
    text = manifest_text(
        f"""
        - {{objectName: a, secretPath: secret/data/dry/there, secretKey: k, filePermission: 0640}}
        - {{objectName: b, secretPath: secret/data/dry/gone, secretKey: k}}
        - {{objectName: c, secretPath: secret/data/other, secretKey: k}}
        - {{objectName: d, secretPath: secret/data/dry/there, secretKey: nope}}
        - {{objectName: e, secretPath: secret/data/dry/there, secretKey: raw, encoding: base64}}
        - {{objectName: f, {issue.format("dry")}}}
        - {{objectName: g, {issue.format("other")}}}
        - {{objectName: h, secretPath: secret/dry/there}}
        """
    )
    auth = {"method": "approle", "role_id_file": str(role)}
    place.enter(text, auth=auth, vault_url=openbao.address)
    before = openbao.ask("LIST", "pki/certs")
    checked = place.check("--vault")
    failed = [item for item in checked["findings"] if item["code"] == "provision-object-failed"]
    assert [item["message"].split(":")[0] for item in failed] == [
        f"cannot read {name}" for name in "bcdegh"
    ]
    says = [
        "there is nothing at secret/data/dry/gone (404)",
        "the policy denies GET secret/data/other (403)",
        "there is no key 'nope' at secret/data/dry/there",
        "the value is not base64",
        "the policy denies PUT pki/issue/other",
        "secret/ is KV v2, which has no secret/dry/there (403)",
    ]
    for item, expected in zip(failed, says, strict=True):
        assert expected in item["message"]
        assert item["hint"]
    note = "PUT pki/issue/dry was not made, only its permission examined"
    assert checked["would_write"] == [
        {"path": f"{place.target}/a", "mode": "0640", "note": ""},
        {"path": f"{place.target}/f", "mode": "0644", "note": note},
    ]
    assert openbao.ask("LIST", "pki/certs")["data"] == before["data"]
    known = set(accessors(openbao))
    done = place.run("check", "-c", place.config, "--vault")
    assert done.returncode == 1
    assert f"would write {place.target}/a (0640)\n" in done.stdout
    assert set(accessors(openbao)) <= known  # no login is left behind


def test_a_dry_run_that_cannot_log_in(place: Place, openbao: OpenBao, tmp_path: Path) -> None:
    """A stale token, a server that is away; and a wrapped secret-id is not used up."""
    text = manifest_text("- {objectName: f, secretPath: secret/data/dry/there, secretKey: k}")
    place.enter(text, auth=token(tmp_path, "stale"), vault_url=openbao.address)
    ((_, message, hint),) = place.found("provision-object-failed", "--vault")
    assert "rejects the token (403), also for lookup-self" in message
    assert hint == "write a valid token into the file"
    place.enter(text, auth=token(tmp_path), vault_url="http://127.0.0.1:1")
    ((_, message, _),) = place.found("provision-login-failed", "--vault")
    assert "Connection refused" in message
    for name in ("role-id", "secret-id"):
        (tmp_path / name).write_text("x")
    auth = {
        "method": "approle",
        "role_id_file": f"{tmp_path}/role-id",
        "secret_id_file": f"{tmp_path}/secret-id",
        "secret_id_wrapped": True,
    }
    place.enter(text, auth=auth, vault_url=openbao.address)
    ((_, message, _),) = place.found("provision-unexamined", "--vault")
    assert f"a login would use up {tmp_path}/secret-id" in message


def test_a_dry_run_of_azure(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Existence, kind and validity."""
    with Azure(tmp_path) as azure:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.imds)
        azure.set_secret("good", CANARY)
        azure.set_secret("old", CANARY)
        azure.set_secret("off", CANARY)
        azure.set_secret("soon", CANARY)
        ends = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp())
        azure.objects["secrets", "old"][0]["attributes"]["exp"] = ends
        begins = int(datetime(2090, 1, 1, tzinfo=UTC).timestamp())
        azure.objects["secrets", "soon"][0]["attributes"]["nbf"] = begins
        version = azure.objects["secrets", "off"][0]["version"]
        azure.enable("secrets", "off", version, enabled=False)
        objects = ["good", "old", "off", "soon", "none"]
        place.enter(
            AZURE.replace(
                "        - |\n          {objectName: key-vault, objectType: secret}\n",
                "".join(
                    f"        - |\n          {{objectName: {name}, objectType: secret}}\n"
                    for name in objects
                ),
            ),
            vault_url=azure.url,
            ca_file=str(azure.authority.file),
            verify_challenge_resource=False,
            auth={"method": "managed_identity"},
        )
        checked = place.check("--vault")
    found = [
        (item["code"].removeprefix("provision-object-"), item["message"])
        for item in checked["findings"]
        if item["code"].startswith("provision-object-")
    ]
    assert [code for code, _ in found] == ["expired", "failed", "expired", "failed"]
    assert "the object of old has expired" in found[0][1]
    assert "off is disabled (403)" in found[1][1]
    assert "the object of soon is not valid yet" in found[2][1]
    assert "has no secret none (404)" in found[3][1]
    written = [os.path.basename(item["path"]) for item in checked["would_write"]]
    assert written == ["good", "old", "soon"]
