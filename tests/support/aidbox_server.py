"""The process of the double of Aidbox: see `support.aidbox`, which says what it is a double of.

It is told what to do in lines of JSON on standard input, and answers each in a line.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

TTL = 30.0
SECRETS_SINCE, RACE_UNTIL, PUT_SINCE = 2602, 2603, 2608
DESTINATION = "AidboxTopicDestination"
DELIVERY = 0.02
LOGGED = ("if-none-exist", "content-type", "x-correlation-id", "traceparent")
REFERENCE = "http://health-samurai.io/fhir/secret-reference"
Resource = dict[str, Any]


def matches(pattern: Any, value: Any) -> bool:
    """Matcho (docs/reference/matcho-dsl-reference.md), as far as policies here need it."""
    if isinstance(pattern, dict):
        if "$enum" in pattern:
            return value in pattern["$enum"]
        return isinstance(value, dict) and all(matches(p, value.get(k)) for k, p in pattern.items())
    if pattern == "present?":
        return value is not None
    if isinstance(pattern, str) and pattern.startswith("#"):
        return isinstance(value, str) and re.search(pattern[1:], value) is not None
    return bool(pattern == value)


class Box:
    """What all replicas share: the database, the vault config as it was at the start, the clock."""

    def __init__(self, options: Resource) -> None:
        self.lock = threading.RLock()
        self.frozen = options["frozen"]
        self.ttl = options["ttl"]
        self.base = options["base"]
        self.offset = 0.0
        self.born = time.monotonic()
        self.epoch = time.time()
        self.resources: dict[str, dict[str, Resource]] = {}
        self.tokens: dict[str, tuple[str, float]] = {}
        self.faults: list[Resource] = []
        self.log: list[Resource] = []
        self.vault_config = options["vault_config"]
        self.version = options["version"]
        self.release = int(self.version.partition(".")[0])
        self.denied = options["denied"]
        self.fhir = options["fhir"]
        self.delivering = options["delivering"]
        self.slow = options["slow"]
        self.lost = 0
        self.queues: dict[str, list[str]] = {}
        self.published: set[str] = set()
        self.delivered: Counter[str] = Counter()
        self.replicas: list[Replica] = []
        for entry in options["bundle"]["entry"]:
            self.initialise(entry)

    def now(self) -> float:
        return self.offset + (0.0 if self.frozen else time.monotonic() - self.born)

    def wall(self) -> float:
        """Its clock as seconds since the epoch."""
        return self.epoch + self.now()

    def initialise(self, entry: Resource) -> None:
        request, resource = entry["request"], entry["resource"]
        if request["method"] == "PUT":
            type_, id_ = request["url"].strip("/").split("/")
            assert (resource["resourceType"], resource["id"]) == (type_, id_), request
            self.put(resource)
        else:
            assert request["method"] == "POST", request
            if not self.search(request["url"].strip("/"), request.get("ifNoneExist", "_id=")):
                self.put(resource)

    def put(self, resource: Resource) -> None:
        resource = {**resource, "meta": {"lastUpdated": "2026-01-01T00:00:00Z"}}
        self.resources.setdefault(resource["resourceType"], {})[resource["id"]] = resource

    def publish(self, topic: str, count: int) -> None:
        """Events of a topic: each is in the queue of every destination that there is."""
        for _ in range(count):
            message = f"{topic} {len(self.published)}"
            self.published.add(message)
            for id_, resource in self.resources.get(DESTINATION, {}).items():
                if resource.get("topic") == topic:
                    self.queues.setdefault(id_, []).append(message)

    def deliver(self) -> None:
        """Delivers what is in the queues of destinations that have a sender, again and again."""
        while True:
            with self.lock:
                for id_, queue in self.queues.items():
                    if any(id_ in replica.senders for replica in self.replicas):
                        self.delivered.update(queue)
                        queue.clear()
            time.sleep(DELIVERY)

    def missing(self) -> list[str]:
        """Published events that no destination has delivered or will deliver."""
        queued = {message for queue in self.queues.values() for message in queue}
        return sorted(self.published - self.delivered.keys() - queued)

    def search(self, type_: str, query: str) -> list[Resource]:
        parameters = parse_qs(query, keep_blank_values=True)
        assert set(parameters) <= {"_id"}, f"the double cannot search by {query}"
        found = self.resources.get(type_, {})
        return [found[i] for one in parameters["_id"] for i in one.split(",") if i in found]

    def allowed(self, request: Resource, client_id: str) -> bool:
        for policy in self.resources.get("AccessPolicy", {}).values():
            links = [link.get("reference") for link in policy.get("link", [])]
            if links and f"Client/{client_id}" not in links:
                continue
            if policy["engine"] == "allow" or matches(policy["matcho"], request):
                return True
        return False


class Replica:
    """One process of the box: its caches, its vault config, and its senders with their queues.

    Attributes:
        senders: When each sender of this replica started, seconds since the epoch.
        queued: Messages of this replica that are not delivered; kept in the database.
        hidden: Secrets whose files are not mounted here.
    """

    def __init__(self, box: Box, number: int) -> None:
        self.box = box
        self.number = number
        self.hidden: set[str] = set()
        self.queued: dict[str, int] = {}
        box.replicas.append(self)
        self.start()

    def start(self, *, uptime: float = 0.0, senders_started: float | None = None) -> None:
        """Starts or restarts it: the vault config is read, and each destination gets a sender."""
        self.started = self.box.now() - uptime
        self.cache: dict[str, tuple[float, int, bytes]] = {}
        with open(self.box.vault_config) as file:
            self.vault = json.load(file)["secret"]
        self.senders: dict[str, float] = {}
        self.used: dict[str, list[str]] = {}
        for resource in self.box.resources.get(DESTINATION, {}).values():
            self.open_sender(resource, senders_started)

    def hide(self, names: list[str]) -> None:
        self.hidden = set(names)

    def open_sender(self, resource: Resource, started: float | None = None) -> None:
        """Starts the sender of a destination, unless a secret of it cannot be read here."""
        self.used[resource["id"]] = used = []
        for item in resource.get("parameter", []):
            for extension in item.get("_valueString", {}).get("extension", []):
                if extension["url"] != REFERENCE:
                    continue
                value = self.read(extension["valueString"], resource["id"])
                if value is None:
                    return
                used.append(value.decode("latin-1"))
        self.senders[resource["id"]] = self.box.wall() if started is None else started

    def read(self, name: str, id_: str) -> bytes | None:
        try:
            return self.value(name, DESTINATION, id_)
        except OSError:
            return None

    def status(self, id_: str) -> tuple[int, Any]:
        if id_ not in self.senders:
            text = f"{DESTINATION}/{id_} has no sender associated with it"
            return 500, {"resourceType": "OperationOutcome", "text": {"div": text}}
        queued, queue = self.queued.get(id_, 0), self.box.queues.get(id_, [])
        waiting = queued + len(queue)
        if queued and self.box.delivering:
            self.queued[id_] = queued - 1
        started = datetime.fromtimestamp(self.senders[id_], UTC).isoformat()
        return 200, {
            "resourceType": "Parameters",
            "parameter": [
                {"name": "messagesQueued", "valueDecimal": waiting},
                {"name": "messagesInProcess", "valueDecimal": 0},
                {"name": "messagesDelivered", "valueDecimal": 2},
                {"name": "startTimestamp", "valueDateTime": started},
                {"name": "status", "valueString": "active"},
            ],
        }

    def value(self, name: str, type_: str, id_: str) -> bytes | None:
        entry = self.vault.get(name)
        if entry is None or name in self.hidden or self.box.release < SECRETS_SINCE:
            return None
        scope = entry["scope"]
        if scope["resource_type"] != type_ or scope.get("id", id_) != id_:
            return None
        at, mtime, value = self.cache.get(name, (-1e9, 0, b""))
        if self.box.now() - at >= self.box.ttl:
            with open(entry["path"], "rb") as file:
                seen = os.fstat(file.fileno()).st_mtime_ns
                if seen != mtime:
                    value = file.read().removesuffix(b"\n")
            self.cache[name] = (self.box.now(), seen, value)
        return value

    def secret_of(self, item: Resource) -> bytes | None:
        if "secret" in item:
            return str(item["secret"]).encode()
        for extension in item.get("_secret", {}).get("extension", []):
            if extension["url"] == REFERENCE:
                return self.value(extension["valueString"], "Client", item["id"])
        return None

    def authenticate(self, authorization: str | None, grant: str) -> str | None:
        """Id of the Client, or None."""
        kind, _, rest = (authorization or "").partition(" ")
        if kind == "Bearer":
            client_id, expires = self.box.tokens.get(rest, ("", 0.0))
            return client_id if client_id and self.box.now() < expires else None
        if kind != "Basic":
            return None
        id_, _, given = base64.b64decode(rest).partition(b":")
        return self.check(id_.decode(), given, grant)

    def check(self, id_: str, given: bytes, grant: str) -> str | None:
        item = self.box.resources.get("Client", {}).get(id_)
        if item is None or grant not in item.get("grant_types", []):
            return None
        wanted = self.secret_of(item)
        return id_ if wanted is not None and secrets.compare_digest(wanted, given) else None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    replica: ClassVar[Replica]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass

    def do_GET(self) -> None:
        self.serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base's names

    def serve(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        box = self.replica.box
        if self.command == "POST" and url.path == f"/fhir/{DESTINATION}":
            time.sleep(box.slow)
        with box.lock:
            client_id: str | None = None
            status, answer, headers = 0, None, dict[str, str]()
            fault = self.fault(url.path)
            if fault is not None:
                status = fault["status"]
                headers = fault["headers"]
            elif url.path == "/health":
                status, answer = 200, self.health()
            elif url.path == "/auth/token":
                status, answer = self.token(body)
            else:
                authorization = self.headers.get("authorization")
                client_id = self.replica.authenticate(authorization, "basic")
                if client_id is None:
                    status = 401 if authorization else 403
                elif not box.allowed(self.described(url.path, url.query), client_id):
                    status = box.denied
                else:
                    status, answer = self.operate(url.path, url.query, body)
            box.log.append(
                {
                    "replica": self.replica.number,
                    "method": self.command,
                    "target": self.path,
                    "client": client_id,
                    "status": status,
                    "host": self.headers.get("host"),
                    "headers": {
                        name: self.headers[name] for name in LOGGED if name in self.headers
                    },
                }
            )
        self.reply(status, answer, headers)

    def described(self, path: str, query: str) -> Resource:
        """The request as policies see it."""
        params = {name: values[0] for name, values in parse_qs(query).items()}
        return {"uri": path, "request-method": self.command.lower(), "params": params}

    def fault(self, path: str) -> Resource | None:
        for fault in self.replica.box.faults:
            here = fault["replica"] in (None, self.replica.number)
            if not here or path != fault["path"] or fault["method"] not in (None, self.command):
                continue
            if fault["skip"] > 0:
                fault["skip"] -= 1
            elif fault["times"] > 0:
                fault["times"] -= 1
                return fault
        return None

    def reply(self, status: int, answer: Any, headers: dict[str, str]) -> None:
        content = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", "application/fhir+json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def health(self) -> Resource:
        uptime = self.replica.box.now() - self.replica.started
        return {
            "status": "pass",
            "about": {"version": self.replica.box.version},
            "checks": {"uptime": [{"componentType": "system", "observedValue": uptime}]},
        }

    def token(self, body: bytes) -> tuple[int, Any]:
        box = self.replica.box
        if "json" in self.headers.get("content-type", ""):
            form = json.loads(body)
        else:
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        if form.get("grant_type") != "client_credentials":
            return 400, {"error": "unsupported_grant_type"}
        if "client_id" in form:
            secret = form.get("client_secret", "").encode()
            client_id = self.replica.check(form["client_id"], secret, "client_credentials")
        else:
            authorization = self.headers.get("authorization")
            client_id = self.replica.authenticate(authorization, "client_credentials")
        if client_id is None:
            return 401, {"error": "invalid_client"}
        auth = box.resources["Client"][client_id].get("auth", {}).get("client_credentials", {})
        lifetime = auth.get("access_token_expiration")
        token = secrets.token_urlsafe(24)
        box.tokens[token] = (client_id, box.now() + (lifetime or 1e12))
        answer = {"token_type": "Bearer", "access_token": token}
        return 200, answer if lifetime is None else {**answer, "expires_in": lifetime}

    def operate(  # noqa: PLR0911 - a table of routes
        self, path: str, query: str, body: bytes
    ) -> tuple[int, Any]:
        if path == "/$drop-cache" and self.command == "POST":
            self.replica.cache.clear()
            return 200, None
        prefix, _, rest = path.removeprefix("/").partition("/")
        type_, _, rest = rest.partition("/")
        if prefix != "fhir" or not type_:
            return 404, None
        id_, _, operation = rest.partition("/")
        if self.command == "GET" and operation == "$status":
            return self.destination_status(type_, id_)
        if self.command == "GET":
            return self.read(type_, id_) if id_ else self.page(type_, query)
        if self.command == "POST" and not id_:
            return self.create(type_, json.loads(body))
        if (
            self.command in ("PUT", "PATCH")
            and type_ == DESTINATION
            and not self.is_endpoint_only(id_, body)
        ):
            return 405, {"resourceType": "OperationOutcome"}
        if self.command == "PUT" and id_:
            self.replica.box.put(json.loads(body))
            return 200, json.loads(body)
        if self.command == "DELETE" and id_:
            return self.delete(type_, id_)
        return 405, None

    def is_endpoint_only(self, id_: str, body: bytes) -> bool:
        """Whether a PUT changes the endpoint of a webhook destination, and nothing else."""
        old = self.replica.box.resources.get(DESTINATION, {}).get(id_)
        if self.command != "PUT" or self.replica.box.release < PUT_SINCE or old is None:
            return False

        def fixed(resource: Resource) -> Resource:
            kept = [item for item in resource["parameter"] if item["name"] != "endpoint"]
            return {**resource, "parameter": kept, "meta": None}

        return fixed(old) == fixed(json.loads(body)) and old["kind"].startswith("webhook-")

    def delete(self, type_: str, id_: str) -> tuple[int, Any]:
        found = self.replica.box.resources.get(type_, {}).pop(id_, None)
        if found is not None and type_ == DESTINATION:
            for replica in self.replica.box.replicas:
                replica.senders.pop(id_, None)
                self.replica.box.lost += replica.queued.pop(id_, 0)
            self.replica.box.queues.pop(id_, None)
        return (204, None) if found is None else (200, found)

    def read(self, type_: str, id_: str) -> tuple[int, Any]:
        found = self.replica.box.resources.get(type_, {}).get(id_)
        return (404, {"resourceType": "OperationOutcome"}) if found is None else (200, found)

    def page(self, type_: str, query: str) -> tuple[int, Any]:
        parameters = {name: values[0] for name, values in parse_qs(query).items()}
        assert set(parameters) <= {"_count", "_page"}, f"the double cannot search by {query}"
        count, page = int(parameters.get("_count", 100)), int(parameters.get("_page", 1))
        found = list(self.replica.box.resources.get(type_, {}).values())
        shown = found[(page - 1) * count : page * count]
        link = [{"relation": "self", "url": self.link(type_, count, page)}]
        if page * count < len(found) and count:
            link.append({"relation": "next", "url": self.link(type_, count, page + 1)})
        return 200, {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": len(found),
            "link": link,
            "entry": [{"resource": item} for item in shown],
        }

    def link(self, type_: str, count: int, page: int) -> str:
        return f"{self.replica.box.base}/fhir/{type_}?_count={count}&_page={page}"

    def create(self, type_: str, resource: Resource) -> tuple[int, Any]:
        box = self.replica.box
        if resource.get("resourceType") != type_ or (
            type_ == "AuditEvent" and not box.fhir.startswith("4.")
        ):
            return 422, {"resourceType": "OperationOutcome"}
        condition = self.headers.get("if-none-exist")
        if condition is not None:
            found = box.search(type_, condition)
            if len(found) > 1:
                return 412, {"resourceType": "OperationOutcome"}
            if found:
                return 200, found[0]
        resource = {"id": secrets.token_hex(8), **resource}
        if resource["id"] in box.resources.get(type_, {}):
            return 409, {"resourceType": "OperationOutcome"}
        box.put(resource)
        if type_ == DESTINATION:
            for replica in box.replicas:
                if box.release >= RACE_UNTIL or replica is self.replica:
                    replica.open_sender(resource)
        return 201, resource

    def destination_status(self, type_: str, id_: str) -> tuple[int, Any]:
        if type_ != DESTINATION or id_ not in self.replica.box.resources.get(type_, {}):
            return 404, None
        return self.replica.status(id_)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def enqueue(box: Box, command: Resource) -> None:
    queued = box.replicas[command["replica"]].queued
    queued[command["id"]] = queued.get(command["id"], 0) + command["count"]


def advance(box: Box, command: Resource) -> None:
    box.offset += command["seconds"]


COMMANDS: dict[str, Callable[[Box, Resource], Any]] = {
    "advance": advance,
    "fail": lambda box, command: box.faults.append(command),
    "heal": lambda box, _: box.faults.clear(),
    "resources": lambda box, command: list(box.resources.get(command["type"], {}).values()),
    "lost": lambda box, _: box.lost + len(box.missing()),
    "publish": lambda box, command: box.publish(command["topic"], command["count"]),
    "published": lambda box, _: len(box.published),
    "used": lambda box, command: [replica.used.get(command["id"]) for replica in box.replicas],
    "restart": lambda box, command: box.replicas[command["replica"]].start(),
    "hide": lambda box, command: box.replicas[command["replica"]].hide(command["names"]),
    "enqueue": enqueue,
    "queued": lambda box, command: len(box.queues.get(command["id"], [])),
    "requests": lambda box, command: [
        item for item in box.log if urlsplit(item["target"]).path == command["path"]
    ],
}
"""What the test can ask for."""


def obey(box: Box, command: Resource) -> Any:
    with box.lock:
        return COMMANDS[command["do"]](box, command)


def say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    options = json.loads(sys.stdin.readline())
    box = Box(options)
    port = options["port"]
    for number in range(options["replicas"]):
        replica = Replica(box, number)
        replica.start(uptime=options["uptime"], senders_started=options["destinations_started"])
        if number == 0:
            replica.queued = options["queued"]
        handler = type("Replica", (Handler,), {"replica": replica})
        server = Server((f"127.0.0.{number + 1}", port), handler)
        port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
    if box.delivering:
        threading.Thread(target=box.deliver, daemon=True).start()
    say(port)
    for line in sys.stdin:
        say(obey(box, json.loads(line)))


if __name__ == "__main__":
    main()
