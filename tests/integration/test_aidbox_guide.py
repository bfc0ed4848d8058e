"""The guide to Aidbox: its examples are what they seem, and every command in it runs."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from support.aidbox import Aidbox, bundle, client, reference
from support.aidbox_destinations import destination
from support.documents import REPOSITORY, blocks_of, document
from support.waiting import DEADLINE, wait_until
from support.world import World, secret

from syncd.commands.schema import schema_of
from syncd.config.load import examine
from syncd.config.settings import Aidbox as Consumer, Settings
from syncd.config.validation import check_section
from syncd.core.decode import decode
from syncd.core.findings import CODES
from syncd.core.vault_config import decode_vault_config
from syncd.core.yaml_text import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLES = f"{REPOSITORY}/docs/examples"
PAGE = document("docs/aidbox.md")
blocks = partial(blocks_of, PAGE)


def example(name: str) -> Any:
    with open(f"{EXAMPLES}/{name}") as file:
        return json.load(file) if name.endswith(".json") else yaml.safe_load(file)


@pytest.fixture
def world() -> Iterator[World]:
    """The examples, with the paths of this world."""
    with World() as world:
        world.publish({"syncd-client": secret("syncd"), "client-secret": secret("0")})
        with open(f"{EXAMPLES}/aidbox-vault-config.json") as file:
            world.write_vault_config(file.read().replace("/run/vault-secrets", world.mount))
        os.utime(world.vault_config, (0, 0))
        yield world


def box(world: World) -> Aidbox:
    init = example("aidbox-init-bundle.json")
    init["entry"] += bundle(client("my-client", reference("client-secret")))["entry"]
    return Aidbox(world.vault_config, init, uptime=3600)


def configure(world: World, aidbox: Aidbox) -> None:
    settings = example("aidbox-syncd.yaml")
    (consumer,) = settings["consumers"]
    consumer |= {"urls": aidbox.urls, "client_secret_file": f"{world.mount}/syncd-client"}
    world.configure(consumers=[consumer], api={"socket": f"{world.directory}/api.sock"})


def test_every_example_is_linked_and_parses() -> None:
    """JSON and YAML; the vault config and the configuration by syncd's own rules."""
    names = sorted(map(os.path.basename, glob.glob(f"{EXAMPLES}/aidbox-*")))
    assert names == sorted(set(re.findall(r"\(examples/([^)]+)\)", PAGE)))
    for name in names:
        assert example(name)
    with open(f"{EXAMPLES}/aidbox-vault-config.json", "rb") as file:
        _, findings = decode_vault_config(file.read(), "x")
    assert not findings
    for name in names:
        if name.endswith(".yaml"):
            with open(f"{EXAMPLES}/{name}", "rb") as file:
                (tree,) = parse_yaml(file.read())
            settings, problems = decode(tree, Settings, check_section)
            assert settings is not None
            assert not problems
    (shown,) = yaml.safe_load(blocks("yaml")[0])["consumers"]
    assert shown.items() <= example("aidbox-syncd.yaml")["consumers"][0].items()
    for shown_again, name in zip(blocks("yaml")[1:], ("recreate", "rollout"), strict=True):
        assert yaml.safe_load(shown_again) == example(f"aidbox-{name}-syncd.yaml")


def test_the_init_bundle_is_all_the_others() -> None:
    """The Client and each policy, put under their own ids, for one Client and no other."""
    entries = example("aidbox-init-bundle.json")["entry"]
    parts = [example(os.path.basename(path)) for path in glob.glob(f"{EXAMPLES}/aidbox-[cp]*.json")]
    assert len(parts) == len(entries) == 5
    for entry in entries:
        resource = entry["resource"]
        assert resource in parts
        url = f"/{resource['resourceType']}/{resource['id']}"
        assert entry["request"] == {"method": "PUT", "url": url}
        if resource["resourceType"] == "AccessPolicy":
            assert resource["link"] == [{"reference": "Client/syncd"}]


def test_the_examples_work_together_and_allow_nothing_else(world: World) -> None:
    """A rotation with all actions, and the policies against what they are not for."""
    with box(world) as aidbox:
        configure(world, aidbox)
        with world.daemon() as daemon:
            world.publish({"client-secret": secret("1")})
            daemon.wait_for("delivery.acknowledged")
            daemon.wait_for("adoption.adopted", secret="client-secret")
            commands(world, aidbox)
            for method, target in (
                ("GET", "/fhir/AuditEvent"),
                ("DELETE", f"/fhir/AuditEvent/{aidbox.resources('AuditEvent')[0]['id']}"),
                ("GET", "/$drop-cache"),
                ("PUT", "/fhir/Client/syncd"),
                ("POST", "/fhir/Client"),
                ("GET", "/fhir/Patient"),
                ("GET", "/fhir/User"),
                ("DELETE", "/fhir/AidboxTopicDestination/x"),
            ):
                assert asked(aidbox, method, target) == 403, target


