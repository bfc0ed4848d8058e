"""A double of Aidbox: a real HTTP server in a process of its own. It is not Aidbox.

The server is `aidbox_server.py` beside this file. It implements what the public documentation
(HealthSamurai/aidbox-docs) says of these things, and nothing else:

| row | page |
| --- | --- |
| deny by default: 403 unless an AccessPolicy (engine `matcho` or `allow`, `link`) lets the Client | docs/access-control/authorization/access-policies.md |
| HTTP Basic `Client.id:Client.secret` where `grant_types` holds `basic`; else 401 | docs/access-control/authentication/basic-http-authentication.md |
| `POST /auth/token`, form with Basic or JSON; `expires_in` where the Client has an expiration | docs/tutorials/security-access-control-tutorials/client-credentials-grant.md |
| `POST /$drop-cache`: 200, no body, the caches of the replica that receives it | docs/api/other/cache.md |
| secrets from files by the vault config, loaded once; scope enforced; cached with a TTL, then validated against the modification time | docs/configuration/secret-files.md |
| FHIR read and search with `_count`, `_page`, `link[relation=next]` | docs/api/rest-api/fhir-search/README.md |
| conditional create (`If-None-Exist`): 201, 200, 412; an id in the body of a POST is kept, twice it is a duplicate key | docs/configuration/init-bundle.md |
| `POST` and `GET /fhir/AuditEvent` | docs/access-control/audit-and-logging.md |
| init bundle (`PUT`, and `POST` with `ifNoneExist`) before the server listens | docs/configuration/init-bundle.md |
| AidboxTopicDestination: 405 on PUT and PATCH, but since 2608 a PUT that changes only a webhook's `endpoint`; DELETE drops its queue | docs/tutorials/subscriptions-tutorials/webhook-aidboxtopicdestination.md |
| a sender per replica: `$status` with `messagesQueued`, `startTimestamp` of this replica; 500 "has no sender associated with it" where a secret cannot be read | docs/modules/topic-based-subscriptions/aidbox-topic-based-subscriptions.md |
| an event is stored, in its own transaction, for every destination of its topic; `messagesQueued` is read from the database | docs/tutorials/subscriptions-tutorials/webhook-aidboxtopicdestination.md |
| external secrets since 2602; before 2603 a new destination can have no sender on the other replicas (here: always) | docs/overview/release-notes.md |
| 422 for an AuditEvent of R4 where the box has R5 or R6 | docs/access-control/audit-and-logging.md |
| `GET /health` with `about.version` and `uptime`, without credentials | docs.aidbox.app/app-development/receive-logs-from-your-app/health-check |

What the pages leave open is chosen here: the TTL (30 s), the status of wrong credentials (401), of
a duplicate key (409), the form of `next` (absolute, with the base URL of the box), and that a value
is taken without one newline at its end. A request that no policy permits is answered 403, or 401,
as one tutorial says (`denied`).

    with Aidbox(world.vault_config, bundle, replicas=3) as aidbox:
        aidbox.urls                       # one for each replica; they share a database
        aidbox.advance(29)                # its clock, on which TTL, tokens and uptime are measured
        aidbox.fail(503, "/$drop-cache", replica=1, times=2)
        aidbox.requests("/$drop-cache")
"""  # noqa: E501 - a table

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import threading
from typing import Any, Self

from support import aidbox_server
from support.aidbox_server import REFERENCE, TTL, Resource

MASKED = {
    "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
    "valueCode": "masked",
}


def reference(name: str) -> Resource:
    """The sibling of a primitive that refers to a secret."""
    return {"extension": [MASKED, {"url": REFERENCE, "valueString": name}]}


def client(id_: str, secret: str | Resource, *grants: str) -> Resource:
    """A Client whose secret is a value or a reference."""
    key = "secret" if isinstance(secret, str) else "_secret"
    return {
        "resourceType": "Client",
        "id": id_,
        key: secret,
        "grant_types": list(grants or ("basic", "client_credentials")),
    }


def allow(id_: str, **matcho: Any) -> Resource:
    """A policy that lets a Client make requests; without a pattern, all."""
    pattern = {name.replace("_", "-"): value for name, value in matcho.items()}
    return {
        "resourceType": "AccessPolicy",
        "id": f"{id_}-{secrets.token_hex(4)}",
        "link": [{"reference": f"Client/{id_}"}],
        **({"engine": "matcho", "matcho": pattern} if pattern else {"engine": "allow"}),
    }


