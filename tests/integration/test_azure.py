"""Azure Key Vault by the real SDK, against a fake with its own CA: objects, logins, faults."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from support.azure import (
    CLIENT,
    TENANT,
    TOKEN,
    Azure,
    Fault,
    answer,
    close,
    cut,
    garbage,
    hang,
    odd,
)
from support.tls import EXPIRED, Authority, replace
from support.waiting import DEADLINE, wait_until
from unit.provision.azure.test_content import bundle, chain
from unit.provision.azure.test_objects import array

from syncd.config.auth import (
    AzureAuth,
    ClientCertificate,
    ClientSecret,
    ManagedIdentity,
    WorkloadIdentity,
)
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.payload import File, Payload
from syncd.net import interruption
from syncd.net.interruption import Interruption
from syncd.net.tls import Trust
from syncd.provision.azure.objects import decode_azure
from syncd.provision.azure.provider import AzureProvider
from syncd.provision.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Open = Callable[..., AzureProvider]

SECRET = "{objectName: app, objectType: secret}"
CANARY = "CANARY-5ecre7"


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    with Azure(tmp_path) as azure:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.imds)
        azure.set_secret("app", CANARY)
        yield azure


@pytest.fixture
def open_provider(azure: Azure) -> Iterator[Open]:
    yield from open_providers(
        vault_url=azure.url,
        authority=azure.url,
        trust=Trust(ca_file=str(azure.authority.file)),
        verify_challenge_resource=False,
    )


def open_providers(**options: Any) -> Iterator[Open]:
    """Makes providers for a vault, and closes them in the end."""
    opened: list[AzureProvider] = []

    def make(*objects: str, auth: AzureAuth | None = None, **more: Any) -> AzureProvider:
        parameters = {"keyvaultName": "kv-1", "objects": array(*objects or (SECRET,))}
        decoded, findings = decode_azure(Manifest("m.yaml", "", "app", "azure", parameters))
        assert decoded is not None, findings
        provider = AzureProvider("app", decoded, auth or ManagedIdentity(), **(options | more))
        opened.append(provider)
        return provider

    yield make
    for provider in opened:
        provider.close()


def contents(payload: Payload) -> dict[str, bytes]:
    return {file.path: file.content for file in payload.files}


def keys(**more: str) -> str:
    return json.dumps({"objectName": "app", "objectType": "secret", **more})


def test_a_secret_in_every_form(azure: Azure, open_provider: Open) -> None:
    """Alias, encodings, permission; several files of one object are one request."""
    azure.set_secret("app", base64.b64encode(b"bytes").decode())
    azure.set_secret("hex", "6869")
    payload = open_provider(
        keys(),
        keys(objectAlias="dir/raw", objectEncoding="base64", filePermission="0600"),
        keys(objectName="hex", objectEncoding="hex"),
    ).fetch()
    assert contents(payload) == {
        "app": base64.b64encode(b"bytes"),
        "dir/raw": b"bytes",
        "hex": b"hi",
    }
    assert [file.mode for file in payload.files] == [0o644, 0o600, 0o644]
    assert azure.requests == ["/secrets/app/", "/secrets/hex/"]
    assert payload.due is None


def test_versions(azure: Azure, open_provider: Open) -> None:
    """The newest by default, or the one that is named."""
    first = azure.set_secret("app", "first")
    azure.set_secret("app", "second")
    assert contents(open_provider().fetch()) == {"app": b"second"}
    pinned = keys(objectVersion=first)
    assert contents(open_provider(pinned).fetch()) == {"app": b"first"}


def test_a_history_is_exactly_as_long_as_asked_for(azure: Azure, open_provider: Open) -> None:
    """Newest first over all pages, disabled ones left out; fewer where there are no more."""
    versions = [azure.set_secret("old", str(number)) for number in range(6)]
    azure.enable("secrets", "old", versions[4], enabled=False)
    three = keys(objectName="old", objectVersionHistory="3")
    assert contents(open_provider(three).fetch()) == {"old/0": b"5", "old/1": b"3", "old/2": b"2"}
    from_two = keys(objectName="old", objectVersionHistory="2", objectVersion=versions[2])
    assert contents(open_provider(from_two).fetch()) == {"old/0": b"2", "old/1": b"1"}
    many = keys(objectName="old", objectVersionHistory="50")
    assert len(open_provider(many).fetch().files) == 5


def test_a_history_reads_each_version_once(azure: Azure, open_provider: Open) -> None:
    """What a version holds never changes: later passes list, and read what is new."""
    for number in range(3):
        azure.set_secret("old", str(number))
    provider = open_provider(keys(objectName="old", objectVersionHistory="3"))
    provider.fetch()
    azure.requests.clear()
    provider.fetch()
    assert azure.requests == ["/secrets/old/versions"] * 2
    newest = azure.set_secret("old", "3")
    azure.requests.clear()
    assert contents(provider.fetch()) == {"old/0": b"3", "old/1": b"2", "old/2": b"1"}
    assert azure.requests == ["/secrets/old/versions"] * 2 + [f"/secrets/old/{newest}"]
    assert len(provider._kept) == 3


@pytest.mark.parametrize(
    ("version", "says"),
    [("f" * 32, "app has no enabled version f"), ("", "nothing has no enabled version")],
)
def test_a_history_that_begins_nowhere(open_provider: Open, version: str, says: str) -> None:
    """An error, where upstream hands over nothing at all."""
    name = "app" if version else "nothing"
    history = keys(objectName=name, objectVersionHistory="2", objectVersion=version)
    with pytest.raises(RefusedError, match=says):
        open_provider(history).fetch()


def test_certificate_backed_secrets(azure: Azure, open_provider: Open) -> None:
    """PEM as it is; PKCS#12 as it is for pfx, else the key and the chain from leaf to root."""
    key, certificates = chain("leaf", "middle", "root")
    pfx = bundle(key, [certificates[0], certificates[2], certificates[1]])
    backed = {"kid": f"{azure.url}/keys/cert/1"}
    azure.set_secret("pfx", pfx, contentType="application/x-pkcs12", **backed)
    azure.set_secret("pem", "-----BEGIN-----", contentType="application/x-pem-file", **backed)
    payload = open_provider(
        keys(objectName="pfx"),
        keys(objectName="pfx", objectAlias="raw", objectFormat="pfx"),
        keys(objectName="pfx", objectAlias="der", objectFormat="pfx", objectEncoding="base64"),
        keys(objectName="pem"),
    ).fetch()
    found = contents(payload)
    assert x509.load_pem_x509_certificates(found["pfx"]) == certificates
    assert found["pfx"].startswith(b"-----BEGIN PRIVATE KEY-----")
    assert found["raw"] == pfx.encode()
    assert found["der"] == base64.b64decode(pfx)
    assert found["pem"] == b"-----BEGIN-----"
    assert azure.requests == ["/secrets/pfx/", "/secrets/pem/"]


