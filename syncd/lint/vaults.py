"""`syncd check --vault`: a dry run of every provision entry.

Logs in to each vault as the daemon does, examines each object, and lists the files that a pass
would write. Nothing is written, no credential is made, and no value is shown.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

import msgspec

from syncd.config.auth import AppRole
from syncd.config.load import examine_any
from syncd.config.settings import Settings
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.findings import finding
from syncd.provision.factory import open_examiners
from syncd.provision.plan import plan_provision
from syncd.system.lean_import import import_hvac, import_requests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.core.findings import Finding
    from syncd.provision.dry_run import Examined
    from syncd.provision.plan import Plan


class WouldWrite(msgspec.Struct, frozen=True):
    """A file that a pass would write.

    Attributes:
        path: The file.
        mode: Permission bits, in octal.
        note: What was examined instead of reading the object; empty where it was read.
    """

    path: str
    mode: str
    note: str = ""

    def __str__(self) -> str:
        return f"would write {self.path} ({self.mode})" + (self.note and f": {self.note}")


def preload() -> None:
    """Imports the vaults' SDKs, for a process that becomes a user who may not read them."""
    import_requests()
    import_hvac()
    for module in ("vault.provider", "azure.provider"):
        importlib.import_module(f"syncd.provision.{module}")
    for module in ("identity", "keyvault.secrets", "keyvault.keys", "keyvault.certificates"):
        importlib.import_module(f"azure.{module}")


def dry_run(
    file: str | None, environ: Mapping[str, str] = os.environ
) -> tuple[list[Finding], list[WouldWrite]]:
    """Makes a dry run of every entry that can be used; `run_checks` reports the others. Blocks.

    Args:
        file: The configuration, as for `run_checks`.
        environ: The environment.
    """
    settings, _ = examine_any(file, environ)
    if not isinstance(settings, Settings):
        return [], []
    findings: list[Finding] = []
    files: list[WouldWrite] = []
    for plan in plan_provision(settings.provision)[0]:
        for item in _examine(plan):
            if isinstance(item, WouldWrite):
                files.append(item)
            else:
                findings.append(item)
    return findings, files


def _examine(plan: Plan) -> Iterator[Finding | WouldWrite]:
    entry = plan.entry
    if isinstance(entry.auth, AppRole) and entry.auth.secret_id_wrapped:
        message = f"was not examined: a login would use up {entry.auth.secret_id_file}"
        hint = "write a secret-id that is not wrapped, and set secret_id_wrapped: false"
        yield finding("provision-unexamined", entry.manifest, "", message, hint)
        return
    try:
        for examiner in open_examiners(plan):
            try:
                for item in examiner.examine():
                    yield from _report(plan, item)
            finally:
                examiner.close()
    except (TemporaryError, RefusedError) as error:
        hint = error.remedy or "correct the provision entry"
        yield finding("provision-login-failed", entry.manifest, "", error.problem, hint)


def _report(plan: Plan, item: Examined) -> Iterator[Finding | WouldWrite]:
    if item.problem is not None:
        hint = item.problem.remedy or "correct the object"
        manifest = plan.entry.manifest
        yield finding("provision-object-failed", manifest, "", item.problem.problem, hint)
        return
    if item.warning is not None:
        message, hint = item.warning
        message = f"the object of {item.path} {message}"
        yield finding("provision-object-expired", plan.entry.manifest, "", message, hint)
    path = f"{plan.entry.target.rstrip('/')}/{item.path}"
    yield WouldWrite(path, f"{item.mode:04o}", item.note)
