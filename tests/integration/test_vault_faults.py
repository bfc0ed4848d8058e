"""Everything that can be wrong with the server or the way to it: one clear line, and recovery."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import threading
import time
from contextlib import suppress
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest
from support.openbao import ROOT, Clock, OpenBao, contents, vault_class
from support.receiver import (
    Receiver,
    Reply,
    close,
    close_in_mid_answer,
    garbage,
    hang,
    reply,
    reset,
    trickle,
)
from support.tls import EXPIRED, Authority
from support.waiting import DEADLINE, wait_until

from syncd.config.auth import AppRole, AzureLogin
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.net import interruption
from syncd.net.requests_session import CONNECTIONS
from syncd.net.tls import Trust
from syncd.provision.vault import http as vault_http, provider as provider_module
from syncd.provision.vault.auth import Login

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.receiver import _Connection

    from syncd.provision.vault.provider import VaultProvider

OBJECTS = "- {objectName: f, secretPath: secret/data/faults, secretKey: k}"


def answer(status: int = 200, /, **body: Any) -> Reply:
    return reply(status, json.dumps(body).encode(), content_type="application/json")


async def trickle_headers(connection: _Connection) -> None:
    """A header that never ends, a byte at a time: no limit of the socket is ever reached."""
    connection.writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    with suppress(ConnectionError):
        while not connection.receiver.released.is_set():
            connection.writer.write(b"x")
            await connection.writer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(connection.receiver.released.wait(), 0.05)


def reply_together(together: threading.Barrier) -> Reply:
    """A good answer, as soon as so many requests wait for one."""

    async def play(connection: _Connection) -> None:
        await anyio.to_thread.run_sync(together.wait, DEADLINE)
        await GOOD(connection)

    return play


GOOD = answer(data={"data": {"k": "v"}}, lease_id="", lease_duration=0)


@pytest.fixture
def server() -> Iterator[Receiver]:
    """What a live server cannot be made to do, played by a script."""
    with Receiver(default=GOOD) as server:
        yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_http, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(vault_http, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr(interruption, "REQUEST_LIMIT", 0.6)


def make(openbao: OpenBao, server: Receiver, objects: str = OBJECTS, **more: Any) -> VaultProvider:
    """A provider that has its token, so that the script plays on the secret."""
    provider = openbao.provider(objects, address=server.url.rsplit("/", 1)[0], **more)
    provider.fetch()
    server.requests.clear()
    return provider


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (hang, "no answer in time"),
        (trickle, "did not finish within 1 s"),
        (trickle_headers, "did not finish within 1 s"),
        (reset, r"Connection reset by peer \(http"),
        (close, "the connection ended without a complete answer"),
        (close_in_mid_answer, "the connection ended without a complete answer"),
        (garbage, "the connection ended without a complete answer"),
        (answer(500, errors=["CANARY"]), r"cannot answer now \(500\); check its log"),
        (answer(502), r"cannot answer now \(502\)"),
        (answer(503, errors=["CANARY"]), r"is sealed or not ready \(503\); unseal it"),
        (answer(412), r"cannot answer now \(412\)"),
        (answer(429), r"limits requests \(429\); raise its quota"),
    ],
)
def test_a_fault_that_lasts_is_a_temporary_error(
    openbao: OpenBao, server: Receiver, fault: Reply, says: str
) -> None:
    """Three attempts, one line with object, address and remedy, nothing of the answer; recovery."""
    provider = make(openbao, server)
    server.script(fault, fault, fault)
    with pytest.raises(TemporaryError, match=f"^cannot read f: .*{says}") as caught:
        provider.fetch()
    assert server.url.rsplit("/", 1)[0] in caught.value.problem
    assert len(server.requests) == 3
    assert "CANARY" not in repr(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert contents(provider.fetch()) == {"f": b"v"}


@pytest.mark.parametrize("fault", [reset, close, answer(500), answer(412), answer(429)])
def test_a_fault_that_passes_is_not_noticed(
    openbao: OpenBao, server: Receiver, fault: Reply
) -> None:
    """A GET is tried again within the pass."""
    provider = make(openbao, server)
    server.script(fault, fault)
    assert contents(provider.fetch()) == {"f": b"v"}
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [answer(500), answer(429), reset])
def test_only_a_get_is_tried_again(openbao: OpenBao, server: Receiver, fault: Reply) -> None:
    """A write may have been done although its answer was lost."""
    provider = make(openbao, server, OBJECTS.replace("secretKey", "method: POST, secretKey"))
    server.script(fault)
    with pytest.raises(TemporaryError, match="cannot read f"):
        provider.fetch()
    assert [request.method for request in server.requests] == ["POST"]


@pytest.mark.parametrize("reply", [reply(204), answer(200, data=None, warnings=["w"])])
def test_a_write_without_a_result_is_made_once(
    openbao: OpenBao, server: Receiver, reply: Reply
) -> None:
    """It is refused, and later passes refuse it again without a request."""
    provider = openbao.provider(
        "- {objectName: f, secretPath: secret/data/a, method: PUT}",
        address=server.url.rsplit("/", 1)[0],
    )
    server.script(*[reply] * 3)
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"PUT secret/data/a is a write without a result"):
            provider.fetch()
    writes = [item for item in server.requests if item.method == "PUT"]
    assert len(writes) == 1


def test_a_read_without_content_is_refused(openbao: OpenBao, server: Receiver) -> None:
    """No write is assumed."""
    provider = make(openbao, server)
    server.script(reply(204))
    with pytest.raises(RefusedError, match=r"GET .* has no content \(204\); correct secretPath"):
        provider.fetch()


def test_not_implemented_is_not_tried_again(openbao: OpenBao, server: Receiver) -> None:
    """501: the server is not initialised, which time does not heal."""
    provider = make(openbao, server)
    server.script(answer(501))
    with pytest.raises(RefusedError, match=r"rejects GET secret/data/faults \(501\)"):
        provider.fetch()
    assert len(server.requests) == 1


def test_retry_after_is_passed_on(openbao: OpenBao, server: Receiver) -> None:
    """A short one is waited for within the pass, a long one by the refresh loop."""
    provider = make(openbao, server)
    server.script(reply(429, retry_after="1"))
    started = time.monotonic()
    assert contents(provider.fetch()) == {"f": b"v"}
    assert time.monotonic() - started >= 1
    for value in ("120", formatdate(time.time() + 120, usegmt=True)):
        server.script(reply(429, retry_after=value))
        with pytest.raises(TemporaryError) as caught:
            provider.fetch()
        assert caught.value.retry_after == pytest.approx(120, abs=10)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>CANARY</html>", b"[]", b'"CANARY"', b"\xff\xfe", b'{"data":', b"[" * 100_000],
)
def test_an_answer_that_is_no_vault_s_is_told_as_such(
    openbao: OpenBao, server: Receiver, body: bytes
) -> None:
    """A captive portal, a wrong port, a proxy's page."""
    provider = make(openbao, server)
    server.script(reply(200, body))
    says = (
        r"cannot read f \(GET secret/data/faults\): the answer of \S+ is not (JSON|a JSON object)"
    )
    with pytest.raises(TemporaryError, match=says) as caught:
        provider.fetch()
    assert "CANARY" not in repr(caught.value)


