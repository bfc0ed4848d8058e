"""Provision entries with their manifests, read and checked: what to fetch, and what is wrong.

Entry, manifest and vault config are checked against each other here, for the daemon and for `syncd
check` alike: the login must fit the provider, files must not collide, and the vault config and the
manifests should name the same files. Nothing connects to a vault.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from syncd.config.auth import (
    AzureAuth,
    AzureLogin,
    CertLogin,
    KubernetesLogin,
    ManagedIdentity,
    VaultAuth,
)
from syncd.config.extra import place_of
from syncd.config.settings import Provision
from syncd.core.address import is_plain_http
from syncd.core.errors import RefusedError
from syncd.core.findings import finding, key_path
from syncd.provision.azure.cloud import find_cloud
from syncd.provision.azure.objects import CLUSTER_ONLY, AzureClass, decode_azure
from syncd.provision.manifest import Report, check_paths, decode_manifests
from syncd.provision.publish import IN_MEMORY, UNTRUSTED_REMEDIES, filesystem
from syncd.provision.vault.objects import VaultClass, decode_vault
from syncd.system.accounts import user_id
from syncd.system.errnos import reason, remedy
from syncd.system.files import read_file
from syncd.system.trusted import writable_by_others

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from syncd.config.settings import Settings
    from syncd.core.findings import Finding
    from syncd.core.model import Entry
    from syncd.provision.manifest import Manifest, Path

    Classes = tuple[tuple[Manifest, VaultClass | AzureClass], ...]

LARGEST_MANIFEST = 4 << 20
"""Bytes; etcd takes objects of up to 1.5 MiB, and a manifest may hold several."""

_OBJECTS = ("spec", "parameters", "objects")


class Plan(msgspec.Struct, frozen=True):
    """A provision entry that can be opened.

    Attributes:
        entry: The configuration.
        name: Of the provider in status, metrics and log: the manifest's name, followed by the
            target where an earlier entry has the same name.
        classes: The manifest's documents, decoded.
        text: The manifest as it was read.
    """

    entry: Provision
    name: str
    classes: Classes
    text: bytes

    @property
    def paths(self) -> tuple[str, ...]:
        """Absolute paths of the files that it writes."""
        return tuple(
            f"{self.entry.target}/{path}" for _, item in self.classes for path in item.paths
        )


def plan_provision(entries: Sequence[Provision]) -> tuple[tuple[Plan, ...], list[Finding]]:
    """Reads the manifests and checks every entry, alone and against the others.

    Blocks: for worker threads.

    Returns:
        The entries that can be opened, and all findings, errors and warnings.
    """
    findings = list(_overlaps(entries))
    plans: list[Plan] = []
    for index, entry in enumerate(entries):
        plan, found = _plan(entry, index)
        findings += found
        if plan is not None and not any(item.is_error for item in found):
            is_taken = any(plan.name == other.name for other in plans)
            name = f"{plan.name}@{entry.target}" if is_taken else plan.name
            plans.append(msgspec.structs.replace(plan, name=name))
    return tuple(plans), findings


def check_provision(
    settings: Settings, entries: Mapping[str, Entry], plans: Iterable[Plan]
) -> list[Finding]:
    """The findings of `syncd check` about the `provision` section, besides those of planning.

    A path of the vault config under a target that no object writes, a file that no entry of the
    vault config uses, and a target that others can change or that is not in memory.

    Args:
        settings: The configuration.
        entries: The entries of the vault config and of `watch.extra`, by name.
        plans: Its provision entries that can be opened, as `plan_provision` returns them.
    """
    findings: list[Finding] = []
    used = {entry.path for entry in entries.values()}
    for plan in plans:
        manifest, target = plan.entry.manifest, plan.entry.target.rstrip("/")
        written = set(plan.paths)
        findings += [
            finding(
                "provision-unproduced",
                *place_of(settings, entry),
                f"no object of {manifest} writes {entry.path}",
                f"add an object to {manifest}, or correct the path",
            )
            for entry in entries.values()
            if entry.path.startswith(f"{target}/") and entry.path not in written
        ]
        findings += [
            finding(
                "provision-unused",
                manifest,
                "",
                f"no entry of {settings.vault_config} uses {path}",
                "add an entry to the vault config, or to watch.extra if Aidbox uses the file "
                "without one, or remove the object",
            )
            for path in plan.paths
            if path not in used
        ]
        findings += _target_problems(plan.entry)
        kind = filesystem(_nearest_directory(target))
        if kind is not None and kind not in IN_MEMORY:
            findings.append(
                finding(
                    "provision-target-on-disk",
                    plan.entry.target,
                    "",
                    f"is on {kind}, where secrets stay after a power cut",
                    "mount a tmpfs there, or use a directory below /run",
                )
            )
    return findings


def _target_problems(entry: Provision) -> Iterator[Finding]:
    """Why the daemon will not publish into a target; its own user is not known here."""
    try:
        status = os.stat(entry.target)
        belongs_to_owner = entry.owner is not None and status.st_uid == user_id(entry.owner)
    except (OSError, LookupError):
        return
    problem = writable_by_others(status)
    if problem is None and belongs_to_owner and status.st_uid not in (0, os.geteuid()):
        problem = f"it belongs to {entry.owner}, who can replace what is in it"
    if problem is not None:
        hint = UNTRUSTED_REMEDIES[errno.EPERM]
        yield finding("provision-target-untrusted", entry.target, "", problem, hint)


def azure_auth(entry: Provision, azure: AzureClass) -> AzureAuth | None:
    """How to log in to Azure: the entry's `auth`, else the manifest's managed identity, or None."""
    if isinstance(entry.auth, AzureAuth):
        return entry.auth
    return ManagedIdentity() if azure.managed_identity else None


def _nearest_directory(path: str) -> str:
    """The directory, or the nearest one above that exists; itself where it cannot be looked at."""
    while path != "/":
        try:
            if stat.S_ISDIR(os.stat(path).st_mode):
                break
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            break
        path = os.path.dirname(path)
    return path


def _overlaps(entries: Sequence[Provision]) -> Iterator[Finding]:
    targets = [os.path.normpath("/" + entry.target.lstrip("/")) for entry in entries]
    for index, target in enumerate(targets):
        for other, earlier in enumerate(targets[:index]):
            section = key_path("provision", other)
            where = ("provision", index, "target")
            if target == earlier:
                hint = "give each entry its own directory, or put both classes into one manifest"
                yield _problem(where, f"is also the target of {section}", hint)
            elif os.path.commonpath((target, earlier)) in (target, earlier):
                hint = "use separate directories"
                yield _problem(where, f"overlaps the target of {section}", hint)


def _problem(where: Path, message: str, hint: str) -> Finding:
    return finding("provision-invalid", "configuration", key_path(*where), message, hint)


def _plan(entry: Provision, index: int) -> tuple[Plan | None, list[Finding]]:
    path, setting = entry.manifest, key_path("provision", index, "manifest")
    try:
        text, _ = read_file(path, LARGEST_MANIFEST)
    except OSError as error:
        correction = f"set {setting} to a SecretProviderClass manifest"
        if error.errno == errno.EFBIG:
            correction = f"split it into several manifests, or set {setting} to the right file"
        hint = remedy(error, path=correction, access="let syncd's user read it")
        message = f"cannot be read: {reason(error)}"
        return None, [finding("manifest-unreadable", path, "", message, hint)]
    manifests, findings = decode_manifests(text, path)
    decoded = []
    for manifest in manifests:
        item, found = _decode(manifest)
        findings += found
        if item is not None:
            decoded.append((manifest, item))
    classes = tuple(decoded)
    findings += dict.fromkeys(_mismatches(entry, index, classes))
    if len(classes) > 1:
        findings += [item for item in _collisions(path, classes) if item not in findings]
    return Plan(entry, classes[0][0].name, classes, text) if classes else None, findings


def _decode(manifest: Manifest) -> tuple[VaultClass | AzureClass | None, list[Finding]]:
    return decode_azure(manifest) if manifest.provider == "azure" else decode_vault(manifest)


def _collisions(source: str, classes: Classes) -> list[Finding]:
    """What is wrong with the paths of all documents together: they share one target."""
    report = Report(source)
    paths: list[tuple[Path, str]] = [
        ((manifest.prefix + _OBJECTS[0], *_OBJECTS[1:]), path)
        for manifest, item in classes
        for path in item.paths
    ]
    check_paths(paths, report)
    return report.findings


def _mismatches(entry: Provision, index: int, classes: Classes) -> Iterator[Finding]:
    mixed = len({type(item) for _, item in classes}) > 1
    if mixed and entry.vault_url is not None:
        hint = "give each provider a manifest and an entry of its own"
        message = "is set for a manifest with two providers"
        yield _problem(("provision", index, "vault_url"), message, hint)
    for manifest, item in classes:
        if isinstance(item, VaultClass):
            yield from _vault_mismatches(entry, index, item)
            yield from _clear_text(entry, index, manifest, item)
            continue
        yield from _azure_mismatches(entry, index, item, mixed=mixed)
        for key in () if isinstance(entry.auth, AzureAuth) else item.cluster_only:
            where = manifest.prefix + key_path("spec", "parameters", key)
            message = "works in a cluster only"
            yield finding("manifest-invalid", entry.manifest, where, message, CLUSTER_ONLY[key])
        try:
            find_cloud(item.cloud, item.environment_file)
        except RefusedError as error:
            where = manifest.prefix + key_path("spec", "parameters", "cloudEnvFileName")
            hint = error.remedy or ""
            yield finding("provision-invalid", entry.manifest, where, error.problem, hint)


def _azure_mismatches(
    entry: Provision, index: int, azure: AzureClass, *, mixed: bool
) -> Iterator[Finding]:
    auth, where = azure_auth(entry, azure), ("provision", index, "auth")
    if isinstance(entry.auth, VaultAuth) and not mixed:
        hint = f"use one of {_methods(AzureAuth)}"
        yield _problem((*where, "method"), "is not a login of Azure Key Vault", hint)
    elif auth is None and not azure.cluster_only:
        hint = 'add auth, or useVMManagedIdentity: "true" to the manifest'
        yield _problem(where, "is missing: the manifest does not use a managed identity", hint)
    elif auth is not None and not isinstance(auth, ManagedIdentity):
        if not (auth.client_id or azure.client_id):
            hint = "set it, or clientID in the manifest"
            yield _problem((*where, "client_id"), "is missing", hint)
        if not (auth.tenant_id or azure.tenant):
            hint = "set it, or tenantID in the manifest"
            yield _problem((*where, "tenant_id"), "is missing", hint)
    if entry.vault_url is not None and not entry.vault_url.startswith("https://"):
        hint = "write https://host"
        yield _problem(("provision", index, "vault_url"), "is not an https URL", hint)


def _vault_mismatches(entry: Provision, index: int, vault: VaultClass) -> Iterator[Finding]:
    auth, where = entry.auth, ("provision", index, "auth")
    if auth is None:
        hint = "add auth: {method: approle, role_id_file: …, secret_id_file: …}"
        message = "is missing: a manifest does not say how to log in to Vault"
        yield _problem(where, message, hint)
    elif not isinstance(auth, VaultAuth):
        hint = f"use one of {_methods(VaultAuth)}"
        yield _problem((*where, "method"), "is not a login of Vault", hint)
    elif isinstance(auth, KubernetesLogin | AzureLogin) and not (auth.role or vault.role):
        yield _problem((*where, "role"), "is missing", "set it, or roleName in the manifest")
    elif isinstance(auth, CertLogin):
        if auth.client_cert and not auth.client_key:
            hint = "set the private key of client_cert"
            yield _problem((*where, "client_key"), "is missing", hint)
        elif auth.client_key and not auth.client_cert:
            hint = "set the certificate of client_key"
            yield _problem((*where, "client_cert"), "is missing", hint)
        elif not (auth.client_cert or vault.client_cert):
            hint = (
                "set client_cert and client_key, or vaultTLSClientCertPath and"
                " vaultTLSClientKeyPath in the manifest"
            )
            yield _problem(where, "has no client certificate", hint)


def _clear_text(
    entry: Provision, index: int, manifest: Manifest, vault: VaultClass
) -> Iterator[Finding]:
    """A vault without TLS: login, token and secrets can be read on the way."""
    if is_plain_http(entry.vault_url or vault.address):
        source, where = (
            entry.manifest,
            manifest.prefix + key_path("spec", "parameters", vault.address_key),
        )
        if entry.vault_url is not None:
            source, where = "configuration", key_path("provision", index, "vault_url")
        message = "the login and the secrets cross the network unencrypted"
        hint = "use https, or an agent on loopback"
        yield finding("credential-cleartext", source, where, message, hint)


def _methods(logins: Any) -> str:  # noqa: ANN401 - a union of structures has no narrower type
    return ", ".join(sorted(str(login.__struct_config__.tag) for login in get_args(logins)))
