"""`make dist`: a release, with what its users need to verify it.

    dist/syncd-VERSION-py3-none-any.whl, syncd-VERSION.tar.gz
    dist/syncd_VERSION-1_amd64.deb, syncd-VERSION-1.x86_64.rpm   see packages.py
    dist/syncd-VERSION-requirements.txt   every dependency with its hashes: input for pip, pip-audit
    dist/syncd-VERSION.cdx.json           SBOM (CycloneDX 1.6) of wheel and dependencies
    dist/syncd-VERSION.provenance.json    what it was built from (in-toto Statement, SLSA 1.0)
    dist/SHA256SUMS                       checksums of all of these

A release is built from a commit, in a work tree without changes. All but the provenance, which has
the time of the build, is the same for everyone who builds that commit with the same Python: times
are the commit's (SOURCE_DATE_EPOCH), tools and dependencies are pinned by hash.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import packages
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT: Final = Path(__file__).parents[1]
DIST: Final = ROOT / "dist"
LOCK: Final = ROOT / "requirements.lock"
TOOLS: Final = ROOT / "requirements-release.lock"
BIN: Final = Path(sys.executable).parent
_NAMED: Final = re.compile(r"([A-Za-z0-9._-]+)==([^ ;\\]+)")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VERSION: Final = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_PUBLIC: Final = re.compile(r"(https://|ssh://|git@)")


def main() -> None:
    """Builds everything, or nothing."""
    started = _now()
    if git("status", "--porcelain"):
        sys.exit("make dist: the work tree differs from its commit; commit the changes first")
    version = version_of()
    commit, time = git("log", "-1", "--format=%H %ct").split()
    os.environ |= {"SOURCE_DATE_EPOCH": time, "PYTHONHASHSEED": "0"}
    os.umask(0o022)
    shutil.rmtree(DIST, ignore_errors=True)
    run(BIN / "python", "-m", "hatchling", "build", "-d", DIST)
    run(BIN / "twine", "check", "--strict", *DIST.iterdir())
    (wheel,) = DIST.glob("*.whl")
    stem = f"syncd-{version}"
    packages.build(DIST, version, int(time))
    shutil.copyfile(LOCK, DIST / f"{stem}-requirements.txt")
    write(DIST / f"{stem}.cdx.json", bill_of_materials(wheel))
    subjects = sorted(DIST.iterdir())
    write(DIST / f"{stem}.provenance.json", provenance(subjects, commit, time, started))
    write_sums()


def write_sums() -> None:
    """Lists the checksums of everything in `DIST`."""
    names = sorted(path for path in DIST.iterdir() if path.name != "SHA256SUMS")
    sums = "".join(f"{_digest(path)}  {path.name}\n" for path in names)
    (DIST / "SHA256SUMS").write_text(sums)
    print(sums, end="")  # noqa: T201 - the output of the command


def bill_of_materials(wheel: Path) -> dict[str, Any]:
    """The SBOM of an environment with the wheel and its locked dependencies, and nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        python = Path(directory, "bin", "python")
        run(sys.executable, "-m", "venv", "--without-pip", directory)
        install: tuple[str | Path, ...] = (BIN / "python", "-m", "pip", "--python", python)
        install = (*install, "install", "-q", "--disable-pip-version-check", "--no-compile")
        run(*install, "--require-hashes", "--only-binary", ":all:", "-r", LOCK)
        run(*install, "--no-deps", "--no-index", wheel)
        sbom: dict[str, Any] = json.loads(
            run(
                *(BIN / "cyclonedx-py", "environment", python, "--mc-type", "application"),
                *("--pyproject", ROOT / "pyproject.toml", "--output-reproducible"),
            )
        )
    root = sbom["metadata"]["component"]
    version = wheel.name.split("-")[1]
    root |= {"version": version, "purl": f"pkg:pypi/syncd@{version}"}
    root["hashes"] = [{"alg": "SHA-256", "content": _digest(wheel)}]
    hashes = locked_hashes()
    for component in sbom["components"]:
        # one for each file of the version; which one is installed depends on the platform
        known = hashes[normalized(component["name"]), component["version"]]
        component.setdefault("externalReferences", []).append(
            {
                "type": "distribution",
                "url": f"https://pypi.org/simple/{normalized(component['name'])}/",
                "hashes": [{"alg": "SHA-256", "content": digest} for digest in known],
            }
        )
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(sbom))
    if problem is not None:
        sys.exit(f"make dist: the SBOM is not valid CycloneDX: {problem}")
    return sbom


def provenance(subjects: list[Path], commit: str, time: str, started: str) -> dict[str, Any]:
    """What was built from what: an in-toto Statement with SLSA's predicate, not signed."""
    source: dict[str, Any] = {"digest": {"gitCommit": commit}}
    origin = git("config", "--get", "--default", "", "remote.origin.url")
    if _PUBLIC.match(origin):
        source["uri"] = "git+" + re.sub(r"(?<=://)[^/@]*@", "", origin)  # without a login
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path.name, "digest": {"sha256": _digest(path)}} for path in subjects],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://syncd.io/build/make-dist/v1",
                "externalParameters": {"target": "dist"},
                "internalParameters": {
                    "SOURCE_DATE_EPOCH": time,
                    "python": platform.python_version(),
                },
                "resolvedDependencies": [
                    {"name": "source", **source},
                    *(
                        {"name": path.name, "digest": {"sha256": _digest(path)}}
                        for path in (LOCK, TOOLS)
                    ),
                ],
            },
            "runDetails": {
                "builder": {"id": os.environ.get("BUILDER_ID", "https://syncd.io/builder/local")},
                "metadata": {"startedOn": started, "finishedOn": _now()},
            },
        },
    }


def locked_hashes() -> dict[tuple[str, str], list[str]]:
    """The hashes that requirements.lock allows, by name and version."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    key = ("", "")
    for line in LOCK.read_text().splitlines():
        if named := _NAMED.match(line):
            key = normalized(named[1]), named[2]
        found[key] += _HASH.findall(line)
    return found


def version_of() -> str:
    """The version, of which the changelog says when it was released."""
    found = _VERSION.search((ROOT / "syncd" / "__init__.py").read_text())
    assert found is not None
    dated = rf"(?m)^## \[{re.escape(found[1])}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(dated, (ROOT / "CHANGELOG.md").read_text()):
        heading = f"## [{found[1]}] - DATE"
        sys.exit(
            f"make dist: CHANGELOG.md has no section {heading!r}; move what is unreleased there"
        )
    return found[1]


def normalized(name: str) -> str:
    """The name as the index has it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def write(path: Path, document: dict[str, Any]) -> None:
    """Writes JSON that is the same for the same document."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def git(*arguments: str) -> str:
    """What git prints about this repository."""
    return run("git", "-C", ROOT, *arguments).strip()


def run(*command: str | Path) -> str:
    """What a command prints; its failure ends the program."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)  # noqa: S603 - the commands of this file
    if done.returncode:
        sys.exit(f"release: {Path(command[0]).name} failed")
    return done.stdout


if __name__ == "__main__":
    main()
