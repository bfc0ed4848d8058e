"""`make dist`: what a release has for those who verify it, and that anyone can build the same."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from support.documents import commands
from support.machine import step
from support.sources import run

from syncd import __version__

if TYPE_CHECKING:
    from pathlib import Path

STEM = f"syncd-{__version__}"


@pytest.fixture
def clone(release: Path) -> Path:
    return release


def sums(clone: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in (clone / "dist").iterdir()}


def load(clone: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((clone / "dist" / f"{STEM}.{name}.json").read_text())
    return found


def test_how_security_md_verifies_a_release(clone: Path) -> None:
    """Its commands work, and a file that was changed is found."""
    (verify,) = commands("SECURITY.md", "verify")
    verify = verify.replace("pip-audit ", "pip-audit --dry-run ").replace("VERSION", __version__)
    run(clone / "dist", f'export PATH="{clone}/.cache/release/bin:$PATH"\n{verify}')
    wheel = clone / "dist" / f"{STEM}-py3-none-any.whl"
    content = wheel.read_bytes()
    wheel.write_bytes(content + b"x")
    try:
        assert "FAILED" in run(clone / "dist", verify, check=False).stdout
    finally:
        wheel.write_bytes(content)


def test_the_sbom_has_every_dependency_with_its_hashes(clone: Path) -> None:
    """What an installation has, each with a package URL, a licence, and the lock's hashes."""
    sbom = load(clone, "cdx")
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    root = sbom["metadata"]["component"]
    assert (root["name"], root["version"]) == ("syncd", __version__)
    assert root["hashes"][0]["content"] == sums(clone)[f"{STEM}-py3-none-any.whl"]
    lock = (clone / "requirements.lock").read_text()
    for component in sbom["components"]:
        name = re.sub(r"[-_.]+", "-", component["name"]).lower()
        assert component["purl"] == f"pkg:pypi/{name}@{component['version']}"
        assert component["licenses"]
        hashes = component["externalReferences"][-1]["hashes"]
        assert hashes
        assert all(f"--hash=sha256:{item['content']}" in lock for item in hashes)
    pinned = re.findall(r"(?m)^([A-Za-z0-9._-]+)==(\S+)( ;.*)? \\$", lock)
    always = {(name.lower(), version) for name, version, marker in pinned if not marker}
    listed = {
        (re.sub(r"[-_.]+", "-", item["name"]).lower(), item["version"])
        for item in sbom["components"]
    }
    assert always <= listed
    (top,) = (item for item in sbom["dependencies"] if item["ref"] == root["bom-ref"])
    assert any(ref.startswith("anyio==") for ref in top["dependsOn"])


def test_the_provenance_names_commit_and_artifacts(clone: Path) -> None:
    """An in-toto statement about every other file; no login of the remote's URL is in it."""
    statement = load(clone, "provenance")
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    expected = sums(clone)
    del expected["SHA256SUMS"], expected[f"{STEM}.provenance.json"]
    assert {item["name"]: item["digest"]["sha256"] for item in statement["subject"]} == expected
    commit = run(clone, "git rev-parse HEAD").stdout.strip()
    definition = statement["predicate"]["buildDefinition"]
    source, lock, _ = definition["resolvedDependencies"]
    assert source["digest"] == {"gitCommit": commit}
    assert source["uri"] == "git+https://git.example.org/syncd.git"
    assert lock["digest"]["sha256"] == expected[f"{STEM}-requirements.txt"]
    assert "CANARY" not in json.dumps(statement)


def test_the_same_commit_gives_the_same_files(clone: Path) -> None:
    """All but the provenance, which has the time of the build, and so the list of checksums."""
    before = sums(clone)
    step("make dist, again")
    run(clone, "make dist")
    changed = {name for name, digest in sums(clone).items() if before[name] != digest}
    assert changed <= {"SHA256SUMS", f"{STEM}.provenance.json"}


def test_what_is_in_the_archives(clone: Path) -> None:
    """The package, and nothing that lay about."""
    with zipfile.ZipFile(clone / "dist" / f"{STEM}-py3-none-any.whl") as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"syncd", f"{STEM}.dist-info"}
    with tarfile.open(clone / "dist" / f"{STEM}.tar.gz") as archive:
        names = archive.getnames()
    assert f"{STEM}/SECURITY.md" in names
    assert not [name for name in names if "__pycache__" in name or ".cache" in name]


def test_every_file_has_a_checksum(clone: Path) -> None:
    """Wheel, source, both packages, and what verifies them."""
    with (clone / "dist" / "SHA256SUMS").open() as file:
        listed = {line.split()[1] for line in file}
    assert listed == sums(clone).keys() - {"SHA256SUMS"}
    packages = {f"syncd_{__version__}-1_amd64.deb", f"{STEM}-1.x86_64.rpm"}
    assert {f"{STEM}-py3-none-any.whl", f"{STEM}.tar.gz", *packages} <= listed


def test_no_release_that_the_changelog_does_not_know(clone: Path) -> None:
    """Each version has a dated section there."""
    changelog = clone / "CHANGELOG.md"
    text = changelog.read_text()
    changelog.write_text(text.replace(f"## [{__version__}]", "## [9.9.9]"))
    run(clone, "git -c user.name=t -c user.email=t@example.org commit -q -a -m Undated")
    before = sums(clone)
    try:
        done = run(clone, "make dist", check=False)
    finally:
        run(clone, "git reset -q --hard HEAD~1")
    assert done.returncode != 0
    assert f"CHANGELOG.md has no section '## [{__version__}] - DATE'" in done.stderr
    assert sums(clone) == before


def test_no_release_of_uncommitted_changes(clone: Path) -> None:
    """Nobody else could build it."""
    before = sums(clone)
    (clone / "syncd" / "extra.py").write_text("")
    try:
        done = run(clone, "make dist", check=False)
    finally:
        (clone / "syncd" / "extra.py").unlink()
    assert done.returncode != 0
    assert "the work tree differs from its commit; commit the changes first" in done.stderr
    assert sums(clone) == before
