"""Every parameter and every key of an object in every way of writing it, as upstream takes it.

Upstream trims Azure's values and leaves Vault's alone; null is no key; quotes, blocks and aliases
make no difference.
"""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING, Any

import pytest

from syncd.provision.azure.objects import decode_azure
from syncd.provision.manifest import decode_manifests
from syncd.provision.vault.objects import decode_vault

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncd.core.findings import Finding

AZURE = {
    "keyvaultName": "kv-1",
    "tenantID": "t-1",
    "tenantId": "t-1",
    "cloudName": "AzureCloud",
    "cloudEnvFileName": "/e.json",
    "useVMManagedIdentity": "true",
    "userAssignedIdentityID": "i-1",
    "clientID": "c-1",
    "usePodIdentity": "true",
    "useAzureTokenProxy": "true",
}
AZURE_OBJECT = {
    "objectName": "a",
    "objectType": "secret",
    "objectAlias": "b",
    "objectVersion": "0123",
    "objectVersionHistory": "2",
    "objectFormat": "pfx",
    "objectEncoding": "base64",
    "filePermission": "0600",
}
VAULT = {
    "roleName": "r",
    "vaultAddress": "https://v:8200",
    "vaultNamespace": "n",
    "vaultCACertPath": "/ca.pem",
    "vaultCADirectory": "/ca",
    "vaultTLSServerName": "v.example",
    "vaultTLSClientCertPath": "/c.pem",
    "vaultTLSClientKeyPath": "/k.pem",
    "vaultSkipTLSVerify": "true",
    "vaultKubernetesMountPath": "k8s",
    "vaultAuthMountPath": "k8s",
    "audience": "x",
}
VAULT_OBJECT = {
    "objectName": "a",
    "secretPath": "secret/data/a",
    "secretKey": "k",
    "method": "PUT",
    "encoding": "base64",
    "filePermission": "0600",
}
STYLES: dict[str, Callable[[str], str]] = {
    "plain": lambda value: value,
    "quoted": lambda value: f"'{value}'",
    "block scalar": lambda value: f"|-\n    {value}",
    "folded": lambda value: f">-\n    {value}",
    "alias": lambda _: "*v",
}
REQUIRED = ("keyvaultName", "objects", "objectName", "objectType", "secretPath")
CERTIFICATE = ("vaultTLSClientCertPath", "vaultTLSClientKeyPath")
PARTNERS = {
    "userAssignedIdentityID": "useVMManagedIdentity",
    **dict(zip(CERTIFICATE, CERTIFICATE[::-1], strict=True)),
}

Pairs = dict[str, str]


def keys(pairs: Pairs, key: str, written: str | None, every: Pairs) -> str:
    """Lines of a mapping: `pairs` plain, `key` as written and its anchor, None for without it."""
    lines = [f"{name}: '{value}'" for name, value in pairs.items() if name != key]
    if key in PARTNERS:
        lines.append(f"{PARTNERS[key]}: '{every[PARTNERS[key]]}'")
    if written is not None:
        lines.append(f"{key}: {written}")
    return "\n".join(lines)


def decode(provider: str, parameters: str, objects: str, anchor: str) -> tuple[Any, list[Finding]]:
    text = (
        "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n"
        f"metadata: {{name: x, annotations: {{v: &v '{anchor}'}}}}\n"
        f"spec:\n  provider: {provider}\n  parameters:\n"
        f"{indent(parameters, '    ')}\n    objects: |\n{indent(objects, '      ')}\n"
    )
    manifests, findings = decode_manifests(text.encode(), "m.yaml")
    if not manifests:
        return None, findings
    decoded, more = (decode_azure if provider == "azure" else decode_vault)(manifests[0])
    return decoded, [*findings, *more]


def parameter(provider: str, key: str, written: str | None) -> tuple[Any, list[Finding]]:
    every = AZURE if provider == "azure" else VAULT
    required = {"keyvaultName": "kv-1"} if provider == "azure" else {}
    objects = "array:\n- |\n  {objectName: a, objectType: secret}"
    if provider == "vault":
        objects = "- {objectName: a, secretPath: p}"
    return decode(provider, keys(required, key, written, every), objects, every[key])


