"""Whom a provision entry trusts in TLS, and what is wrong with the files that it names.

The configuration's options win over the manifest's parameters; messages call each by its own name.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from syncd.config.auth import CertLogin
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.findings import finding, key_path
from syncd.net.tls import RotatingContext, Trust
from syncd.provision.vault.objects import VaultClass
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncd.config.settings import Provision
    from syncd.core.findings import Finding
    from syncd.provision.plan import Plan

_LIMIT: Final = 5.0
"""Seconds to wait for the file systems."""
_NAMES: Final = {
    "ca_file": "vaultCACertPath",
    "ca_directory": "vaultCADirectory",
    "client_cert": "vaultTLSClientCertPath",
    "client_key": "vaultTLSClientKeyPath",
}


def vault_trust(entry: Provision, vault: VaultClass) -> Trust:
    """The TLS configuration of an entry for one Vault or OpenBao server."""
    auth = entry.auth
    own = auth if isinstance(auth, CertLogin) and auth.client_cert else None
    ours = ({"ca_file"} if entry.ca_file else set()) | (
        {"client_cert", "client_key"} if own else set()
    )
    return Trust(
        ca_file=entry.ca_file or vault.ca_file,
        ca_directory=None if entry.ca_file else vault.ca_directory,
        server_name=vault.server_name,
        client_cert=own.client_cert if own else vault.client_cert,
        client_key=own.client_key if own else vault.client_key,
        skip_verify=vault.skip_verify and not entry.ca_file,
        option_names={name: given for name, given in _NAMES.items() if name not in ours},
    )


def check_trust(plan: Plan) -> Iterator[Finding]:
    """The findings about the files that a manifest names for TLS, read as the first pass will.

    Those that the configuration names are checked with its other credentials.
    """
    for manifest, item in plan.classes:
        if not isinstance(item, VaultClass):
            continue
        trust = vault_trust(plan.entry, item)
        parts = {}
        if not plan.entry.ca_file and not trust.skip_verify:
            if trust.ca_file:
                parts["ca_file"] = Trust(ca_file=trust.ca_file, option_names=_NAMES)
            elif trust.ca_directory:
                parts["ca_directory"] = Trust(ca_directory=trust.ca_directory, option_names=_NAMES)
        if trust.client_cert and trust.client_cert == item.client_cert:
            parts["client_cert"] = Trust(
                client_cert=trust.client_cert, client_key=trust.client_key, option_names=_NAMES
            )
        found = gather({name: partial(_problem, part) for name, part in parts.items()}, _LIMIT)
        for name in parts:
            silent = TemporaryError(
                f"cannot read {_NAMES[name]}: its file system does not answer",
                "check the mount that the file lies on",
            )
            error = found.get(name, silent)
            if error is not None:
                refused = isinstance(error, RefusedError)
                code = "credential-malformed" if refused else "credential-unreadable"
                where = manifest.prefix + key_path("spec", "parameters", _NAMES[name])
                hint = error.remedy or f"correct {_NAMES[name]}"
                yield finding(code, plan.entry.manifest, where, error.problem, hint)


def _problem(trust: Trust) -> TemporaryError | RefusedError | None:
    try:
        RotatingContext(trust).current()
    except (TemporaryError, RefusedError) as error:
        return error
    return None
