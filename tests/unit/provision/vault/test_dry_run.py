"""A dry run of one object; tests/integration/test_check_vault.py has a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from syncd.core.errors import RefusedError
from syncd.provision.vault.dry_run import examine
from syncd.provision.vault.http import Answer
from syncd.provision.vault.objects import VaultObject

if TYPE_CHECKING:
    from syncd.provision.vault.auth import Login
    from syncd.provision.vault.http import Connection

WANTED = VaultObject("f", "database/creds/app", "", "", "GET", None, 0o600, "utf-8")


class Server:
    """Says nothing of mounts, and answers what it is given about capabilities."""

    address = "http://v"

    def __init__(self, body: bytes) -> None:
        self.body = body

    def request(self, _method: str, path: str, _what: str, **_options: object) -> Answer:
        return Answer(200, self.body) if path == "sys/capabilities-self" else Answer(404, b"")


@pytest.mark.parametrize(
    ("capabilities", "allowed"),
    [
        (b'["read"]', True),
        (b'["root"]', True),
        (b'["deny"]', False),
        (b'[{"read": 1}, ["read"], 1]', False),
        (b'[{}, "read"]', True),
        (b'"read"', False),
    ],
)
def test_the_capabilities_of_the_token(capabilities: bytes, allowed: bool) -> None:
    """Whatever the server sends in their place."""
    server = Server(b'{"data": {"database/creds/app": ' + capabilities + b"}}")
    found = examine(cast("Connection", server), cast("Login", None), WANTED, "token")
    assert (found.problem is None) == allowed
    assert allowed or isinstance(found.problem, RefusedError)
