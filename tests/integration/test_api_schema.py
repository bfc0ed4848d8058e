"""The OpenAPI document is the implementation's, and no request made from it is answered by 5xx."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from requests.adapters import HTTPAdapter
from support.subscriber import UnixConnection
from support.waiting import DEADLINE
from support.world import World, secret
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from docs.openapi import document

if TYPE_CHECKING:
    from collections.abc import Iterator

schema = schemathesis.openapi.from_dict(document())


class UnixPool(HTTPConnectionPool):
    """urllib3 over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("syncd")
        self._path = path

    def _new_conn(self) -> HTTPConnection:
        unix = UnixConnection(self._path)
        connection = HTTPConnection("syncd")
        connection.connect = lambda: (unix.connect(), setattr(connection, "sock", unix.sock))[1]  # type: ignore[method-assign, func-returns-value] # one expression
        return connection


class UnixAdapter(HTTPAdapter):
    """requests over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._pool = UnixPool(path)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> UnixPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with World() as world:
        world.publish(a=secret("0"), b=secret("0"))
        world.map("a", b={"resource_type": "IdentityProvider"})
        world.configure(api={"socket": f"{world.directory}/syncd.sock"})
        with world.daemon() as daemon, requests.Session() as session:
            for number in range(3):
                world.publish(a=secret(f"n{number}"))
                daemon.wait_for("secret.changed", number + 1)
            session.trust_env = False
            session.mount("http://", UnixAdapter(f"{world.directory}/syncd.sock"))
            yield session
            assert not daemon.logged("api.failed")


@schema.parametrize()
@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_requests_made_from_the_document(
    case: schemathesis.Case[Any], session: requests.Session
) -> None:
    """Whatever the document allows, and what it does not, gets an answer that it describes."""
    if case.path == "/v1/events" and case.query.get("follow", True) in (True, "true"):
        case.query["follow"] = "false"  # a stream that follows has no end
    case.call_and_validate(session=session, base_url="http://syncd", timeout=DEADLINE)


def test_the_document_in_the_documentation() -> None:
    """docs/openapi.json is what the implementation says of itself: `make openapi` writes it."""
    root = pathlib.Path(__file__).parent.parent.parent
    written = json.loads((root / "docs/openapi.json").read_text())
    assert written == json.loads(msgspec.json.encode(document()))
