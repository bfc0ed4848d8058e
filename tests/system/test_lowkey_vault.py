"""The same suite as against the fake, against Lowkey Vault: an independent Key Vault."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from integration.test_azure import (
    contents,
    keys,
    open_providers,
    test_a_history_is_exactly_as_long_as_asked_for,
    test_versions,
)
from support.lowkey import API_VERSION, Lowkey, UnavailableError, fetch
from unit.provision.azure.test_content import bundle, chain

from syncd.net.tls import Trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.test_azure import Open

__all__ = ["test_a_history_is_exactly_as_long_as_asked_for", "test_versions"]


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lowkey]:
    try:
        jar = fetch()
    except UnavailableError as reason:
        pytest.skip(f"Lowkey Vault cannot be had: {reason}")
    with Lowkey(jar, tmp_path_factory.mktemp("lowkey")) as vault:
        yield vault


@pytest.fixture
def open_provider(azure: Lowkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.imds)
    yield from open_providers(
        vault_url=azure.url,
        authority=azure.url,
        trust=Trust(ca_file=str(azure.ca_file)),
        verify_challenge_resource=False,
        api_version=API_VERSION,
    )


def test_an_imported_certificate(azure: Lowkey, open_provider: Open) -> None:
    """Its secret becomes key and chain, its key and certificate the public parts."""
    key, certificates = chain("leaf", "middle", "root")
    pfx = base64.b64decode(bundle(key, certificates))
    azure.certificates.import_certificate("tls", pfx)
    found = contents(
        open_provider(
            keys(objectName="tls"),
            keys(objectName="tls", objectType="cert", objectAlias="cert"),
            keys(objectName="tls", objectType="key", objectAlias="key"),
        ).fetch()
    )
    assert found["tls"].startswith(b"-----BEGIN PRIVATE KEY-----")
    assert x509.load_pem_x509_certificates(found["tls"])[0] == certificates[0]
    assert x509.load_pem_x509_certificates(found["cert"]) == certificates[:1]
    assert found["key"].startswith(b"-----BEGIN PUBLIC KEY-----")