def test_an_answer_that_is_compressed_unasked(openbao: OpenBao, server: Receiver) -> None:
    """What does so is a proxy in front of the server: the server is not to blame."""
    provider = make(openbao, server)
    server.script(reply(200, gzip.compress(b'{"data": {}}'), content_encoding="gzip"))
    with pytest.raises(TemporaryError, match="is compressed, unasked; turn compression off in the"):
        provider.fetch()
    assert server.requests[-1].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": "text"}, {"auth": {"x": "y"}}])
def test_an_answer_without_data_is_an_error(
    openbao: OpenBao, server: Receiver, body: dict[str, Any]
) -> None:
    """Nothing is written from it, and nothing empty."""
    provider = make(openbao, server)
    server.script(answer(**body))
    with pytest.raises(RefusedError, match="cannot read f: the response has no data; check"):
        provider.fetch()


def test_an_answer_beyond_all_bounds_is_cut_off(
    openbao: OpenBao, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded."""
    provider = make(openbao, server)
    monkeypatch.setattr(interruption, "LONGEST_ANSWER", 1 << 20)
    server.script(reply(200, b"x" * (2 << 20)))
    with pytest.raises(RefusedError, match="answers with more than 1 MiB; check secretPath"):
        provider.fetch()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(openbao: OpenBao, server: Receiver, status: int) -> None:
    """The token would go to another host (hvac sends it along)."""
    provider = make(openbao, server)
    with Receiver() as other:
        server.script(reply(status, location=other.url))
        with pytest.raises(
            RefusedError, match=rf"redirects to another address \({status}\); set vaultAddr"
        ):
            provider.fetch()
        assert not other.requests


def test_what_goes_over_the_wire(
    openbao: OpenBao, server: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Token, namespace and the header against request forgery; nothing from the environment."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login CANARY password CANARY")
    for name in ("VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, "/CANARY")
    monkeypatch.setenv("NETRC", str(netrc))
    make(openbao, server, parameters="vaultNamespace: team/").fetch()
    (request,) = server.requests
    assert request.target == "/v1/secret/data/faults"
    assert request.headers["x-vault-token"] == ROOT
    assert request.headers["x-vault-namespace"] == "team"
    assert request.headers["x-vault-request"] == "true"
    assert "authorization" not in request.headers
    assert "CANARY" not in repr({**request.headers, "x-vault-token": ""})


def test_a_token_never_goes_to_the_login(
    openbao: OpenBao, server: Receiver, tmp_path: Path
) -> None:
    """Only what has to be sent is sent."""
    for name in ("role-id", "secret-id"):
        (tmp_path / name).write_text(name)
    auth = AppRole(
        role_id_file=str(tmp_path / "role-id"), secret_id_file=str(tmp_path / "secret-id")
    )
    server.script(answer(auth={"client_token": "t", "lease_duration": 0}))
    openbao.provider(OBJECTS, auth, address=server.url.rsplit("/", 1)[0]).fetch()
    login, read = server.requests
    assert "x-vault-token" not in login.headers
    assert json.loads(login.body) == {"role_id": "role-id", "secret_id": "secret-id"}
    assert read.headers["x-vault-token"] == "t"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (answer(400, errors=["CANARY"]), "write a valid role-id into"),
        (answer(404), r"no such auth method \(404\)"),
        (answer(503), "sealed"),
        (answer(200, auth=None), "answers without a token"),
        (answer(200, auth={"client_token": "a\nb"}), "answers without a token"),
        (reply(200, b"CANARY"), "is not JSON"),
    ],
)
def test_a_login_that_fails_is_one_clear_line(
    openbao: OpenBao, server: Receiver, tmp_path: Path, fault: Reply, says: str
) -> None:
    """It names the method's path, and nothing of the answer."""
    (tmp_path / "id").write_text("id")
    auth = AppRole(role_id_file=str(tmp_path / "id"))
    provider = openbao.provider(OBJECTS, auth, address=server.url.rsplit("/", 1)[0])
    server.script(fault)
    with pytest.raises(SyncdError, match=f"cannot log in at auth/approle/login.*{says}") as caught:
        provider.fetch()
    assert "CANARY" not in repr(caught.value)


def test_interrupting_ends_a_fetch_that_hangs(
    openbao: OpenBao, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shutdown waits for no dead vault; after `resume` the provider works again."""
    provider = make(openbao, server)
    monkeypatch.setattr(vault_http, "READ_TIMEOUT", 2 * DEADLINE)
    monkeypatch.setattr(interruption, "REQUEST_LIMIT", 2 * DEADLINE)
    provider = make(openbao, server)
    server.script(hang)
    failure: list[BaseException] = []

    def fetch() -> None:
        try:
            provider.fetch()
        except SyncdError as error:
            failure.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    server.wait(1)
    provider.interrupt()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert "no answer before syncd stopped waiting" in str(failure[0])
    with pytest.raises(TemporaryError, match="stopped waiting"):
        provider.fetch()
    provider.resume()
    assert contents(provider.fetch()) == {"f": b"v"}


def test_a_proxy_is_taken_from_the_environment(
    openbao: OpenBao, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As upstream's client does; the name of the server is the proxy's to find."""
    monkeypatch.setenv("http_proxy", server.url.rsplit("/", 1)[0])
    monkeypatch.setenv("no_proxy", "")
    provider = openbao.provider(OBJECTS, address="http://vault.invalid:8200")
    assert contents(provider.fetch()) == {"f": b"v"}
    target = "http://vault.invalid:8200/v1/secret/data/faults"
    assert server.requests[-1].target == target


IDENTITY = answer(access_token="identity-token", expires_in="86399")
INSTANCE = answer(
    compute={
        "subscriptionId": "s",
        "resourceGroupName": "g",
        "name": "vm",
        "vmScaleSetName": "",
        "userData": "CANARY",
    }
)


def azure(
    monkeypatch: pytest.MonkeyPatch, server: Receiver, imds: Receiver, auth: AzureLogin
) -> Login:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.url.rsplit("/", 1)[0])
    vault = vault_class(OBJECTS, "roleName: aidbox")
    address = server.url.rsplit("/", 1)[0]
    connection = vault_http.Connection(address, "", Trust())
    return Login(auth, vault, connection)


def test_azure_logs_in_with_the_machine_s_identity(
    server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity's token for the resource, and where the machine is; no proxy in between."""
    with Receiver() as imds:
        imds.script(IDENTITY, INSTANCE)
        server.script(answer(auth={"client_token": "t", "lease_duration": 60}))
        auth = AzureLogin(client_id="c", resource="https://vault/")
        login = azure(monkeypatch, server, imds, auth)
        assert login.token() == "t"
        identity, instance = imds.requests
    assert identity.headers["metadata"] == "true"
    assert identity.target == (
        "/metadata/identity/oauth2/token?api-version=2018-02-01"
        "&resource=https%3A%2F%2Fvault%2F&client_id=c"
    )
    assert instance.target == "/metadata/instance?api-version=2021-02-01"
    (request,) = server.requests
    assert request.target == "/v1/auth/azure/login"
    assert json.loads(request.body) == {
        "role": "aidbox",
        "jwt": "identity-token",
        "subscription_id": "s",
        "resource_group_name": "g",
        "vm_name": "vm",
        "vmss_name": "",
    }


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (
            answer(400, error="CANARY"),
            RefusedError,
            r"does not know the identity \(400\); assign it",
        ),
        (answer(404), RefusedError, r"does not know the identity \(404\)"),
        (answer(429), TemporaryError, "cannot answer now .429."),
        (answer(500), TemporaryError, "cannot answer now .500."),
        (reply(200, b"CANARY"), TemporaryError, "sent an answer that is not a JSON object"),
        (close, TemporaryError, "does not answer; check that this is an Azure VM"),
    ],
)
def test_a_metadata_service_that_cannot_help(
    server: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    fault: Reply,
    kind: type[Exception],
    says: str,
) -> None:
    """One clear line; nothing is sent to the vault."""
    with Receiver() as imds:
        imds.script(fault)
        with pytest.raises(kind, match=rf"metadata service at \S+ {says}") as caught:
            azure(monkeypatch, server, imds, AzureLogin()).token()
    assert "CANARY" not in str(caught.value)
    assert not server.requests


