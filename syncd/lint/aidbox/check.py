"""`syncd check --aidbox`: reads a live Aidbox and applies the rules."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import msgspec

from syncd.config.settings import Aidbox
from syncd.consumers.aidbox.references import field_of, references_in
from syncd.core.errors import ConfigurationError, SyncdError
from syncd.core.findings import finding
from syncd.lint.aidbox.reading import read_live, unreadable
from syncd.lint.aidbox.rotations import secret_evidence, vault_config_evidence
from syncd.lint.aidbox.rules import check_live
from syncd.lint.content import Use

if TYPE_CHECKING:
    from collections.abc import Mapping

    from syncd.config.settings import Settings
    from syncd.core.findings import Finding
    from syncd.core.model import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The Aidbox to read, as given on the command line.

    Attributes:
        urls: One per replica; resources are read from the first that answers.
        client_id: The Client to read as; None for that of the configuration's consumer.
        client_secret_file: Holds its secret; None as for `client_id`.
        ca_file: Certificates to trust instead of the system's; None for the consumer's.
    """

    urls: tuple[str, ...]
    client_id: str | None = None
    client_secret_file: str | None = None
    ca_file: str | None = None


def lint_aidbox(
    settings: Settings, entries: Mapping[str, Entry], target: Target
) -> tuple[list[Finding], list[Use]]:
    """Findings about Aidbox and vault config together, and the fields that use secrets. Blocks.

    Raises:
        ConfigurationError: There are no credentials to read Aidbox with.
    """
    aidbox = _as_consumer(settings, target)
    try:
        live, findings = anyio.run(read_live, aidbox)
    except SyncdError as error:
        return [unreadable(target.urls[0], error)], []
    uses = [
        Use(reference.name, of, field_of(reference, resource))
        for of, resource in live.each()
        for reference in references_in(resource, of)
        if reference.name in entries and any(s.covers(of) for s in entries[reference.name].scopes)
    ]
    return findings + check_live(
        live,
        entries,
        settings.vault_config,
        vault_config_evidence=vault_config_evidence(settings.state_dir, settings.vault_config),
        rotated=secret_evidence(settings.state_dir, entries.values()),
    ), uses


def _as_consumer(settings: Settings, target: Target) -> Aidbox:
    consumers = [item for item in settings.consumers if isinstance(item, Aidbox)]
    consumers.sort(key=lambda item: not set(item.urls) & set(target.urls))
    secret_file, ca_file = _absolute(target.client_secret_file), _absolute(target.ca_file)
    if target.client_id is None and consumers:
        known = consumers[0]
        return msgspec.structs.replace(
            known,
            urls=target.urls,
            client_secret_file=secret_file or known.client_secret_file,
            ca_file=ca_file or known.ca_file,
        )
    if target.client_id is None or secret_file is None:
        missing = "client-id" if target.client_id is None else "client-secret-file"
        message = "names no Client to read Aidbox as"
        hint = f"give --{missing}, or configure a consumer of kind aidbox"
        raise ConfigurationError([finding("config-invalid", "command line", "", message, hint)])
    return Aidbox(
        name="check",
        urls=target.urls,
        client_id=target.client_id,
        client_secret_file=secret_file,
        ca_file=ca_file,
        actions=(),
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)
