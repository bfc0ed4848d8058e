"""`syncd check`: the files with syncd's own credentials, read as they will be read for use."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from syncd.config.settings import credential_files
from syncd.core.errors import RefusedError, SyncdError
from syncd.core.findings import finding
from syncd.mount.read import LIMIT
from syncd.net.inspection import inspect
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.config.settings import RelaySettings, Settings
    from syncd.core.findings import Finding


def check_credentials(
    settings: Settings | RelaySettings, source: str, loaded: Mapping[str, list[Finding]]
) -> list[Finding]:
    """The findings about every such file. Blocks, for a limited time.

    Args:
        settings: The configuration.
        source: Where it was read.
        loaded: Findings about files that systemd loads, which were judged before.
    """
    files = [item for item in credential_files(settings) if item[1] not in loaded]
    partners = {where: path for where, path in files if where.endswith(".client_key")}

    def examine_one(where: str, path: str) -> Finding | None:
        section, _, option = where.rpartition(".")
        partner = partners.get(f"{section}.client_key") if option == "client_cert" else None
        try:
            inspect(option, path, partner)
        except SyncdError as error:
            refused = isinstance(error, RefusedError)
            code = "credential-malformed" if refused else "credential-unreadable"
            hint = error.remedy or f"correct the file or {where}"
            return finding(code, source, where, error.problem, hint)
        return None

    found = gather({where: partial(examine_one, where, path) for where, path in files}, LIMIT)
    silent = [
        finding(
            "credential-unreadable",
            source,
            where,
            f"cannot read {path}: its file system does not answer",
            "check the mount that the file lies on",
        )
        for where, path in files
        if where not in found
    ]
    judged = [item for findings in loaded.values() for item in findings]
    return [*filter(None, found.values()), *silent, *judged]