def member(provider: str, key: str, written: str | None) -> tuple[Any, list[Finding]]:
    if provider == "azure":
        required = {"objectName": "a", "objectType": "secret"}
        body = keys(required, key, written, AZURE_OBJECT)
        body = f"v: &v {AZURE_OBJECT[key]}\n{body}"
        objects = "array:\n- |\n" + indent(body, "  ")
        return decode(provider, "keyvaultName: kv-1", objects, "")
    required = {"objectName": "a", "secretPath": "secret/data/a", "secretKey": "k"}
    body = f"v: &v {VAULT_OBJECT[key]}\n" + keys(required, key, written, VAULT_OBJECT)
    return decode(provider, "roleName: r", "-\n" + indent(body, "  "), "")


TABLE = [
    *[("azure", parameter, key, value) for key, value in AZURE.items()],
    *[("azure", member, key, value) for key, value in AZURE_OBJECT.items()],
    *[("vault", parameter, key, value) for key, value in VAULT.items()],
    *[("vault", member, key, value) for key, value in VAULT_OBJECT.items()],
]
IDS = [f"{provider}-{key}" for provider, _, key, _ in TABLE]
Spell = Any


@pytest.mark.parametrize(("provider", "spell", "key", "value"), TABLE, ids=IDS)
@pytest.mark.parametrize("style", STYLES)
def test_a_style_makes_no_difference(
    provider: str, spell: Spell, key: str, value: str, style: str
) -> None:
    """Quotes, blocks and aliases mean what the plain scalar means."""
    expected, _ = spell(provider, key, f"'{value}'")
    assert expected is not None
    assert expected != spell(provider, key, None)[0] or key in (*UNUSED, *EQUAL)
    written = STYLES[style](value)
    if style == "plain" and value == "true":
        written = f"'{value}'"  # the API server takes strings only
    if style == "plain" and spell is parameter and value.isdecimal():
        written = f"'{value}'"
    assert spell(provider, key, written)[0] == expected


UNUSED = ("audience", "cloudEnvFileName")
EQUAL = ("cloudName", "objectName", "objectType", "secretPath", "secretKey", "keyvaultName")


@pytest.mark.parametrize(("provider", "spell", "key", "value"), TABLE, ids=IDS)
@pytest.mark.parametrize("null", ["", "~", "null", "Null", "NULL"])
def test_null_is_no_key(provider: str, spell: Spell, key: str, value: str, null: str) -> None:
    """An optional one has its default, a required one is missing."""
    del value
    without, findings = spell(provider, key, None)
    assert (without is None) == (key in REQUIRED or key in CERTIFICATE)
    decoded, found = spell(provider, key, null)
    assert decoded == without
    assert found == findings


@pytest.mark.parametrize(("provider", "spell", "key", "value"), TABLE, ids=IDS)
@pytest.mark.parametrize("padding", [" ", "\\t", "\\n"])
def test_white_space_is_dropped_for_azure_and_kept_for_vault(
    provider: str, spell: Spell, key: str, value: str, padding: str
) -> None:
    """As upstream has it: `strings.TrimSpace` there, verbatim here, where it can be invalid."""
    decoded, findings = spell(provider, key, f'"{padding}{value}{padding}"')
    trimmed, _ = spell(provider, key, f"'{value}'")
    if provider == "azure":
        assert decoded == trimmed
    elif decoded is None:
        assert all(key in item.where for item in findings if item.is_error)
    elif key not in UNUSED:
        assert decoded != trimmed


def test_objects_can_be_merged() -> None:
    """The second object has the first one's keys."""
    objects = "- &x {objectName: a, secretPath: p, secretKey: k, filePermission: 0600}\n"
    decoded, findings = decode("vault", "roleName: r", objects + "- {<<: *x, objectName: b}", "")
    assert not findings
    first, second = decoded.objects
    assert (second.path, second.request, second.key, second.mode) == (
        "b",
        first.request,
        "k",
        0o600,
    )


def test_an_element_s_second_document_is_not_used() -> None:
    """The first one counts, with a warning."""
    objects = "array:\n- |\n  {objectName: a, objectType: key}\n  ---\n  [\n"
    decoded, (finding,) = decode("azure", "keyvaultName: kv-1", objects, "")
    assert [item.kind for item in decoded.objects] == ["key"]
    assert not finding.is_error
    assert "only the first one is used" in finding.message
