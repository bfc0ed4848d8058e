"""Provision entries and their manifests: what they say only together, and what `check` adds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from support.manifests import AZURE, MANIFEST, TOKEN, entry, manifest

from syncd.config.auth import (
    AppRole,
    CertLogin,
    ClientSecret,
    KubernetesLogin,
    ManagedIdentity,
    WorkloadIdentity,
)
from syncd.config.settings import Provision, Settings
from syncd.core.model import Entry, Scope
from syncd.provision.plan import LARGEST_MANIFEST, check_provision, plan_provision

if TYPE_CHECKING:
    from pathlib import Path

    from syncd.core.findings import Finding


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
        (None, "provision[0].auth: is missing: a manifest does not say how to log in to Vault"),
        (
            ClientSecret(client_id="c", client_secret_file="/s"),
            "provision[0].auth.method: is not a login of Vault",
        ),
        (KubernetesLogin(), "provision[0].auth.role: is missing"),
        (CertLogin(), "provision[0].auth: has no client certificate"),
        (CertLogin(client_cert="/c"), "provision[0].auth.client_key: is missing"),
        (CertLogin(client_key="/k"), "provision[0].auth.client_cert: is missing"),
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
        (["/t/a", "//t/./a/"], ["provision[1].target: is also the target of provision[0]"]),
        (["/t/a", "/t/a/b"], ["provision[1].target: overlaps the target of provision[0]"]),
        (["/t/a/b", "/t/a"], ["provision[1].target: overlaps the target of provision[0]"]),
        (["/t/a", "/t/ab"], []),
        (["/", "/t"], ["provision[1].target: overlaps the target of provision[0]"]),
    ],
)
def test_targets_must_not_overlap(tmp_path: Path, targets: list[str], expected: list[str]) -> None:
    """A publisher removes what it does not know as its own set."""
    entries = [entry(tmp_path, f"m{i}", target=target) for i, target in enumerate(targets)]
    assert messages(*entries) == expected


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
    assert found[1].endswith("directory: cannot be read: not a regular file")
    assert "not valid YAML" in found[2]
    assert found[3] == "spec.provider: is not a supported provider"
    hints = [item.hint for item in plan_provision(entries)[1]]
    assert "provision[0].manifest" in hints[0]
    assert "provision[1].manifest" in hints[1]


def test_a_manifest_over_the_limit_is_rejected_and_not_cut(tmp_path: Path) -> None:
    """Cut off at the limit it would be valid, and would lose the object at its end."""
    whole = MANIFEST.replace("NAME", "big").replace("OBJECT", "first")
    last = "      - {objectName: last, secretPath: p, secretKey: k}\n"
    padding = "      #".ljust(LARGEST_MANIFEST - len(whole), "x") + "\n"
    (found,) = plan_provision(
        [entry(tmp_path, manifest=manifest(tmp_path, "big", whole + padding + last))]
    )[1]
    assert found.code == "manifest-unreadable"
    assert found.message == "cannot be read: larger than 4 MiB"
    assert "provision[0].manifest" in found.hint


def test_two_manifests_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Status and metrics must not mix them."""
    other = tmp_path / "other"
    other.mkdir()
    plans, _ = plan_provision([entry(tmp_path, target="/t/a"), entry(other, target="/t/b")])
    assert [plan.name for plan in plans] == ["app", "app@/t/b"]