def test_keys_and_certificates(azure: Azure, open_provider: Open) -> None:
    """The public key, and the certificate alone; by version and with a history, too."""
    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    digits = {"n": numbers.n.to_bytes(256), "e": numbers.e.to_bytes(3)}
    encoded = {k: base64.urlsafe_b64encode(v).decode().rstrip("=") for k, v in digits.items()}
    azure.set_key("sign", {"kty": "RSA", **encoded})
    _, certificates = chain("leaf", "root")
    versions = [
        azure.set_certificate("tls", item.public_bytes(Encoding.DER)) for item in certificates
    ]
    found = contents(
        open_provider(
            keys(objectName="sign", objectType="key"),
            keys(objectName="sign", objectType="key", objectAlias="k", objectVersionHistory="2"),
            keys(objectName="tls", objectType="cert"),
            keys(objectName="tls", objectType="cert", objectAlias="v", objectVersion=versions[0]),
            keys(objectName="tls", objectType="cert", objectAlias="c", objectVersionHistory="2"),
        ).fetch()
    )
    public = load_pem_public_key(found["sign"])
    assert isinstance(public, rsa.RSAPublicKey)
    assert public.public_numbers() == numbers
    assert found["k/0"] == found["sign"]
    for path, index in (("tls", 1), ("v", 0), ("c/0", 1), ("c/1", 0)):
        assert x509.load_pem_x509_certificates(found[path]) == [certificates[index]], path


