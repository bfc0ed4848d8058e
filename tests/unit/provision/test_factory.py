"""Provision entries put together: what configuration and manifests say only together."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from syncd.config.auth import (
    AppRole,
    CertLogin,
    ClientSecret,
    KubernetesLogin,
    ManagedIdentity,
    TokenFile,
    WorkloadIdentity,
)
from syncd.config.settings import Provision, Settings
from syncd.core.errors import ConfigurationError
from syncd.core.model import Entry, Scope
from syncd.provision.azure.provider import AzureProvider
from syncd.provision.composite import CombinedProvider
from syncd.provision.factory import check_provision, open_refreshers, plan_provision
from syncd.provision.vault.provider import VaultProvider
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = """\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: NAME}
spec:
  provider: vault
  parameters:
    vaultCACertPath: /manifest-ca.pem
    objects: |
      - {objectName: OBJECT, secretPath: p, secretKey: k}
"""
AZURE = """\
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: NAME}
spec:
  provider: azure
  parameters:
    keyvaultName: kv-1
    objects: |
      array:
        - |
          {objectName: key-vault, objectType: secret}
"""
TOKEN = TokenFile(token_file="/token")


def manifest(directory: Path, name: str = "app", content: str | None = None) -> str:
    file = directory / f"{name}.yaml"
    file.write_text(content or MANIFEST.replace("NAME", name).replace("OBJECT", name))
    return str(file)


def entry(directory: Path, name: str = "app", **options: Any) -> Provision:
    fields: dict[str, Any] = {"manifest": manifest(directory, name), "auth": TOKEN}
    fields["target"] = str(directory / "target")
    return Provision(**fields | options)


def messages(*entries: Provision) -> list[str]:
    return [f"{item.where or item.source}: {item.message}" for item in plan_provision(entries)[1]]


def test_an_entry_that_is_whole_has_no_findings(tmp_path: Path) -> None:
    """Its name is the manifest's, its files are below the target."""
    (plan,), findings = plan_provision([entry(tmp_path)])
    assert not findings
    assert plan.name == "app"
    assert plan.paths == (str(tmp_path / "target" / "app"),)


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        (None, "provision[0].auth: is missing: a manifest for Vault does not say how to log in"),
        (
            ClientSecret(client_id="c", client_secret_file="/s"),
            "provision[0].auth.method: is not one of Vault's",
        ),
        (KubernetesLogin(), "provision[0].auth.role: is missing"),
        (CertLogin(), "provision[0].auth: has no client certificate"),
        (CertLogin(client_cert="/c"), "provision[0].auth: has half a client certificate"),
        (CertLogin(client_cert="/c", client_key="/k"), None),
        (AppRole(role_id_file="/r"), None),
    ],
)
def test_the_login_has_to_fit_the_manifest(tmp_path: Path, auth: Any, expected: str | None) -> None:
    """Found at the start, not at the first fetch."""
    assert messages(entry(tmp_path, auth=auth)) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["/t/a", "/t/b"], []),
        (["/t/a", "/t/a/"], ["provision[1].target: is another entry's target too"]),
        (["/t/a", "/t/a/b"], ["provision[1].target: is inside another entry's target, or around"]),
        (["/t/a/b", "/t/a"], ["provision[1].target: is inside another entry's target, or around"]),
        (["/t/a", "/t/ab"], []),
    ],
)
def test_targets_must_not_overlap(tmp_path: Path, targets: list[str], expected: list[str]) -> None:
    """A publisher removes what it does not know as its own set."""
    entries = [entry(tmp_path, f"m{i}", target=target) for i, target in enumerate(targets)]
    found = messages(*entries)
    assert len(found) == len(expected)
    assert all(line.startswith(part) for line, part in zip(found, expected, strict=True))


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a directory, or no manifest; every entry is looked at."""
    (tmp_path / "directory").mkdir()
    broken = manifest(tmp_path, "broken", "kind: [")
    azure = manifest(tmp_path, "azure", MANIFEST.replace("provider: vault", "provider: gcp"))
    entries = [
        entry(tmp_path, manifest=path, target=f"/t/{index}")
        for index, path in enumerate(["/nowhere", str(tmp_path / "directory"), broken, azure])
    ]
    found = messages(*entries)
    assert found[0] == "/nowhere: cannot be read: No such file or directory"
    assert found[1].endswith("directory: cannot be read: Is a directory")
    assert "not valid YAML" in found[2]
    assert found[3] == "spec.provider: is not supported here"
    with pytest.raises(ConfigurationError) as caught:
        open_refreshers(entries, Metrics(), Random(1))
    assert len(caught.value.findings) == 4


def test_two_manifests_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Status and metrics must not mix them."""
    other = tmp_path / "other"
    other.mkdir()
    plans, _ = plan_provision([entry(tmp_path, target="/t/a"), entry(other, target="/t/b")])
    assert [plan.name for plan in plans] == ["app", "app@/t/b"]


