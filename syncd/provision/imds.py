"""Azure's instance metadata service: tokens of the managed identities of the VM.

azure-identity can request them too, but takes 20 MiB of memory, and chooses among several
identities by environment variables, where syncd uses only the identity that is configured.

Source of the login to Vault's `azure` method: hashicorp/vault,
`command/agentproxyshared/auth/azure`: the JWT is the managed identity's access token for
`resource`, and the server checks it against the names of the VM.
"""

from __future__ import annotations

import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import requests

from syncd.core.errors import RefusedError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.config.auth import AzureLogin

_IMDS: Final = "http://169.254.169.254"
_TIMEOUT: Final = (2.0, 10.0)


def identity_token(resource: str, client_id: str | None) -> tuple[str, float]:
    """Requests an access token of a managed identity.

    Args:
        resource: The service that the token is for, as a URL.
        client_id: Which user-assigned identity; None for the system-assigned one.

    Returns:
        The token, and the seconds that it is valid for.

    Raises:
        TemporaryError: The metadata service does not answer.
        RefusedError: The VM has no such identity.
    """
    query = {"api-version": "2018-02-01", "resource": resource}
    if client_id is not None:
        query["client_id"] = client_id
    answer = _get("/metadata/identity/oauth2/token", query)
    lasts = str(answer.get("expires_in", ""))
    return _text(answer, "access_token"), float(lasts) if lasts.isdecimal() else 0.0


def azure_login_body(auth: AzureLogin, role: str) -> dict[str, str]:
    """The body of a request to `auth/azure/login`.

    Raises:
        TemporaryError: The metadata service does not answer.
        RefusedError: The VM has no such identity.
    """
    token, _ = identity_token(auth.resource, auth.client_id)
    instance = _get("/metadata/instance", {"api-version": "2021-02-01"}).get("compute")
    compute = instance if isinstance(instance, dict) else {}
    return {
        "role": role,
        "jwt": token,
        "subscription_id": _text(compute, "subscriptionId"),
        "resource_group_name": _text(compute, "resourceGroupName"),
        "vm_name": _text(compute, "name"),
        "vmss_name": _text(compute, "vmScaleSetName"),
    }


def _get(path: str, query: Mapping[str, str]) -> dict[str, Any]:
    # azure-identity's variable, for tests
    imds = os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST", _IMDS).rstrip("/")
    what = f"cannot log in by a managed identity: Azure's metadata service at {imds}"
    remedy = "check that this is an Azure VM with an identity"
    try:
        with requests.Session() as session:
            session.trust_env = False  # link-local: never through a proxy
            response = session.get(
                imds + path,
                params=dict(query),
                headers={"Metadata": "true"},
                timeout=_TIMEOUT,
                allow_redirects=False,
            )
    except requests.RequestException:
        raise TemporaryError(f"{what} does not answer", remedy) from None
    status = response.status_code
    if status in (400, 404):
        raise RefusedError(
            f"{what} does not know the identity ({status})",
            "assign it to this VM, or correct its client id",
        )
    if status != HTTPStatus.OK:
        raise TemporaryError(f"{what} cannot answer now ({status})", "check Azure's service health")
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise TemporaryError(f"{what} sent an answer that is not a JSON object", remedy)
    return answer


def _text(tree: Mapping[str, Any], key: str) -> str:
    value = tree.get(key)
    return value if isinstance(value, str) else ""
