"""Logging in to a real OpenBao server, keeping the token, and getting another one."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from structlog.testing import capture_logs
from support.openbao import ROOT, Clock, OpenBao, contents

from syncd.config.auth import AppRole, CertLogin, JwtLogin, KubernetesLogin, TokenFile
from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.tls import Trust

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OBJECTS = "- {objectName: f, secretPath: secret/data/auth, secretKey: k}"
RULES = 'path "secret/data/auth" { capabilities = ["read"] }'


@pytest.fixture(scope="module", autouse=True)
def _secret(openbao: OpenBao, openbao_tls: OpenBao) -> None:
    for server in (openbao, openbao_tls):
        server.put("auth", k="v")
        server.policy("reader", RULES)
        server.policy("elsewhere", 'path "secret/data/elsewhere" { capabilities = ["read"] }')


class Role:
    """An AppRole with its files."""

    def __init__(self, server: OpenBao, directory: Path, name: str, **settings: Any) -> None:
        self.server, self.name = server, name
        server.write(f"auth/approle/role/{name}", token_policies="reader", **settings)
        role_id = server.read(f"auth/approle/role/{name}/role-id")["data"]["role_id"]
        self.role_id_file = directory / "role-id"
        self.secret_id_file = directory / "secret-id"
        self.role_id_file.write_text(role_id)
        self.secret_id_file.write_text(self.secret_id() + "\n")

    def secret_id(self, wrap: str = "") -> str:
        path = f"auth/approle/role/{self.name}/secret-id"
        answer = self.server.ask("POST", path, {}, wrap=wrap)
        return str(answer["wrap_info"]["token"] if wrap else answer["data"]["secret_id"])

    def auth(self, **more: Any) -> AppRole:
        return AppRole(
            role_id_file=str(self.role_id_file), secret_id_file=str(self.secret_id_file), **more
        )


@pytest.fixture(scope="module")
def approle(openbao: OpenBao) -> OpenBao:
    openbao.write("sys/auth/approle", type="approle")
    return openbao


@pytest.fixture
def role(approle: OpenBao, tmp_path: Path) -> Iterator[Role]:
    yield Role(approle, tmp_path, tmp_path.name, token_ttl="1h", token_max_ttl="90m")
    approle.ask("DELETE", f"auth/approle/role/{tmp_path.name}")


def token_of(provider: Any) -> str:
    return str(provider._login._token)


def test_approle_logs_in_once_for_many_passes(role: Role) -> None:
    """The token is used until two thirds of its time."""
    provider = role.server.provider(OBJECTS, role.auth())
    payload = provider.fetch()
    assert contents(payload) == {"f": b"v"}
    assert payload.due == pytest.approx(2400, abs=10)
    provider.fetch()
    assert provider._login.logins == 1


def test_a_token_is_renewed_and_replaced_at_its_maximum(role: Role) -> None:
    """Two thirds: renewed. The renewal that runs into the maximum: used up, then a new login."""
    clock = Clock()
    provider = role.server.provider(OBJECTS, role.auth(), clock=clock)
    provider.fetch()
    first = token_of(provider)
    clock.ahead += 2450
    payload = provider.fetch()  # the server's own clock has not moved: a full hour again
    assert token_of(provider) == first
    assert payload.due == pytest.approx(2400, abs=60)
    accessor = role.server.ask("GET", "auth/token/lookup-self", token=first)["data"]["accessor"]
    role.server.write(f"auth/approle/role/{role.name}", token_max_ttl="2m", token_ttl="1m")
    assert accessor
    clock.ahead += 2450
    provider.fetch()  # renewed for far less than an hour: the maximum is near
    assert token_of(provider) == first
    assert not provider._login._lifetime.renewable
    clock.ahead += 2450
    provider.fetch()
    assert token_of(provider) != first
    assert provider._login.logins == 2


def test_a_revoked_token_is_replaced_within_the_pass(role: Role) -> None:
    """A 403 with a token that is no longer valid means another login, not a failure."""
    provider = role.server.provider(OBJECTS, role.auth())
    provider.fetch()
    role.server.ask("POST", "auth/token/revoke-self", {}, token=token_of(provider))
    assert contents(provider.fetch()) == {"f": b"v"}
    assert provider._login.logins == 2


def test_a_denial_is_reported_and_not_answered_by_logins(role: Role) -> None:
    """A 403 with a token that still lives is the policy's: one line that names the object."""
    role.server.write(f"auth/approle/role/{role.name}", token_policies="elsewhere")
    provider = role.server.provider(OBJECTS, role.auth())
    for _ in range(3):
        says = r"cannot read f: the policy denies GET secret/data/auth \(403\); allow it"
        with pytest.raises(RefusedError, match=says):
            provider.fetch()
    assert provider._login.logins == 1
    role.server.policy("elsewhere", RULES)
    assert contents(provider.fetch()) == {"f": b"v"}
    role.server.policy("elsewhere", 'path "x" { capabilities = ["read"] }')


