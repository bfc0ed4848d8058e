"""A CA file that holds only the CA that issued the server's certificate, and not the root.

curl, Go's programs, Vault Agent and the CSI provider trust it; each client of syncd must, too. It
must not trust another CA below the same root.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import anyio.to_thread
import pytest
from support.azure import Azure
from support.mail import change
from support.nats import NatsServer
from support.openbao import vault_class
from support.receiver import Receiver, reply
from support.tls import Authority
from support.waiting import DEADLINE

from syncd.config.auth import ManagedIdentity, TokenFile
from syncd.config.settings import Aidbox, Nats, Webhook
from syncd.consumers.aidbox.consumer import AidboxConsumer
from syncd.consumers.nats import NatsConsumer
from syncd.consumers.webhook import WebhookConsumer
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.core.events import Stamp
from syncd.net.tls import Trust
from syncd.provision.azure.objects import decode_azure
from syncd.provision.azure.provider import AzureProvider
from syncd.provision.manifest import Manifest
from syncd.provision.vault.provider import VaultProvider

if TYPE_CHECKING:
    from pathlib import Path

STAMP = Stamp("5f0c2a91", "/syncd/node-1")
UNTRUSTED = "signed by a CA that is not trusted"


@pytest.fixture
def root(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "root")


@pytest.fixture
def issuing(tmp_path: Path, root: Authority) -> Authority:
    return Authority(tmp_path, "issuing", root=root)


@pytest.fixture(params=["issuing", "sibling"])
def named(
    request: pytest.FixtureRequest, tmp_path: Path, root: Authority, issuing: Authority
) -> Authority:
    """The CA that the user names: the one that issued, or another one of the same root."""
    return issuing if request.param == "issuing" else Authority(tmp_path, "sibling", root=root)


async def test_webhook_over_tls_of_an_issuing_ca(issuing: Authority, named: Authority) -> None:
    """Over httpx2."""
    with Receiver(tls=issuing.server()) as receiver:
        settings = Webhook(name="hook", url=receiver.url, ca_file=str(named.file))
        consumer = WebhookConsumer(settings, STAMP)
        try:
            await consumer.deliver([change("a", 2, 1)])
            problem = None
        except TemporaryError as error:
            problem = error.problem
        await consumer.aclose()
    assert_told(problem, issuing, named)
    assert len(receiver.requests) == (named is issuing)


async def test_aidbox_over_tls_of_an_issuing_ca(
    issuing: Authority, named: Authority, tmp_path: Path
) -> None:
    """With a Client's secret in the request."""
    (tmp_path / "secret").write_text("s")
    with Receiver(tls=issuing.server(), default=reply(200, b"{}")) as receiver:
        consumer = AidboxConsumer(
            Aidbox(
                name="aidbox",
                urls=(receiver.url.rsplit("/", 1)[0],),
                client_id="syncd",
                client_secret_file=str(tmp_path / "secret"),
                actions=("drop_cache",),
                ca_file=str(named.file),
            ),
            STAMP,
        )
        try:
            await consumer.deliver([change("a", 2, 1)])
            problem = None
        except SyncdError as error:
            problem = error.problem
        await consumer.aclose()
    assert_told(problem, issuing, named)
    assert bool(receiver.requests) == (named is issuing)


async def test_nats_over_tls_of_an_issuing_ca(
    issuing: Authority, named: Authority, tmp_path: Path
) -> None:
    """Over nats-py, to a real server."""
    issuing.write_server(tmp_path / "server.pem", tmp_path / "server.key")
    tls = {"cert_file": f"{tmp_path}/server.pem", "key_file": f"{tmp_path}/server.key"}
    settings = {"name": "bus", "timeout": DEADLINE, "ca_file": str(named.file), "subject": "s.x"}
    with ExitStack() as stack:
        server = NatsServer(tls=tls)
        await anyio.to_thread.run_sync(lambda: stack.enter_context(server))
        urls = (server.url.replace("nats://", "tls://"),)
        consumer = NatsConsumer(Nats(urls=urls, **settings), STAMP)  # type: ignore[arg-type]
        with pytest.raises(TemporaryError) as caught:
            await consumer.deliver([change("a", 2, 1)])
        await consumer.aclose()
    # with a connection it gets as far as the stream, which is missing here
    expected = "no stream takes subject s.x" if named is issuing else UNTRUSTED
    assert expected in caught.value.problem


@pytest.mark.parametrize("by_directory", [False, True])
def test_vault_over_tls_of_an_issuing_ca(
    issuing: Authority, named: Authority, tmp_path: Path, by_directory: bool
) -> None:
    """Over requests and hvac, by file and by directory (`vaultCADirectory`)."""
    (tmp_path / "token").write_text("t")
    (tmp_path / "cas").mkdir()
    (tmp_path / "cas" / "ca.pem").write_bytes(named.pem)
    directory = Trust(ca_directory=str(tmp_path / "cas"))
    body = b'{"data": {"data": {"k": "v"}}, "lease_id": "", "lease_duration": 0}'
    default = reply(200, body, content_type="application/json")
    with Receiver(tls=issuing.server(), default=default) as server:
        provider = VaultProvider(
            "vault",
            vault_class("- {objectName: f, secretPath: secret/data/a, secretKey: k}"),
            TokenFile(token_file=str(tmp_path / "token")),
            address=server.url.rsplit("/", 1)[0],
            trust=directory if by_directory else Trust(ca_file=str(named.file)),
        )
        assert_fetched(provider, issuing, named)


def test_azure_over_tls_of_an_issuing_ca(
    issuing: Authority, named: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over requests and azure-core."""
    parameters = {
        "keyvaultName": "kv-1",
        "objects": "array:\n  - |\n    objectName: f\n    objectType: secret\n",
    }
    decoded, findings = decode_azure(Manifest("m.yaml", "", "app", "azure", parameters))
    assert decoded is not None, findings
    with Azure(tmp_path, context=issuing.server()) as azure:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.imds)
        azure.set_secret("f", "v")
        provider = AzureProvider(
            "azure",
            decoded,
            ManagedIdentity(),
            vault_url=azure.url,
            authority=azure.url,
            trust=Trust(ca_file=str(named.file)),
            verify_challenge_resource=False,
        )
        assert_fetched(provider, issuing, named)


def assert_fetched(
    provider: VaultProvider | AzureProvider, issuing: Authority, named: Authority
) -> None:
    try:
        (file,) = provider.fetch().files
        assert file.content == b"v"
        problem = None
    except RefusedError as error:
        problem = error.problem
    finally:
        provider.close()
    assert_told(problem, issuing, named)


def assert_told(problem: str | None, issuing: Authority, named: Authority) -> None:
    if named is issuing:
        assert problem is None
    else:
        assert problem is not None
        assert UNTRUSTED in problem
