"""The images of the cluster: syncd's own from its Dockerfile, and those of what is around it.

buildah keeps its layers in the cache, so the base (the Debian tree) is imported once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from support.machine import cache, step

if TYPE_CHECKING:
    from collections.abc import Callable

SYNCD: Final = "docker.io/library/syncd:0.1.0"
AIDBOX: Final = "docker.io/healthsamurai/aidboxone:2605"
DRIVER: Final = "localhost/driver:1"
PAUSE: Final = "localhost/pause:1"

_HERE: Final = os.path.dirname(__file__)

BASE = """
if $B inspect --type image {name} > /dev/null 2>&1; then exit 0; fi
c=$($B from scratch)
m=$($B mount $c)
cp -a {tree}/. $m/
$B umount $c > /dev/null
$B config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin $c
$B commit -q --format docker $c {name}
$B rm $c > /dev/null
"""
BUILD = """
cd {checkout}
$B build -q --isolation chroot --format docker --volume {wheels}:/wheels:ro \\
  --build-arg BASE={base} --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels -t {name} .
"""
COPY = """
c=$($B from {base})
for file in {files}; do $B copy -q $c $file / ; done
$B config --entrypoint '{entrypoint}' --user {user} $c
$B commit -q --format docker $c {name}
$B rm $c > /dev/null
"""
PUSH = """
rm -f {file}
$B push -q {name} docker-archive:{file}:{name}
"""


class Images:
    """Makes images, and archives of them for containerd.

    Args:
        run: Runs a shell script among the cluster's mounts, so that buildah's own end with them.
        directory: Where the archives go.
        programs: From `binaries`.
        tree: A Debian tree with Python.
        wheels: The wheels of requirements.lock.
        checkout: The sources.
    """

    def __init__(
        self,
        run: Callable[[str], str],
        directory: str,
        *,
        programs: str,
        tree: str,
        wheels: str,
        checkout: str,
    ) -> None:
        self._run, self._directory, self._programs = run, directory, programs
        self._tree, self._wheels, self._checkout = tree, wheels, checkout
        self._base = f"localhost/base:{os.path.basename(tree)[:60]}"

    def make(self) -> list[str]:
        """The archives of all images."""
        self._buildah(BASE, tree=self._tree, name=self._base)
        step("building the image")
        values = {"checkout": self._checkout, "wheels": self._wheels, "base": self._base}
        self._buildah(BUILD + PUSH, name=SYNCD, file=self._file("syncd"), **values)
        pause = [f"{self._programs}/pause"]
        self._copy("pause", PAUSE, "scratch", pause, entrypoint='["/pause"]', user=65535)
        driver = [f"{self._programs}/{name}" for name in ("secrets-store-csi-driver", "registrar")]
        entrypoint = '["/secrets-store-csi-driver"]'
        self._copy("driver", DRIVER, self._base, driver, entrypoint=entrypoint, user=0)
        aidbox = '["python3", "-u", "/box.py"]'
        self._copy("aidbox", AIDBOX, self._base, [f"{_HERE}/box.py"], entrypoint=aidbox, user=1000)
        return [self._file(name) for name in ("pause", "driver", "aidbox", "syncd")]

    def _file(self, name: str) -> str:
        return f"{self._directory}/{name}.tar"

    def _copy(
        self, file: str, name: str, base: str, files: list[str], *, entrypoint: str, user: int
    ) -> None:
        values = {"files": " ".join(files), "entrypoint": entrypoint, "user": user}
        self._buildah(COPY + PUSH, name=name, base=base, file=self._file(file), **values)

    def _buildah(self, script: str, **values: object) -> None:
        storage = f"{cache()}/cluster-storage"
        options = f"--root {storage} --runroot /run/buildah --storage-driver overlay"
        self._run(f'B="buildah {options}"\n{script.format(**values)}')


def forget() -> None:
    """Removes buildah's layers from the cache."""
    shutil.rmtree(f"{cache()}/cluster-storage", ignore_errors=True)


def load(socket: str, archives: list[str], enter: list[str]) -> None:
    """Imports archives into containerd."""
    for archive in archives:
        command = ["ctr", "-a", socket, "-n", "k8s.io", "images", "import", archive]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
