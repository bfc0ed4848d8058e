"""The provider for Vault and OpenBao: a manifest's objects, read in one pass.

The first error ends the pass, so that a payload is always the whole set. Objects with the same
method, path, query and arguments share one response per pass, so that a dynamic user and its
password match. Leased responses are reused (`syncd.provision.vault.lease`), all others are read
again in each pass.
"""

from __future__ import annotations

import math
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import parse_qsl

from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.payload import Payload
from syncd.provision.vault.auth import Login
from syncd.provision.vault.http import Connection
from syncd.provision.vault.lease import Leases, Request
from syncd.provision.vault.response import (
    ResponseError,
    is_destroyed,
    is_gone,
    parse_response,
    to_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncd.config.auth import VaultAuth
    from syncd.core.payload import File
    from syncd.net.tls import Trust
    from syncd.provision.vault.http import Answer
    from syncd.provision.vault.objects import VaultClass, VaultObject
    from syncd.provision.vault.response import Response


_UNDELETE = "undelete it, or write a new version"
_KV_V2 = ("config", "data", "delete", "destroy", "metadata", "subkeys", "undelete")
_READS = ("GET", "LIST")


class _TokenLostError(Exception):
    """The token expired during a pass, and its leases with it: start the pass again."""

    def __init__(self, another: str) -> None:
        super().__init__()
        self.another = another


class VaultProvider:
    """Fetches the objects of one manifest from one server.

    Args:
        name: Its name in status, metrics and log.
        vault: The manifest.
        auth: The login.
        address: URL of the server.
        trust: The configuration of TLS.
        clock: Monotonic clock, seconds.
    """

    def __init__(
        self,
        name: str,
        vault: VaultClass,
        auth: VaultAuth,
        *,
        address: str,
        trust: Trust,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._vault = vault
        self._clock = clock
        self._connection = Connection(address, vault.namespace, trust)
        self._login = Login(auth, vault, self._connection, clock=clock)
        self._leases = Leases(self._connection, clock)
        self._logins = 0
        self._without_result: dict[Request, int] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"VaultProvider({self.name!r}, {self._connection.address!r})"

    def fetch(self) -> Payload:
        """Reads every object; see `syncd.provision.refresh.Provider`."""
        with self._lock:
            token = self._login.token()
            try:
                files = self._pass(token)
            except _TokenLostError as lost:
                files = self._pass(lost.another)
            due = min(self._login.due, self._leases.due) - self._clock()
            return Payload(files, None if math.isinf(due) else due)

    def interrupt(self) -> None:
        """Ends the fetch under way; see `syncd.provision.refresh.Provider`."""
        self._connection.interrupt()

    def resume(self) -> None:
        """Allows fetches again; see `syncd.provision.refresh.Provider`."""
        self._connection.resume()

    def close(self) -> None:
        """Closes connections and forgets leases; see `syncd.provision.refresh.Provider`."""
        self._connection.close()
        self._leases.forget()

    def _pass(self, token: str) -> tuple[File, ...]:
        # leases are revoked with the token that they were created with
        if self._login.logins != self._logins:
            self._leases.forget()
            self._logins = self._login.logins
        for wanted in self._vault.objects:
            if wanted.request in self._without_result:
                self._refuse_write(wanted)
        responses: dict[Request, Response] = {}
        files: list[File] = []
        for wanted in self._vault.objects:
            response = responses.get(wanted.request)
            if response is None:
                response = self._leases.reuse(wanted, token)
            if response is None:
                response = self._read(wanted, token)
                if response.content is None and wanted.method not in _READS:
                    self._without_result[wanted.request] = HTTPStatus.OK
                    self._refuse_write(wanted)
                self._leases.keep(wanted, response)
            responses[wanted.request] = response
            files.append(to_file(response, wanted))
        return tuple(files)

    def _read(self, wanted: VaultObject, token: str) -> Response:
        what = f"read {wanted.path}"
        answer = self._connection.request(
            wanted.method,
            wanted.secret_path,
            what,
            query=wanted.query,
            body=wanted.arguments,
            token=token,
        )
        if answer.status == HTTPStatus.FORBIDDEN:  # the token expired, or the policy denies
            another = self._login.recover()
            if another is not None:
                raise _TokenLostError(another)
        if answer.status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            self._check_data(wanted, token, answer.status)
        if not 200 <= answer.status < 300:  # noqa: PLR2004 - success
            self._refuse(answer, wanted)
        where = f"{wanted.method} {wanted.secret_path}"
        if answer.status == HTTPStatus.NO_CONTENT:
            if wanted.method not in _READS:
                self._without_result[wanted.request] = answer.status
                self._refuse_write(wanted)
            self._refuse(answer, wanted)
        return self._connection.parse(answer, f"{what} ({where})")

    def _check_data(self, wanted: VaultObject, token: str, status: int) -> None:
        """Explains a path of KV v2 without `data/`: a policy that fits the secret denies it (403).

        `sys/internal/ui/mounts` describes the mount to every token with a permission on it; Vault's
        own command line asks it before each `kv get`.
        """
        path = wanted.secret_path
        if wanted.method != "GET":
            return
        try:
            what = f"look up the mount of {path}"
            mounts = f"sys/internal/ui/mounts/{path}"
            answer = self._connection.request("GET", mounts, what, token=token)
            if answer.status != HTTPStatus.OK:
                return
            mount = parse_response(answer.body)
        except (TemporaryError, ResponseError):
            return  # the refusal is explained without it
        name = mount.text("data", "path")
        rest = path.removeprefix(name)
        if mount.text("data", "options", "version") != "2" or not name or rest == path:
            return
        if rest.split("/")[0] not in _KV_V2:
            raise RefusedError(
                f"cannot read {wanted.path}: {name} is KV v2, which has no {path} ({status:d})",
                f"write secretPath: {name}data/{rest}",
            )

    def _refuse_write(self, wanted: VaultObject) -> NoReturn:
        """Explains a write without a result, which later passes do not repeat."""
        status = self._without_result[wanted.request]
        where = f"{wanted.method} {wanted.secret_path}"
        raise RefusedError(
            f"cannot read {wanted.path}: {where} is a write without a result ({status:d})",
            "remove the object, or correct method or secretPath; syncd does not repeat the write"
            " until it starts again",
        )

    def _refuse(self, answer: Answer, wanted: VaultObject) -> NoReturn:
        """Explains a status that another attempt does not change."""
        status, where = answer.status, f"{wanted.method} {wanted.secret_path}"
        if status == HTTPStatus.NOT_FOUND:
            problem = f"there is nothing at {wanted.secret_path} (404)"
            remedy = "write the secret, or correct secretPath (KV v2: mount/data/name)"
            version = dict(parse_qsl(wanted.query)).get("version", "")
            version = f"version {version}" if version.isdecimal() and int(version) else ""
            if version:
                problem = f"there is no {version} at {wanted.secret_path} (404)"
                remedy = "correct the version or the path in secretPath, or write the secret"
            try:
                response = parse_response(answer.body)
                if is_gone(response):
                    which = version or "the version"
                    destroyed = is_destroyed(response)
                    state = "destroyed" if destroyed else "deleted"
                    problem = f"{which} at {wanted.secret_path} is {state} (404)"
                    remedy = "write a new version" if destroyed else _UNDELETE
                    if version:
                        remedy += ", or correct the version in secretPath"
            except ResponseError:
                pass
        elif status == HTTPStatus.FORBIDDEN:
            problem, remedy = f"the policy denies {where} (403)", "allow it in the login's policy"
        elif status == HTTPStatus.NO_CONTENT:
            problem, remedy = f"{where} has no content (204)", "correct secretPath or method"
        elif 300 <= status < 400:  # noqa: PLR2004 - a redirect
            problem = f"{self._connection.address} redirects to another address ({status})"
            remedy = "set vaultAddress or vault_url to the active server"
        else:
            problem = f"{self._connection.address} rejects {where} ({status})"
            remedy = "check secretPath, method and secretArgs"
        raise RefusedError(f"cannot read {wanted.path}: {problem}", remedy)