def lease(seconds: int, value: str, *, renewable: bool = True, name: str = "db/1") -> Reply:
    return answer(lease_id=name, lease_duration=seconds, renewable=renewable, data={"k": value})


class Leased:
    """A provider with one leased secret, and a clock to turn."""

    def __init__(self, openbao: OpenBao, server: Receiver) -> None:
        self.now = 1000.0
        self.server = server
        server.script(answer(data={"ttl": 0}), lease(60, "one"))
        self.provider = openbao.provider(
            "- {objectName: f, secretPath: db/creds/app, secretKey: k}",
            address=server.url.rsplit("/", 1)[0],
            clock=lambda: self.now,
        )
        payload = self.provider.fetch()
        assert contents(payload) == {"f": b"one"}
        assert payload.due == pytest.approx(40)
        server.requests.clear()

    def after(self, seconds: float, *script: Reply) -> tuple[Any, ...]:
        """Time passes; what a fetch then gives, when it is due, and what it asked for."""
        self.now += seconds
        self.server.script(*script)
        payload = self.provider.fetch()
        asked = [request.target.removeprefix("/v1/") for request in self.server.requests]
        self.server.requests.clear()
        return contents(payload)["f"], payload.due, asked


RENEW, READ = "sys/leases/renew", "db/creds/app"


