"""A fake of Azure for tests: Key Vault and Microsoft Entra ID over HTTPS, IMDS over HTTP.

It speaks the REST API as documented (learn.microsoft.com/rest/api/keyvault, 2025-07-01): the
challenge, versions and their pages, error codes. It runs in threads of its own, for tests that use
the real SDK in process and for those with a real daemon:

    with Azure(tmp_path) as azure:
        azure.set_secret("client-secret", "value")
        azure.fault(answer(429, retry_after="3"), hang)    # then it behaves again
        ...
        azure.requests                                     # what the vault was asked for
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import parse_qs, urlsplit

from support.tls import Authority

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

TENANT = "00000000-1111-2222-3333-444444444444"
CLIENT = "99999999-8888-7777-6666-555555555555"
TOKEN = "CANARY-5ecre7-access-token"
PAGE = 2
RESOURCE = "https://vault.azure.net"

Fault = Callable[["_Handler"], None]


def answer(status: int, code: str = "Whatever", inner: str = "", **headers: str) -> Fault:
    """An error as Key Vault makes it; its texts hold what must not be repeated."""
    error: dict[str, Any] = {"code": code, "message": "CANARY-5ecre7 in the message"}
    if inner:
        error["innererror"] = {"code": inner}
    body = json.dumps({"error": error}).encode()
    return lambda handler: handler.say(status, body, **headers)


def garbage(handler: _Handler) -> None:
    """A 200 that is not Key Vault's."""
    handler.say(200, b"<html>CANARY-5ecre7</html>", content_type="text/html")


def odd(handler: _Handler) -> None:
    """JSON, but not what was asked for."""
    handler.say(200, b'["CANARY-5ecre7"]')


def close(handler: _Handler) -> None:
    """The connection goes without an answer."""
    handler.close_connection = True
    handler.connection.close()


def hang(handler: _Handler) -> None:
    """Nothing comes until the fake ends."""
    handler.azure.released.wait()


def cut(handler: _Handler) -> None:
    """An answer that ends before its length."""
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"value": "CANARY')
    close(handler)


