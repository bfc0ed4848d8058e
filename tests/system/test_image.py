"""The image: built by buildah on a base made of the Debian tree, run read-only by podman and runc.

`docker` is a shim that calls these two, so that the commands run as the documentation has them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.documents import commands
from support.machine import scratch, step
from support.openbao import free_ports
from support.receiver import Receiver
from support.sources import run
from support.world import secret

from syncd import __version__
from syncd.core.payload import File
from syncd.provision.publish import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
UID = 65532
HERE = """#!/bin/sh
export CONTAINERS_STORAGE_CONF={directory}/storage.conf
podman="podman --cgroup-manager cgroupfs --events-backend none --runtime runc"
limits="--ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --log-driver k8s-file"
# no shell is needed: there is none
shells="-v /dev/null:/usr/bin/dash:ro -v /dev/null:/usr/bin/bash:ro"
case $1 in
build)
  shift
  exec buildah build --layers --isolation chroot --format docker --volume {wheels}:/wheels:ro \\
    --build-arg BASE=localhost/base --build-arg PIP_NO_INDEX=1 \\
    --build-arg PIP_FIND_LINKS=/wheels "$@" ;;
run)
  shift
  exec $podman run $limits $shells "$@" ;;
*)
  exec $podman "$@" ;;
esac
"""
STORAGE = """[storage]
driver = "vfs"
graphroot = "{storage}/containers"
runroot = "{storage}/run"
"""
ROOM = 6 << 30
"""Bytes that vfs, which copies every layer whole, may want for a moment."""


class Docker:
    """The shim, and what the commands find on this machine."""

    def __init__(self, directory: str, storage: str, wheels: str, checkout: str) -> None:
        self.directory, self.checkout = directory, checkout
        for name, text in (("docker", HERE), ("storage.conf", STORAGE)):
            with open(f"{directory}/{name}", "w") as file:
                file.write(text.format(directory=directory, wheels=wheels, storage=storage))
        os.chmod(f"{directory}/docker", 0o755)
        self.listen, self.hook = free_ports(), free_ports()

    def sh(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs commands with the ports and directories of this test for the usual ones."""
        for usual, here in (
            ("9753", str(self.listen)),
            ("9000", str(self.hook)),
            ("-v /etc/aidbox:", f"-v {self.directory}/aidbox:"),
            ("-v /run/vault-secrets:", f"-v {self.directory}/secrets:"),
        ):
            script = script.replace(usual, here)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.checkout,
            env={**os.environ, "PATH": f"{self.directory}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{script}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done

    def publish(self, **values: bytes) -> None:
        """Swaps in a generation that the image's group can read."""
        files = [File(name, value, 0o640) for name, value in values.items()]
        Publisher(f"{self.directory}/secrets", group=str(UID)).publish(files)


@pytest.fixture(scope="module")
def docker(
    need: Callable[..., None],
    tree: str,
    wheels: str,
    checkout: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Docker]:
    """The image `syncd:latest`, and two secrets to watch."""
    need("buildah", "podman", "runc")
    directory = str(tmp_path_factory.mktemp("docker"))
    with scratch(ROOM) as storage:
        docker = Docker(directory, storage, wheels, checkout)
        build_image(docker, tree)
        yield docker
        docker.sh("docker rm -f -a -t 0; docker rmi -f -a", check=False)


def build_image(docker: Docker, tree: str) -> None:
    step("making a base image from the Debian tree")
    leave = "--exclude=./boot --exclude=./var/cache --exclude=./usr/share/man"
    docker.sh(f"tar -C {tree} {leave} -c . | docker import -q - localhost/base")
    step("buildah build")
    build, _ = commands("README.md", "container")[0].split("\n", 1)
    docker.sh(build)
    os.mkdir(f"{docker.directory}/aidbox")
    os.chmod(docker.directory, 0o755)
    entries = {
        name: {"path": f"/run/vault-secrets/{name}", "scope": {"resource_type": "Client"}}
        for name in ("a", "b")
    }
    with open(f"{docker.directory}/aidbox/vault-config.json", "w") as file:
        json.dump({"secret": entries}, file)
    docker.publish(a=secret("0"), b=secret("0"))


def test_the_dockerfile_is_clean(need: Callable[..., None]) -> None:
    """hadolint has nothing to say."""
    need("hadolint")
    linter = f"{os.path.dirname(sys.executable)}/hadolint"
    subprocess.run([linter, f"{ROOT}/Dockerfile"], check=True)


def test_what_the_image_says(docker: Docker) -> None:
    """A fixed uid, labels, a volume for the state, and nothing that asks for a shell."""
    image = json.loads(docker.sh("docker inspect syncd:latest").stdout)[0]
    config = image["Config"]
    assert config["User"] == f"{UID}:{UID}"
    assert config["Entrypoint"] == ["python3", "-m", "syncd"]
    assert config["Cmd"] == ["run"]
    assert image["Healthcheck"]["Test"] == ["CMD", "python3", "-m", "syncd.commands.healthcheck"]
    assert config["Volumes"].keys() == {"/var/lib/syncd"}
    prefix = "org.opencontainers.image."
    labels = ("title", "description", "licenses", "version", "revision", "created", "authors")
    assert {f"{prefix}{name}" for name in labels} <= config["Labels"].keys()


def test_what_is_in_the_image(docker: Docker) -> None:
    """The packages are those of the lock file, in the versions that it pins."""
    with open(f"{ROOT}/requirements.lock") as file:
        pinned = dict(re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", file.read(), re.MULTILINE))
    script = (
        "import importlib.metadata as m, json, re, sys;"
        "found = m.distributions(path=['/opt/syncd']);"
        "print(json.dumps({re.sub('[-_.]+', '-', d.name).lower(): d.version for d in found}))"
    )
    command = f'docker run --rm --entrypoint python3 syncd:latest -c "{script}"'
    found = json.loads(docker.sh(command).stdout)
    assert found.items() <= pinned.items()
    assert {"anyio", "click", "hvac", "msgspec", "uvicorn"} <= found.keys()


def test_the_released_image(docker: Docker, release: Path, tmp_path: Path) -> None:
    """`make image` labels it, and writes an SBOM of all that is in it."""
    python = f"{release}/.cache/release/bin/python"
    release = shutil.copytree(release, tmp_path / "syncd", ignore=shutil.ignore_patterns(".cache"))
    step("make image")
    docker.sh(f"{python} {release}/release/image.py")
    image = json.loads(docker.sh(f"docker inspect syncd:{__version__}").stdout)[0]
    labels = {name.rpartition(".")[2]: text for name, text in image["Config"]["Labels"].items()}
    commit = run(release, "git rev-parse HEAD").stdout.strip()
    assert (labels["version"], labels["revision"]) == (__version__, commit)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])
    name = f"syncd-{__version__}-image.cdx.json"
    sbom = json.loads((release / "dist" / name).read_text())
    found = {item.get("purl", item["bom-ref"]): item for item in sbom["components"]}
    with open(f"{ROOT}/requirements.lock") as file:
        lock = file.read()
    (anyio,) = (item for purl, item in found.items() if purl.startswith("pkg:pypi/anyio@"))
    hashes = anyio["externalReferences"][0]["hashes"]
    assert hashes
    assert all(f"--hash=sha256:{item['content']}" in lock for item in hashes)
    assert any(
        re.match(r"pkg:deb/debian/libc6@.*arch=amd64&distro=debian-12", purl) for purl in found
    )
    assert any(purl.startswith("pkg:generic/python@3.11.") for purl in found)
    run(release / "dist", "sha256sum -c --quiet SHA256SUMS")
    assert name in (release / "dist" / "SHA256SUMS").read_text()