def test_a_lease_is_reused_renewed_and_replaced_at_its_maximum(
    openbao: OpenBao, server: Receiver
) -> None:
    """No request before two thirds; renewal while it grants in full; then another credential."""
    leased = Leased(openbao, server)
    assert leased.after(39) == (b"one", pytest.approx(1), [])
    assert leased.after(1, lease(60, "")) == (b"one", pytest.approx(40), [RENEW])
    assert leased.after(40, lease(30, "")) == (b"one", pytest.approx(20), [RENEW])
    assert leased.after(20, lease(60, "two")) == (b"two", pytest.approx(40), [READ])


@pytest.mark.parametrize(
    "refusal", [answer(400), answer(403), answer(404), reply(200, b"x"), answer(lease_duration=0)]
)
def test_a_lease_that_cannot_be_renewed_is_replaced(
    openbao: OpenBao, server: Receiver, refusal: Reply
) -> None:
    """Revoked on the server, or no right to renew."""
    leased = Leased(openbao, server)
    assert leased.after(40, refusal, lease(60, "two")) == (b"two", pytest.approx(40), [RENEW, READ])


def test_a_lease_that_is_not_renewable_is_replaced_at_two_thirds(
    openbao: OpenBao, server: Receiver
) -> None:
    """Without asking for a renewal."""
    leased = Leased(openbao, server)
    assert leased.after(40, answer(400), lease(90, "two", renewable=False))[0] == b"two"
    assert leased.after(60, lease(90, "three", renewable=False))[2] == [READ]