def test_several_classes_in_one_manifest_share_a_target(tmp_path: Path) -> None:
    """One generation holds the files of all; two of one name collide."""
    text = "---\n".join(MANIFEST.replace("NAME", n).replace("OBJECT", n) for n in ("a", "b"))
    both = entry(tmp_path, manifest=manifest(tmp_path, "both", text))
    (refresher,) = open_refreshers([both], Metrics(), Random(1))
    assert isinstance(refresher.provider, CombinedProvider)
    assert refresher.provider.name == "a"
    clash = entry(tmp_path, manifest=manifest(tmp_path, "clash", text.replace(": b,", ": a,")))
    (found,) = messages(clash)
    assert found == "document 2: spec.parameters.objects: is the file 'a' again"


def test_the_entry_overrides_what_the_manifest_says(tmp_path: Path) -> None:
    """Address, CA and client certificate; a CA of the entry's own turns verification on."""
    text = MANIFEST.replace(
        "vaultCACertPath: /manifest-ca.pem",
        'vaultSkipTLSVerify: "true"\n'
        "    vaultTLSClientCertPath: /mc\n"
        "    vaultTLSClientKeyPath: /mk",
    )
    path = manifest(tmp_path, "skip", text)
    auth = CertLogin(client_cert="/c", client_key="/k")
    options: list[dict[str, Any]] = [
        {},
        {"vault_url": "https://other:8200/", "ca_file": "/own-ca.pem", "auth": auth},
    ]
    seen = []
    for more in options:
        with capture_logs() as logs:
            (refresher,) = open_refreshers(
                [entry(tmp_path, manifest=path, **more)], Metrics(), Random(1)
            )
        assert [line["code"] for line in logs] == ["manifest-insecure"]
        provider = refresher.provider
        assert isinstance(provider, VaultProvider)
        seen.append((provider._connection.address, provider._connection._session._trust))
    (address, trust), (own_address, own_trust) = seen
    assert (address, own_address) == ("https://127.0.0.1:8200", "https://other:8200")
    assert (trust.skip_verify, trust.ca_file, trust.client_cert) == (True, None, "/mc")
    assert (own_trust.skip_verify, own_trust.ca_file) == (False, "/own-ca.pem")
    assert (own_trust.client_cert, own_trust.client_key) == ("/c", "/k")


def test_a_reload_takes_over_providers_that_did_not_change(tmp_path: Path) -> None:
    """Login and leases go on; a changed entry or manifest gets a new provider."""
    metrics, rng = Metrics(), Random(1)
    entries = [entry(tmp_path, name, target=f"/t/{name}") for name in ("a", "b", "c")]
    before = open_refreshers(entries, metrics, rng)
    entries[1] = entry(tmp_path, "b", target="/t/b", interval=5.0)
    manifest(tmp_path, "c", MANIFEST.replace("NAME", "c").replace("OBJECT", "d"))
    after = open_refreshers(entries, metrics, rng, before)
    same = [new.provider is old.provider for new, old in zip(after, before, strict=True)]
    assert same == [True, False, False]