def test_credential_files_are_read_for_every_login(role: Role) -> None:
    """A secret-id that was rotated is taken at the next login, without a restart."""
    provider = role.server.provider(OBJECTS, role.auth())
    provider.fetch()
    old = role.secret_id_file.read_text().strip()
    role.server.write(f"auth/approle/role/{role.name}/secret-id/destroy", secret_id=old)
    role.server.ask("POST", "auth/token/revoke-self", {}, token=token_of(provider))
    says = (
        "cannot log in at auth/approle/login: .* rejects the login .400.; write a valid role-id and"
        f" secret-id into .*{role.name}"
    )
    with pytest.raises(RefusedError, match=says) as caught:
        provider.fetch()
    assert old not in str(caught.value)
    role.secret_id_file.write_text(role.secret_id())
    assert contents(provider.fetch()) == {"f": b"v"}


def test_a_login_that_fails_while_the_token_lives_is_logged_and_not_fatal(role: Role) -> None:
    """There is a third of the token's TTL left to fix it."""
    clock = Clock()
    role.server.write(f"auth/approle/role/{role.name}", token_type="batch")
    provider = role.server.provider(OBJECTS, role.auth(), clock=clock)
    provider.fetch()
    role.secret_id_file.write_text("not-a-secret-id-CANARY")
    clock.ahead += 2500
    with capture_logs() as logs:
        payload = provider.fetch()
    assert contents(payload) == {"f": b"v"}
    (line,) = [line for line in logs if line["event"] == "provision.renewal_failed"]
    assert "write a valid role-id" in line["problem"]
    assert "CANARY" not in repr(logs)
    assert payload.due == pytest.approx(1100 / 3, abs=30)


def test_a_wrapped_secret_id_is_unwrapped_once_and_remembered(role: Role) -> None:
    """Later logins use what was unwrapped; a new wrapping token in the file takes its place."""
    role.secret_id_file.write_text(role.secret_id(wrap="5m"))
    provider = role.server.provider(OBJECTS, role.auth(secret_id_wrapped=True))
    provider.fetch()
    for wrapping in (None, role.secret_id(wrap="5m")):
        if wrapping is not None:
            role.secret_id_file.write_text(wrapping)
        role.server.ask("POST", "auth/token/revoke-self", {}, token=token_of(provider))
        assert contents(provider.fetch()) == {"f": b"v"}
    with pytest.raises(Exception, match="400"):  # it has been used up
        role.server.ask("POST", "sys/wrapping/unwrap", {}, token=role.secret_id_file.read_text())
    another = role.server.provider(OBJECTS, role.auth(secret_id_wrapped=True))
    with pytest.raises(
        RefusedError, match=r"cannot unwrap .*was used already.*; write a new wrapped"
    ):
        another.fetch()


