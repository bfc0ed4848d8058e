"""The schemas: valid, and they accept what is sent and read, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from syncd.commands.schema import schema_of
from syncd.core.event_data import (
    SECRET_CHANGED,
    VAULT_CONFIG_CHANGED,
    SecretData,
    VaultConfigData,
)
from syncd.core.events import Event, Stamp
from syncd.core.model import ChangeKind, Scope

STAMP = Stamp("5f0c2a91", "/syncd/host")
CHANGED = SecretData("a", ChangeKind.MODIFIED, "/m/a", Scope("Client", "c"), "k1:ab", "k1:cd")


def accepts(what: str, document: Any) -> bool:
    valid: bool = Draft202012Validator(schema_of(what)).is_valid(document)
    return valid


@pytest.mark.parametrize("what", ["vault-config", "config", "relay", "event"])
def test_a_schema_is_a_schema(what: str) -> None:
    """Each holds to the 2020-12 meta-schema, names it, and has a title."""
    schema = schema_of(what)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"]
    json.dumps(schema)


@pytest.mark.parametrize(
    "event",
    [
        Event(7, "2026-11-23T20:40:28.333Z", SECRET_CHANGED, "a", CHANGED),
        Event(
            8,
            "2026-11-23T20:40:28.333Z",
            VAULT_CONFIG_CHANGED,
            "/vc.json",
            VaultConfigData(("a",), (), (), ()),
            {},
        ),
    ],
)
def test_events_as_sent_are_accepted_and_others_are_not(event: Event) -> None:
    """Both types pass as they go over the wire; without an id, or of a third type, they do not."""
    wire = json.loads(STAMP.encode(event))
    assert accepts("event", wire)
    assert not accepts("event", {k: v for k, v in wire.items() if k != "id"})
    assert not accepts("event", {**wire, "type": "io.example"})


@pytest.mark.parametrize(
    ("scope", "valid"),
    [
        ({"resource_type": "Client"}, True),
        ({"resource_type": "Client", "id": "c"}, True),
        (["Client/c"], True),
        ([], False),
        ({}, False),
        ("Client", False),
    ],
)
def test_vault_configs(scope: object, *, valid: bool) -> None:
    """Both forms of a scope are accepted, anything else is not."""
    document = {"secret": {"a": {"path": "/m/a", "scope": scope}}}
    assert accepts("vault-config", document) is valid


def test_paths_of_a_vault_config_are_absolute() -> None:
    """A relative path is refused."""
    entry = {"path": "m/a", "scope": {"resource_type": "Client"}}
    assert not accepts("vault-config", {"secret": {"a": entry}})


def test_configurations() -> None:
    """The example of the contract passes; a key that does not exist does not."""
    config = {
        "vault_config": "/etc/aidbox/vault-config.json",
        "watch": {"roots": ["/run/vault-secrets"], "settle": "50ms", "mode": "auto"},
        "consumers": [{"name": "hook", "kind": "webhook", "url": "http://127.0.0.1/x"}],
    }
    assert accepts("config", config)
    assert not accepts("config", {**config, "nonsense": 1})
