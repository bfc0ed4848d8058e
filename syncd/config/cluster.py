"""The cluster that a pod is in, as Kubernetes says in each ("Accessing the API from a Pod")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.config.settings import Kubernetes

SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Directory of a pod's token, CA and namespace."""


def server_url(settings: Kubernetes, environ: Mapping[str, str]) -> str | None:
    """URL of the API server, or None outside of a cluster."""
    if settings.server is not None:
        return settings.server
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if not host:
        return None
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def token_file(settings: Kubernetes) -> str:
    """The file that holds the token."""
    return settings.token_file or f"{SERVICE_ACCOUNT}/token"
