"""Lowkey Vault, an independent double of Azure Key Vault (github.com/nagyesta/lowkey-vault).

It is a Java program from Maven Central. Where Java or Maven or the artifact cannot be had, `fetch`
says which; the fake in `support.azure` is then the only judge.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Self

from azure.core.credentials import AccessToken, AccessTokenInfo
from azure.keyvault.certificates import CertificateClient
from azure.keyvault.secrets import SecretClient
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12
from support.openbao import free_ports
from support.waiting import DEADLINE, wait_until

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "3.4.33"
"""The last one for Java 17."""
ARTIFACT = f"com.github.nagyesta.lowkey-vault:lowkey-vault-app:{VERSION}"
CACHE = pathlib.Path(
    os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser(), "syncd-test"
)
API_VERSION = "7.6"
OPTIONS: dict[str, Any] = {"verify_challenge_resource": False, "api_version": API_VERSION}


class UnavailableError(Exception):
    """Why Lowkey Vault cannot be had here."""


def fetch() -> pathlib.Path:
    """The program, downloaded once.

    Raises:
        UnavailableError: Java, Maven or the artifact cannot be had.
    """
    jar = CACHE / f"lowkey-vault-app-{VERSION}.jar"
    if jar.exists():
        return jar
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"there is no {tool}")
    CACHE.mkdir(parents=True, exist_ok=True)
    command = ["mvn", "-q", "dependency:copy", f"-Dartifact={ARTIFACT}"]
    done = subprocess.run(
        [*command, f"-DoutputDirectory={CACHE}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(f"Maven has no {ARTIFACT}")
    return jar


class _Anybody:
    """Lowkey Vault takes every token."""

    def get_token_info(self, *_scopes: str, **_options: Any) -> AccessTokenInfo:
        return AccessTokenInfo("dummy", int(time.time()) + 3600)

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        return AccessToken("dummy", int(time.time()) + 3600)


class Lowkey:
    """A running Lowkey Vault, with the fake's ways of filling it."""

    def __init__(self, jar: pathlib.Path, directory: Path) -> None:
        self._port, self._imds_port = free_ports(), free_ports()
        self.url = f"https://localhost:{self._port}"
        self.imds = f"http://localhost:{self._imds_port}"
        self.ca_file = directory / "lowkey-ca.pem"
        self._command = [
            *("java", "-jar", str(jar)),
            *(f"--server.port={self._port}", f"--app.token.port={self._imds_port}"),
            f"--LOWKEY_VAULT_NAMES=-,localhost:{self._port}",
        ]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        content = self._await(f"{self.imds}/metadata/default-cert/lowkey-vault.p12")
        bundle = pkcs12.load_pkcs12(content, b"changeit")
        found = [bundle.cert, *bundle.additional_certs]
        certificates = [item.certificate for item in found if item is not None]
        self.ca_file.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
        options = {**OPTIONS, "connection_verify": str(self.ca_file)}
        self.secrets = SecretClient(self.url, _Anybody(), **options)
        self.certificates = CertificateClient(self.url, _Anybody(), **options)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _await(self, url: str) -> bytes:
        found: list[bytes] = []

        def answers() -> bool:
            assert self._process.poll() is None, "Lowkey Vault has ended"
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(url, timeout=DEADLINE) as answer,
            ):
                found.append(answer.read())
            return bool(found)

        wait_until(answers, "Lowkey Vault does not answer", 2 * DEADLINE)
        return found[0]

    def set_secret(self, name: str, value: str) -> str:
        """A new version of a secret; returns its id."""
        version = self.secrets.set_secret(name, value).properties.version
        assert version is not None
        time.sleep(1.1)  # it keeps times in seconds, and versions are ordered by them
        return version

    def enable(self, _kind: str, name: str, version: str, *, enabled: bool) -> None:
        """Enables or disables a version of a secret."""
        self.secrets.update_secret_properties(name, version, enabled=enabled)
