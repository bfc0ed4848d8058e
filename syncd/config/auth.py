"""The `auth` section of a provision entry: how syncd logs in to a vault. Shapes only.

Credentials are configured as files, never as values; each file is read again for every login,
because credentials rotate too. The providers' own modules log in (`provision/vault/auth.py`,
`provision/azure/login.py`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

AbsolutePath = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^/[^\x00-\x1f\x7f]*$(?!\n)",
        description="an absolute path",
        examples=["/etc/syncd/webhook.key"],
    ),
]
MountPath = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[^/\x00][^\x00]*$",
        description="a path in the vault without / at its start",
        examples=["approle"],
    ),
]

SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path


class TokenFile(msgspec.Struct, frozen=True, kw_only=True, tag="token", tag_field="method"):
    """Vault: a token from a file that another program renews, such as Vault Agent's sink."""

    token_file: AbsolutePath


class AppRole(msgspec.Struct, frozen=True, kw_only=True, tag="approle", tag_field="method"):
    """Vault: AppRole; without `secret_id_file` for a role that does not require a secret-id."""

    role_id_file: AbsolutePath
    secret_id_file: AbsolutePath | None = None
    secret_id_wrapped: bool = False
    mount: MountPath = "approle"


class KubernetesLogin(
    msgspec.Struct, frozen=True, kw_only=True, tag="kubernetes", tag_field="method"
):
    """Vault: a Kubernetes service account's token; role and mount default to the manifest's."""

    role: str | None = None
    jwt_file: AbsolutePath = SERVICE_ACCOUNT_TOKEN
    mount: MountPath | None = None


class JwtLogin(msgspec.Struct, frozen=True, kw_only=True, tag="jwt", tag_field="method"):
    """Vault: a JWT that the server's `jwt` method trusts; manifest's role and mount by default."""

    role: str | None = None
    jwt_file: AbsolutePath = SERVICE_ACCOUNT_TOKEN
    mount: MountPath | None = None


class CertLogin(msgspec.Struct, frozen=True, kw_only=True, tag="cert", tag_field="method"):
    """Vault: a TLS client certificate; defaults to the manifest's."""

    role: str | None = None
    client_cert: AbsolutePath | None = None
    client_key: AbsolutePath | None = None
    mount: MountPath = "cert"


class AzureLogin(msgspec.Struct, frozen=True, kw_only=True, tag="azure", tag_field="method"):
    """Vault: the managed identity of the Azure VM that syncd runs on."""

    role: str | None = None
    client_id: str | None = None
    resource: str = "https://management.azure.com/"
    mount: MountPath = "azure"


class ManagedIdentity(
    msgspec.Struct, frozen=True, kw_only=True, tag="managed_identity", tag_field="method"
):
    """Azure Key Vault: the VM's identity; without `client_id` the system-assigned one."""

    client_id: str | None = None


class WorkloadIdentity(
    msgspec.Struct, frozen=True, kw_only=True, tag="workload_identity", tag_field="method"
):
    """Azure Key Vault: a federated token; client and tenant default to the manifest's."""

    token_file: AbsolutePath
    client_id: str | None = None
    tenant_id: str | None = None


class ClientSecret(
    msgspec.Struct, frozen=True, kw_only=True, tag="client_secret", tag_field="method"
):
    """Azure Key Vault: a service principal's secret; the tenant defaults to the manifest's."""

    client_id: str
    client_secret_file: AbsolutePath
    tenant_id: str | None = None


class ClientCertificate(
    msgspec.Struct, frozen=True, kw_only=True, tag="client_certificate", tag_field="method"
):
    """Azure Key Vault: a service principal's certificate with its key, as PEM or PKCS#12."""

    client_id: str
    client_certificate_file: AbsolutePath
    tenant_id: str | None = None


VaultAuth = TokenFile | AppRole | KubernetesLogin | JwtLogin | CertLogin | AzureLogin
AzureAuth = ManagedIdentity | WorkloadIdentity | ClientSecret | ClientCertificate
