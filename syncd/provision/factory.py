"""From the `provision` section to running loops: providers, publishers, refreshers.

Only this module imports the vaults' SDKs, and only for entries that need them: a daemon without
`provision` does not pay for them in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from syncd.config.auth import VaultAuth
from syncd.core.errors import ConfigurationError
from syncd.net.tls import Trust
from syncd.provision.azure.cloud import find_cloud
from syncd.provision.azure.objects import AzureClass
from syncd.provision.composite import CompositeProvider
from syncd.provision.plan import azure_auth, plan_provision
from syncd.provision.publish import Publisher
from syncd.provision.refresh import Refresher
from syncd.provision.trust import vault_trust
from syncd.system.lean_import import import_hvac, import_requests

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from syncd.config.settings import Provision
    from syncd.provision.azure.provider import AzureProvider
    from syncd.provision.dry_run import Examiner
    from syncd.provision.plan import Plan
    from syncd.provision.refresh import Provider
    from syncd.provision.vault.objects import VaultClass
    from syncd.provision.vault.provider import VaultProvider
    from syncd.telemetry.metrics import Metrics


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


def open_examiners(plan: Plan) -> list[Examiner]:
    """The providers of an entry, for a dry run. Blocks.

    Raises:
        RefusedError: Something that an entry names cannot be used.
    """
    return [_open_class(plan, item) for _, item in plan.classes]


def _open_class(plan: Plan, item: VaultClass | AzureClass) -> VaultProvider | AzureProvider:
    return _open_azure(plan, item) if isinstance(item, AzureClass) else _open_vault(plan, item)


def _open(plan: Plan) -> Provider:
    providers: list[Provider] = [_open_class(plan, item) for _, item in plan.classes]
    return providers[0] if len(providers) == 1 else CompositeProvider(plan.name, providers)


def _open_vault(plan: Plan, vault: VaultClass) -> VaultProvider:
    import_requests()
    import_hvac()
    from syncd.provision.vault.provider import VaultProvider  # noqa: PLC0415 - requests, hvac: 7 MiB

    entry, auth = plan.entry, plan.entry.auth
    assert isinstance(auth, VaultAuth)
    trust = vault_trust(entry, vault)
    address = (entry.vault_url or vault.address).rstrip("/")
    return VaultProvider(plan.name, vault, auth, address=address, trust=trust)


def _open_azure(plan: Plan, azure: AzureClass) -> AzureProvider:
    import_requests()
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
