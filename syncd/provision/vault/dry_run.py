"""A dry run of a manifest for Vault or OpenBao: nothing is created, and no value is kept.

Objects of key/value stores and public certificates are read, since only their values show whether
the key is there. Any other read can create a credential, and a write does: there the capabilities
of the token are asked for instead (`sys/capabilities-self`).
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from syncd.core.errors import RefusedError, TemporaryError
from syncd.provision.dry_run import Examined
from syncd.provision.vault.objects import READS
from syncd.provision.vault.refusal import find_mount, refuse
from syncd.provision.vault.response import ResponseError, parse_response, to_file

if TYPE_CHECKING:
    from syncd.provision.vault.auth import Login
    from syncd.provision.vault.http import Connection
    from syncd.provision.vault.objects import VaultObject

_STORES: Final = ("kv", "generic", "cubbyhole", "pki")
"""Types of mounts where a GET creates nothing."""
_NEEDED: Final = {"GET": ("read",), "HEAD": ("read",), "LIST": ("list",)}
_NEEDED_TO_WRITE: Final = ("create", "update")


def examine(connection: Connection, login: Login, wanted: VaultObject, token: str) -> Examined:
    """Examines one object. Blocks."""
    try:
        mount = find_mount(connection, wanted.secret_path, token)
        kind = mount.text("data", "type") if mount is not None else ""
        if wanted.method in READS and kind in _STORES:
            _read(connection, login, wanted, token)
            return Examined(wanted.path, wanted.mode)
        note = f"{wanted.method} {wanted.secret_path} was not made, only its permission examined"
        _check_capability(connection, login, wanted, token)
    except (TemporaryError, RefusedError) as error:
        return Examined(wanted.path, wanted.mode, error)
    return Examined(wanted.path, wanted.mode, note=note)


def _read(connection: Connection, login: Login, wanted: VaultObject, token: str) -> None:
    what = f"read {wanted.path}"
    answer = connection.request(
        wanted.method, wanted.secret_path, what, query=wanted.query, token=token
    )
    if answer.status == HTTPStatus.FORBIDDEN:
        login.recover()  # raises where the token is not valid, and not the policy denies
    if not answer.is_success or answer.status == HTTPStatus.NO_CONTENT:
        refuse(connection, wanted, answer, token)
    to_file(connection.parse(answer, what), wanted)


def _check_capability(
    connection: Connection, login: Login, wanted: VaultObject, token: str
) -> None:
    path, where = wanted.secret_path, f"{wanted.method} {wanted.secret_path}"
    what = f"look up the permission for {where}"
    answer = connection.request(
        "POST", "sys/capabilities-self", what, body=json.dumps({"paths": [path]}), token=token
    )
    if answer.status == HTTPStatus.FORBIDDEN:
        login.recover()
    try:
        response = parse_response(answer.body)
    except ResponseError:
        response = None
    if answer.status != HTTPStatus.OK or response is None:
        raise RefusedError(
            f"cannot {what}: {connection.address} rejects sys/capabilities-self ({answer.status})",
            "give the login the policy default",
        )
    found = (response.data or {}).get(path, response.tree.get(path))
    capabilities = found if isinstance(found, list) else []
    needed = ("root", *_NEEDED.get(wanted.method, _NEEDED_TO_WRITE))
    if not any(item in needed for item in capabilities):
        raise RefusedError(
            f"cannot read {wanted.path}: the policy denies {where}",
            "allow it in the login's policy",
        )