class Azure:
    """One vault, its tenant, and a machine with identities."""

    def __init__(self, directory: Path, *, context: ssl.SSLContext | None = None) -> None:
        self.authority = Authority(directory, f"azure-ca-{secrets.token_hex(4)}")
        self._server = _Server(("127.0.0.1", 0), _Handler, self)
        self._server.socket = (context or self.authority.server()).wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._imds = _Server(("127.0.0.1", 0), _Handler, self)
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        self.imds = f"http://127.0.0.1:{self._imds.server_port}"
        self.environment = directory / "cloud.json"
        self.environment.write_text(
            json.dumps({"activeDirectoryEndpoint": self.url + "/", "keyVaultDNSSuffix": "vault.x"})
        )
        self.objects: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.versions: list[str] = []
        self.told: list[dict[str, str]] = []
        self.logins: list[dict[str, str]] = []
        self.identities: dict[str | None, str] = {None: TOKEN}
        self.accepted = {TOKEN}
        self.client_secret = "CANARY-5ecre7-client"
        self.released = threading.Event()
        self._faults: deque[Fault] = deque()
        self._faults_at: dict[str, Fault] = {}
        self._login_faults: deque[Fault] = deque()
        self._lock = threading.Lock()
        self._clock = 1_700_000_000

    def __enter__(self) -> Self:
        for server in (self._server, self._imds):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        for server in (self._server, self._imds):
            server.shutdown()
            server.server_close()

    def fault(self, *faults: Fault) -> None:
        """What the vault does instead of its duty, in the next requests with a token."""
        self._faults.extend(faults)

    def after(self, path: str, fault: Fault) -> None:
        """What happens instead of the next answer to a path."""
        self._faults_at[path] = fault

    def fault_login(self, *faults: Fault) -> None:
        """The same for Microsoft Entra ID and IMDS."""
        self._login_faults.extend(faults)

    def set_secret(self, name: str, value: str, **more: Any) -> str:
        """A new version of a secret; returns its id."""
        return self._add("secrets", name, {"value": value, **more})

    def set_key(self, name: str, jwk: dict[str, str]) -> str:
        """A new version of a key."""
        return self._add("keys", name, {"key": jwk})

    def set_certificate(self, name: str, der: bytes) -> str:
        """A new version of a certificate."""
        return self._add("certificates", name, {"cer": base64.b64encode(der).decode()})

    def enable(self, kind: str, name: str, version: str, *, enabled: bool) -> None:
        """Enables or disables a version."""
        for item in self.objects[kind, name]:
            if item["version"] == version:
                item["attributes"]["enabled"] = enabled

    def _add(self, kind: str, name: str, content: dict[str, Any]) -> str:
        version = secrets.token_hex(16)
        self._clock += 10
        item = {
            **content,
            "version": version,
            "id": f"{self.url}/{kind}/{name}/{version}",
            "attributes": {"enabled": True, "created": self._clock, "updated": self._clock},
        }
        if kind == "keys":
            item["key"] = {**content["key"], "kid": item["id"]}
        self.objects.setdefault((kind, name), []).append(item)
        return version

    # what the handler asks

    def vault(self, handler: _Handler, path: str, query: dict[str, list[str]]) -> None:
        self.versions += query.get("api-version", ["none"])
        token = handler.headers.get("authorization", "").removeprefix("Bearer ")
        if not token:
            challenge = f'Bearer authorization="{self.url}/{TENANT}", resource="{RESOURCE}"'
            handler.say(401, b"{}", www_authenticate=challenge)
            return
        with self._lock:
            self.requests.append(path)
            fault = self._faults_at.pop(path, None)
            if fault is None and self._faults:
                fault = self._faults.popleft()
        if fault is not None:
            fault(handler)
            return
        if token not in self.accepted:
            answer(401, "Unauthorized")(handler)
            return
        kind, name, *rest = path.strip("/").split("/")
        versions = self.objects.get((kind, name), [])
        if rest == ["versions"]:
            self._list(handler, kind, name, versions, query)
            return
        wanted = rest[0] if rest and rest[0] else None
        found = [item for item in versions if wanted in (None, item["version"])]
        if not found:
            answer(404, f"{kind[:-1].capitalize()}NotFound")(handler)
        elif not found[-1]["attributes"]["enabled"]:
            answer(403, "Forbidden", f"{kind[:-1].capitalize()}Disabled")(handler)
        else:
            handler.say(200, json.dumps(found[-1]).encode())

    def _list(
        self,
        handler: _Handler,
        kind: str,
        name: str,
        versions: list[dict[str, Any]],
        query: dict[str, list[str]],
    ) -> None:
        """Pages in no particular order, as the service has them."""
        start = int(query.get("$skiptoken", ["0"])[0])
        # the real service sorts by id, which says nothing of the age
        ordered = sorted(versions, key=lambda item: str(item["id"]))
        page = [
            {("kid" if kind == "keys" else "id"): item["id"], "attributes": item["attributes"]}
            for item in ordered[start : start + PAGE]
        ]
        following = start + PAGE if start + PAGE < len(ordered) else None
        link = f"{self.url}/{kind}/{name}/versions?api-version=7.6&$skiptoken={following}"
        body = {"value": page, "nextLink": None if following is None else link}
        handler.say(200, json.dumps(body).encode())

    def login(self, handler: _Handler, path: str, form: dict[str, str]) -> None:
        if path.endswith("/.well-known/openid-configuration"):
            base = self.url + path.removesuffix("/v2.0/.well-known/openid-configuration")
            endpoints = {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
            }
            handler.say(200, json.dumps(endpoints).encode())
            return
        self.logins.append(form)
        if self._login_faults:
            self._login_faults.popleft()(handler)
            return
        proves = "client_assertion" in form or form.get("client_secret") == self.client_secret
        if form.get("client_id") != CLIENT or TENANT not in path or not proves:
            error = {"error": "invalid_client", "error_description": "CANARY-5ecre7"}
            handler.say(401, json.dumps(error).encode())
            return
        token = {"token_type": "Bearer", "expires_in": 3600, "access_token": TOKEN}
        handler.say(200, json.dumps(token).encode())

    def control(self, told: dict[str, str]) -> None:
        """What Azure's command line was told to do (`support.az`)."""
        self.told.append(told)
        if told["command"] == "keyvault secret set":
            self.set_secret(told["name"], told["value"])

    def machine(self, handler: _Handler, query: dict[str, list[str]]) -> None:
        asked = {key: values[0] for key, values in query.items()}
        self.logins.append(asked)
        if self._login_faults:
            self._login_faults.popleft()(handler)
            return
        token = self.identities.get(asked.get("client_id"))
        if token is None or handler.headers.get("metadata") != "true":
            handler.say(400, b'{"error": "invalid_request"}')
            return
        body = {"access_token": token, "expires_in": "86400", "resource": asked["resource"]}
        handler.say(200, json.dumps(body).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[_Handler], azure: Azure) -> None:
        self.azure = azure
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout: ClassVar[float] = 60

    @property
    def azure(self) -> Azure:
        return self.server.azure

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if url.path.startswith("/metadata/"):
            self.azure.machine(self, query)
        elif ".well-known" in url.path:
            self.azure.login(self, url.path, {})
        else:
            self.azure.vault(self, url.path, query)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.path == "/control":
            self.azure.control(json.loads(body))
            self.say(200, b"")
            return
        form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
        self.azure.login(self, urlsplit(self.path).path, form)

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        fields = {"content_type": "application/json", **headers}
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """What was asked for is on record in `requests`."""

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            self.connection.close()

    def setup(self) -> None:
        self.connection = self.request
        assert isinstance(self.connection, socket.socket)
        super().setup()
