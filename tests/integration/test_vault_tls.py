"""TLS that fails names its cause, and a remedy for this cause: for Vault, Azure and its login."""

from __future__ import annotations

import ssl
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from integration.test_azure import open_providers
from support.azure import CLIENT, TENANT, Azure
from support.receiver import Receiver, reply
from support.tls import EXPIRED, FUTURE, Authority

from syncd.config.auth import ClientSecret
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.net.interruption import Interruption
from syncd.net.tls import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.openbao import OpenBao

OBJECTS = "- {objectName: app, secretPath: secret/data/app, secretKey: k}"
UNTRUSTED = "the certificate is signed by a CA that is not trusted"
CLOCK = "set this machine's clock, or replace the certificate"
OPTIONS = {
    "vault": ("vaultAddress or vault_url", "ca_file or vaultCACertPath"),
    "azure": ("keyvaultName or vault_url", "ca_file"),
    "login": ("cloudName", "ca_file"),
}


@pytest.fixture(params=list(OPTIONS))
def way(
    request: pytest.FixtureRequest,
    openbao: OpenBao,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[str, Callable[[str, Trust], SyncdError]]]:
    """Which way, and a fetch from an address that fails."""
    monkeypatch.setattr(Interruption, "pause", lambda _self, _seconds: False)
    with Azure(tmp_path) as azure, ExitStack() as stack:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.imds)
        open_provider = stack.enter_context(
            contextmanager(open_providers)(
                vault_url=azure.url, authority=azure.url, verify_challenge_resource=False
            )
        )
        file = tmp_path / "client-secret"
        file.write_text(azure.client_secret)
        secret = ClientSecret(client_id=CLIENT, client_secret_file=str(file), tenant_id=TENANT)
        both = tmp_path / "both.pem"

        def fetch(address: str, trust: Trust) -> SyncdError:
            provider: Any
            if request.param == "vault":
                provider = openbao.provider(OBJECTS, address=address, trust=trust)
            elif request.param == "azure":
                provider = open_provider(vault_url=address, trust=trust)
            else:
                # the vault, which asks for the login, is trusted in any case
                assert trust.ca_file is not None
                both.write_bytes(azure.authority.pem + Path(trust.ca_file).read_bytes())
                provider = open_provider(
                    auth=secret, authority=address, trust=Trust(ca_file=str(both))
                )
            with pytest.raises(SyncdError) as caught:
                provider.fetch()
            assert "\n" not in str(caught.value)
            return caught.value

        yield request.param, fetch


@pytest.mark.parametrize(
    ("certificate", "problem", "remedy"),
    [
        ({"expires": EXPIRED}, "the certificate has expired", "renew the certificate"),
        ({"begins": FUTURE}, "the certificate is not valid yet", CLOCK),
        (
            {"names": ("vault.example",)},
            "the certificate is for another IP address",
            "correct {address}",
        ),
        ({"names": ("vault.example",), "trusted": False}, UNTRUSTED, "set {ca} to its CA"),
        ({"trusted": False}, UNTRUSTED, "set {ca} to its CA"),
    ],
)
def test_a_certificate_that_cannot_be_accepted(
    way: tuple[str, Callable[[str, Trust], SyncdError]],
    tmp_path: Path,
    certificate: dict[str, object],
    problem: str,
    remedy: str,
) -> None:
    """Clock, renewal, name and CA are told apart, and each has its own remedy."""
    kind, fetch = way
    authority, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    issuer = authority if certificate.get("trusted", True) else other
    options = {key: value for key, value in certificate.items() if key != "trusted"}
    context = issuer.server(**options)  # type: ignore[arg-type] # of several types
    with Receiver(tls=context, default=reply(200, b"{}")) as server:
        error = fetch(server.url.rsplit("/", 1)[0], Trust(ca_file=str(authority.file)))
    assert isinstance(error, RefusedError)
    assert problem in error.problem
    address, ca = OPTIONS[kind]
    assert (error.remedy or "").startswith(remedy.format(address=address, ca=ca))


def test_another_name_can_be_expected(openbao: OpenBao, tmp_path: Path) -> None:
    """The remedy names the parameter for it, and following it helps."""
    authority = Authority(tmp_path)
    with Receiver(tls=authority.server(names=("vault.example",)), default=reply(403)) as server:
        address, file = server.url.rsplit("/", 1)[0], str(authority.file)
        with pytest.raises(RefusedError, match="set vaultTLSServerName to the certificate's name"):
            openbao.provider(OBJECTS, address=address, trust=Trust(ca_file=file)).fetch()
        trust = Trust(ca_file=file, server_name="vault.example")
        with pytest.raises(RefusedError, match="rejects the token"):
            openbao.provider(OBJECTS, address=address, trust=trust).fetch()


class _Plain(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """What arrives is not HTTP."""


@pytest.mark.parametrize("server", ["OpenBao", "Python"])
def test_https_before_a_server_without_tls(
    way: tuple[str, Callable[[str, Trust], SyncdError]],
    openbao: OpenBao,
    tmp_path: Path,
    server: str,
) -> None:
    """Not the certificate and not the version of TLS: there is none."""
    kind, fetch = way
    trust = Trust(ca_file=str(Authority(tmp_path, "ours").file))
    with HTTPServer(("127.0.0.1", 0), _Plain) as plain:
        threading.Thread(target=plain.serve_forever, args=(0.02,), daemon=True).start()
        port = openbao.port if server == "OpenBao" else plain.server_port
        error = fetch(f"https://127.0.0.1:{port}", trust)
        plain.shutdown()
    assert isinstance(error, TemporaryError)
    assert "the server answers without TLS (https://127.0.0.1" in error.problem
    assert error.remedy == f"write http:// in {OPTIONS[kind][0]}, or enable TLS on the server"


def test_http_before_a_server_with_tls(openbao_tls: OpenBao) -> None:
    """The object is not blamed for the 400."""
    address = openbao_tls.address.replace("https:", "http:")
    with pytest.raises(RefusedError) as caught:
        openbao_tls.provider(OBJECTS, address=address).fetch()
    assert f"the server at {address} requires TLS (400)" in caught.value.problem
    assert caught.value.remedy == "write https:// in vaultAddress or vault_url"


def test_a_version_of_tls_that_is_not_shared(openbao: OpenBao, tmp_path: Path) -> None:
    """It is not taken for a server without TLS."""
    authority = Authority(tmp_path)
    context = authority.server()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # the certificate has a key of ECDSA
    with Receiver(tls=context) as server:
        provider = openbao.provider(
            OBJECTS,
            address=server.url.rsplit("/", 1)[0],
            trust=Trust(ca_file=str(authority.file)),
        )
        with pytest.raises(TemporaryError, match="TLS failed: ") as caught:
            provider.fetch()
    assert "http://" not in (caught.value.remedy or "")
