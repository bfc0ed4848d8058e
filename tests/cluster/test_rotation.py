"""From a write in the vault to the consumer, while parts of the cluster are killed."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.cluster.cluster import LONG
from support.cluster.product import Hook, Product, class_of, deployed, vault_config
from support.machine import step
from support.mount import publish
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from support.cluster.cluster import Cluster

ERRORS = "rotation_reconcile_error_total{"
"""The driver's metric of rotations that failed."""

FILES = ("client-secret", "db/password", "db/user", "spare")


@pytest.fixture(scope="module")
def hook(cluster: Cluster) -> Iterator[Hook]:
    with Hook(cluster) as hook:
        yield hook


@pytest.fixture(scope="module")
def product(cluster: Cluster, hook: Hook) -> Iterator[Product]:
    rotate(cluster, {})
    files = {"class_": class_of(*FILES), "vault_config": vault_config(*FILES)}
    with deployed(cluster, "rotation", **files) as product:
        yield product


VALUES = {name.replace("/", "."): "0" for name in FILES}


def rotate(cluster: Cluster, changes: Mapping[str, str]) -> None:
    VALUES.update({name.replace("/", "."): value for name, value in changes.items()})
    cluster.write("app", **VALUES)


def delivered(hook: Hook, subject: str, number: int) -> None:
    """Waits for the event of a secret with this number, the first being 1, and no later one."""
    wait_until(
        lambda: len(hook.events(subject=subject)) >= number, lambda: hook.received[-5:], LONG
    )
    assert len(hook.events(subject=subject)) == number


def test_the_order_of_the_start(product: Product) -> None:
    """syncd, then `syncd wait`, then Aidbox."""

    def started(name: str, state: str = "running") -> str:
        return str(product.container(name)["state"][state]["startedAt"])

    waiting = product.container("syncd-wait")["state"]["terminated"]
    assert waiting["exitCode"] == 0
    assert started("syncd") <= waiting["startedAt"] <= waiting["finishedAt"] <= started("aidbox")
    created = product.pod["metadata"]["creationTimestamp"]
    step(f"pod {created}, syncd {started('syncd')}, Aidbox {started('aidbox')}")


def layout(root: str) -> dict[str, tuple[str, int, int]]:
    """Modes, owners and link targets below a mount; a generation's name is the same for all."""
    found = {}
    for directory, directories, files in os.walk(root):
        for path in [directory, *(f"{directory}/{name}" for name in (*directories, *files))]:
            status = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
            name, target = (
                re.sub(r"\.\.2\d{3}_[^/]*", "..generation", text)
                for text in (os.path.relpath(path, root), target)
            )
            shown = f"{stat.filemode(status.st_mode)} {target}"
            found[name] = (shown, status.st_uid, status.st_gid)
    return found


def test_the_double_of_the_mount(product: Product, cluster: Cluster, tmp_path: Path) -> None:
    """What all other tests take for a CSI mount has the modes, owners and links of the real one."""
    publish(tmp_path / "mount", dict.fromkeys(FILES, b"0"))
    real = layout(cluster.path(product.mount))
    assert layout(f"{tmp_path}/mount") == real
    assert real["."] == ("drwxrwxrwt ", 0, 0)
    table = product.exec("cat", "/proc/self/mountinfo").splitlines()
    (line,) = (line.split() for line in table if " /run/vault-secrets " in line)
    assert line[3] == "/"
    assert "ro" in line[5].split(",")


def test_a_rotation_of_nested_names(product: Product, hook: Hook, cluster: Cluster) -> None:
    """One swap of two files is two events; the others have none."""
    rotate(cluster, {"db/user": "1", "db/password": "1"})
    delivered(hook, "db/user", 1)
    delivered(hook, "db/password", 1)
    product.republished(2)
    assert {event["subject"] for event in hook.events()} == {"db/user", "db/password"}
    assert product.exec("cat", "/run/vault-secrets/db/user") == "1"


def test_twenty_republishes_are_no_event(product: Product, hook: Hook) -> None:
    """The driver asks the provider again, and writes nothing when nothing changed."""
    before, generation = len(hook.received), product.generation()
    product.republished(20)
    assert product.generation() == generation
    assert len(hook.received) == before


