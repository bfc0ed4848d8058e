"""Manifests for Azure Key Vault: every parameter and every object key of the specification."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from syncd.core.errors import RefusedError
from syncd.provision.azure.cloud import find_cloud
from syncd.provision.azure.objects import AzureClass, AzureObject, decode_azure
from syncd.provision.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path


def array(*elements: str) -> str:
    lines = ["array:"]
    for element in elements:
        lines += ["  - |", *(f"    {line}" for line in element.splitlines())]
    return "\n".join(lines) + "\n"


def decode(
    *objects: str, text: str | None = None, **parameters: str
) -> tuple[AzureClass | None, list[str]]:
    written = array(*objects or ("{objectName: a, objectType: secret}",)) if text is None else text
    every = {"keyvaultName": "kv-1", **parameters, "objects": written}
    manifest = Manifest("m.yaml", "", "app", "azure", every)
    decoded, findings = decode_azure(manifest)
    lines = [f"{item.severity} {item.where}: {item.message}" for item in findings]
    return decoded, [line.replace("spec.parameters.", "") for line in lines]


def good(*objects: str, **parameters: str) -> AzureClass:
    decoded, findings = decode(*objects, **parameters)
    assert not findings
    assert decoded is not None
    return decoded


def one(keys: str) -> AzureObject:
    (item,) = good(f"{{objectName: a, objectType: secret, {keys}}}").objects
    return item


def test_defaults() -> None:
    """Vault and objects are needed; the rest is as upstream has it."""
    assert msgspec.to_builtins(good()) == {
        "vault": "kv-1",
        "cloud": "AzurePublicCloud",
        "environment_file": None,
        "tenant": "",
        "tenant_key": "tenantID",
        "managed_identity": False,
        "assigned_identity": "",
        "client_id": "",
        "cluster_only": (),
        "objects": (
            {
                "path": "a",
                "name": "a",
                "kind": "secret",
                "version": "",
                "history": 0,
                "pfx": False,
                "encoding": "utf-8",
                "mode": 0o644,
            },
        ),
    }


@pytest.mark.parametrize(
    ("parameters", "field", "expected"),
    [
        ({"keyvaultName": "Abc"}, "vault", "Abc"),
        ({"tenantID": "t-1"}, "tenant", "t-1"),
        ({"tenantId": "contoso.example"}, "tenant", "contoso.example"),
        ({"tenantID": "t", "tenantId": "t"}, "tenant", "t"),
        ({"useVMManagedIdentity": "true"}, "managed_identity", True),
        ({"useVMManagedIdentity": "1", "usePodIdentity": "false"}, "managed_identity", True),
        ({"useVMManagedIdentity": "true"}, "assigned_identity", ""),
        (
            {"useVMManagedIdentity": "true", "userAssignedIdentityID": "c"},
            "assigned_identity",
            "c",
        ),
        (
            {"useVMManagedIdentity": "true", "tenantId": "<your-tenant>"},
            "cloud",
            "AzurePublicCloud",
        ),
        ({"clientID": "w", "useAzureTokenProxy": "false"}, "client_id", "w"),
        ({"cloudName": ""}, "cloud", "AzurePublicCloud"),
        ({"cloudName": "AzureCloud"}, "cloud", "AzurePublicCloud"),
        ({"cloudName": "azureusgovernment"}, "cloud", "AzureUSGovernmentCloud"),
        ({"usePodIdentity": "true"}, "cluster_only", ("usePodIdentity",)),
        ({"useAzureTokenProxy": "true"}, "cluster_only", ("useAzureTokenProxy",)),
        ({"cloudName": "AZURECHINACLOUD"}, "cloud", "AzureChinaCloud"),
        ({"cloudName": "AzureStackCloud", "cloudEnvFileName": "/e"}, "environment_file", "/e"),
        ({"cloudEnvFileName": "/e"}, "environment_file", None),
    ],
)
def test_parameters(parameters: dict[str, str], field: str, expected: object) -> None:
    """Each is taken as upstream takes it."""
    assert getattr(good(**parameters), field) == expected


@pytest.mark.parametrize(
    ("keys", "field", "expected"),
    [
        ("objectAlias: db/password", "path", "db/password"),
        ("objectAlias: ''", "path", "a"),
        ("objectVersion: 0123abc", "version", "0123abc"),
        ("objectVersion: latest", "version", ""),
        ("objectVersionHistory: 1", "history", 0),
        ("objectVersionHistory: 3", "history", 3),
        ("objectVersionHistory: '2'", "history", 2),
        ("objectVersionHistory: 0x2", "history", 2),
        ("objectFormat: PFX", "pfx", True),
        ("objectFormat: pem", "pfx", False),
        ("objectEncoding: Base64", "encoding", "base64"),
        ("objectEncoding: hex", "encoding", "hex"),
        ("filePermission: '0600'", "mode", 0o600),
        ("filePermission: 0440", "mode", 0o440),
        ("filePermission: 600", "mode", 0o600),
    ],
)
def test_keys_of_an_object(keys: str, field: str, expected: object) -> None:
    """Each is taken as upstream takes it; a permission is octal, quoted or not."""
    assert getattr(one(keys), field) == expected


def test_a_history_makes_a_directory() -> None:
    """Newest first: `<name>/0` and on; by the alias where there is one."""
    assert one("objectVersionHistory: 3").paths == ("a/0", "a/1", "a/2")
    assert one("objectVersionHistory: 2, objectAlias: old").paths == ("old/0", "old/1")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"keyvaultName": ""}, "error keyvaultName: is missing"),
        ({"keyvaultName": "a.b.c"}, "error keyvaultName: is not the name of a Key Vault"),
        ({"keyvaultName": "a" * 25}, "error keyvaultName: is not the name of a Key Vault"),
        ({"keyvaultName": "ab"}, "error keyvaultName: is not the name of a Key Vault"),
        ({"cloudName": "Mars"}, "error cloudName: is not a known cloud"),
        ({"cloudName": "AzureStackCloud"}, "error cloudEnvFileName: is missing"),
        (
            {"cloudName": "AzureStackCloud", "cloudEnvFileName": "e"},
            "error cloudEnvFileName: is not an absolute path",
        ),
        ({"useVMManagedIdentity": "yes"}, "error useVMManagedIdentity: is not a boolean"),
        (
            {"tenantID": "a", "tenantId": "b"},
            "warning tenantId: does nothing beside tenantID, which differs",
        ),
        ({"tenantID": "a b"}, "error tenantID: is not a tenant"),
        ({"tenantId": "a b"}, "error tenantId: is not a tenant"),
        (
            {"clientID": "c", "useVMManagedIdentity": "true"},
            "warning clientID: does nothing beside useVMManagedIdentity",
        ),
        (
            {"userAssignedIdentityID": "c"},
            "warning userAssignedIdentityID: does nothing without useVMManagedIdentity",
        ),
        ({"keyVaultName": "x"}, "warning keyVaultName: is not a known key and does nothing"),
    ],
)
def test_what_is_wrong_with_parameters(parameters: dict[str, str], expected: str) -> None:
    """Found before the first fetch, each at its place."""
    decoded, findings = decode(**parameters)
    assert findings == [expected]
    assert (decoded is None) == expected.startswith("error")


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ("{objectType: secret}", "objectName: is missing"),
        ("{objectName: a_b, objectType: secret}", "objectName: is not the name of an object"),
        ("{objectName: ../x, objectType: secret}", "objectName: is not the name of an object"),
        ("{objectName: a}", "objectType: is missing"),
        ("{objectName: a, objectType: Secret}", "objectType: is not known"),
        ("{objectName: a, objectType: secret, objectAlias: ../b}", "leaves the target by .."),
        (
            "{objectName: a, objectType: secret, objectVersion: a/b}",
            "objectVersion: is not a version",
        ),
        ("{objectName: a, objectType: secret, objectVersionHistory: -1}", "is not a number up to"),
        (
            "{objectName: a, objectType: secret, objectVersionHistory: 1001}",
            "is not a number up to",
        ),
        ("{objectName: a, objectType: secret, objectFormat: der}", "objectFormat: is not known"),
        (
            "{objectName: a, objectType: secret, objectEncoding: b64}",
            "objectEncoding: is not known",
        ),
        ("{objectName: a, objectType: key, objectEncoding: hex}", "objectEncoding: is for secrets"),
        ("{objectName: a, objectType: cert, objectFormat: pfx}", "objectFormat: is for secrets"),
        ("{objectName: a, objectType: secret, filePermission: '0999'}", "is not a permission"),
        ("{objectName: a, objectType: secret, filePermission: rw}", "is not a permission"),
        ("{objectName: a, objectName: b, objectType: secret}", "objectName: is written twice"),
        ("[a]", "must be a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_with_an_object(element: str, expected: str) -> None:
    """Located by its index, and nothing is taken."""
    decoded, findings = decode(element)
    assert decoded is None
    assert any(expected in line for line in findings), findings
    assert all(line.startswith("error objects.array[0]") for line in findings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "error objects: is empty"),
        ("array:\n", "error objects: contains no objects"),
        ("- objectName: a\n", "error objects: contains no objects"),
        (
            "array:\n  - objectName: a\n    objectType: secret\n",
            "error objects.array[0]: must be a string",
        ),
        ("array:\n  - ''\n", "error objects.array[0]: is empty"),
    ],
)
def test_what_is_wrong_with_the_array(text: str, expected: str) -> None:
    """The usual slip is a list of mappings, where upstream wants strings."""
    decoded, findings = decode(text=text)
    assert (decoded, findings) == (None, [expected])


def test_files_must_not_collide() -> None:
    """Two objects of one name, and a file that another object's history needs as a directory."""
    secret = "{objectName: a, objectType: secret}"
    assert "names the file 'a'" in decode(secret, secret)[1][0]
    history = "{objectName: a, objectType: key, objectVersionHistory: 2}"
    assert "needs a directory 'a'" in decode(secret, history)[1][0]