def test_a_renewal_that_does_not_get_through_fails_the_pass_and_keeps_the_lease(
    openbao: OpenBao, server: Receiver
) -> None:
    """The credential still lives: nothing is minted because a server hiccups."""
    leased = Leased(openbao, server)
    leased.now += 40
    server.script(answer(503))
    with pytest.raises(TemporaryError, match="cannot renew the lease of f"):
        leased.provider.fetch()
    server.requests.clear()
    assert leased.after(1, lease(60, "")) == (b"one", pytest.approx(40), [RENEW])
    assert leased.after(61, lease(60, "two")) == (b"two", pytest.approx(40), [READ])


def test_a_new_token_means_new_leases(openbao: OpenBao, server: Receiver) -> None:
    """A lease ends with the token that it was made with."""
    leased = Leased(openbao, server)
    with open(openbao.token_file) as file:
        before = file.read()
    try:
        with open(openbao.token_file, "w") as file:
            file.write("another")
        value, _, asked = leased.after(1, answer(data={"ttl": 0}), lease(60, "two"))
    finally:
        with open(openbao.token_file, "w") as file:
            file.write(before)
    assert value == b"two"
    assert asked == ["auth/token/lookup-self", READ]


def test_a_write_with_a_duration_and_no_lease_is_kept(openbao: OpenBao, server: Receiver) -> None:
    """It was made for us; a read with the same fields (KV v1) is not."""
    objects = "- {objectName: f, secretPath: p, secretKey: k, method: PUT}"
    server.script(
        answer(data={"ttl": 0}), answer(lease_duration=90, lease_id="", data={"k": "one"})
    )
    provider = openbao.provider(objects, address=server.url.rsplit("/", 1)[0])
    assert provider.fetch().due == pytest.approx(60, abs=1)
    provider.fetch()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("trust", "says"),
    [
        ({}, r"certificate is signed by a CA that is not trusted \(https.*\); set ca_file or"),
        ({"ca_file": "wrong"}, "is signed by a CA that is not trusted"),
        ({"ca_file": "right", "server_name": "vault.example"}, "is for another host name"),
        ({"ca_file": "/nowhere"}, "cannot read ca_file /nowhere: No such file"),
        ({"ca_directory": "/nowhere"}, "cannot read ca_directory /nowhere: No such file"),
        ({"ca_file": "garbage"}, "cannot use ca_file .*garbage: no certificate"),
        (
            {"ca_file": "right", "client_cert": "right", "client_key": "garbage"},
            "cannot use client_cert .* with client_key .*garbage: ",
        ),
    ],
)
def test_tls_that_cannot_work_says_what_to_name(
    openbao_tls: OpenBao, tmp_path: Path, trust: dict[str, str], says: str
) -> None:
    """Each option's mistake is one line."""
    (tmp_path / "garbage").write_text("CANARY")
    named = {
        "right": openbao_tls.ca,
        "wrong": str(Authority(tmp_path, "wrong").file),
        "garbage": str(tmp_path / "garbage"),
    }
    options: dict[str, Any] = {option: named.get(value, value) for option, value in trust.items()}
    provider = openbao_tls.provider(OBJECTS, trust=Trust(**options))
    with pytest.raises(RefusedError, match=says) as caught:
        provider.fetch()
    assert "CANARY" not in str(caught.value)