def test_the_guide(docker: Docker) -> None:
    """Read-only, without a capability or a shell: it watches, tells, and knows its health."""
    _, run = commands("README.md", "container")[0].split("\n", 1)
    (more,) = commands("docs/install.md", "container")
    with Receiver() as receiver:
        docker.hook = receiver.port
        step("docker run")
        said = docker.sh(run).stdout
        assert '{"ready":true' in said.replace(" ", "")
        assert re.search(r"(?m)^a .*present", said), said
        try:
            docker.publish(a=secret("1"), b=secret("0"))
            assert receiver.wait()[0].subjects == ["a"]
            assert docker.sh(more).stdout == f"syncd {__version__}\n"
            docker.sh("docker healthcheck run syncd")
            look = "docker exec syncd python3 -c"
            status = docker.sh(f"""{look} 'print(open("/proc/1/status").read())'""").stdout
            facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert facts["Uid"].split() == [str(UID)] * 4
            assert {facts[f"Cap{n}"] for n in ("Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
            assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
            for place in ("/x", "/opt/syncd/x"):
                done = docker.sh(f'{look} \'open("{place}", "w")\'', check=False)
                assert "Read-only file system" in done.stderr
            step("freezing the daemon")
            docker.sh("docker kill -s STOP syncd")
            assert docker.sh("docker healthcheck run syncd", check=False).returncode == 1
            docker.sh("docker kill -s CONT syncd")
            docker.sh("docker stop -t 20 syncd")
            exited = docker.sh("docker inspect -f '{{.State.ExitCode}}' syncd").stdout
            assert exited == "0\n"
            logged = docker.sh("docker logs syncd")
            assert "CANARY" not in logged.stdout + logged.stderr
        finally:
            docker.sh("docker rm -f -t 0 syncd", check=False)


def test_the_demo(docker: Docker) -> None:
    """The image shows what it does where there is no Linux but in a container."""
    printed = docker.sh(commands("README.md", "container")[1]).stdout
    assert printed.count("modified") >= 5


def container(docker: Docker, name: str) -> tuple[str, dict[str, Any]]:
    """The options by which docker runs a container of the Deployment, and the container."""
    with open(f"{ROOT}/kubernetes/components/syncd/sidecar.yaml") as file:
        spec = yaml.safe_load(file)["spec"]["template"]["spec"]
    (found,) = (item for item in spec["initContainers"] if item["name"] == name)
    context = found["securityContext"]
    options = ["--read-only", "--cap-drop ALL", "--security-opt no-new-privileges"]
    options += ["--network host", f"--user {context['runAsUser']}:{context['runAsGroup']}"]
    options += [f"-e {item['name']}={item['value']}" for item in found["env"]]
    sources = {
        "vault-config": f"{docker.directory}/aidbox",
        "vault-secrets": f"{docker.directory}/secrets",
        "syncd-config": f"{docker.directory}/config",
    }
    for mount in found["volumeMounts"]:
        if mount["name"] in sources:
            options.append(f"-v {sources[mount['name']]}:{mount['mountPath']}:ro")
        else:  # an emptyDir, as the kubelet makes it
            directory = f"{docker.directory}/{mount['name']}"
            os.mkdir(directory)
            os.chmod(directory, 0o777)
            options.append(f"-v {directory}:{mount['mountPath']}")
    return " ".join(options), found


def write_configuration(docker: Docker, port: int) -> None:
    hook = f"{{name: hook, kind: webhook, url: 'http://127.0.0.1:{port}/'}}"
    with open(f"{docker.directory}/config/syncd.yaml", "w") as file:
        file.write(f"vault_config: /etc/aidbox/vault-config.json\nconsumers: [{hook}]\n")


def test_the_pod(docker: Docker) -> None:
    """The containers of the Deployment do their work with the rights that it gives them."""
    os.mkdir(f"{docker.directory}/config")
    options, waiting = container(docker, "syncd-wait")
    arguments = [*waiting["args"][:-1], "1s"]
    command = f"docker run --rm {options} syncd:latest {' '.join(arguments)}"
    write_configuration(docker, docker.hook)
    docker.publish(a=secret("0"), b=secret("0"))
    docker.sh(command)
    docker.publish(a=secret("0"))
    missing = docker.sh(command, check=False)
    assert missing.returncode == 1
    assert "b" in missing.stderr
    docker.publish(a=secret("0"), b=secret("0"))
    options, sidecar = container(docker, "syncd")
    with Receiver() as receiver:
        write_configuration(docker, receiver.port)
        step("the native sidecar")
        docker.sh(f"docker run -d --name sidecar {options} syncd:latest")
        try:
            for probe in ("startupProbe", "livenessProbe"):
                url = f"http://127.0.0.1:9753{sidecar[probe]['httpGet']['path']}"
                docker.sh(f"curl -sSf --retry 20 --retry-delay 1 --retry-all-errors {url}")
            docker.publish(a=secret("0"), b=secret("2"))
            assert receiver.wait()[0].subjects == ["b"]
            shown = docker.sh("docker exec sidecar syncd status").stdout
            assert "hook" in shown
        finally:
            step(docker.sh("docker logs sidecar", check=False).stderr)
            docker.sh("docker rm -f -t 0 sidecar", check=False)
