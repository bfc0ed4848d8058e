"""`syncd schema`: JSON Schemas (2020-12) of what syncd reads and sends."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from syncd.config.settings import Settings
from syncd.core import decode
from syncd.core.events import WIRE_TYPES
from syncd.core.vault_config import RESOURCE_TYPES

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SCOPE: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "resource_type": {"type": "string", "minLength": 1, "examples": list(RESOURCE_TYPES)},
        "id": {"type": "string", "minLength": 1},
    },
    "required": ["resource_type"],
}
_VAULT_CONFIG: Final[dict[str, Any]] = {
    "$schema": _DIALECT,
    "title": "Aidbox vault config",
    "type": "object",
    "properties": {
        "secret": {
            "type": "object",
            "propertyNames": {"minLength": 1},
            "additionalProperties": {
                "type": "object",
                "properties": {
                    "path": {"type": "string", "pattern": "^/"},
                    "scope": {
                        "oneOf": [
                            _SCOPE,
                            {
                                "type": "array",
                                "items": {"type": "string", "minLength": 1},
                                "minItems": 1,
                                "deprecated": True,
                                "description": "Older form; write one scope object instead.",
                            },
                        ]
                    },
                },
                "required": ["path", "scope"],
            },
        }
    },
    "required": ["secret"],
}


def schema_of(what: str) -> dict[str, Any]:
    """The schema of `vault-config`, `config` or `event`."""
    if what == "vault-config":
        return _VAULT_CONFIG
    if what == "config":
        return {"title": "syncd configuration", **decode.schema(Settings)}
    document = msgspec.json.schema(WIRE_TYPES)
    return {"$schema": _DIALECT, "title": "syncd event (CloudEvents 1.0)", **document}
