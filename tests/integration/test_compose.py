"""The example for Docker Compose: its parts agree, and its services' commands do what they are for.

Docker itself is not run here; what it would mount is copied, with the paths of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import yaml
from support.aidbox import Aidbox, bundle, client, reference
from support.documents import REPOSITORY
from support.openbao import OpenBao
from support.world import DaemonProcess, World, secret

from syncd import __version__

EXAMPLE = f"{REPOSITORY}/docs/examples/compose"
YOURS = {"aidbox.env", "syncd/credentials/role-id", "syncd/credentials/secret-id"}
"""Files that the example leaves to its user."""


def services() -> dict[str, dict[str, Any]]:
    with open(f"{EXAMPLE}/compose.yaml") as file:
        found: dict[str, dict[str, Any]] = yaml.safe_load(file)["services"]
    return found


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Source and whether it is writable, by the path in the container."""
    split = (volume.split(":") for volume in service["volumes"])
    return {parts[1]: (parts[0], parts[2:] != ["ro"]) for parts in split}


def paths(tree: object) -> set[str]:
    """The absolute paths in a document."""
    if isinstance(tree, dict | list):
        return {
            path
            for item in (tree.values() if isinstance(tree, dict) else tree)
            for path in paths(item)
        }
    return {tree} if isinstance(tree, str) and tree.startswith("/") else set()


def test_its_parts_agree() -> None:
    """Each path is in a volume of its container; what is shared is written by syncd alone."""
    with open(f"{EXAMPLE}/compose.yaml") as file:
        document = yaml.safe_load(file)
    named = set(document["volumes"])
    everything = document["services"]
    assert all(
        f"syncd:{__version__}" == everything[name]["image"] for name in ("syncd", "syncd-wait")
    )
    for service in everything.values():
        for source, _ in mounts(service).values():
            assert source in named or os.path.isdir(f"{EXAMPLE}/{source}"), source
    with open(f"{EXAMPLE}/syncd/syncd.yaml") as file:
        settings = yaml.safe_load(file)
    with open(f"{EXAMPLE}/aidbox/vault-config.json") as file:
        mapped = paths(json.load(file))
    for name, used in (
        ("syncd", paths(settings) | mapped | paths(everything["syncd"]["command"])),
        ("syncd-wait", mapped | paths(everything["syncd-wait"]["command"])),
        ("aidbox", mapped | {everything["aidbox"]["environment"]["BOX_VAULT_CONFIG"]}),
    ):
        held = mounts(everything[name])
        for path in used:
            (mount,) = [at for at in held if path == at or path.startswith(f"{at}/")]
            source = held[mount][0]
            relative = f"{source}{path.removeprefix(mount)}".removeprefix("./")
            there = source in named or relative in YOURS or os.path.exists(f"{EXAMPLE}/{relative}")
            assert there, path
    writers = [name for name, item in everything.items() if mounts(item)["/run/vault-secrets"][1]]
    assert writers == ["syncd"]
    (url,) = settings["consumers"][0]["urls"]
    assert url == f"http://aidbox:{everything['aidbox']['environment']['BOX_WEB_PORT']}"


def adapt(path: str, replaced: dict[str, str]) -> None:
    """Writes into a file what this machine has."""
    with open(path) as file:
        text = file.read()
    for before, after in replaced.items():
        text = text.replace(before, after)
    with open(path, "w") as file:
        file.write(text)


def log_in(vault: OpenBao, directory: str) -> None:
    """Makes the AppRole, and writes its two ids."""
    vault.policy("aidbox", 'path "secret/data/aidbox" {capabilities = ["read"]}')
    vault.write("sys/auth/approle", type="approle")
    vault.write("auth/approle/role/syncd", token_policies="aidbox")
    role = vault.read("auth/approle/role/syncd/role-id")["data"]["role_id"]
    secret_id = vault.write("auth/approle/role/syncd/secret-id")["data"]["secret_id"]
    os.mkdir(directory, 0o700)
    for name, value in (("role-id", role), ("secret-id", secret_id)):
        with open(f"{directory}/{name}", "w") as file:
            file.write(value)


def test_it_works() -> None:
    """With its own commands and files: the secrets are awaited, and a rotated one is adopted."""
    with World() as world, OpenBao() as vault:
        example = f"{world.directory}/example"
        shutil.copytree(EXAMPLE, example)
        os.mkdir(world.mount, 0o755)
        own = secret("own").decode()
        vault.put("aidbox", **{"syncd-client": own, "client-secret": "1"})
        log_in(vault, f"{example}/syncd/credentials")
        sources = {"secrets": world.mount, "state": world.state}
        held = mounts(services()["syncd"])
        here = {
            at: sources.get(source, f"{example}/{source[2:]}") for at, (source, _) in held.items()
        }
        adapt(f"{example}/aidbox/vault-config.json", here)
        adapt(
            f"{example}/syncd/secret-provider-class.yaml",
            {"https://vault.example.org:8200": vault.address},
        )
        with open(f"{REPOSITORY}/docs/examples/aidbox-init-bundle.json") as file:
            init = json.load(file)
        init["entry"] += bundle(client("my-client", reference("client-secret")))["entry"]
        with Aidbox(f"{example}/aidbox/vault-config.json", init) as aidbox:
            url = {"http://aidbox:8080": aidbox.urls[0], "interval: 30s": "interval: 200ms"}
            adapt(f"{example}/syncd/syncd.yaml", {**here, **url})
            commands = {
                name: [word.replace("/etc/syncd", here["/etc/syncd"]) for word in item["command"]]
                for name, item in services().items()
                if "command" in item
            }
            with DaemonProcess(commands["syncd"], {}, ready=True) as daemon:
                assert world.run(*commands["syncd-wait"]).returncode == 0
                checked = world.run("check", "-c", f"{example}/syncd/syncd.yaml", "--strict")
                assert checked.stdout == "0 errors, 0 warnings\n"
                vault.put("aidbox", **{"syncd-client": own, "client-secret": "2"})
                daemon.wait_for("adoption.adopted", secret="client-secret")
            assert aidbox.resources("AuditEvent")
