"""Failures on the way to a vault are those of the proxy: it and its variable are named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from integration.test_azure import open_providers
from support.azure import Azure
from support.openbao import OpenBao, contents
from support.proxy import Proxy
from support.receiver import Receiver, reply
from support.tls import Authority

from syncd.config.auth import ClientSecret
from syncd.core.errors import RefusedError, SyncdError, TemporaryError
from syncd.net.interruption import Interruption
from syncd.net.tls import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from integration.test_azure import Open

    Fetch = Callable[[], SyncdError]

OBJECTS = "- {objectName: app, secretPath: secret/data/app, secretKey: k}"
HOST = "vault.invalid"
RETRY = "check that the server is up and that the proxy resolves and reaches it"
WAYS = ["vault", "vault without TLS", "azure", "login"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Interruption, "pause", lambda _self, _seconds: False)


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    with Azure(tmp_path_factory.mktemp("azure")) as azure:
        azure.set_secret("app", "value")
        yield azure


@pytest.fixture
def open_provider(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", azure.imds)
    yield from open_providers(
        authority=azure.url,
        trust=Trust(ca_file=str(azure.authority.file)),
        verify_challenge_resource=False,
    )


@pytest.fixture(params=WAYS)
def way(
    request: pytest.FixtureRequest, openbao: OpenBao, open_provider: Open, tmp_path: Path
) -> tuple[str, str, Fetch]:
    """The variable, the server's address, and a fetch that fails."""
    scheme = "http" if request.param == "vault without TLS" else "https"
    address = f"{scheme}://{HOST}:8200"
    provider: Any
    if request.param == "login":
        file = tmp_path / "client-secret"
        file.write_text("client-secret")
        auth = ClientSecret(client_id="c", client_secret_file=str(file), tenant_id="t")
        provider = open_provider(auth=auth, vault_url=address, authority=address)
    elif request.param == "azure":
        provider = open_provider(vault_url=address)
    else:
        provider = openbao.provider(OBJECTS, address=address)

    def fetch() -> SyncdError:
        with pytest.raises(SyncdError) as caught:
            provider.fetch()
        assert "CANARY" not in repr(caught.value)
        assert "\n" not in str(caught.value)
        return caught.value

    return f"{scheme.upper()}_PROXY", address, fetch


@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_a_proxy_that_refuses_connections(
    way: tuple[str, str, Fetch], monkeypatch: pytest.MonkeyPatch, spelling: Callable[[str], str]
) -> None:
    """Not the vault refuses them: it was never asked."""
    name, address, fetch = way
    variable = spelling(name)
    monkeypatch.setenv(variable, "http://user:CANARY@127.0.0.1:1")
    error = fetch()
    assert isinstance(error, TemporaryError)
    says = (
        f"Connection refused at the proxy http://127.0.0.1:1 ({variable}) on the way to {address}"
    )
    assert says in error.problem
    assert error.remedy == (
        f"check that the proxy is up, correct {variable}, or add {HOST} to NO_PROXY"
    )


