"""Provision entries put together: from configuration and manifest to a loop that can run.

What an entry and its manifest say only together is checked here, for the daemon and for `syncd
check` alike: that the login fits the provider, that files do not collide, that the vault config
and the manifests name the same files. The vaults' SDKs are imported here and nowhere else, when an
entry needs one: a sidecar pays for none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import structlog

from syncd.config.auth import (
    AzureAuth,
    AzureLogin,
    CertLogin,
    KubernetesLogin,
    ManagedIdentity,
    VaultAuth,
)
from syncd.core.errors import ConfigurationError, RefusedError
from syncd.core.findings import finding, json_path, key_path
from syncd.provision.azure.cloud import find_cloud
from syncd.provision.azure.objects import AzureClass, decode_azure
from syncd.provision.composite import CombinedProvider
from syncd.provision.manifest import Path, Report, check_paths, decode_manifests
from syncd.provision.publish import Publisher, filesystem
from syncd.provision.refresh import IN_MEMORY, Refresher
from syncd.provision.vault.objects import VaultClass, decode_vault
from syncd.system.lean_import import import_requests

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from random import Random

    from syncd.config.settings import Provision, Settings
    from syncd.core.findings import Finding
    from syncd.core.model import Entry
    from syncd.provision.manifest import Manifest
    from syncd.provision.refresh import Provider
    from syncd.telemetry.metrics import Metrics

LARGEST_MANIFEST = 4 << 20
"""Bytes; etcd takes no object above 1.5 MiB, and a file may hold some of them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A provision entry that can be opened.

    Attributes:
        entry: The configuration.
        name: What status, metrics and log call it: the manifest's name, with the target where two
            entries' names are the same.
        classes: The manifest's documents, decoded.
        text: The manifest as it was read.
    """

    entry: Provision
    name: str
    classes: tuple[tuple[Manifest, VaultClass | AzureClass], ...]
    text: bytes

    @property
    def paths(self) -> tuple[str, ...]:
        """Absolute paths of the files that it makes."""
        return tuple(
            f"{self.entry.target}/{path}" for _, item in self.classes for path in item.paths
        )


def plan_provision(entries: Sequence[Provision]) -> tuple[tuple[Plan, ...], list[Finding]]:
    """Reads the manifests and checks every entry, alone and against the others.

    Blocks: for worker threads.

    Returns:
        The entries that can be opened, and everything that is wrong or odd.
    """
    findings = list(_overlaps(entries))
    plans: list[Plan] = []
    for index, entry in enumerate(entries):
        before = len(findings)
        plan = _plan(entry, index, findings)
        if plan is not None and not any(item.is_error for item in findings[before:]):
            taken = any(plan.name == other.name for other in plans)
            plans.append(replace(plan, name=f"{plan.name}@{entry.target}") if taken else plan)
    return tuple(plans), findings


def open_refreshers(
    entries: Sequence[Provision],
    metrics: Metrics,
    rng: Random,
    reuse: Iterable[Refresher] = (),
) -> list[Refresher]:
    """Makes the loops of all entries.

    Blocks: for worker threads.

    Args:
        entries: The `provision` section.
        metrics: Where the loops count.
        rng: Source of their jitter.
        reuse: Loops of an earlier configuration, not running any more when the new ones start:
            where entry and manifest are the same their providers go on, with login and leases,
            since a reload is no reason to rotate a password.

    Raises:
        ConfigurationError: An entry or a manifest cannot be used; names all of them.
    """
    plans, findings = plan_provision(entries)
    errors = [item for item in findings if item.is_error]
    if errors:
        raise ConfigurationError(errors)
    for item in findings:
        structlog.get_logger().warning("provision.finding", code=item.code, finding=str(item))
    kept = {refresher.key: refresher.provider for refresher in reuse}
    refreshers = []
    for plan in plans:
        entry, key = plan.entry, (plan.name, plan.entry, plan.text)
        publisher = Publisher(entry.target, owner=entry.owner, group=entry.group)
        provider = kept.get(key) or _open(plan)
        refreshers.append(Refresher(provider, publisher, entry.interval, metrics, rng, key=key))
    return refreshers


def check_provision(settings: Settings, entries: Mapping[str, Entry]) -> list[Finding]:
    """What `syncd check` says of the `provision` section; see `plan_provision`.

    Adds the cross-checks: a path of the vault config under a target that no object makes, a file
    that no entry of the vault config uses, a target that is not in memory.

    Args:
        settings: The configuration.
        entries: The vault config's entries, by name.
    """
    plans, findings = plan_provision(settings.provision)
    used = {entry.path for entry in entries.values()}
    for plan in plans:
        target, made = plan.entry.target.rstrip("/"), set(plan.paths)
        hint = f"add an object for it to {plan.entry.manifest}, or mend the path"
        findings += [
            finding(
                "provision-unproduced",
                settings.vault_config,
                json_path("secret", entry.name, "path"),
                f"{entry.path} is made by no object of {plan.entry.manifest}",
                hint,
            )
            for entry in entries.values()
            if entry.path.startswith(f"{target}/") and entry.path not in made
        ]
        hint = "add an entry to the vault config, or remove the object"
        findings += [
            finding(
                "provision-unused",
                plan.entry.manifest,
                "",
                f"{path} is used by no entry of {settings.vault_config}",
                hint,
            )
            for path in plan.paths
            if path not in used
        ]
        kind = filesystem(_existing(target))
        if kind is not None and kind not in IN_MEMORY:
            findings.append(
                finding(
                    "provision-target-on-disk",
                    plan.entry.target,
                    "",
                    f"is on {kind}, where secrets outlive a power cut",
                    "mount a tmpfs there, or use a directory below /run",
                )
            )
    return findings


def _existing(path: str) -> str:
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    return path


def _overlaps(entries: Sequence[Provision]) -> Iterator[Finding]:
    targets = [os.path.normpath(entry.target) for entry in entries]
    for index, target in enumerate(targets):
        where = ("provision", index, "target")
        if target in targets[:index]:
            hint = "give each entry its own, or put both classes into one manifest"
            yield _problem(where, "is another entry's target too", hint)
        elif any(
            other.startswith(f"{target}/") or target.startswith(f"{other}/")
            for other in targets[:index]
        ):
            yield _problem(where, "is inside another entry's target, or around it", "part them")


def _problem(where: Path, message: str, hint: str) -> Finding:
    return finding("provision-invalid", "configuration", key_path(*where), message, hint)


def _plan(entry: Provision, index: int, findings: list[Finding]) -> Plan | None:
    path = entry.manifest
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            text = file.read(LARGEST_MANIFEST + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        hint = "mend provision.manifest, or make it readable for this user"
        findings.append(finding("manifest-unreadable", path, "", message, hint))
        return None
    manifests, found = decode_manifests(text[: LARGEST_MANIFEST + 1], path)
    findings += found
    classes: list[tuple[Manifest, VaultClass | AzureClass]] = []
    for manifest in manifests:
        decoded: VaultClass | AzureClass | None
        if manifest.provider == "azure":
            decoded, found = decode_azure(manifest)
        else:
            decoded, found = decode_vault(manifest)
        findings += found
        if decoded is not None:
            classes.append((manifest, decoded))
    findings += _fits(entry, index, [decoded for _, decoded in classes])
    if len(classes) > 1:
        report = Report(path)
        where = ("spec", "parameters", "objects")
        check_paths(
            [
                ((manifest.prefix + where[0], *where[1:]), item)
                for manifest, decoded in classes
                for item in decoded.paths
            ],
            report,
        )
        findings += [item for item in report.findings if item not in findings]
    return Plan(entry, classes[0][0].name, tuple(classes), text) if classes else None


def _fits(
    entry: Provision, index: int, classes: Sequence[VaultClass | AzureClass]
) -> Iterator[Finding]:
    """What the entry and its manifest say only together."""
    mixed = len({type(item) for item in classes}) > 1
    if mixed and entry.vault_url is not None:
        hint = "give each provider a manifest and an entry of its own"
        yield _problem(("provision", index, "vault_url"), "is of two providers", hint)
    for item in classes:
        if isinstance(item, AzureClass):
            yield from _fits_azure(entry, index, item, mixed=mixed)
        else:
            yield from _fits_vault(entry, index, item)


def _fits_azure(
    entry: Provision, index: int, azure: AzureClass, *, mixed: bool
) -> Iterator[Finding]:
    auth, where = _azure_auth(entry, azure), ("provision", index, "auth")
    if isinstance(entry.auth, VaultAuth) and not mixed:
        methods = ", ".join(sorted(str(t.__struct_config__.tag) for t in get_args(AzureAuth)))
        yield _problem((*where, "method"), "is not one of Azure's", f"use one of {methods}")
    elif auth is None:
        hint = 'add auth, or useVMManagedIdentity: "true" to the manifest'
        yield _problem(where, "is missing: the manifest names no managed identity", hint)
    elif not isinstance(auth, ManagedIdentity):
        if not (auth.client_id or azure.client_id):
            hint = "set it, or clientID in the manifest"
            yield _problem((*where, "client_id"), "is missing", hint)
        if not (auth.tenant_id or azure.tenant):
            hint = "set it, or tenantID in the manifest"
            yield _problem((*where, "tenant_id"), "is missing", hint)
    if entry.vault_url is not None and not entry.vault_url.startswith("https://"):
        hint = "write https://host"
        yield _problem(("provision", index, "vault_url"), "is not an https URL", hint)
    try:
        find_cloud(azure.cloud, azure.environment_file)
    except RefusedError as error:
        message, _, hint = str(error).rpartition("; ")
        yield finding("provision-invalid", entry.manifest, "", message, hint)


def _azure_auth(entry: Provision, azure: AzureClass) -> AzureAuth | None:
    """The login that was named: by the entry, else by the manifest."""
    if isinstance(entry.auth, AzureAuth):
        return entry.auth
    return ManagedIdentity() if azure.managed_identity else None


def _fits_vault(entry: Provision, index: int, vault: VaultClass) -> Iterator[Finding]:
    auth, where = entry.auth, ("provision", index, "auth")
    if auth is None:
        hint = "add auth: {method: approle, role_id_file: …, secret_id_file: …}"
        yield _problem(where, "is missing: a manifest for Vault does not say how to log in", hint)
    elif not isinstance(auth, get_args(VaultAuth)):
        methods = ", ".join(sorted(str(t.__struct_config__.tag) for t in get_args(VaultAuth)))
        yield _problem((*where, "method"), "is not one of Vault's", f"use one of {methods}")
    elif isinstance(auth, KubernetesLogin | AzureLogin) and not (auth.role or vault.role):
        yield _problem((*where, "role"), "is missing", "set it, or roleName in the manifest")
    elif isinstance(auth, CertLogin):
        if bool(auth.client_cert) != bool(auth.client_key):
            yield _problem(where, "has half a client certificate", "set client_cert and client_key")
        elif not (auth.client_cert or vault.client_cert):
            hint = "set client_cert and client_key, or vaultTLSClientCertPath and …KeyPath"
            yield _problem(where, "has no client certificate", hint)


def _open(plan: Plan) -> Provider:
    providers = [
        _open_azure(plan, item) if isinstance(item, AzureClass) else _open_vault(plan, item)
        for _, item in plan.classes
    ]
    return providers[0] if len(providers) == 1 else CombinedProvider(plan.name, providers)


def _open_vault(plan: Plan, vault: VaultClass) -> Provider:
    import_requests()
    from syncd.net.tls import Trust  # noqa: PLC0415 - requests and hvac: 7 MiB
    from syncd.provision.vault.provider import VaultProvider  # noqa: PLC0415

    entry, auth = plan.entry, plan.entry.auth
    assert isinstance(auth, VaultAuth)
    own = auth if isinstance(auth, CertLogin) and auth.client_cert else None
    trust = Trust(
        ca_file=entry.ca_file or vault.ca_file,
        ca_directory=None if entry.ca_file else vault.ca_directory,
        server_name=vault.server_name,
        client_cert=own.client_cert if own else vault.client_cert,
        client_key=own.client_key if own else vault.client_key,
        skip_verify=vault.skip_verify and not entry.ca_file,
        option_names={
            **({} if entry.ca_file else {"ca_file": "vaultCACertPath"}),
            "ca_directory": "vaultCADirectory",
            **({} if own else _MANIFEST_CERTIFICATE),
        },
    )
    address = (entry.vault_url or vault.address).rstrip("/")
    return VaultProvider(plan.name, vault, auth, address=address, trust=trust)


_MANIFEST_CERTIFICATE = {
    "client_cert": "vaultTLSClientCertPath",
    "client_key": "vaultTLSClientKeyPath",
}


def _open_azure(plan: Plan, azure: AzureClass) -> Provider:
    import_requests()
    from syncd.net.tls import Trust  # noqa: PLC0415
    from syncd.provision.azure.provider import AzureProvider  # noqa: PLC0415 - the SDK: 20 MiB

    entry, auth = plan.entry, _azure_auth(plan.entry, azure)
    assert auth is not None
    cloud = find_cloud(azure.cloud, azure.environment_file)
    return AzureProvider(
        plan.name,
        azure,
        auth,
        vault_url=(entry.vault_url or cloud.vault_url(azure.vault)).rstrip("/"),
        authority=cloud.authority,
        trust=Trust(ca_file=entry.ca_file),
        api_version=entry.api_version,
        verify_challenge_resource=entry.verify_challenge_resource,
    )
