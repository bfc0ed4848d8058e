"""Requests to the API server of the cluster that a pod is in, as the pod's service account.

Where it is and who asks is what Kubernetes puts into every pod ("Accessing the Kubernetes API from
a Pod"): `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`, and the files `token`, `ca.crt`
and `namespace` of the service account. The token rotates, and is read again when its file has
changed.
"""

from __future__ import annotations

import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from syncd import __version__
from syncd.config.cluster import SERVICE_ACCOUNT, server_url, token_file
from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.credentials import CredentialFiles, Keyring
from syncd.net.http import Connection
from syncd.net.http1 import Request
from syncd.net.tls import RotatingContext, Trust
from syncd.net.url import Url
from syncd.system.files import UnsuitableError, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.config.settings import Kubernetes
    from syncd.net.credentials import Credentials
    from syncd.net.http import Answer

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
"""RFC 7386, which the API server takes for a PATCH of any kind."""

_TIMEOUT: Final = 5.0
_LONGEST: Final = 4 << 20
_LONGEST_NAME: Final = 253
_EXPECTED: Final = frozenset((HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT))


class Cluster:
    """The API server, from inside of a pod.

    Args:
        settings: What differs from a pod's defaults.
        environ: The environment.

    Raises:
        RefusedError: This is no pod, and no server is configured.
    """

    def __init__(self, settings: Kubernetes, environ: Mapping[str, str] = os.environ) -> None:
        url = server_url(settings, environ)
        if url is None:
            problem = "cannot find the API server: KUBERNETES_SERVICE_HOST is not set"
            raise RefusedError(problem, "run syncd in a pod, or set kubernetes.server")
        try:
            self._url = Url.parse(url)
        except ValueError:
            problem = "cannot use kubernetes.server: it is malformed"
            raise RefusedError(problem, "write https://host:port") from None
        self._namespace = settings.namespace
        trust = Trust(ca_file=settings.ca_file or f"{SERVICE_ACCOUNT}/ca.crt")
        self._connection = Connection(
            Keyring(CredentialFiles(bearer_token=token_file(settings))),
            RotatingContext(trust) if self._url.scheme == "https" else None,
            timeout=_TIMEOUT,
            url_option="kubernetes.server",
            parallel=1,
        )

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._connection.aclose()

    async def namespace(self) -> str:
        """The pod's namespace, or the configured one.

        Raises:
            RefusedError: It is not known.
        """
        if self._namespace is None:
            self._namespace = await anyio.to_thread.run_sync(_read_namespace)
        return self._namespace

    async def request(
        self, failed: str, method: str, path: str, content: bytes | None = None, type_: str = JSON
    ) -> Answer:
        """Makes a request.

        Args:
            failed: How an error's message begins, such as `cannot read the Lease`.
            method: HTTP method.
            path: From `/api` or `/apis` on.
            content: The body.
            type_: Its media type.

        Returns:
            The answer with its body, a 2xx, 404 or 409.

        Raises:
            TemporaryError: There was no answer, or a later one may differ.
            RefusedError: Any other answer.
        """
        failed = f"{failed} at {self._url.origin}"

        def make(credentials: Credentials) -> Request:
            headers = {"user-agent": f"syncd/{__version__}", "accept": JSON}
            if content is not None:
                headers["content-type"] = type_
            if credentials.authorization is not None:
                headers["authorization"] = credentials.authorization
            return Request(method, self._url.below(path), headers, content)

        answer = await self._connection.exchange(failed, make, body_limit=_LONGEST)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            answer = await self._connection.exchange(failed, make, reread=True, body_limit=_LONGEST)
        if answer.is_success or answer.status in _EXPECTED:
            return answer
        problem = f"{failed}: it answered {answer.status}"
        if answer.is_temporary:
            raise TemporaryError(problem, retry_after=answer.wait)
        remedy = "see the log of the API server"
        if answer.status == HTTPStatus.UNAUTHORIZED:
            remedy = "correct kubernetes.token_file: this API server does not accept the token"
        elif answer.status == HTTPStatus.FORBIDDEN:
            component = "rollout" if path.startswith("/apis/apps/") else "repair"
            remedy = f"give the service account the rights of kubernetes/components/{component}"
        raise RefusedError(problem, remedy)


def _read_namespace() -> str:
    path = f"{SERVICE_ACCOUNT}/namespace"
    try:
        content, _ = read_file(path, _LONGEST_NAME)
        return content.decode("ascii").strip()
    except (OSError, UnsuitableError, UnicodeDecodeError):
        problem = f"cannot read the pod's namespace from {path}"
        raise RefusedError(problem, "set kubernetes.namespace") from None
