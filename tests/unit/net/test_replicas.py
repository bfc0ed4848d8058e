"""Replicas: a name that stands for several, and requests to each under that name."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import TYPE_CHECKING

import h11
import pytest
import trustme
from support.receiver import Receiver

from syncd.consumers.aidbox.session import Session
from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.replicas import Replica, Replicas
from syncd.net.tls import Trust
from syncd.net.url import Url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Dns:
    """Answers from a table that tests change."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self.asked: list[tuple[str, int]] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "canary")
        return self.addresses


async def test_without_expansion_each_url_is_one() -> None:
    """The connection resolves the name."""
    dns = Dns()
    urls = ["http://aidbox:8080", "https://other"]
    replicas = Replicas(urls, expand=False, resolve=dns.resolve)
    assert list(map(str, await replicas.current())) == urls
    assert replicas.has_tls
    assert not dns.asked


async def test_every_address_is_one() -> None:
    """Once each, in an order of their own; the DNS is asked every time."""
    dns = Dns("10.0.0.2", "10.0.0.1", "10.0.0.2")
    replicas = Replicas(["http://aidbox:8080", "https://aidbox"], expand=True, resolve=dns.resolve)
    assert list(map(str, await replicas.current())) == [
        "http://aidbox:8080 (10.0.0.1)",
        "http://aidbox:8080 (10.0.0.2)",
        "https://aidbox (10.0.0.1)",
        "https://aidbox (10.0.0.2)",
    ]
    assert dns.asked == [("aidbox", 8080), ("aidbox", 443)]
    dns.addresses = ["10.0.0.3"]
    assert len(await replicas.current()) == 2


async def test_a_name_without_an_address() -> None:
    """No replica at all is not a success."""
    replicas = Replicas(["http://aidbox:8080"], expand=True, resolve=Dns().resolve)
    with pytest.raises(TemporaryError, match="cannot resolve aidbox: the DNS has no address") as e:
        await replicas.current()
    assert "canary" not in str(e.value)


async def test_the_system_resolves() -> None:
    """An address stands for itself."""
    (replica,) = await Replicas(["http://127.0.0.1:8080"], expand=True).current()
    assert replica.address == "127.0.0.1"
    assert str(replica) == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TimeoutError(), "the DNS does not answer within 5 s; check the DNS"),
        (socket.gaierror(socket.EAI_AGAIN, "canary"), "the DNS does not answer; check the DNS"),
        (socket.gaierror(socket.EAI_NONAME, "canary"), "has no address for it; start Aidbox"),
        (OSError(errno.EMFILE, "canary"), "Too many open files; raise"),
    ],
)
async def test_only_the_dns_says_that_there_is_no_address(error: OSError, says: str) -> None:
    """A DNS that does not answer, or a machine that cannot ask, says nothing of Aidbox."""

    async def resolve(_host: str, _port: int) -> list[str]:
        raise error

    with pytest.raises(TemporaryError, match=says):
        await Replicas(["http://aidbox"], expand=True, resolve=resolve).current()


def test_a_malformed_url() -> None:
    """What the configuration's check let through and no request can use."""
    with pytest.raises(RefusedError, match="cannot use urls: one of them is malformed"):
        Replicas(["http://[::1"], expand=False)


@pytest.mark.parametrize("address", [None, "10.0.0.1", "fd00::1"])
def test_a_request_keeps_the_name(address: str | None) -> None:
    """In the header `Host` and for TLS; the path of the URL comes before the request's."""
    replica = Replica(Url.parse("https://aidbox:8443/base/"), address)
    request = replica.request("POST", "/fhir/X?_count=1", {"a": "b"}, b"body")
    assert (request.url.host, request.address) == ("aidbox", address)
    head, _, body = request.encode(h11.Connection(h11.CLIENT)).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/fhir/X?_count=1 HTTP/1.1\r\n")
    assert b"\r\nhost: aidbox:8443\r\n" in head
    assert body == b"body"


@pytest.mark.parametrize("name", ["localhost", "elsewhere.example.org"])
async def test_tls_verifies_the_name_not_the_address(tmp_path: Path, name: str) -> None:
    """An address whose certificate is for the name is trusted, and for another name is not."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    session = Session("syncd", str(secret), Trust(ca_file=str(ca)), use_token=False, timeout=10)
    with Receiver(tls=context) as receiver:
        url = f"https://localhost:{receiver.port}"
        replicas = Replicas([url], expand=True, resolve=Dns("127.0.0.1").resolve)
        (replica,) = await replicas.current()
        if name == "localhost":
            await session.request("cannot try", replica, "POST", "/$drop-cache")
            assert receiver.requests[0].headers["host"] == f"localhost:{receiver.port}"
        else:
            with pytest.raises(TemporaryError, match="the certificate is for another host name"):
                await session.request("cannot try", replica, "POST", "/$drop-cache")
    await session.aclose()