def test_check_compares_manifests_with_the_vault_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path below a target that no object makes, a file that no entry uses; others are fine."""
    monkeypatch.setattr("syncd.provision.plan.filesystem", lambda _path: "tmpfs")
    target = str(tmp_path / "target")
    one = entry(tmp_path, target=target)
    settings = Settings(vault_config="/vault-config.json", provision=(one,))

    def check(*paths: str) -> list[tuple[str, str, str]]:
        entries = {
            str(number): Entry(str(number), path, (Scope("Client"),))
            for number, path in enumerate(paths)
        }
        return [(i.code, i.source, i.message) for i in checked(settings, entries)]

    assert check(f"{target}/app", "/elsewhere/x", f"{target}-not/x") == []
    unused = f"no entry of /vault-config.json uses {target}/app"
    unmade = f"no object of {one.manifest} writes {target}/other"
    assert check(f"{target}/other") == [
        ("provision-unproduced", "/vault-config.json", unmade),
        ("provision-unused", one.manifest, unused),
    ]


@pytest.mark.parametrize(("kind", "warned"), [("ext4", True), ("tmpfs", False), (None, False)])
def test_check_warns_of_a_target_on_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None, warned: bool
) -> None:
    """Looking at the nearest directory that exists."""
    monkeypatch.setattr("syncd.provision.plan.filesystem", lambda _path: kind)
    one = entry(tmp_path, target=str(tmp_path / "not" / "yet"))
    settings = Settings(vault_config="/v.json", provision=(one,))
    entries = {"a": Entry("a", f"{one.target}/app", (Scope("Client"),))}
    codes = [finding.code for finding in checked(settings, entries)]
    assert codes == (["provision-target-on-disk"] if warned else [])


@pytest.mark.parametrize(
    ("parameters", "options", "expected"),
    [
        ("", {"auth": None}, ["provision[0].auth: is missing: the manifest does not use"]),
        ("", {"auth": TOKEN}, ["provision[0].auth.method: is not a login of Azure Key Vault"]),
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
            ["spec.parameters.cloudEnvFileName: cannot read /nowhere: No such file or directory"],
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


@pytest.mark.parametrize("key", ["usePodIdentity", "useAzureTokenProxy"])
def test_what_works_in_a_cluster_only_needs_the_entry_s_own_login(tmp_path: Path, key: str) -> None:
    """The manifest of a cluster is taken as it is where `auth` decides; also with the identity."""
    text = AZURE.replace("kv-1", f'kv-1\n    {key}: "true"')
    path = manifest(tmp_path, "kv", text)
    assert messages(entry(tmp_path, manifest=path, auth=ManagedIdentity())) == []
    alone = [f"spec.parameters.{key}: works in a cluster only"]
    assert messages(entry(tmp_path, manifest=path, auth=None)) == alone
    path = manifest(tmp_path, "kv", text.replace("kv-1", 'kv-1\n    useVMManagedIdentity: "true"'))
    assert messages(entry(tmp_path, manifest=path, auth=None)) == alone


def test_files_of_two_documents_must_not_collide(tmp_path: Path) -> None:
    """They share the target."""
    text = "---\n".join(MANIFEST.replace("NAME", n).replace("OBJECT", "a") for n in ("a", "b"))
    assert messages(entry(tmp_path, manifest=manifest(tmp_path, "clash", text))) == [
        "document 2: spec.parameters.objects: names the file 'a', which is another object's"
    ]


def test_one_address_cannot_be_two_providers(tmp_path: Path) -> None:
    """`vault_url` is for manifests with one provider."""
    managed = AZURE.replace("kv-1", 'kv-1\n    useVMManagedIdentity: "true"')
    text = f"{MANIFEST}---\n{managed}".replace("NAME", "both").replace("OBJECT", "app")
    path = manifest(tmp_path, "both", text)
    assert messages(entry(tmp_path, manifest=path, vault_url="https://x")) == [
        "provision[0].vault_url: is set for a manifest with two providers"
    ]


@pytest.mark.parametrize(("mode", "found"), [(0o750, False), (0o770, True), (0o1777, True)])
def test_check_reports_a_target_that_others_may_write(
    tmp_path: Path, mode: int, found: bool
) -> None:
    """The daemon would refuse it."""
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(mode)
    assert target_problems(entry(tmp_path, target=str(target))) == found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give directories away")
@pytest.mark.parametrize(("owner", "found"), [("4001", True), ("4002", False), (None, False)])
def test_check_reports_a_target_that_belongs_to_the_owner(
    tmp_path: Path, owner: str | None, found: bool
) -> None:
    """Any other user may be syncd's own: `sudo syncd check` is not run by it."""
    target = tmp_path / "target"
    target.mkdir(mode=0o750)
    os.chown(target, 4001, -1)
    assert target_problems(entry(tmp_path, target=str(target), owner=owner)) == found


def checked(settings: Settings, entries: dict[str, Entry]) -> list[Finding]:
    plans, findings = plan_provision(settings.provision)
    return [*findings, *check_provision(settings, entries, plans)]


def target_problems(one: Provision) -> bool:
    settings = Settings(vault_config="/v.json", provision=(one,))
    entries = {"a": Entry("a", f"{one.target}/app", (Scope("Client"),))}
    codes = [finding.code for finding in checked(settings, entries)]
    return "provision-target-untrusted" in codes


@pytest.mark.parametrize(
    ("address", "vault_url", "where"),
    [
        ("http://vault.example.com:8200", None, "spec.parameters.openbaoAddress"),
        ("http://vault.example.com:8200", "https://vault.example.com:8200", None),
        ("http://vault.example.com:8200", "http://127.0.0.1:8200", None),
        ("https://vault.example.com:8200", "http://10.0.0.1:8200", "provision[0].vault_url"),
        ("http://localhost:8200", None, None),
        (None, None, None),
    ],
)
def test_a_vault_without_tls_is_reported(
    tmp_path: Path, address: str | None, vault_url: str | None, where: str | None
) -> None:
    """Where its address is written; an agent on loopback is fine."""
    text = (
        MANIFEST.replace("NAME", "app").replace("OBJECT", "app").replace(": vault\n", ": openbao\n")
    )
    key = "" if address is None else f"    openbaoAddress: {address}\n"
    text = text.replace("    vaultCACertPath: /manifest-ca.pem\n", key)
    one = entry(tmp_path, manifest=manifest(tmp_path, "own", text), vault_url=vault_url)
    _, findings = plan_provision([one])
    found = [(item.code, item.where) for item in findings if item.code == "credential-cleartext"]
    assert found == ([("credential-cleartext", where)] if where else [])