def test_every_problem_at_once() -> None:
    """Parameters and objects, in one go."""
    _, findings = decode("{objectName: '', objectType: x}", "{}", keyvaultName="", cloudName="Mars")
    assert len(findings) == 6


@pytest.mark.parametrize(
    ("name", "vault", "authority"),
    [
        ("AzurePublicCloud", "vault.azure.net", "login.microsoftonline.com"),
        ("AzureUSGovernmentCloud", "vault.usgovcloudapi.net", "login.microsoftonline.us"),
        ("AzureChinaCloud", "vault.azure.cn", "login.chinacloudapi.cn"),
        ("AzureGermanCloud", "vault.microsoftazure.de", "login.microsoftonline.de"),
    ],
)
def test_national_clouds(name: str, vault: str, authority: str) -> None:
    """Each has its own vaults and its own login."""
    cloud = find_cloud(name, None)
    assert cloud.vault_url("kv") == f"https://kv.{vault}"
    assert cloud.authority == f"https://{authority}"


def test_a_custom_cloud(tmp_path: Path) -> None:
    """Its file is the one that go-autorest reads; more in it is no harm."""
    file = tmp_path / "cloud.json"
    file.write_text(
        '{"name": "local", "activeDirectoryEndpoint": "https://login.local/",'
        ' "keyVaultDNSSuffix": "vault.local"}'
    )
    cloud = find_cloud("AzureStackCloud", str(file))
    assert cloud.vault_url("kv") == "https://kv.vault.local"
    assert cloud.authority == "https://login.local"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read FILE: No such file or directory"),
        (" " * (1 << 20) + "{}", "cannot read FILE: larger than 1 MiB"),
        ("", "cannot use FILE: it is not JSON with activeDirectoryEndpoint"),
        ("[]", "cannot use FILE: it is not JSON with activeDirectoryEndpoint"),
        ("{}", "cannot use FILE: it is not JSON with activeDirectoryEndpoint"),
        (
            '{"activeDirectoryEndpoint": "http://x", "keyVaultDNSSuffix": "y"}',
            "cannot use FILE: it is not JSON with activeDirectoryEndpoint",
        ),
    ],
)
def test_a_custom_cloud_that_cannot_be_used(tmp_path: Path, content: str | None, says: str) -> None:
    """One line names the file and what to do."""
    file = tmp_path / "cloud.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RefusedError) as caught:
        find_cloud("AzureStackCloud", str(file))
    assert caught.value.problem.startswith(says.replace("FILE", str(file)))
    assert "cloudEnvFileName" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("permission", "warned"), [("'0640'", False), ("'0644'", True), ("'0602'", True), ("''", False)]
)
def test_a_permission_for_every_user_is_reported(permission: str, warned: bool) -> None:
    """If the manifest asks for it; the default is the driver's."""
    decoded, findings = decode(
        f"{{objectName: a, objectType: secret, filePermission: {permission}}}"
    )
    assert decoded is not None
    assert any("every user who can enter the target" in line for line in findings) == warned
