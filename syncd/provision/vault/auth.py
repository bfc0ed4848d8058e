"""Login to a Vault or OpenBao server, renewal of the token, and login again.

Upstream's CSI providers have the Kubernetes login only; machines without Kubernetes need others.
The rules:

- a token is renewed at two thirds of its TTL. Where the renewal fails or reaches the maximum TTL,
  syncd logs in again before the token expires;
- a login that fails while the previous token is still valid is logged, and that token stays in use;
- a 403 is ambiguous: an expired token and a policy that denies look the same (measured on OpenBao
  2.7). `lookup-self` decides, and a token that was issued in the same pass is valid;
- credential files are read for every login, a token file in every pass;
- a wrapped secret-id is unwrapped once and kept in memory for later logins. Before, `sys/wrapping/
  lookup` must show that the AppRole created the wrapping token: one that was unwrapped and wrapped
  again on its way has another creation path.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn

import structlog

from syncd.config.auth import (
    AppRole,
    AzureLogin,
    CertLogin,
    JwtLogin,
    KubernetesLogin,
    TokenFile,
)
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.timing import Lifetime
from syncd.provision.credential_file import read_credential
from syncd.provision.imds import azure_login_body
from syncd.provision.vault.objects import DEFAULT_LOGIN_MOUNT

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncd.config.auth import VaultAuth
    from syncd.provision.vault.http import Connection
    from syncd.provision.vault.objects import VaultClass
    from syncd.provision.vault.response import Response

_ENDLESS = Lifetime.granted(0.0, 0.0, renewable=False)


class Login:
    """The token in use.

    Args:
        auth: The method and its credentials.
        vault: The manifest, for role and mount.
        connection: To the server.
        clock: Monotonic clock, seconds.

    Attributes:
        logins: How many tokens there have been; a change means that leases ended with the token.
    """

    def __init__(
        self,
        auth: VaultAuth,
        vault: VaultClass,
        connection: Connection,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._auth = auth
        self._vault = vault
        self._connection = connection
        self._clock = clock
        self._token = ""
        self._lifetime = _ENDLESS
        self._fresh = False
        self._unwrapped = ("", "")
        self.logins = 0

    def __repr__(self) -> str:
        return f"Login({type(self._auth).__name__}, logins={self.logins})"

    @property
    def due(self) -> float:
        """When the token is to be renewed or replaced, on `clock`."""
        return self._lifetime.due if self._token else 0.0

    def token(self) -> str:
        """Returns a token that should be valid; logs in or renews when due. Once per pass.

        Raises:
            TemporaryError: The server cannot be reached, and there is no valid token.
            RefusedError: The server rejects the credentials.
        """
        self._fresh = False
        if isinstance(self._auth, TokenFile):
            self._take_file(self._auth)
        now = self._clock()
        if not self._token or now >= self._lifetime.end:
            self._login()
        elif now >= self._lifetime.due:
            self._prolong(now)
        return self._token

    def recover(self) -> str | None:
        """After a 403: returns another token to try once, or None where the policy denied.

        Raises:
            TemporaryError: The server cannot be reached.
            RefusedError: The token is not valid any longer, and syncd cannot get another one.
        """
        if self._fresh or self._look_up(self._token):
            return None
        if isinstance(self._auth, TokenFile):
            path = self._auth.token_file
            self._token = ""
            raise RefusedError(
                f"cannot use auth.token_file {path}: {self._connection.address} rejects the token"
                " (403), also for lookup-self",
                "write a valid token into the file",
            )
        structlog.get_logger().info("provision.token_lost", server=self._connection.address)
        self._login()
        return self._token

    def revoke(self) -> None:
        """Ends the token, if it came of a login here; a failure leaves it to expire."""
        if self._token and not isinstance(self._auth, TokenFile):
            what = "revoke the token"
            with contextlib.suppress(TemporaryError):
                self._connection.request(
                    "POST", "auth/token/revoke-self", what, token=self._token, body="{}"
                )
            self._token = ""

    def _prolong(self, now: float) -> None:
        """Renews or replaces a token that is still valid; a failure is not fatal yet."""
        try:
            if self._lifetime.renewable and self._renew(now):
                return
            if isinstance(self._auth, TokenFile):
                self._lifetime = self._lifetime.postponed(now)
                structlog.get_logger().warning(
                    "provision.token_ends",
                    file=self._auth.token_file,
                    seconds_left=round(self._lifetime.end - now),
                    hint="write a new token into the file",
                )
                return
            self._login()
        except (TemporaryError, RefusedError) as error:
            self._lifetime = self._lifetime.postponed(now)
            structlog.get_logger().warning(
                "provision.renewal_failed",
                problem=str(error),
                seconds_left=round(self._lifetime.end - now),
            )

    def _renew(self, now: float) -> bool:
        what = "renew the token"
        answer = self._connection.request(
            "POST", "auth/token/renew-self", what, token=self._token, body="{}"
        )
        if answer.status != HTTPStatus.OK:
            return False
        response = self._connection.parse(answer, what)
        seconds = response.seconds("auth", "lease_duration")
        if seconds <= 0:
            return False
        renewable = response.flag("auth", "renewable")
        self._lifetime = self._lifetime.renewed(now, seconds, renewable=renewable)
        return True

    def _look_up(self, token: str) -> Response | None:
        """The answer about a token; None if it is not valid, or not allowed to look itself up."""
        what = "look up the token"
        answer = self._connection.request("GET", "auth/token/lookup-self", what, token=token)
        return self._connection.parse(answer, what) if answer.status == HTTPStatus.OK else None

    def _take_file(self, auth: TokenFile) -> None:
        token = read_credential("token_file", auth.token_file)
        # a token that should have ended may have been prolonged by its owner
        if token == self._token and self._clock() < self._lifetime.end:
            return
        response = self._look_up(token)
        if response is not None:
            seconds = response.seconds("data", "ttl")
            renewable = response.flag("data", "renewable")
            self._lifetime = Lifetime.granted(self._clock(), seconds, renewable=renewable)
        else:
            self._lifetime = _ENDLESS  # the first read will show whether it is valid
        if token != self._token:
            self._token = token
            self.logins += 1

    def _login(self) -> None:
        path, body = self._request()
        what = f"log in at {path}"
        answer = self._connection.request("POST", path, what, body=json.dumps(body))
        if answer.status != HTTPStatus.OK:
            self._refuse_login(answer.status, path)
        response = self._connection.parse(answer, what)
        token = response.text("auth", "client_token")
        if not token or not token.isascii() or not token.isprintable():
            raise RefusedError(
                f"cannot {what}: {self._connection.address} answers without a token",
                "check whether the method requires a second factor (MFA)",
            )
        seconds = response.seconds("auth", "lease_duration")
        renewable = response.flag("auth", "renewable")
        self._token = token
        self._lifetime = Lifetime.granted(self._clock(), seconds, renewable=renewable)
        self._fresh = True
        self.logins += 1
        structlog.get_logger().info(
            "provision.logged_in", server=self._connection.address, path=path, ttl=round(seconds)
        )

    def _refuse_login(self, status: int, path: str) -> NoReturn:
        self._connection.check_namespace(status, f"log in at {path}")
        what = f"cannot log in at {path}: {self._connection.address}"
        if status == HTTPStatus.NOT_FOUND:
            setting = "auth.mount"
            if isinstance(self._auth, KubernetesLogin | JwtLogin) and not self._auth.mount:
                setting = "vaultAuthMountPath" if self._vault.login_mount else setting
            raise RefusedError(
                f"{what} has no such auth method (404)", f"enable it there, or correct {setting}"
            )
        raise RefusedError(f"{what} rejects the login ({status})", self._remedy())

    def _remedy(self) -> str:
        auth = self._auth
        if isinstance(auth, AppRole):
            if auth.secret_id_wrapped:
                return f"write a new wrapped secret-id into {auth.secret_id_file}"
            if auth.secret_id_file is None:
                return f"write a valid role-id into {auth.role_id_file}"
            files = f"{auth.role_id_file} and {auth.secret_id_file}"
            return f"write a valid role-id and secret-id into {files}"
        if isinstance(auth, KubernetesLogin | JwtLogin):
            return f"check role, audience and expiry of the token in {auth.jwt_file}"
        if isinstance(auth, CertLogin):
            return "check that the role trusts the client certificate"
        return "check the role"

    def _request(self) -> tuple[str, dict[str, str]]:
        auth = self._auth
        role = getattr(auth, "role", None) or self._vault.role
        if isinstance(auth, AppRole):
            body = {"role_id": read_credential("role_id_file", auth.role_id_file)}
            if auth.secret_id_file is not None:
                secret_id = read_credential("secret_id_file", auth.secret_id_file)
                body["secret_id"] = (
                    self._unwrap(secret_id, auth) if auth.secret_id_wrapped else secret_id
                )
            return f"auth/{auth.mount}/login", body
        if isinstance(auth, KubernetesLogin | JwtLogin):
            default = DEFAULT_LOGIN_MOUNT if isinstance(auth, KubernetesLogin) else "jwt"
            mount = auth.mount or self._vault.login_mount or default
            jwt = read_credential("jwt_file", auth.jwt_file)
            return f"auth/{mount}/login", {"role": role, "jwt": jwt}
        if isinstance(auth, AzureLogin):
            return f"auth/{auth.mount}/login", azure_login_body(auth, role)
        assert isinstance(auth, CertLogin)
        return f"auth/{auth.mount}/login", {"name": role} if role else {}

    def _unwrap(self, wrapping: str, auth: AppRole) -> str:
        """The secret-id behind a wrapping token; unwrapped once, then from memory."""
        if self._unwrapped[0] == wrapping:
            return self._unwrapped[1]
        what = f"unwrap auth.secret_id_file {auth.secret_id_file}"
        used = RefusedError(
            f"cannot {what}: the wrapping token was used already, has expired or is not one",
            "write a new wrapped secret-id into the file",
        )
        answer = self._connection.request(
            "POST", "sys/wrapping/lookup", what, body=json.dumps({"token": wrapping})
        )
        if answer.status != HTTPStatus.OK:
            raise used
        created_by = self._connection.parse(answer, what).text("data", "creation_path")
        if not re.fullmatch(rf"auth/{re.escape(auth.mount)}/role/[^/]+/secret-id", created_by):
            raise RefusedError(
                f"cannot {what}: it was not wrapped by auth/{auth.mount}, so it may have been read"
                " on the way",
                "revoke the secret-id, and write a new wrapped one into the file",
            )
        answer = self._connection.request(
            "POST", "sys/wrapping/unwrap", what, token=wrapping, body="{}"
        )
        if answer.status != HTTPStatus.OK:
            raise used
        secret_id = self._connection.parse(answer, what).text("data", "secret_id")
        if not secret_id:
            raise used
        self._unwrapped = (wrapping, secret_id)
        return secret_id
