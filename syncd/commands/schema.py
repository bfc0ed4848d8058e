"""`syncd schema`: JSON Schemas (2020-12) of vault config, configuration and events."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from syncd.config.settings import RelaySettings, Settings
from syncd.core import decode, vault_config
from syncd.core.events import WIRE_TYPES

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema_of(what: str) -> dict[str, Any]:
    """The schema of `vault-config`, `config`, `relay` (a relay's configuration) or `event`."""
    if what == "vault-config":
        title, document = "Aidbox vault config", vault_config.schema()
    elif what == "config":
        title, document = "syncd configuration", decode.schema(Settings)
    elif what == "relay":
        title, document = "syncd relay configuration", decode.schema(RelaySettings)
    else:
        title, document = "syncd event (CloudEvents 1.0)", msgspec.json.schema(WIRE_TYPES)
    return {"$schema": _DIALECT, "title": title, **document}