def test_the_machine_s_identity(azure: Azure, open_provider: Open) -> None:
    """The system's, or the one that is named; asked once for a day; never another one."""
    azure.identities = {None: TOKEN, "mine": "CANARY-5ecre7-mine"}
    azure.accepted.add("CANARY-5ecre7-mine")
    provider = open_provider()
    provider.fetch()
    provider.fetch()
    open_provider(auth=ManagedIdentity(client_id="mine")).fetch()
    resource = {"api-version": "2018-02-01", "resource": "https://vault.azure.net"}
    assert azure.logins == [resource, {**resource, "client_id": "mine"}]
    with pytest.raises(
        RefusedError, match=r"does not know the identity \(400\); assign it to this VM"
    ):
        open_provider(auth=ManagedIdentity(client_id="other")).fetch()


def test_the_environment_chooses_no_identity(
    azure: Azure, open_provider: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What azure-identity would take from there is left alone."""
    (tmp_path / "token").write_text("other")
    for name, value in {
        "AZURE_CLIENT_ID": "other",
        "AZURE_TENANT_ID": "other",
        "AZURE_CLIENT_SECRET": "other",
        "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token"),
        "IDENTITY_ENDPOINT": "http://127.0.0.1:9/other",
        "IDENTITY_HEADER": "other",
        "MSI_ENDPOINT": "http://127.0.0.1:9/other",
    }.items():
        monkeypatch.setenv(name, value)
    assert contents(open_provider().fetch()) == {"app": CANARY.encode()}
    assert len(azure.logins) == 1


def test_a_client_secret_that_rotates(azure: Azure, open_provider: Open, tmp_path: Path) -> None:
    """Read whenever a token is asked for; refused ones are told, and the next file is taken."""
    file = tmp_path / "client-secret"
    replace(file, "CANARY-5ecre7-wrong")
    auth = ClientSecret(client_id=CLIENT, client_secret_file=str(file), tenant_id=TENANT)
    provider = open_provider(auth=auth)
    with pytest.raises(
        RefusedError, match=f"cannot log in to .* as {CLIENT}: the login is rejected"
    ) as caught:
        provider.fetch()
    assert str(file) in str(caught.value)
    assert CANARY not in str(caught.value)
    replace(file, azure.client_secret + "\n")
    assert contents(provider.fetch()) == {"app": CANARY.encode()}
    asked = len(azure.logins)
    provider.fetch()
    assert len(azure.logins) == asked
    azure.client_secret = "CANARY-5ecre7-next"
    azure.accepted.clear()  # the old token is revoked: the vault asks anew
    replace(file, azure.client_secret)
    azure.fault(
        answer(
            401,
            www_authenticate=f'Bearer authorization="{azure.url}/{TENANT}",'
            ' resource="https://vault.azure.net"',
        )
    )
    azure.accepted.add(TOKEN)
    provider.fetch()
    assert azure.logins[-1]["client_secret"] == azure.client_secret


def test_a_token_that_is_revoked(azure: Azure, open_provider: Open) -> None:
    """Another one is asked for at once, although this one was for a day."""
    provider = open_provider()
    provider.fetch()
    azure.accepted = {"CANARY-5ecre7-next"}
    azure.identities = {None: "CANARY-5ecre7-next"}
    assert contents(provider.fetch()) == {"app": CANARY.encode()}
    assert len(azure.logins) == 2
    azure.accepted.clear()
    with pytest.raises(RefusedError, match=r"rejects the token \(401\); check tenantID"):
        provider.fetch()
    assert len(azure.logins) == 3
    azure.accepted = {"CANARY-5ecre7-next"}
    assert contents(provider.fetch()) == {"app": CANARY.encode()}


def test_a_throttled_pass_goes_on_where_it_ended(azure: Azure, open_provider: Open) -> None:
    """The first objects do not spend the quota again; after ten minutes they are read anew."""
    names = ["a", "b", "c"]
    for name in names:
        azure.set_secret(name, "1")
    now = [0.0]
    provider = open_provider(*(keys(objectName=name) for name in names), clock=lambda: now[0])
    for waits, asked in ((90, ["b", "c"]), (700, names)):
        azure.after("/secrets/b/", answer(429, retry_after="90"))
        with pytest.raises(TemporaryError) as caught:
            provider.fetch()
        assert caught.value.retry_after == 90
        azure.requests.clear()
        azure.set_secret("a", "2")
        now[0] += waits
        provider.fetch()
        assert azure.requests == [f"/secrets/{name}/" for name in asked]
    azure.fault(answer(404, "SecretNotFound"))
    with pytest.raises(RefusedError):
        provider.fetch()
    azure.requests.clear()
    provider.fetch()
    assert len(azure.requests) == 3


def test_a_workload_identity(azure: Azure, open_provider: Open, tmp_path: Path) -> None:
    """The federated token is the assertion, read anew for every login."""
    file = tmp_path / "token"
    for token in ("first.jwt", "second.jwt"):
        replace(file, token)
        auth = WorkloadIdentity(token_file=str(file), client_id=CLIENT, tenant_id=TENANT)
        open_provider(auth=auth).fetch()
        assert azure.logins[-1]["client_assertion"] == token


@pytest.mark.parametrize("kind", ["pem", "pfx"])
def test_a_client_certificate(azure: Azure, open_provider: Open, tmp_path: Path, kind: str) -> None:
    """PEM or PKCS#12; what it signs, its own public key verifies."""
    from cryptography.hazmat.primitives.serialization import (
        NoEncryption,
        PrivateFormat,
        pkcs12,
    )

    authority = Authority(tmp_path, "clients")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.write_client("syncd", cert, key)
    key_pem = key.read_bytes()
    private = rsa.generate_private_key(65537, 2048)
    certificate = self_signed(private)
    if kind == "pem":
        content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        content += certificate.public_bytes(Encoding.PEM)
    else:
        content = pkcs12.serialize_key_and_certificates(
            b"", private, certificate, None, NoEncryption()
        )
    file = tmp_path / f"client.{kind}"
    file.write_bytes(content)
    auth = ClientCertificate(client_id=CLIENT, client_certificate_file=str(file), tenant_id=TENANT)
    open_provider(auth=auth).fetch()
    assert azure.logins[-1]["client_assertion"].count(".") == 2
    file.write_bytes(key_pem)
    with pytest.raises(RefusedError, match="is not an RSA key with its certificate"):
        open_provider(auth=auth).fetch()


def self_signed(key: rsa.RSAPrivateKey) -> x509.Certificate:
    import datetime as dt

    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "syncd")])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (
            answer(403, "Forbidden", "ForbiddenByRbac"),
            RefusedError,
            "denies this identity access .403.; assign the role Key Vault Secrets User",
        ),
        (
            answer(403, "Forbidden", "ForbiddenByFirewall"),
            RefusedError,
            "the firewall of .* denies access .403.; allow this machine",
        ),
        (answer(403, "Forbidden", "SecretDisabled"), RefusedError, "app is disabled .403.; enable"),
        (
            answer(403, "Forbidden", "SecretNotYetValid"),
            RefusedError,
            "app is not valid yet .403.; wait until its activation date",
        ),
        (
            answer(403, "Forbidden", "SecretExpired"),
            RefusedError,
            "app has expired .403.; create a new version",
        ),
        (
            answer(403, "Forbidden", "ForbiddenByConnection"),
            RefusedError,
            "no access from public networks .403.; use its private endpoint, and check the DNS",
        ),
        (
            answer(403, "Forbidden", "ForbiddenByPolicy"),
            RefusedError,
            "the access policies of .* .403.; give the identity the secret permission Get$",
        ),
        (
            answer(403, "Forbidden"),
            RefusedError,
            "denies this identity access .403.; assign the role .*, and allow this machine's",
        ),
        (answer(404, "SecretNotFound"), RefusedError, "has no secret app .404.; create it"),
        (
            answer(400, "BadParameter"),
            RefusedError,
            "rejects the request .400 BadParameter.; check",
        ),
        (answer(307, location="https://127.0.0.1:1/"), RefusedError, "rejects the request .307"),
        (garbage, TemporaryError, "is not Key Vault's; check keyvaultName"),
        (odd, TemporaryError, "is not Key Vault's; check keyvaultName"),
    ],
)
def test_an_answer_that_is_none(
    azure: Azure, open_provider: Open, fault: Fault, kind: type[Exception], says: str
) -> None:
    """One clear line that names the object and the remedy, and the next pass succeeds."""
    provider = open_provider()
    provider.fetch()
    azure.fault(fault)
    with pytest.raises(kind, match=f"^cannot read app: .*{says}") as caught:
        provider.fetch()
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)
    assert contents(provider.fetch()) == {"app": CANARY.encode()}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (answer(429), "limits requests .429.; raise the interval"),
        (answer(500), "cannot answer now .500."),
        (answer(503), "cannot answer now .503."),
        (close, "the connection ended without a complete answer"),
        (cut, "the connection ended without a complete answer"),
    ],
)
def test_a_fault_that_may_pass(
    azure: Azure,
    open_provider: Open,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    says: str,
) -> None:
    """Tried again within the pass, a few times; then one line, and the next pass succeeds."""
    monkeypatch.setattr(Interruption, "pause", lambda _self, _seconds: False)
    provider = open_provider()
    azure.fault(*[fault] * 3)
    assert contents(provider.fetch()) == {"app": CANARY.encode()}
    azure.fault(*[fault] * 4)
    with pytest.raises(TemporaryError, match=f"^cannot read app: .*{says}") as caught:
        provider.fetch()
    assert CANARY not in str(caught.value)
    assert contents(provider.fetch()) == {"app": CANARY.encode()}


