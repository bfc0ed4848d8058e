"""Why a Vault or OpenBao server refused an object, and what a person can do about it.

The status alone is ambiguous: a 404 is a missing secret, version or namespace, a 403 can be a path
of KV v2 without `data/`. What decides is asked of the server, where its answer says so.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import parse_qsl

from syncd.core.errors import RefusedError, TemporaryError
from syncd.provision.vault.response import ResponseError, is_destroyed, is_gone, parse_response

if TYPE_CHECKING:
    from syncd.provision.vault.http import Answer, Connection
    from syncd.provision.vault.objects import VaultObject
    from syncd.provision.vault.response import Response

_UNDELETE = "undelete it, or write a new version"
_KV_V2 = ("config", "data", "delete", "destroy", "metadata", "subkeys", "undelete")


def refuse(connection: Connection, wanted: VaultObject, answer: Answer, token: str) -> NoReturn:
    """Raises the error for an answer that another attempt does not change.

    Args:
        connection: Where the answer came from.
        wanted: The object that was asked for.
        answer: Not a success, or one without content.
        token: The token in use.

    Raises:
        RefusedError: Always.
    """
    if answer.status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        connection.check_namespace(answer.status, f"read {wanted.path}")
        _check_data(connection, wanted, answer.status, token)
    status, where = answer.status, f"{wanted.method} {wanted.secret_path}"
    if status == HTTPStatus.NOT_FOUND:
        problem, remedy = _missing(wanted, answer)
    elif status == HTTPStatus.FORBIDDEN:
        problem, remedy = f"the policy denies {where} (403)", "allow it in the login's policy"
    elif status == HTTPStatus.NO_CONTENT:
        problem, remedy = f"{where} has no content (204)", "correct secretPath or method"
    elif 300 <= status < 400:  # noqa: PLR2004 - a redirect
        problem = f"{connection.address} redirects to another address ({status})"
        remedy = "set vaultAddress or vault_url to the active server"
    else:
        problem = f"{connection.address} rejects {where} ({status})"
        remedy = "check secretPath, method and secretArgs"
    raise RefusedError(f"cannot read {wanted.path}: {problem}", remedy)


def refuse_write(wanted: VaultObject, status: int) -> NoReturn:
    """Raises the error for a write without a result, which later passes do not repeat.

    Raises:
        RefusedError: Always.
    """
    where = f"{wanted.method} {wanted.secret_path}"
    raise RefusedError(
        f"cannot read {wanted.path}: {where} is a write without a result ({status:d})",
        "remove the object, or correct method or secretPath; syncd does not repeat the write"
        " until it starts again",
    )


def find_mount(connection: Connection, path: str, token: str) -> Response | None:
    """What the server says of the mount that a path belongs to; None where it does not say.

    `sys/internal/ui/mounts` describes a mount to every token with a permission on it; Vault's own
    command line asks it before each `kv get`.
    """
    try:
        what = f"look up the mount of {path}"
        answer = connection.request("GET", f"sys/internal/ui/mounts/{path}", what, token=token)
        return parse_response(answer.body) if answer.status == HTTPStatus.OK else None
    except (TemporaryError, ResponseError):
        return None


def _check_data(connection: Connection, wanted: VaultObject, status: int, token: str) -> None:
    """Explains a path of KV v2 without `data/`: a policy that fits the secret denies it (403)."""
    path = wanted.secret_path
    mount = find_mount(connection, path, token) if wanted.method == "GET" else None
    if mount is None:
        return
    name = mount.text("data", "path")
    rest = path.removeprefix(name)
    if mount.text("data", "options", "version") != "2" or not name or rest == path:
        return
    if rest.split("/")[0] not in _KV_V2:
        raise RefusedError(
            f"cannot read {wanted.path}: {name} is KV v2, which has no {path} ({status:d})",
            f"write secretPath: {name}data/{rest}",
        )


def _missing(wanted: VaultObject, answer: Answer) -> tuple[str, str]:
    """What a 404 says: nothing was ever there, or the version is deleted or destroyed."""
    version = dict(parse_qsl(wanted.query)).get("version", "")
    version = f"version {version}" if version.isdecimal() and int(version) else ""
    try:
        response = parse_response(answer.body)
    except ResponseError:
        response = None
    if response is not None and is_gone(response):
        destroyed = is_destroyed(response)
        state = "destroyed" if destroyed else "deleted"
        problem = f"{version or 'the version'} at {wanted.secret_path} is {state} (404)"
        remedy = "write a new version" if destroyed else _UNDELETE
        return problem, f"{remedy}, or correct the version in secretPath" if version else remedy
    if version:
        problem = f"there is no {version} at {wanted.secret_path} (404)"
        return problem, "correct the version or the path in secretPath, or write the secret"
    problem = f"there is nothing at {wanted.secret_path} (404)"
    return problem, "write the secret, or correct secretPath (KV v2: mount/data/name)"