def test_tls_options_that_work(openbao_tls: OpenBao, tmp_path: Path) -> None:
    """A CA file, a directory of them with bystanders, another server name, and no verification."""
    openbao_tls.put("faults", k="v")
    directory = tmp_path / "cas"
    directory.mkdir()
    shutil.copy(openbao_tls.ca, directory / "openbao.crt")
    Authority(directory, "other")
    for trust in (
        Trust(ca_file=openbao_tls.ca),
        Trust(ca_directory=str(directory)),
        Trust(ca_file=openbao_tls.ca, ca_directory="/nowhere"),
        Trust(ca_file=openbao_tls.ca, server_name="localhost"),
        Trust(skip_verify=True),
    ):
        assert contents(openbao_tls.provider(OBJECTS, trust=trust).fetch()) == {"f": b"v"}


def test_an_expired_certificate_is_told_as_such(openbao: OpenBao, tmp_path: Path) -> None:
    """And not as a CA that is missing."""
    authority = Authority(tmp_path)
    with Receiver(tls=authority.server(expires=EXPIRED), default=GOOD) as server:
        provider = openbao.provider(
            OBJECTS,
            address=server.url.rsplit("/", 1)[0],
            trust=Trust(ca_file=str(authority.file)),
        )
        with pytest.raises(RefusedError, match="the certificate has expired"):
            provider.fetch()


def test_a_ca_that_is_rotated_is_read_again(openbao: OpenBao, tmp_path: Path) -> None:
    """No restart: the CA file counts as it is when it is used."""
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    file = tmp_path / "ca.pem"
    shutil.copy(old.file, file)
    with Receiver(tls=new.server(), default=GOOD) as server:
        provider = openbao.provider(
            OBJECTS, address=server.url.rsplit("/", 1)[0], trust=Trust(ca_file=str(file))
        )
        with pytest.raises(RefusedError, match="not trusted"):
            provider.fetch()
        shutil.copy(new.file, file)
        assert contents(provider.fetch()) == {"f": b"v"}


def test_a_server_that_does_not_speak_tls(openbao: OpenBao, server: Receiver) -> None:
    """https:// in front of a plain port."""
    address = server.url.rsplit("/", 1)[0].replace("http:", "https:")
    with pytest.raises(TemporaryError, match=r"TLS failed|connection ended|Connection reset"):
        openbao.provider(OBJECTS, address=address).fetch()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:1", r"Connection refused \(http"),
        ("http://no-such-host.invalid:8200", "the host name cannot be resolved"),
    ],
)
def test_an_address_without_a_server(openbao: OpenBao, address: str, says: str) -> None:
    """Refused and unknown are told apart."""
    with pytest.raises(TemporaryError, match=says):
        openbao.provider(OBJECTS, address=address).fetch()