def test_a_proxy_whose_name_is_unknown(
    way: tuple[str, str, Fetch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable or the DNS is wrong, not the vault's address."""
    variable, _, fetch = way
    monkeypatch.setenv(variable, "http://no-such-host.invalid:3128")
    error = fetch()
    says = "the host name cannot be resolved at the proxy http://no-such-host.invalid:3128"
    assert says in error.problem
    assert f"correct {variable} or the DNS" in (error.remedy or "")


@pytest.mark.parametrize(
    ("answer", "login", "kind", "problem", "remedy"),
    [
        (
            "407 Proxy Authentication Required",
            "",
            RefusedError,
            "requires a login (407)",
            "write http://user:password@… in {variable}",
        ),
        (
            "407 Proxy Authentication Required",
            "user:CANARY@",
            RefusedError,
            "rejects the login in {variable} (407)",
            "correct user and password in {variable}",
        ),
        (
            "403 Forbidden",
            "",
            RefusedError,
            "does not allow connections to {address} (403)",
            "allow it in the proxy",
        ),
        (
            "405 Method Not Allowed",
            "",
            RefusedError,
            "does not allow connections to {address} (405)",
            "allow it in the proxy",
        ),
        ("502 Bad Gateway", "", TemporaryError, "cannot reach {address} (502)", RETRY),
        ("504 Gateway Timeout", "", TemporaryError, "cannot reach {address} (504)", RETRY),
    ],
)
def test_a_proxy_that_answers_itself(  # noqa: PLR0917 - a table
    way: tuple[str, str, Fetch],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    login: str,
    kind: type[SyncdError],
    problem: str,
    remedy: str,
) -> None:
    """Its status is not the vault's: no policy denies, and nothing is sealed."""
    variable, address, fetch = way
    with Proxy(answer) as proxy:
        monkeypatch.setenv(variable, f"http://{login}{proxy.host}")
        error = fetch()
    assert isinstance(error, kind)
    expected = problem.format(variable=variable, address=address)
    assert f"the proxy {proxy.url} ({variable}) {expected}" in error.problem
    wanted = remedy.format(variable=variable)
    assert error.remedy == f"{wanted}, or add {HOST} to NO_PROXY"
    assert proxy.requests


def test_a_proxy_that_closes(way: tuple[str, str, Fetch], monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy or vault: both are named, with the variable."""
    variable, address, fetch = way
    with Proxy("") as proxy:
        monkeypatch.setenv(variable, proxy.url)
        error = fetch()
    assert isinstance(error, TemporaryError)
    assert f"the proxy {proxy.url} ({variable})" in error.problem
    assert address in error.problem
    assert f"add {HOST} to NO_PROXY" in (error.remedy or "")


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1", "ftp://127.0.0.1:1", "http://", "a b:c"])
def test_a_proxy_that_is_no_http_proxy(
    way: tuple[str, str, Fetch], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """The variable is invalid, not the vault's address."""
    variable, _, fetch = way
    monkeypatch.setenv(variable, value)
    error = fetch()
    assert isinstance(error, RefusedError)
    assert f"{variable} is not the URL of an HTTP proxy" in error.problem
    assert error.remedy == f"write http://host:port in {variable}"


def test_all_proxy_is_named(openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only ALL_PROXY applies."""
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with pytest.raises(TemporaryError, match=re.escape("http://127.0.0.1:1 (ALL_PROXY)")):
        openbao.provider(OBJECTS, address=f"https://{HOST}").fetch()


def test_what_is_behind_a_tunnel_is_the_server_s(
    openbao_tls: OpenBao,
    azure: Azure,
    open_provider: Open,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A tunnel works, and a certificate behind it does not blame the proxy."""
    openbao_tls.put("app", k="v")
    wrong = Trust(ca_file=str(Authority(tmp_path, "wrong").file))
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert contents(openbao_tls.provider(OBJECTS).fetch()) == {"app": b"v"}
        assert contents(open_provider(vault_url=azure.url).fetch()) == {"app": b"value"}
        assert len(proxy.requests) == 2
        for provider in (
            openbao_tls.provider(OBJECTS, trust=wrong),
            open_provider(vault_url=azure.url, trust=wrong),
        ):
            with pytest.raises(RefusedError, match="by a CA that is not trusted") as caught:
                provider.fetch()
            assert "proxy" not in str(caught.value).lower()


@pytest.mark.parametrize("status", [403, 502, 503])
def test_an_answer_of_vault_s_is_not_the_proxy_s(
    openbao: OpenBao, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Through a proxy without a tunnel: Vault's errors are JSON."""
    refusal = reply(status, b'{"errors":[]}', content_type="application/json")
    with Receiver(default=refusal) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.rsplit("/", 1)[0])
        with pytest.raises(SyncdError) as caught:
            openbao.provider(OBJECTS, address=f"http://{HOST}:8200").fetch()
    assert "proxy" not in str(caught.value)


def test_no_proxy_is_heeded(openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy that the messages name works."""
    openbao.put("app", k="v")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert contents(openbao.provider(OBJECTS).fetch()) == {"app": b"v"}