def test_check_compares_manifests_with_the_vault_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path below a target that no object makes, a file that no entry uses; others are fine."""
    monkeypatch.setattr("syncd.provision.factory.filesystem", lambda _path: "tmpfs")
    target = str(tmp_path / "target")
    one = entry(tmp_path, target=target)
    settings = Settings(vault_config="/vault-config.json", provision=(one,))

    def check(*paths: str) -> list[tuple[str, str, str]]:
        entries = {
            str(number): Entry(str(number), path, (Scope("Client"),))
            for number, path in enumerate(paths)
        }
        return [(i.code, i.source, i.message) for i in check_provision(settings, entries)]

    assert check(f"{target}/app", "/elsewhere/x", f"{target}-not/x") == []
    unused = f"{target}/app is used by no entry of /vault-config.json"
    unmade = f"{target}/other is made by no object of {one.manifest}"
    assert check(f"{target}/other") == [
        ("provision-unproduced", "/vault-config.json", unmade),
        ("provision-unused", one.manifest, unused),
    ]


@pytest.mark.parametrize(("kind", "warned"), [("ext4", True), ("tmpfs", False), (None, False)])
def test_check_warns_of_a_target_on_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None, warned: bool
) -> None:
    """Looking at the nearest directory that exists."""
    monkeypatch.setattr("syncd.provision.factory.filesystem", lambda _path: kind)
    one = entry(tmp_path, target=str(tmp_path / "not" / "yet"))
    settings = Settings(vault_config="/v.json", provision=(one,))
    entries = {"a": Entry("a", f"{one.target}/app", (Scope("Client"),))}
    codes = [finding.code for finding in check_provision(settings, entries)]
    assert codes == (["provision-target-on-disk"] if warned else [])


@pytest.mark.parametrize(
    ("parameters", "options", "expected"),
    [
        ("", {"auth": None}, ["provision[0].auth: is missing: the manifest names no managed"]),
        ("", {"auth": TOKEN}, ["provision[0].auth.method: is not one of Azure's"]),
        ("", {"auth": ManagedIdentity()}, []),
        ('useVMManagedIdentity: "true"', {"auth": None}, []),
        (
            "",
            {"auth": WorkloadIdentity(token_file="/t")},
            [
                "provision[0].auth.client_id: is missing",
                "provision[0].auth.tenant_id: is missing",
            ],
        ),
        ("{clientID: c, tenantID: t}", {"auth": WorkloadIdentity(token_file="/t")}, []),
        (
            "tenantID: t",
            {"auth": ClientSecret(client_id="c", client_secret_file="/s")},
            [],
        ),
        (
            "",
            {"auth": ManagedIdentity(), "vault_url": "http://kv"},
            ["provision[0].vault_url: is not an https URL"],
        ),
        (
            "{cloudName: AzureStackCloud, cloudEnvFileName: /nowhere}",
            {"auth": ManagedIdentity()},
            ["kv.yaml: cannot use /nowhere: it cannot be read"],
        ),
    ],
)
def test_the_login_has_to_fit_azure_s_manifest(
    tmp_path: Path, parameters: str, options: dict[str, Any], expected: list[str]
) -> None:
    """An identity that is named, by the entry or the manifest, and never another one."""
    lines = parameters.strip("{}").replace(", ", "\n    ")
    text = AZURE.replace("keyvaultName: kv-1", f"keyvaultName: kv-1\n    {lines}")
    found = messages(entry(tmp_path, manifest=manifest(tmp_path, "kv", text), **options))
    assert len(found) == len(expected), found
    assert all(part in line for line, part in zip(found, expected, strict=True)), found


def test_where_azure_s_vault_is(tmp_path: Path) -> None:
    """By the cloud and the vault's name, unless the entry says otherwise."""
    path = manifest(tmp_path, "kv", AZURE)
    seen = []
    for more in ({}, {"vault_url": "https://kv.local:8443/"}):
        one = entry(tmp_path, manifest=path, auth=ManagedIdentity(), **more)
        (refresher,) = open_refreshers([one], Metrics(), Random(1))
        assert isinstance(refresher.provider, AzureProvider)
        seen.append(refresher.provider._url)
    assert seen == ["https://kv-1.vault.azure.net", "https://kv.local:8443"]


def test_vault_and_azure_in_one_manifest(tmp_path: Path) -> None:
    """One target holds the files of both; the login is Vault's, Azure's is the machine's."""
    managed = AZURE.replace("kv-1", 'kv-1\n    useVMManagedIdentity: "true"')
    text = f"{MANIFEST}---\n{managed}".replace("NAME", "both").replace("OBJECT", "app")
    both = entry(tmp_path, manifest=manifest(tmp_path, "both", text))
    (refresher,) = open_refreshers([both], Metrics(), Random(1))
    assert isinstance(refresher.provider, CombinedProvider)
    path = manifest(tmp_path, "both", text)
    assert messages(entry(tmp_path, manifest=path, vault_url="https://x")) == [
        "provision[0].vault_url: is of two providers"
    ]