def test_sealed_stopped_and_frozen_servers_come_back() -> None:
    """The real server: sealed, killed, stopped in mid-air; each time it recovers by itself."""
    with OpenBao() as bao:
        bao.put("faults", k="v")
        provider = bao.provider(OBJECTS)
        assert contents(provider.fetch()) == {"f": b"v"}
        bao.ask("PUT", "sys/seal")
        with pytest.raises(TemporaryError, match=r"sealed or not ready \(503\); unseal it"):
            provider.fetch()
        bao.ask("PUT", "sys/unseal", {"key": bao.unseal_key})
        bao.await_active()
        assert contents(provider.fetch()) == {"f": b"v"}
        bao.freeze(frozen=True)
        with pytest.raises(TemporaryError, match="no answer in time"):
            provider.fetch()
        bao.freeze(frozen=False)
        assert contents(provider.fetch()) == {"f": b"v"}
        bao.stop()
        with pytest.raises(TemporaryError, match=r"Connection refused \(http"):
            provider.fetch()
        bao.start()
        bao.put("faults", k="w")
        assert contents(provider.fetch()) == {"f": b"w"}


MANY = "\n".join(
    f"- {{objectName: f{number}, secretPath: secret/data/quota/{number}, secretKey: k}}"
    for number in range(8)
)


def test_a_quota_smaller_than_a_pass_is_got_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real rate limit of 5 requests: the second pass reads the rest and nothing again."""
    monkeypatch.setattr(vault_http, "LONGEST_PAUSE", 0.0)
    with OpenBao() as bao:
        for number in range(8):
            bao.put(f"quota/{number}", k=str(number))
        bao.ask("PUT", "sys/quotas/config", {"enable_rate_limit_response_headers": True})
        provider = bao.provider(MANY)
        bao.ask("PUT", "sys/quotas/rate-limit/few", {"rate": 5, "interval": "5s", "path": "secret"})
        passes: list[TemporaryError] = []

        def fetched() -> bool:
            try:
                files = contents(provider.fetch())
            except TemporaryError as error:
                passes.append(error)
                return False
            return files == {f"f{number}": str(number).encode() for number in range(8)}

        wait_until(fetched, "the quota lets no pass through")
    assert passes
    assert all("limits requests (429); raise its quota" in str(error) for error in passes)


def test_a_throttled_pass_goes_on_where_it_ended(
    openbao: OpenBao, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within ten minutes; any other failure, a new token and a success begin anew."""
    monkeypatch.setattr(provider_module, "CONNECTIONS", 1)
    clock = Clock()
    three = "\n".join(MANY.splitlines()[:3])
    provider = make(openbao, server, three, clock=clock)
    paths = [f"/v1/secret/data/quota/{number}" for number in range(3)]

    def asked() -> list[str]:
        found = [request.target for request in server.requests if request.target in paths]
        server.requests.clear()
        return found

    for fault, ahead, again in (
        (reply(429, retry_after="90"), 90, paths[1:]),
        (reply(429, retry_after="90"), 700, paths),
        (answer(403), 0, paths),
    ):
        server.script(GOOD, fault)
        with pytest.raises(SyncdError):
            provider.fetch()
        assert asked() == paths[:2]
        server.script()
        clock.ahead += ahead
        assert set(contents(provider.fetch())) == {"f0", "f1", "f2"}
        assert asked() == again
        provider.fetch()
        assert asked() == paths


def test_reads_are_made_in_parallel_and_writes_after_them(
    openbao: OpenBao, server: Receiver
) -> None:
    """A few at a time, over connections that are kept; a write is not made before all are read."""
    write = "- {objectName: w, secretPath: pki/issue/web, secretKey: k, method: PUT}\n"
    provider = make(openbao, server, write + MANY)
    together = threading.Barrier(CONNECTIONS)
    server.script(*[reply_together(together)] * CONNECTIONS)
    provider.fetch()
    assert [request.method for request in server.requests] == ["GET"] * 8 + ["PUT"]
    assert len({request.connection for request in server.requests}) == CONNECTIONS


def test_nothing_is_written_to_the_vault_when_a_read_fails(
    openbao: OpenBao, server: Receiver
) -> None:
    """A pass that cannot succeed issues no certificate."""
    write = "- {objectName: w, secretPath: pki/issue/web, secretKey: k, method: PUT}\n"
    provider = make(openbao, server, write + MANY)
    server.script(answer(404))
    with pytest.raises(RefusedError, match="there is nothing at secret/data/quota"):
        provider.fetch()
    assert "PUT" not in {request.method for request in server.requests}
