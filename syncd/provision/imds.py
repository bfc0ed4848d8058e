"""Azure's instance metadata service: who the machine is that syncd runs on.

azure-identity could ask it, too. But it chooses among several identities by the environment, where
here only the one that the user named is wanted, and it takes 20 MiB of memory for this request.

Source of the login to Vault's `azure` method: hashicorp/vault,
`command/agentproxyshared/auth/azure`: the JWT is the managed identity's access token for
`resource`, and the server checks it against the machine's own coordinates.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import requests

from syncd.core.errors import RefusedError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.config.auth import AzureLogin

IMDS: Final = "http://169.254.169.254"
_TIMEOUT: Final = (2.0, 10.0)
_IDENTITY = "/metadata/identity/oauth2/token"
_INSTANCE = "/metadata/instance"


def imds_address() -> str:
    """Where the service is; azure-identity's variable moves it, for tests and odd machines."""
    return os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST", IMDS).rstrip("/")


def identity_token(resource: str, client_id: str | None, imds: str) -> tuple[str, float]:
    """An access token of the machine's identity.

    Args:
        resource: What it is for.
        client_id: Which user-assigned identity; None for the system-assigned one.
        imds: Where the service is.

    Returns:
        The token, and for how many seconds it lasts.

    Raises:
        TemporaryError: The metadata service does not answer.
        RefusedError: It has no such identity.
    """
    query = {"api-version": "2018-02-01", "resource": resource}
    if client_id is not None:
        query["client_id"] = client_id
    answer = _get(imds, _IDENTITY, query)
    lasts = str(answer.get("expires_in", ""))
    return _text(answer, "access_token"), float(lasts) if lasts.isdecimal() else 0.0


def azure_login_body(auth: AzureLogin, role: str, imds: str) -> dict[str, str]:
    """What `auth/azure/login` wants to know of this machine.

    Raises:
        TemporaryError: The metadata service does not answer.
        RefusedError: It has no such identity.
    """
    token, _ = identity_token(auth.resource, auth.client_id, imds)
    instance = _get(imds, _INSTANCE, {"api-version": "2021-02-01"}).get("compute")
    compute = instance if isinstance(instance, dict) else {}
    return {
        "role": role,
        "jwt": token,
        "subscription_id": _text(compute, "subscriptionId"),
        "resource_group_name": _text(compute, "resourceGroupName"),
        "vm_name": _text(compute, "name"),
        "vmss_name": _text(compute, "vmScaleSetName"),
    }


def _get(imds: str, path: str, query: Mapping[str, str]) -> dict[str, Any]:
    where = "cannot log in by the machine's identity: the metadata service of Azure"
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
            answer = response.json() if response.status_code == 200 else None  # noqa: PLR2004
    except (requests.RequestException, ValueError):
        raise TemporaryError(f"{where} does not answer; is this a machine in Azure?") from None
    if isinstance(answer, dict):
        return answer
    if response.status_code in (400, 404):
        raise RefusedError(f"{where} knows no such identity; assign it or mend client_id")
    raise TemporaryError(f"{where} is not able to answer now ({response.status_code}); try later")


def _text(tree: Mapping[str, Any], key: str) -> str:
    value = tree.get(key)
    return value if isinstance(value, str) else ""
