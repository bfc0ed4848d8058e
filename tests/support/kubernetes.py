"""A double of a Kubernetes API server, over TLS: Leases and workloads. It is not Kubernetes.

| rule | page |
| --- | --- |
| each write makes a new `metadata.resourceVersion`; a PUT or PATCH that names another one is 409 | kubernetes.io/docs/reference/using-api/api-concepts, "Resource versions", "Updates to existing resources" |
| POST creates: 409 where it exists; GET is 404 where it does not | the same page, "API verbs" |
| PATCH with `application/merge-patch+json` (RFC 7386), else 415 | the same page, "Patch mechanism" |
| a SelfSubjectAccessReview says what its sender may do | …/authorization, "Checking API access" |
| a bearer token that is not known is 401, a verb that is not allowed 403 | docs/reference/access-authn-authz/authentication, …/rbac |

    with Kubernetes(tmp_path) as cluster:
        cluster.create("deployments", "aidbox")
        cluster.settings                       # of syncd
        cluster.patches("aidbox")              # the annotations after each patch
"""  # noqa: E501 - a table

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from support.tls import Authority

if TYPE_CHECKING:
    import os

TOKEN = "CANARY-" + "5ecre7-token"
NAMESPACE = "hospital"
GROUPS = {"leases": "coordination.k8s.io/v1", "deployments": "apps/v1", "statefulsets": "apps/v1"}
Object = dict[str, Any]


class Kubernetes:
    """The API server.

    Attributes:
        log: Verb, kind, name and status of each request.
        denied: Verbs that are not allowed, each with a kind.
        broken: Whether every request is answered 503.
        settings: The key `kubernetes` of syncd's configuration.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        authority = Authority(Path(directory), "cluster-ca")
        token = Path(directory) / "token"
        token.write_text(TOKEN)
        self.lock = threading.RLock()
        self.objects: dict[tuple[str, str], Object] = {}
        self.log: list[tuple[str, str, str, int]] = []
        self.denied: set[tuple[str, str]] = set()
        self.broken = False
        self.version = 0
        handler = type("Bound", (_Handler,), {"cluster": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        context = authority.server()
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.settings = {
            "server": f"https://127.0.0.1:{self._server.server_port}",
            "token_file": str(token),
            "ca_file": str(authority.file),
            "namespace": NAMESPACE,
        }

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create(self, kind: str, name: str, **more: Any) -> Object:
        with self.lock:
            return self.store(kind, {"metadata": {"name": name}, **more})

    def store(self, kind: str, content: Object) -> Object:
        self.version += 1
        content = {**content, "metadata": {**content["metadata"]}}
        content["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind, content["metadata"]["name"]] = content
        return content

    def annotations(self, kind: str, name: str) -> dict[str, str]:
        """Those of a pod template."""
        with self.lock:
            spec = self.objects[kind, name].get("spec", {})
        found: dict[str, str] = spec.get("template", {}).get("metadata", {}).get("annotations", {})
        return found

    def sent(self, verb: str, kind: str, status: int = 200) -> int:
        """How many requests of a verb were answered so."""
        with self.lock:
            return sum(entry[:2] + entry[3:] == (verb, kind, status) for entry in self.log)

    def serve(  # noqa: PLR0911 - a table of rules
        self, verb: str, kind: str, name: str, body: Object | None, type_: str
    ) -> Any:
        if self.broken:
            return 503, None
        if (verb, kind) in self.denied:
            return 403, None
        found = self.objects.get((kind, name))
        if verb == "POST":
            assert body is not None
            name = body["metadata"]["name"]
            return (409, None) if (kind, name) in self.objects else (201, self.store(kind, body))
        if found is None:
            return 404, None
        if verb == "GET":
            return 200, found
        assert body is not None
        named = body.get("metadata", {}).get("resourceVersion")
        if named not in (None, found["metadata"]["resourceVersion"]):
            return 409, None
        if verb == "PUT":
            return 200, self.store(kind, body)
        if type_ != "application/merge-patch+json":
            return 415, None
        return 200, self.store(kind, merged(found, body))


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a daemon that was killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Kubernetes

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        is_known = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if is_known and self.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            self.review(json.loads(body)["spec"]["resourceAttributes"])
            return
        parts = self.path.strip("/").split("/")
        if not is_known:
            self.cluster.log.append((self.command, "", "", 401))
            self.reply(401, None)
            return
        kind, name = parts[5], parts[6] if len(parts) > 6 else ""
        namespace = self.cluster.settings["namespace"]
        assert parts[:5] == ["apis", *GROUPS[kind].split("/"), "namespaces", namespace], self.path
        with self.cluster.lock:
            content = json.loads(body) if body else None
            type_ = self.headers.get("content-type", "")
            status, answer = self.cluster.serve(self.command, kind, name, content, type_)
            self.cluster.log.append((self.command, kind, name, status))
        self.reply(status, answer)

    def review(self, asked: Object) -> None:
        assert asked["namespace"] == NAMESPACE
        verb = {"update": "PUT", "create": "POST"}.get(asked["verb"], asked["verb"].upper())
        allowed = (verb, asked["resource"]) not in self.cluster.denied
        self.reply(201, {"status": {"allowed": allowed}})

    def reply(self, status: int, answer: Any) -> None:
        sent = json.dumps(answer or {"kind": "Status"}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 - the base's names