def test_the_example_that_recreates(world: World) -> None:
    """Its policy and those of the check allow all of it, and nothing else that changes Aidbox."""
    world.publish({"kafka": secret("0")})
    with open(world.vault_config) as file:
        config = json.load(file)
    scope = {"resource_type": "AidboxTopicDestination"}
    config["secret"]["kafka"] = {"path": f"{world.mount}/kafka", "scope": scope}
    world.write_vault_config(json.dumps(config))
    init = example("aidbox-init-bundle.json")
    hook = {**destination(0), "parameter": [{"name": "header", "_valueString": reference("kafka")}]}
    init["entry"] += bundle(example("aidbox-recreate-policy.json"), hook)["entry"]
    with Aidbox(world.vault_config, init, replicas=2, delivering=True) as aidbox:
        settings = example("aidbox-recreate-syncd.yaml")
        (consumer,) = settings["consumers"]
        consumer |= {"urls": aidbox.urls, "client_secret_file": f"{world.mount}/syncd-client"}
        consumer["recreate"]["delay"] = 0
        world.configure(consumers=[consumer])
        with world.daemon() as daemon:
            world.publish({"kafka": secret("1")})
            daemon.wait_for("destination.recreated", destination="d0")
            wait_until(
                lambda: [item["id"] for item in aidbox.resources(hook["resourceType"])] == ["d0"]
            )
        for method in ("PUT", "PATCH"):
            assert asked(aidbox, method, "/fhir/AidboxTopicDestination/d0") == 403
        assert asked(aidbox, "DELETE", "/fhir/Client/my-client") == 403


def commands(world: World, aidbox: Aidbox) -> None:
    """Every command of the page, as written but for the paths."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    for command in blocks("sh"):
        for shown, here in (
            ("/etc/syncd/syncd.yaml", world.config),
            ("/run/syncd/syncd.sock", f"{world.directory}/api.sock"),
            ("/run/vault-secrets", world.mount),
            ("http://127.0.0.1:8080", aidbox.urls[0]),
        ):
            command = command.replace(shown, shlex.quote(here))  # noqa: PLW2901 - step by step
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=world.directory,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, command + done.stdout + done.stderr
        assert not done.stderr
        if "status" in command:
            assert re.search(r"client-secret .* adopted after \d+\.\d s", done.stdout)
        elif "json" in command:
            assert json.loads(done.stdout)["findings"] == []
        elif "sarif" not in command:
            assert done.stdout == "0 errors, 0 warnings\n"
    with open(f"{world.directory}/syncd.lint.sarif") as file:
        assert json.load(file)["version"] == "2.1.0"


def asked(aidbox: Aidbox, method: str, target: str) -> int:
    """What syncd's Client is answered."""
    done = subprocess.run(
        [
            *("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "-d", "{}"),
            *("-u", f"syncd:{secret('syncd').decode()}", f"{aidbox.urls[0]}{target}"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_the_event() -> None:
    """The events shown are of the schema, but for their shortened versions."""
    for shown in blocks("json"):
        Draft202012Validator(schema_of("event")).validate(json.loads(shown.replace("…", "00")))


def test_every_key_and_finding_is_explained() -> None:
    """Options of the consumer, actions, and the codes of the linter."""
    for name in Consumer.__struct_fields__:
        assert f"`{name}`" in PAGE
    ours = ("aidbox-", "destination-", "entry-", "reference-", "secret-stored")
    for code in CODES:
        if code.startswith(ours):
            assert f"| `{code}` |" in PAGE


def test_the_guide_for_both_sides(tmp_path: Path) -> None:
    """Its example is a configuration, with the types that it explains."""
    (text,) = blocks_of(document("docs/rotating-client-secrets.md"), "yaml")
    file = tmp_path / "syncd.yaml"
    file.write_text(f"vault_config: /vc.json\nwatch: {{roots: [/run/vault-secrets]}}\n{text}")
    settings, findings = examine(str(file), {})
    assert settings is not None
    assert not findings
    assert [item.types for item in settings.consumers] == [None, ("adopted",)]