def test_a_removed_secret(product: Product, hook: Hook, cluster: Cluster) -> None:
    """Taken out of the class, it is reported as removed; put back, as created or changed."""
    namespace = ("-n", product.namespace)

    def set_objects(*files: str) -> None:
        spec = yaml.safe_load(class_of(*files))["spec"]
        patch: dict[str, Any] = {"spec": {"parameters": {"objects": spec["parameters"]["objects"]}}}
        name = "secretproviderclass/aidbox-secrets"
        cluster.kubectl("patch", name, *namespace, "--type=merge", "-p", json.dumps(patch))

    set_objects(*FILES[:-1])
    delivered(hook, "spare", 1)
    assert hook.events(subject="spare")[-1]["data"]["change"] == "removed"
    set_objects(*FILES)
    delivered(hook, "spare", 2)


@pytest.mark.parametrize("part", ["driver", "provider", "kubelet", "apiserver", "syncd"])
def test_a_part_is_killed_during_a_rotation(
    part: str, product: Product, hook: Hook, cluster: Cluster
) -> None:
    """When it is back, the event of the rotation arrives, once."""
    number, generation = len(hook.events(subject="client-secret")), product.generation()
    if part == "driver":
        pods = cluster.get("pods", "-n", "kube-system", "-l", "app=csi-secrets-store")["items"]
        statuses = pods[0]["status"]["containerStatuses"]
        (driver,) = (item["containerID"] for item in statuses if item["name"] == "secrets-store")
        cluster.kill_container(driver)
        rotate(cluster, {"client-secret": part})
    elif part == "syncd":
        rotate(cluster, {"client-secret": part})
        wait_until(lambda: product.generation() != generation, product.describe, LONG)
        product.kill()
    else:
        cluster.kill(part)
        rotate(cluster, {"client-secret": part})
        cluster.start(part)
    if part == "apiserver":
        cluster.wait_for_api()
    delivered(hook, "client-secret", number + 1)
    product.republished(2)
    delivered(hook, "client-secret", number + 1)
    product.wait_ready()


def test_every_rotation_of_a_series_arrives(product: Product, hook: Hook, cluster: Cluster) -> None:
    """None is lost, none arrives twice, and each has a version of its own."""
    first = len(hook.events(subject="client-secret"))
    for number in range(5):
        rotate(cluster, {"client-secret": f"series-{number}"})
        delivered(hook, "client-secret", first + number + 1)
    ids = [event["id"] for event in hook.events()]
    assert len(set(ids)) == len(ids)
    versions = [event["data"]["version"] for event in hook.events(subject="client-secret")]
    assert len(set(versions)) == len(versions)


def test_a_vault_that_refuses(product: Product, hook: Hook, cluster: Cluster) -> None:
    """The files get old and the pod stays ready: only the driver's own metrics report it."""

    def errors() -> float:
        driver = cluster.get("pods", "-n", "kube-system", "-l", "app=csi-secrets-store")["items"]
        host = f"{driver[0]['status']['podIP']}:8095"
        metrics = cluster.request(host, "/metrics")[1].decode()
        lines = (line for line in metrics.splitlines() if line.startswith(ERRORS))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before, received, generation = errors(), len(hook.received), product.generation()
    cluster.allow("secret/data/none")
    wait_until(lambda: errors() >= before + 2, product.describe, LONG)
    assert product.is_ready()
    assert product.generation() == generation
    cluster.allow("secret/data/aidbox/*")
    rotate(cluster, {"spare": "after"})
    wait_until(lambda: len(hook.received) == received + 1, product.describe, LONG)
    assert hook.events()[-1]["subject"] == "spare"


def test_memory(product: Product, cluster: Cluster) -> None:
    """The control group, with `kubectl exec … syncd status` in it, stays well below the limit."""
    for _ in range(3):
        assert "hook" in product.exec("python3", "-m", "syncd", "status")
    now, most = cluster.memory(product.container("syncd")["containerID"])
    (limit,) = {
        item["resources"]["limits"]["memory"]
        for item in product.pod["spec"]["initContainers"]
        if item["name"] == "syncd"
    }
    step(f"memory {now / 2**20:.1f} MiB, at most {most / 2**20:.1f}, of {limit}")
    assert limit == "128Mi"
    assert most < 96 << 20
