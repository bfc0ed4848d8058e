"""From the `provision` section to running loops: providers, publishers, refreshers.

Only this module imports the vaults' SDKs, and only for entries that need them: a daemon without
`provision` does not pay for them in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from syncd.config.auth import CertLogin, VaultAuth
from syncd.core.errors import ConfigurationError
from syncd.provision.azure.cloud import find_cloud
from syncd.provision.azure.objects import AzureClass
from syncd.provision.composite import CompositeProvider
from syncd.provision.plan import azure_auth, plan_provision
from syncd.provision.publish import Publisher
from syncd.provision.refresh import Refresher
from syncd.system.lean_import import import_hvac, import_requests

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from syncd.config.settings import Provision
    from syncd.provision.plan import Plan
    from syncd.provision.refresh import Provider
    from syncd.provision.vault.objects import VaultClass
    from syncd.telemetry.metrics import Metrics


_MANIFEST_CERTIFICATE = {
    "client_cert": "vaultTLSClientCertPath",
    "client_key": "vaultTLSClientKeyPath",
}


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
        reuse: Loops of the previous configuration, which must have ended when the new ones start.
            Where entry and manifest are unchanged, the new loop takes over the provider with its
            login and leases: a reload must not rotate a dynamic password.

    Raises:
        ConfigurationError: An entry or a manifest cannot be used; names all of them.
    """
    plans, findings = plan_provision(entries)
    errors = [item for item in findings if item.is_error]
    if errors:
        raise ConfigurationError(errors)
    for item in findings:
        structlog.get_logger().warning("provision.finding", code=item.code, finding=str(item))
    reusable = {refresher.key: refresher.provider for refresher in reuse}
    refreshers = []
    for plan in plans:
        entry, key = plan.entry, (plan.name, plan.entry, plan.text)
        publisher = Publisher(entry.target, owner=entry.owner, group=entry.group)
        provider = reusable.get(key) or _open(plan)
        refreshers.append(Refresher(provider, publisher, entry.interval, metrics, rng, key=key))
    return refreshers


def _open(plan: Plan) -> Provider:
    providers = [
        _open_azure(plan, item) if isinstance(item, AzureClass) else _open_vault(plan, item)
        for _, item in plan.classes
    ]
    return providers[0] if len(providers) == 1 else CompositeProvider(plan.name, providers)


def _open_vault(plan: Plan, vault: VaultClass) -> Provider:
    import_requests()
    import_hvac()
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


def _open_azure(plan: Plan, azure: AzureClass) -> Provider:
    import_requests()
    from syncd.net.tls import Trust  # noqa: PLC0415
    from syncd.provision.azure.provider import AzureProvider  # noqa: PLC0415 - the SDK: 20 MiB

    entry, auth = plan.entry, azure_auth(plan.entry, azure)
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
