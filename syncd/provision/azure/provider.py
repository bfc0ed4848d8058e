"""The provider for Azure Key Vault: a manifest's objects, read in one pass.

The first error ends the pass, so that a payload is always the whole set. Requests are made one
after the other, since Key Vault throttles all of them together. When throttling ends a pass, the
next one continues where it ended: otherwise the first objects would use up the quota each time.

Requests of a pass: one for each object, for any number of files; for an object with a history one
listing for every 25 versions, and one for each version that was not read before, since the content
of a version never changes.

Traps of the SDK (azure-keyvault-secrets 4.12): the texts of its exceptions hold the answer, so only
status and error code are read; a challenge that does not match the vault's host is a `ValueError`,
and an unexpected answer raises any exception of the SDK's own code.
"""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NoReturn, cast

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
)

from syncd.config.auth import ManagedIdentity
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.payload import File, Payload, decode_value
from syncd.net.reasons import parse_retry_after
from syncd.net.requests_session import explain
from syncd.provision.azure.content import PKCS12, pem_of_certificate, pem_of_key, pem_of_pkcs12
from syncd.provision.azure.http import NamedInterruption, Transport, pipeline_options
from syncd.provision.azure.login import open_login
from syncd.provision.dry_run import Examined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from azure.keyvault.secrets import KeyVaultSecret

    from syncd.config.auth import AzureAuth
    from syncd.net.tls import Trust
    from syncd.provision.azure.content import PublicJwk
    from syncd.provision.azure.objects import AzureClass, AzureObject

    T = TypeVar("T")
    _Version = tuple[AzureObject, str, object]

_ROLES = {
    "secret": "Key Vault Secrets User",
    "key": "Key Vault Reader",
    "cert": "Key Vault Reader",
}
"""The least privileged role for each; a Reader cannot read secrets."""

LONGEST_DETOUR = 600.0
"""Seconds for which a pass reuses what earlier passes read before they were throttled."""


