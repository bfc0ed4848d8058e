"""From entries to loops: which provider is opened how, and which a reload keeps."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs
from support.manifests import AZURE, MANIFEST, entry, manifest

from syncd.config.auth import CertLogin, ManagedIdentity
from syncd.core.errors import ConfigurationError
from syncd.provision.azure.provider import AzureProvider
from syncd.provision.composite import CompositeProvider
from syncd.provision.factory import open_refreshers
from syncd.provision.vault.provider import VaultProvider
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_is_opened_where_an_entry_is_wrong(tmp_path: Path) -> None:
    """All errors of all entries are named, and a warning does not count."""
    insecure = MANIFEST.replace("vaultCACertPath: /manifest-ca.pem", 'vaultSkipTLSVerify: "true"')
    entries = [
        entry(tmp_path, manifest="/nowhere", target="/t/0"),
        entry(tmp_path, manifest=manifest(tmp_path, "insecure", insecure), target="/t/1"),
        entry(tmp_path, auth=None, target="/t/2"),
    ]
    with pytest.raises(ConfigurationError) as caught:
        open_refreshers(entries, Metrics(), Random(1))
    codes = [item.code for item in caught.value.findings]
    assert codes == ["manifest-unreadable", "provision-invalid"]


def test_several_classes_in_one_manifest_share_a_target(tmp_path: Path) -> None:
    """One generation holds the files of all."""
    text = "---\n".join(MANIFEST.replace("NAME", n).replace("OBJECT", n) for n in ("a", "b"))
    both = entry(tmp_path, manifest=manifest(tmp_path, "both", text))
    (refresher,) = open_refreshers([both], Metrics(), Random(1))
    assert isinstance(refresher.provider, CompositeProvider)
    assert refresher.provider.name == "a"


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
    assert isinstance(refresher.provider, CompositeProvider)
