"""`make image`: the image with its labels, and an SBOM of everything in it.

    syncd:VERSION, syncd:latest         in the builder's own storage: push it, deploy it by digest
    dist/syncd-VERSION-image.cdx.json   SBOM (CycloneDX 1.6): Debian's packages of the base, Python,
                                        and syncd with its dependencies

DOCKER is the command to use: docker, or podman. The SBOM says what the image has, not what its
sources promise: it is read from a container of it. `docker buildx build --sbom=true` attaches
another to an image that is pushed.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

from build import DIST, ROOT, git, locked_hashes, normalized, run, version_of, write, write_sums
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

DOCKER: Final = os.environ.get("DOCKER", "docker")
_LOOK: Final = """
import importlib.metadata, json, platform
found = importlib.metadata.distributions(path=["/opt/syncd"])
print(json.dumps({
    "python": platform.python_version(),
    "machine": platform.machine(),
    "system": platform.freedesktop_os_release(),
    "dpkg": open("/var/lib/dpkg/status").read(),
    "libraries": {item.name: item.version for item in found},
}))
"""


def main() -> None:
    """Builds the image, and describes it."""
    version = version_of()
    commit, time = git("log", "-1", "--format=%H %ct").split()
    if git("status", "--porcelain"):
        commit += "-modified"
    created = datetime.fromtimestamp(int(time), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    name = f"syncd:{version}"
    # no build arguments: podman takes labels made of them from its cache after they changed
    labels = {"version": version, "revision": commit, "created": created}
    options = [f"--label=org.opencontainers.image.{key}={text}" for key, text in labels.items()]
    run(DOCKER, "build", *options, "-t", name, "-t", "syncd:latest", ".")
    look = ("--entrypoint", "python3", name, "-I", "-c", _LOOK)
    found = json.loads(run(DOCKER, "run", "--rm", "--network", "none", *look))
    DIST.mkdir(exist_ok=True)
    write(DIST / f"syncd-{version}-image.cdx.json", bill_of_materials(found, version, created))
    write_sums()


def bill_of_materials(found: dict[str, Any], version: str, created: str) -> dict[str, Any]:
    """The SBOM of what a container of the image has found in it."""
    system, hashes = found["system"], locked_hashes()
    components = [
        {
            "type": "operating-system",
            "name": system["ID"],
            "version": system["VERSION_ID"],
            "bom-ref": "system",
        },
        component("generic", "python", found["python"]),
    ]
    where = f"distro={system['ID']}-{system['VERSION_ID']}"
    for package in packages_of(found["dpkg"]):
        more = f"?arch={package['Architecture']}&{where}"
        name = f"{system['ID']}/{package['Package']}"
        components.append(component("deb", name, package["Version"], more))
    for name, installed in sorted(found["libraries"].items()):
        library = component("pypi", normalized(name), installed)
        known = hashes[normalized(name), installed]
        reference = f"https://pypi.org/simple/{normalized(name)}/"
        listed = [{"alg": "SHA-256", "content": digest} for digest in known]
        library["externalReferences"] = [
            {"type": "distribution", "url": reference, "hashes": listed}
        ]
        components.append(library)
    sbom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "component": {
                "type": "container",
                "name": "syncd",
                "version": version,
                "bom-ref": "syncd",
                "properties": [{"name": "architecture", "value": found["machine"]}],
            },
        },
        "components": components,
    }
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(sbom))
    if problem is not None:
        sys.exit(f"make image: the SBOM is not valid CycloneDX: {problem}")
    return sbom


def component(kind: str, name: str, version: str, more: str = "") -> dict[str, Any]:
    """A library or program, with its package URL."""
    # colons and plus signs are usual in Debian's versions, and have a meaning in URLs
    quoted = version.replace("%", "%25").replace("+", "%2B").replace(":", "%3A")
    purl = f"pkg:{kind}/{name}@{quoted}{more}"
    return {
        "type": "library",
        "name": name.rpartition("/")[2],
        "version": version,
        "purl": purl,
        "bom-ref": purl,
    }


def packages_of(status: str) -> list[dict[str, str]]:
    """The installed packages of dpkg's status file."""
    stanzas = (
        dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        for stanza in status.strip().split("\n\n")
    )
    return [item for item in stanzas if item.get("Status") == "install ok installed"]


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
