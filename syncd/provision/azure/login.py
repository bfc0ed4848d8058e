"""Login to Azure Key Vault, as the one identity that is configured.

`DefaultAzureCredential` and azure-identity's managed identity try several identities, depending on
the environment; here each method has one source. Credential files are read for every token, and a
changed file means a new login. Only the methods of service principals import azure-identity, and
msal with it; managed identities do not need it.
"""

from __future__ import annotations

import time
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from azure.core.credentials import AccessTokenInfo
from azure.core.exceptions import AzureError

from syncd.config.auth import ClientCertificate, ClientSecret, ManagedIdentity, WorkloadIdentity
from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.interruption import unavailable
from syncd.net.requests_session import explain
from syncd.provision.azure.http import pipeline_options
from syncd.provision.credential_file import read_bytes, read_credential
from syncd.provision.imds import identity_token

if TYPE_CHECKING:
    from azure.core.credentials import SupportsTokenInfo, TokenRequestOptions

    from syncd.config.auth import AzureAuth
    from syncd.provision.azure.http import Transport

_EARLY: Final = 300.0
"""Seconds before its expiry that a token is replaced, as in azure-core."""


class MachineIdentity:
    """A managed identity of the VM, by Azure's metadata service.

    Args:
        client_id: Which user-assigned identity; None for the system-assigned one.
    """

    def __init__(self, client_id: str | None) -> None:
        self._client_id = client_id
        self._token = AccessTokenInfo("", 0)

    def get_token_info(
        self, *scopes: str, options: TokenRequestOptions | None = None
    ) -> AccessTokenInfo:
        """A token for a scope; see `azure.core.credentials.SupportsTokenInfo`.

        Raises:
            TemporaryError: The metadata service does not answer.
            RefusedError: The VM has no such identity.
        """
        del options  # a managed identity has one tenant
        now = time.time()
        if self._token.expires_on - now < _EARLY:
            resource = scopes[0].removesuffix("/.default")
            token, lasts = identity_token(resource, self._client_id)
            self._token = AccessTokenInfo(token, int(now + lasts))
        return self._token

    def forget(self) -> None:
        """Discards the token, so that the next one is requested."""
        self._token = AccessTokenInfo("", 0)

    def close(self) -> None:
        """Forgets the token; no connection is kept."""
        self.forget()


class ServicePrincipal:
    """A service principal: an identity with a secret, a certificate or a federated token.

    Args:
        auth: The method.
        tenant: Where the identity is registered.
        client_id: The identity's client id.
        transport: The connection to Microsoft Entra ID.
        authority: Its URL.
    """

    def __init__(
        self,
        auth: ClientSecret | ClientCertificate | WorkloadIdentity,
        tenant: str,
        client_id: str,
        *,
        transport: Transport,
        authority: str,
    ) -> None:
        self._auth = auth
        self._tenant = tenant
        self._client_id = client_id
        self._transport = transport
        self._authority = authority
        self._read = b""
        self._credential: SupportsTokenInfo | None = None

    def __repr__(self) -> str:
        return f"ServicePrincipal({self._client_id!r}, {type(self._auth).__name__})"

    def get_token_info(
        self, *scopes: str, options: TokenRequestOptions | None = None
    ) -> AccessTokenInfo:
        """A token for a scope; see `azure.core.credentials.SupportsTokenInfo`.

        The token is of the configured tenant, even where a vault names another one.

        Raises:
            TemporaryError: Microsoft Entra ID cannot be reached.
            RefusedError: It rejects the login, or the file cannot be used.
        """
        what = f"log in to {self._authority} as {self._client_id}"
        wanted: TokenRequestOptions = {}
        if options and options.get("claims"):
            wanted["claims"] = options["claims"]
        try:
            return self._current().get_token_info(*scopes, options=wanted)
        except AzureError as error:  # azure-identity wraps every exception in it
            self.forget()  # the next attempt reads the file and logs in again
            raise self._judge(error, what) from None

    def _judge(self, error: AzureError, what: str) -> TemporaryError | RefusedError:
        status = self._transport.status
        if not status:
            return explain(error, what=what, server=self._authority, address="cloudName")
        if status == 429 or status >= 500:  # noqa: PLR2004 - RFC 6585, RFC 9110
            return unavailable(what, self._authority, f"cannot answer now ({status})")
        if status >= 400:  # noqa: PLR2004 - RFC 9110, section 15.5
            option, path = self._file
            remedy = f"check tenantID, client_id and auth.{option} {path}"
            return RefusedError(f"cannot {what}: the login is rejected ({status})", remedy)
        return TemporaryError(
            f"cannot {what}: the answer is not Microsoft Entra ID's", "check tenantID and cloudName"
        )

    def forget(self) -> None:
        """Discards the token, so that the next one is requested."""
        self._credential = None

    def close(self) -> None:
        """Closes the connection to Microsoft Entra ID."""
        self.forget()
        self._transport.close()

    @property
    def _file(self) -> tuple[str, str]:
        """The key of `auth` that names the credential's file, and the file."""
        auth = self._auth
        if isinstance(auth, ClientSecret):
            return "client_secret_file", auth.client_secret_file
        if isinstance(auth, WorkloadIdentity):
            return "token_file", auth.token_file
        return "client_certificate_file", auth.client_certificate_file

    def _current(self) -> SupportsTokenInfo:
        content = self._content()
        seen = sha256(content).digest()
        if self._credential is None or seen != self._read:
            self._credential = self._make(content)
            self._read = seen
        return self._credential

    def _content(self) -> bytes:
        option, path = self._file
        if isinstance(self._auth, ClientCertificate):
            return read_bytes(option, path)
        return read_credential(option, path).encode()

    def _make(self, content: bytes) -> SupportsTokenInfo:
        from azure.identity import (  # noqa: PLC0415 - 20 MiB
            CertificateCredential,
            ClientAssertionCredential,
            ClientSecretCredential,
        )

        options = {
            "authority": self._authority,
            "disable_instance_discovery": True,  # the authority is configured
            **pipeline_options(self._transport),
        }
        tenant, client_id = self._tenant, self._client_id
        if isinstance(self._auth, ClientSecret):
            return ClientSecretCredential(tenant, client_id, content.decode(), **options)
        if isinstance(self._auth, WorkloadIdentity):
            return ClientAssertionCredential(tenant, client_id, content.decode, **options)
        try:
            return CertificateCredential(tenant, client_id, certificate_data=content, **options)
        except (TypeError, ValueError):
            option, path = self._file
            raise RefusedError(
                f"cannot use auth.{option} {path}: it is not an RSA key with its certificate, as"
                " PEM or as PKCS#12 without a password",
                "write both into it",
            ) from None


Login = MachineIdentity | ServicePrincipal


def open_login(
    auth: AzureAuth, tenant: str, client_id: str, *, transport: Transport, authority: str
) -> Login:
    """Makes the login that is configured.

    Args:
        auth: The method.
        tenant: The manifest's tenant, for an `auth` without one.
        client_id: The manifest's identity, likewise.
        transport: The connection to Microsoft Entra ID.
        authority: Its URL.
    """
    if isinstance(auth, ManagedIdentity):
        return MachineIdentity(auth.client_id or client_id or None)
    return ServicePrincipal(
        auth,
        auth.tenant_id or tenant,
        auth.client_id or client_id,
        transport=transport,
        authority=authority,
    )