class AzureProvider:
    """Fetches the objects of one manifest from one vault.

    Args:
        name: Its name in status, metrics and log.
        azure: The manifest.
        auth: How to log in.
        vault_url: URL of the vault.
        authority: URL of the login.
        trust: The configuration of TLS, for both.
        api_version: Of Key Vault; None for the SDK's default.
        verify_challenge_resource: Whether the vault's host must belong to the domain that its
            challenge names.
        clock: Monotonic clock, seconds.
    """

    def __init__(
        self,
        name: str,
        azure: AzureClass,
        auth: AzureAuth,
        *,
        vault_url: str,
        authority: str,
        trust: Trust,
        api_version: str | None = None,
        verify_challenge_resource: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._clock = clock
        self._azure = azure
        self._url = vault_url
        self._interruption = NamedInterruption()
        self._transport = Transport(vault_url, trust, self._interruption)
        self._login = open_login(
            auth,
            azure.tenant,
            _manifest_identity(azure, auth),
            transport=Transport(authority, trust, self._interruption),
            authority=authority,
        )
        self._options: dict[str, Any] = {"verify_challenge_resource": verify_challenge_resource}
        if api_version is not None:
            self._options["api_version"] = api_version
        self._clients: dict[str, Any] = {}
        self._kept: dict[_Version, bytes] = {}
        self._read: dict[tuple[str, str, str], Any] = {}
        self._began = 0.0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"AzureProvider({self.name!r}, {self._url!r})"

    def fetch(self) -> Payload:
        """Reads every object; see `syncd.provision.refresh.Provider`."""
        with self._lock:
            now = self._clock()
            if not self._read or now - self._began > LONGEST_DETOUR:
                self._read, self._began = {}, now
            throttled = False
            try:
                return Payload(tuple(self._pass()))
            except TemporaryError as error:
                throttled = error.retry_after is not None
                raise
            finally:
                # only a throttled pass is continued; any other one reads everything again
                if not throttled:
                    self._read = {}

    def examine(self) -> Iterator[Examined]:
        """A dry run; see `syncd.provision.dry_run.Examiner`."""
        for wanted in self._azure.objects:
            self._interruption.what = f"read {wanted.path}"
            try:
                if wanted.history:
                    files = self._history(wanted, {})
                else:
                    files = [File(wanted.path, self._content(wanted, wanted.version), wanted.mode)]
            except (TemporaryError, RefusedError) as error:
                yield Examined(wanted.path, wanted.mode, error)
                continue
            answers = [
                answer
                for (kind, name, _), answer in self._read.items()
                if (kind, name) == (wanted.kind, wanted.name)
            ]
            self._read = {}
            warning = next(filter(None, map(_validity, answers)), None)
            yield from (Examined(file.path, file.mode, warning=warning) for file in files)

    def interrupt(self) -> None:
        """Ends the fetch under way; see `syncd.provision.refresh.Provider`."""
        self._interruption.interrupt()

    def resume(self) -> None:
        """Allows fetches again; see `syncd.provision.refresh.Provider`."""
        self._interruption.resume()

    def close(self) -> None:
        """Closes connections and forgets what was read; see `syncd.provision.refresh.Provider`."""
        self.interrupt()
        self._login.close()
        self._transport.close()
        self._kept, self._read = {}, {}

    def _pass(self) -> list[File]:
        kept: dict[_Version, bytes] = {}
        files: list[File] = []
        for wanted in self._azure.objects:
            self._interruption.what = f"read {wanted.path}"
            if wanted.history:
                files += self._history(wanted, kept)
            else:
                content = self._content(wanted, wanted.version)
                files.append(File(wanted.path, content, wanted.mode))
        self._kept = kept
        return files

    def _history(self, wanted: AzureObject, kept: dict[_Version, bytes]) -> list[File]:
        files = []
        for path, (version, updated) in zip(wanted.paths, self._versions(wanted), strict=False):
            at = (wanted, version, updated)
            content = self._kept.get(at)
            if content is None:
                content = self._content(wanted, version)
            kept[at] = content
            files.append(File(path, content, wanted.mode))
        return files

    def _versions(self, wanted: AzureObject) -> list[tuple[str, object]]:
        """The enabled versions, newest first, from the one where the history begins.

        Each with the time of its last update: its content never changes, its properties can.
        """

        def listed() -> list[tuple[str, object]]:
            client, name = self._client(wanted.kind), wanted.name
            pages: Iterable[Any]
            if wanted.kind == "secret":
                pages = client.list_properties_of_secret_versions(name)
            elif wanted.kind == "key":
                pages = client.list_properties_of_key_versions(name)
            else:
                pages = client.list_properties_of_certificate_versions(name)
            enabled = [(item.created_on.timestamp(), item) for item in pages if item.enabled]
            enabled.sort(key=itemgetter(0), reverse=True)
            return [(str(item.version), item.updated_on) for _, item in enabled]

        versions = self._ask(listed, wanted)
        names = [name for name, _ in versions]
        if not wanted.version:
            start = 0
        elif wanted.version in names:
            start = names.index(wanted.version)
        else:
            problem = f"{wanted.name} has no enabled version {wanted.version}"
            _refuse(wanted, problem, "enable it, or correct objectVersion")
        if not versions:
            _refuse(wanted, f"{wanted.name} has no enabled version", "create or enable one")
        return versions[start:]

    def _content(self, wanted: AzureObject, version: str) -> bytes:
        """The content of the object's file; several files of one object share the request."""
        at = (wanted.kind, wanted.name, version)
        if at not in self._read:
            self._read[at] = self._ask(lambda: self._get(wanted, version), wanted)
        answer = self._read[at]
        try:
            if wanted.kind == "secret":
                return _secret(answer, wanted)
            if wanted.kind == "key":
                return pem_of_key(cast("PublicJwk", answer.key))
            return pem_of_certificate(bytes(answer.cer))
        except ValueError as error:  # of `content` and `_secret`, whose texts hold no value
            _refuse(wanted, str(error), "correct objectFormat, objectEncoding or the object")

    def _get(self, wanted: AzureObject, version: str) -> Any:  # noqa: ANN401 - one of three types
        client = self._client(wanted.kind)
        if wanted.kind == "secret":
            return client.get_secret(wanted.name, version or None)
        if wanted.kind == "key":
            return client.get_key(wanted.name, version or None)
        if version:
            return client.get_certificate_version(wanted.name, version)
        return client.get_certificate(wanted.name)

    def _client(self, kind: str) -> Any:  # noqa: ANN401 - one of three types
        client = self._clients.get(kind)
        if client is None:
            options = {**pipeline_options(self._transport), **self._options}
            client = self._clients[kind] = _client_type(kind)(self._url, self._login, **options)
        return client

    def _ask(self, request: Callable[[], T], wanted: AzureObject) -> T:
        """Lets the SDK make requests, and maps its exceptions."""
        try:
            try:
                return request()
            except ClientAuthenticationError:
                if self._transport.status != HTTPStatus.UNAUTHORIZED:
                    raise
                self._login.forget()  # the token may have been revoked: try once with another
                return request()
        except AzureError as error:
            if isinstance(error, HttpResponseError) and error.status_code:
                self._judge(error, error.status_code, wanted)
            what = f"read {wanted.path}"
            address = "keyvaultName or vault_url"
            raise explain(error, what=what, server=self._url, address=address) from None
        except (AttributeError, KeyError, TypeError, ValueError):
            if self._transport.status == HTTPStatus.UNAUTHORIZED:  # the challenge
                _refuse(
                    wanted,
                    f"{self._url} requires a token for another service",
                    "check keyvaultName and cloudName, and for a private cloud set"
                    " verify_challenge_resource: false",
                )
            raise self._unexpected(wanted) from None

    def _unexpected(self, wanted: AzureObject) -> TemporaryError:
        return TemporaryError(
            f"cannot read {wanted.path}: the answer of {self._url} is not Key Vault's",
            "check keyvaultName and vault_url",
        )

    def _judge(self, error: HttpResponseError, status: int, wanted: AzureObject) -> NoReturn:
        """Explains a status that the SDK's repetitions did not change."""
        code = _code(error)
        if status in (408, 429) or status >= 500:  # noqa: PLR2004 - RFC 9110, RFC 6585
            problem, remedy = "cannot answer now", "check Azure's service health"
            if status == HTTPStatus.TOO_MANY_REQUESTS:
                problem, remedy = "limits requests", "raise the interval"
            raise TemporaryError(
                f"cannot read {wanted.path}: {self._url} {problem} ({status})",
                remedy,
                retry_after=_retry_after(error),
            ) from None
        if isinstance(error, ResourceNotFoundError):
            which = f" version {wanted.version}" if wanted.version else ""
            problem = f"{self._url} has no {wanted.kind} {wanted.name}{which} (404)"
            remedy = "create it, or correct objectName, objectType or objectVersion"
            _refuse(wanted, problem, remedy)
        if status == HTTPStatus.UNAUTHORIZED:
            remedy = (
                f"check {self._azure.tenant_key}, and that the identity is in the vault's tenant"
            )
            _refuse(wanted, f"{self._url} rejects the token (401)", remedy)
        if status == HTTPStatus.FORBIDDEN:
            self._forbidden(code, wanted)
        if 200 <= status < 300:  # noqa: PLR2004 - an answer that could not be read
            raise self._unexpected(wanted) from None
        reason = f"{status} {code}" if code else str(status)
        remedy = "check the object, its version and api_version"
        _refuse(wanted, f"{self._url} rejects the request ({reason})", remedy)

    def _forbidden(self, code: str, wanted: AzureObject) -> NoReturn:
        """Explains a 403 by its inner code (Azure Key Vault, "REST API error codes")."""
        if code.endswith("Disabled"):
            problem = f"{wanted.name} is disabled (403)"
            remedy = "enable it, or create a new version"
        elif code.endswith("NotYetValid"):
            problem = f"{wanted.name} is not valid yet (403)"
            remedy = "wait until its activation date, or correct the date"
        elif code.endswith("Expired"):
            problem = f"{wanted.name} has expired (403)"
            remedy = "create a new version, or correct its expiration date"
        elif code == "ForbiddenByConnection":
            problem = f"{self._url} allows no access from public networks (403)"
            remedy = "use its private endpoint, and check the DNS zone that resolves its name"
        elif code in ("ForbiddenByPolicy", "AccessDenied"):
            problem = f"the access policies of {self._url} deny this identity access (403)"
            noun = "certificate" if wanted.kind == "cert" else wanted.kind
            right = "Get and List" if wanted.history else "Get"
            remedy = f"give the identity the {noun} permission {right}"
        elif code == "ForbiddenByFirewall":
            problem = f"the firewall of {self._url} denies access (403)"
            remedy = "allow this machine's address or network"
        else:
            problem = f"{self._url} denies this identity access (403)"
            remedy = f"assign the role {_ROLES[wanted.kind]} to the identity"
            if code != "ForbiddenByRbac":  # it does not say whether the role or the network denies
                remedy += ", and allow this machine's network"
        _refuse(wanted, problem, remedy)


def _validity(answer: Any) -> tuple[str, str] | None:  # noqa: ANN401 - one of three types
    """Whether an object that can be read has expired, or is not valid yet."""
    now = time.time()
    begins, ends = answer.properties.not_before, answer.properties.expires_on
    if ends is not None and ends.timestamp() <= now:
        return "has expired", "create a new version, or correct its expiration date"
    if begins is not None and begins.timestamp() > now:
        return "is not valid yet", "wait until its activation date, or correct the date"
    return None


def _manifest_identity(azure: AzureClass, auth: AzureAuth) -> str:
    """The client id of the manifest that fits the login; `clientID` is a workload identity's."""
    if isinstance(auth, ManagedIdentity) and azure.managed_identity:
        return azure.assigned_identity
    return azure.assigned_identity or azure.client_id


def _client_type(kind: str) -> Any:  # noqa: ANN401 - one of three types
    if kind == "secret":
        from azure.keyvault.secrets import SecretClient  # noqa: PLC0415 - each a few MiB

        return SecretClient
    if kind == "key":
        from azure.keyvault.keys import KeyClient  # noqa: PLC0415

        return KeyClient
    from azure.keyvault.certificates import CertificateClient  # noqa: PLC0415

    return CertificateClient


def _secret(answer: KeyVaultSecret, wanted: AzureObject) -> bytes:
    value = answer.value or ""
    backed = answer.properties.key_id is not None
    if backed and answer.properties.content_type == PKCS12 and not wanted.pfx:
        return pem_of_pkcs12(value)
    try:
        return decode_value(value.encode(), wanted.encoding)
    except ValueError:
        raise ValueError(f"the value is not {wanted.encoding}") from None


def _refuse(wanted: AzureObject, message: str, remedy: str) -> NoReturn:
    raise RefusedError(f"cannot read {wanted.path}: {message}", remedy) from None


def _code(error: HttpResponseError) -> str:
    """The innermost error code, such as `SecretDisabled`; empty unless it consists of letters."""
    details = getattr(error, "error", None)
    inner = getattr(details, "innererror", None)
    code = (inner or {}).get("code") if isinstance(inner, dict) else None
    code = code or getattr(details, "code", None)
    return code if isinstance(code, str) and code.isalpha() and len(code) < 64 else ""  # noqa: PLR2004


def _retry_after(error: HttpResponseError) -> float | None:
    headers = getattr(error.response, "headers", {})
    return parse_retry_after(headers.get("Retry-After"), time.time())