def test_a_wrapping_token_of_another_origin_is_refused(role: Role) -> None:
    """A secret-id that was intercepted and wrapped again has another `creation_path`."""
    stolen = {"secret_id": role.secret_id()}
    answer = role.server.ask("POST", "sys/wrapping/wrap", stolen, wrap="5m")
    role.secret_id_file.write_text(answer["wrap_info"]["token"])
    provider = role.server.provider(OBJECTS, role.auth(secret_id_wrapped=True))
    with pytest.raises(
        RefusedError, match=r"was not wrapped by auth/approle.*revoke the secret-id"
    ):
        provider.fetch()


def jwt(key: rsa.RSAPrivateKey, **claims: Any) -> str:
    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    head = part(json.dumps({"alg": "RS256", "typ": "JWT"}).encode())
    body = part(
        json.dumps({"iat": int(time.time()), "exp": int(time.time()) + 600, **claims}).encode()
    )
    signature = key.sign(f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{head}.{body}.{part(signature)}"


@pytest.fixture(scope="module")
def signing_key(openbao: OpenBao) -> rsa.RSAPrivateKey:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for mount in ("jwt", "kubernetes", "clusters/one"):
        openbao.write(f"sys/auth/{mount}", type="jwt")
        openbao.write(f"auth/{mount}/config", jwt_validation_pubkeys=[pem.decode()])
        openbao.write(
            f"auth/{mount}/role/aidbox",
            role_type="jwt",
            user_claim="sub",
            bound_audiences=["vault"],
            token_policies="reader",
        )
    return key


@pytest.mark.parametrize(
    ("auth", "parameters"),
    [
        (JwtLogin(role="aidbox"), ""),
        (JwtLogin(), "roleName: aidbox"),
        (KubernetesLogin(), "roleName: aidbox"),
        (KubernetesLogin(role="aidbox", mount="clusters/one"), "roleName: other"),
        (KubernetesLogin(), "roleName: aidbox\nbaoAuthMountPath: clusters/one"),
        (JwtLogin(), "roleName: aidbox\nvaultKubernetesMountPath: clusters/one"),
    ],
)
def test_jwt_and_kubernetes_logins_send_role_and_token(
    openbao: OpenBao,
    signing_key: rsa.RSAPrivateKey,
    tmp_path: Path,
    auth: JwtLogin | KubernetesLogin,
    parameters: str,
) -> None:
    """Role and mount come from the configuration, else from the manifest, else by default."""
    file = tmp_path / "jwt"
    file.write_text(jwt(signing_key, sub="syncd", aud="vault"))
    auth = msgspec.structs.replace(auth, jwt_file=str(file))
    provider = openbao.provider(OBJECTS, auth, parameters=parameters)
    assert contents(provider.fetch()) == {"f": b"v"}


def test_a_jwt_for_another_audience_is_refused(
    openbao: OpenBao, signing_key: rsa.RSAPrivateKey, tmp_path: Path
) -> None:
    """The line names the file; the token is not in it. A missing role or method is told apart."""
    file = tmp_path / "jwt"
    file.write_text(jwt(signing_key, sub="syncd", aud="another"))
    provider = openbao.provider(OBJECTS, JwtLogin(role="aidbox", jwt_file=str(file)))
    with pytest.raises(RefusedError, match=f"role, audience and expiry .* in {file}") as caught:
        provider.fetch()
    assert file.read_text() not in str(caught.value)
    missing = JwtLogin(role="aidbox", jwt_file=str(file), mount="not-enabled")
    with pytest.raises(RefusedError, match=r"auth/not-enabled/login.*40[34]"):
        openbao.provider(OBJECTS, missing).fetch()


def test_a_token_file_is_read_in_every_pass(openbao: OpenBao, tmp_path: Path) -> None:
    """Vault Agent or a person may replace it at any time; a dead one is told by its file."""
    file = tmp_path / "token"

    def issue(**options: Any) -> str:
        answer = openbao.write("auth/token/create", policies=["reader"], **options)
        return str(answer["auth"]["client_token"])

    file.write_text(issue(ttl="1h"))
    provider = openbao.provider(OBJECTS, TokenFile(token_file=str(file)))
    assert provider.fetch().due == pytest.approx(2400, abs=10)
    openbao.ask("POST", "auth/token/revoke-self", {}, token=file.read_text())
    for _ in range(2):
        with pytest.raises(
            RefusedError, match=f"cannot use auth.token_file {file}: .*write a valid token"
        ):
            provider.fetch()
    file.write_text(issue(ttl="10m"))
    assert provider.fetch().due == pytest.approx(400, abs=10)
    file.write_text(issue(ttl="1h", no_default_policy=True))  # may not even look itself up
    assert contents(provider.fetch()) == {"f": b"v"}
    file.write_text(ROOT)
    assert provider.fetch().due is None


def test_a_token_file_that_the_server_could_not_be_asked_about(
    openbao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next pass looks it up again: otherwise the time of the renewal would be unknown."""
    answer = openbao.write("auth/token/create", policies=["reader"], ttl="1h")
    file = tmp_path / "token"
    file.write_text(answer["auth"]["client_token"])
    provider = openbao.provider(OBJECTS, TokenFile(token_file=str(file)))

    def unreachable(*_: Any, **__: Any) -> Any:
        raise TemporaryError("cannot look up the token: no answer")

    with monkeypatch.context() as patched:
        patched.setattr(provider._connection, "request", unreachable)
        with pytest.raises(TemporaryError):
            provider.fetch()
    assert provider.fetch().due == pytest.approx(2400, abs=60)


def test_a_token_that_ends_and_cannot_be_renewed_is_warned_about(
    openbao: OpenBao, tmp_path: Path
) -> None:
    """Only the operator can write another one into the file."""
    answer = openbao.write("auth/token/create", policies=["reader"], ttl="1h", renewable=False)
    file = tmp_path / "token"
    file.write_text(answer["auth"]["client_token"])
    clock = Clock()
    provider = openbao.provider(OBJECTS, TokenFile(token_file=str(file)), clock=clock)
    provider.fetch()
    clock.ahead += 2500
    with capture_logs() as logs:
        provider.fetch()
    assert [line["event"] for line in logs] == ["provision.token_ends"]
    assert logs[0]["file"] == str(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory; set token_file"),
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"two words CANARY", "not one word"),
        (b"CANARY\x00x", "not one word"),
        ("CANARYé".encode(), "not one word"),
        (b"CANARY" * 20_000, "larger than 64 KiB"),
    ],
)
def test_a_file_that_holds_no_credential_is_named(
    openbao: OpenBao, tmp_path: Path, content: bytes | None, says: str
) -> None:
    """Missing, empty, or something that no header can carry."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    provider = openbao.provider(OBJECTS, TokenFile(token_file=str(file)))
    with pytest.raises(RefusedError, match=f"auth.token_file {file}: .*{says}") as caught:
        provider.fetch()
    assert "CANARY" not in str(caught.value)


@pytest.fixture
def client_ca(openbao_tls: OpenBao) -> Iterator[trustme.CA]:
    ca = trustme.CA()
    openbao_tls.write("sys/auth/cert", type="cert")
    openbao_tls.write(
        "auth/cert/certs/syncd", certificate=ca.cert_pem.bytes().decode(), token_policies="reader"
    )
    yield ca
    openbao_tls.ask("DELETE", "sys/auth/cert")


def test_a_client_certificate_logs_in(
    openbao_tls: OpenBao, client_ca: trustme.CA, tmp_path: Path
) -> None:
    """Method `cert`; a certificate that was renewed on disk is taken without a restart."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def write(ca: trustme.CA) -> None:
        issued = ca.issue_cert("syncd@example.org", common_name="syncd")
        cert.write_bytes(issued.cert_chain_pems[0].bytes())
        key.write_bytes(issued.private_key_pem.bytes())

    write(trustme.CA())
    trust = Trust(ca_file=openbao_tls.ca, client_cert=str(cert), client_key=str(key))
    provider = openbao_tls.provider(OBJECTS, CertLogin(), trust=trust)
    with pytest.raises(RefusedError, match=r"auth/cert/login.*trusts the client certificate"):
        provider.fetch()
    write(client_ca)
    assert contents(provider.fetch()) == {"f": b"v"}
