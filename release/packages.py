"""The .deb and the .rpm: syncd with all that it imports, for the distribution's own Python.

    dist/syncd_VERSION-1_amd64.deb, syncd-VERSION-1.x86_64.rpm

nfpm makes both from `release/package/nfpm.yaml`, on any machine and without root. One package is
for all distributions: the few compiled modules are there once for each Python, under names that do
not collide (`_core.cpython-313-….so`), and everything else is the same file for all. Bytecode is
made when the package is installed, for the Python that is there.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "release" / "package"
BIN: Final = Path(sys.executable).parent
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
PLATFORM: Final = "x86_64-manylinux_2_28"
_BOOKKEEPING: Final = ("RECORD", "WHEEL", "INSTALLER", "REQUESTED")
_CHANGELOG: Final = """\
syncd ({version}-1) unstable; urgency=medium

  * Release {version}: see changelog.gz.

 -- syncd maintainers <maintainers@syncd.io>  {date}
"""
_COPYRIGHT: Final = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: syncd

Files: *
Copyright: 2026 the authors of syncd
License: Apache-2.0
 On Debian systems, the full text of the Apache License, Version 2.0 is in
 /usr/share/common-licenses/Apache-2.0.

Files: usr/lib/syncd/*
Copyright: 2026 the authors of each library
License: several
 The libraries that syncd imports, each with its license; the texts are in
 /usr/lib/syncd/NAME-VERSION.dist-info.
 .
{libraries}
"""


def build(dist: Path, version: str, epoch: int) -> None:
    """Makes both packages.

    Args:
        dist: Where they go.
        version: As in `syncd.__version__`.
        epoch: Time of the commit, which is that of every file in them.
    """
    with tempfile.TemporaryDirectory() as directory:
        stage = Path(directory)
        library = stage / "all" / "usr" / "lib" / "syncd"
        install_library(stage, library)
        install_files(stage, library)
        install_for_debian(stage, library, version, epoch)
        for name in ("nfpm.yaml", "postinst", "prerm", "postrm"):
            shutil.copyfile(PACKAGE / name, stage / name)
        shutil.copyfile(ROOT / "systemd" / "syncd.yaml", stage / "syncd.yaml")
        for path in stage.rglob("*"):
            os.utime(path, (epoch, epoch))
        # 1.0rc1 comes before 1.0
        os.environ["VERSION"] = re.sub(r"(?<=\d)(?=(a|b|rc)\d)", "~", version)
        os.environ["SOURCE_DATE_EPOCH"] = str(epoch)
        for packager in ("deb", "rpm"):
            _run(BIN / "nfpm", "package", "-f", "nfpm.yaml", "-p", packager, "-t", dist, cwd=stage)


def install_library(stage: Path, library: Path) -> None:
    """Syncd and its dependencies, with the compiled modules for each Python."""
    for python in PYTHONS:
        target = stage / "for" / python
        command = (BIN / "uv", "pip", "install", "-q", "--no-config", "--python", sys.executable)
        _run(
            *(*command, "--python-version", python, "--python-platform", PLATFORM),
            *("--require-hashes", "--only-binary", ":all:", "--link-mode", "copy"),
            *("--target", target, "-r", ROOT / "requirements.lock"),
        )
        shutil.rmtree(target / "bin", ignore_errors=True)
        for path in sorted(target.rglob("*")):
            if path.is_dir() or path.name in _BOOKKEEPING:
                continue
            installed = library / path.relative_to(target)
            if not installed.exists():
                installed.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, installed)
            elif installed.read_bytes() != path.read_bytes():
                sys.exit(f"make dist: {installed.name} is not the same for each Python")
    shutil.copytree(ROOT / "syncd", library / "syncd", ignore=shutil.ignore_patterns("__pycache__"))


def install_files(stage: Path, library: Path) -> None:
    """Units, man pages, documentation: what `make install` installs, too."""
    _run(
        *("make", "-s", "install-files", "prefix=/usr", f"DESTDIR={stage / 'all'}"),
        f"STAGE={stage / 'made'}",
        f"AS_INSTALLED=PYTHONPATH={library} {sys.executable} -B",
        "INTERPRETER=/usr/bin/python3",
    )
    doc = stage / "all" / "usr" / "share" / "doc" / "syncd"
    for extra in ("CHANGELOG.md", "LICENSE"):
        (doc / extra).unlink()


def install_for_debian(stage: Path, library: Path, version: str, epoch: int) -> None:
    """What Debian's policy asks for, and where it wants some of the files."""
    share = stage / "deb" / "usr" / "share"
    doc = share / "doc" / "syncd"
    doc.mkdir(parents=True)
    _compress(doc / "changelog.gz", (ROOT / "CHANGELOG.md").read_text())
    date = datetime.fromtimestamp(epoch, UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    _compress(doc / "changelog.Debian.gz", _CHANGELOG.format(version=version, date=date))
    found = sorted(distributions(path=[str(library)]), key=lambda item: item.name.lower())
    libraries = "\n".join(f" {item.name} {item.version}: {_license(item)}" for item in found)
    (doc / "copyright").write_text(_COPYRIGHT.format(libraries=libraries))
    overrides = share / "lintian" / "overrides" / "syncd"
    overrides.parent.mkdir(parents=True)
    shutil.copyfile(PACKAGE / "lintian-overrides", overrides)
    rtupdate = share / "python3" / "runtime.d" / "syncd.rtupdate"
    rtupdate.parent.mkdir(parents=True)
    shutil.copyfile(PACKAGE / "rtupdate", rtupdate)
    rtupdate.chmod(0o755)
    site = Path("usr", "share", "zsh", "site-functions", "_syncd")
    (stage / "rpm" / site.parent).mkdir(parents=True)
    (share / "zsh" / "vendor-completions").mkdir(parents=True)
    shutil.copyfile(stage / "all" / site, share / "zsh" / "vendor-completions" / "_syncd")
    shutil.move(stage / "all" / site, stage / "rpm" / site)
    (stage / "all" / site.parent).rmdir()
    (stage / "all" / site.parent.parent).rmdir()


def _license(library: Distribution) -> str:
    """The license that a library declares."""
    said = library.metadata
    if expression := said["License-Expression"]:
        return expression
    classes = [item for item in said.get_all("Classifier", []) if item.startswith("License ::")]
    return classes[0].rpartition(" :: ")[2] if classes else said["License"].splitlines()[0]


def _compress(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _run(*command: str | Path, cwd: Path = ROOT) -> None:
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False, cwd=cwd).returncode:  # noqa: S603 - the commands of this file
        sys.exit(f"make dist: {Path(command[0]).name} failed")