def test_retry_after(azure: Azure, open_provider: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one is waited for, by all objects; a long one ends the pass, and says how long."""
    waited: list[float] = []

    def wait(_self: object, seconds: float) -> bool:
        waited.append(seconds)
        return False

    monkeypatch.setattr(Interruption, "pause", wait)
    provider = open_provider()
    azure.fault(answer(429, retry_after="7"))
    provider.fetch()
    assert waited == [7]
    azure.fault(answer(429, retry_after="90"))
    with pytest.raises(TemporaryError, match="limits requests; raise the interval") as caught:
        provider.fetch()
    assert caught.value.retry_after == 90


def test_an_answer_beyond_all_bounds_is_cut_off(
    azure: Azure, open_provider: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded; the next pass goes on."""
    provider = open_provider()
    monkeypatch.setattr(interruption, "LONGEST_ANSWER", 1 << 20)
    azure.fault(lambda handler: handler.say(200, b"x" * (2 << 20)))
    with pytest.raises(RefusedError, match="answers with more than 1 MiB; check that it is a Key"):
        provider.fetch()
    assert provider.fetch().files


def test_a_vault_that_hangs(
    azure: Azure, open_provider: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limits end it with one line; interrupting does at once, a pause too."""
    provider = open_provider()
    provider.fetch()
    monkeypatch.setattr(interruption, "REQUEST_LIMIT", 0.2)
    azure.fault(hang)
    with pytest.raises(TemporaryError, match="did not finish within"):
        provider.fetch()
    monkeypatch.setattr(interruption, "REQUEST_LIMIT", 2 * DEADLINE)
    for fault in (hang, answer(429, retry_after="15")):
        azure.fault(fault)
        before = len(azure.requests)
        raised: list[BaseException] = []

        def fetch(into: list[BaseException] = raised) -> None:
            try:
                provider.fetch()
            except TemporaryError as error:
                into.append(error)

        thread = threading.Thread(target=fetch)
        thread.start()
        wait_until(lambda before=before: len(azure.requests) > before)  # type: ignore[misc] # bound in the loop
        provider.interrupt()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert "before syncd stopped waiting" in str(raised[0])
        provider.resume()
        assert contents(provider.fetch()) == {"app": CANARY.encode()}


@pytest.mark.parametrize("to", ["vault", "login"])
def test_tls_that_cannot_be_trusted(
    azure: Azure,
    open_provider: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to: str,
) -> None:
    """A wrong CA and an expired certificate are told apart, for the vault and for the login."""
    monkeypatch.setattr(Interruption, "pause", lambda _self, _seconds: False)
    other = Authority(tmp_path, "other")
    file = tmp_path / "client-secret"
    file.write_text(azure.client_secret)
    auth = ClientSecret(client_id=CLIENT, client_secret_file=str(file), tenant_id=TENANT)
    if to == "vault":
        wrong = open_provider(trust=Trust(ca_file=str(other.file)))
        with pytest.raises(
            RefusedError, match=r"by a CA that is not trusted \(.*\); set ca_file to its"
        ):
            wrong.fetch()
    context = azure.authority.server(expires=EXPIRED)
    with Azure(tmp_path, context=context) as expired:
        urls = {"vault_url": azure.url, "authority": azure.url}
        urls |= {"vault_url" if to == "vault" else "authority": expired.url}
        stale = open_provider(auth=auth, **urls)
        with pytest.raises(RefusedError, match="the certificate has expired"):
            stale.fetch()
    assert contents(open_provider(auth=auth).fetch()) == {"app": CANARY.encode()}


def test_a_challenge_of_another_service(azure: Azure, open_provider: Open) -> None:
    """No token goes to a host that is not of the cloud, unless that check is turned off."""
    with pytest.raises(RefusedError, match="requires a token for another service; check keyvault"):
        open_provider(verify_challenge_resource=True).fetch()
    assert not azure.requests
    assert not azure.logins


def test_api_versions(azure: Azure, open_provider: Open) -> None:
    """The SDK's own, or an older one for a cloud that is behind."""
    assert contents(open_provider(api_version="7.4").fetch()) == {"app": CANARY.encode()}
    assert contents(open_provider().fetch()) == {"app": CANARY.encode()}
    assert azure.versions == ["7.4", "7.4", "2026-04-01"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [(garbage, "the answer is not Microsoft Entra ID's"), (odd, "is not Microsoft Entra ID's")],
)
def test_a_login_that_makes_no_sense(
    azure: Azure, open_provider: Open, tmp_path: Path, fault: Fault, says: str
) -> None:
    """One line, and the next pass succeeds."""
    file = tmp_path / "client-secret"
    file.write_text(azure.client_secret)
    auth = ClientSecret(client_id=CLIENT, client_secret_file=str(file), tenant_id=TENANT)
    provider = open_provider(auth=auth)
    azure.fault_login(fault)
    with pytest.raises((TemporaryError, RefusedError), match=says) as caught:
        provider.fetch()
    assert CANARY not in str(caught.value)
    assert contents(provider.fetch()) == {"app": CANARY.encode()}


def test_a_login_file_that_is_not_there(open_provider: Open) -> None:
    """It is named."""
    auth = ClientSecret(client_id=CLIENT, client_secret_file="/nowhere", tenant_id=TENANT)
    with pytest.raises(RefusedError, match=r"cannot read auth\.client_secret_file /nowhere"):
        open_provider(auth=auth).fetch()


def test_no_repr_shows_a_value(azure: Azure, open_provider: Open) -> None:
    """Providers, payloads and logins can be logged."""
    provider = open_provider(keys(objectVersionHistory="2"))
    payload = provider.fetch()
    shown = repr([provider, provider._login, payload, payload.files])
    assert CANARY not in shown
    assert azure.url in shown


def test_the_machine_s_identity_needs_no_azure_identity() -> None:
    """20 MiB less: msal and azure-identity are for service principals."""
    script = (
        "import sys; from syncd.system.lean_import import import_requests; import_requests();"
        "import syncd.provision.azure.provider;"
        "sys.exit(any(m in sys.modules for m in ('msal', 'azure.identity', 'aiohttp')))"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", script], check=False, env=environment)
    assert done.returncode == 0


def test_files_have_their_modes(open_provider: Open) -> None:
    """As `filePermission` says."""
    (file,) = open_provider(keys(filePermission="0400")).fetch().files
    assert file == File("app", CANARY.encode(), 0o400)