def bundle(*resources: Resource) -> Resource:
    """A batch that puts resources."""
    return {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": [
            {
                "request": {"method": "PUT", "url": f"/{item['resourceType']}/{item['id']}"},
                "resource": item,
            }
            for item in resources
        ],
    }


class Aidbox:
    """The double, from the test's side.

    Args:
        vault_config: `BOX_VAULT_CONFIG`.
        bundle: `BOX_INIT_BUNDLE`, as JSON.
        replicas: How many; each has an address of its own, and all one port.
        ttl: Seconds that what was read from a file is cached.
        frozen: Whether its clock stands still but for `advance`.
        uptime: Seconds that it has been running already.
        queued: `messagesQueued` of destinations at the first replica, by id.
        destinations_started: `startTimestamp` of all destinations, seconds since the epoch.
        version: Its release, as `/health` reports it.
        denied: The status of a request that no policy permits.
        fhir: Its FHIR version.
        delivering: Whether a sender delivers messages after each `$status`.
        slow: Seconds before a destination is created.
        port: Where it listens; 0 for any.
    """

    def __init__(
        self,
        vault_config: str,
        bundle: Resource,
        *,
        replicas: int = 1,
        ttl: float = TTL,
        frozen: bool = False,
        uptime: float = 0.0,
        queued: dict[str, int] | None = None,
        destinations_started: float | None = None,
        version: str = "2605.0",
        denied: int = 403,
        fhir: str = "4.0.1",
        delivering: bool = False,
        slow: float = 0.0,
        port: int = 0,
        base: str = "http://aidbox.example.org",
    ) -> None:
        self._options = {
            "vault_config": vault_config,
            "bundle": bundle,
            "replicas": replicas,
            "ttl": ttl,
            "frozen": frozen,
            "uptime": uptime,
            "queued": queued or {},
            "destinations_started": destinations_started,
            "version": version,
            "denied": denied,
            "fhir": fhir,
            "delivering": delivering,
            "slow": slow,
            "port": port,
            "base": base,
        }
        self._replicas = replicas
        self._process: subprocess.Popen[str]
        self._asking = threading.Lock()
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, aidbox_server.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._ask(**self._options))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.{number + 1}" for number in range(self._replicas)]

    @property
    def urls(self) -> list[str]:
        return [f"http://{address}:{self.port}" for address in self.addresses]

    def advance(self, seconds: float) -> None:
        """Moves its clock."""
        self._ask(do="advance", seconds=seconds)

    def fail(
        self,
        status: int,
        path: str,
        *,
        replica: int | None = None,
        times: int = 1,
        method: str | None = None,
        skip: int = 0,
        **headers: str,
    ) -> None:
        """Answers the next requests for a path in this way, after some that are let through."""
        fault = {"path": path, "replica": replica, "times": times, "method": method, "skip": skip}
        self._ask(do="fail", status=status, headers=headers, **fault)

    def heal(self) -> None:
        """Forgets the faults."""
        self._ask(do="heal")

    def requests(self, path: str) -> list[Resource]:
        """What arrived for a path, in order."""
        found: list[Resource] = self._ask(do="requests", path=path)
        return found

    def resources(self, type_: str) -> list[Resource]:
        """What is in the database."""
        found: list[Resource] = self._ask(do="resources", type=type_)
        return found

    def restart(self, replica: int) -> None:
        """Restarts a replica: it reads the vault config and starts a sender per destination."""
        self._ask(do="restart", replica=replica)

    def hide(self, replica: int, *names: str) -> None:
        """Takes the files of these secrets, and of no others, away from a replica."""
        self._ask(do="hide", replica=replica, names=names)

    def enqueue(self, destination: str, count: int = 1, *, replica: int = 0) -> None:
        """Puts messages into the queue of a destination."""
        self._ask(do="enqueue", id=destination, count=count, replica=replica)

    def publish(self, topic: str, count: int = 1) -> None:
        """Publishes events: each goes into the queue of every destination of the topic."""
        self._ask(do="publish", topic=topic, count=count)

    @property
    def published(self) -> int:
        """How many events were published."""
        return int(self._ask(do="published"))

    def queued(self, destination: str) -> int:
        """How many published events wait in the queue of a destination."""
        return int(self._ask(do="queued", id=destination))

    def used(self, destination: str) -> list[list[bytes]]:
        """At each replica, the values that the sender of a destination has."""
        found = self._ask(do="used", id=destination)
        return [[value.encode("latin-1") for value in values] for values in found]

    @property
    def lost(self) -> int:
        """Messages that a DELETE dropped, and events that no destination delivers."""
        return int(self._ask(do="lost"))

    def _ask(self, **command: Any) -> Any:
        with self._asking:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
