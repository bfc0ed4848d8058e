"""The configuration: the keys of `syncd.yaml`, their types and defaults.

The structures below are the reference; `syncd schema config` prints them as JSON Schema.
`syncd.config.validation` checks what types cannot express, `syncd.config.load` reads file and
environment. Secrets are never configured by value, only by the paths of the files that hold them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import msgspec

from syncd.config.auth import AbsolutePath, AzureAuth, VaultAuth
from syncd.core.decode import Duration, FileMode, Path, Size
from syncd.core.event_data import TYPE_NAMES
from syncd.core.findings import key_path
from syncd.core.model import Grant, Scope
from syncd.core.nats_binding import DEFAULT_SUBJECT, ContentMode
from syncd.system.accounts import LARGEST_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$(?!\n)",
        description="a name of letters, digits, ., _ and -, 63 at most",
        examples=["aidbox-hook"],
    ),
]


Instance = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[\x21-\x7e]{1,253}$(?!\n)",
        description="the name of this installation: 253 visible ASCII characters "
        "at most; the host name if not set",
        examples=["prod/aidbox-0"],
    ),
]

DurableName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9_-]{1,63}$(?!\n)",
        description="a name of letters, digits, _ and -, 63 at most",
        examples=["syncd-relay-central"],
    ),
]
BucketName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9_-]{1,63}$(?!\n)",
        description="a name of letters, digits, _ and -, 63 at most",
        examples=["syncd-state"],
    ),
]
HostName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9_.-]{1,253}$(?!\n)",
        description="a host name without a port",
        examples=["syncd.example.com"],
    ),
]
SocketPath = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(/[^\x00-\x1f\x7f]*)?$(?!\n)",
        description="an absolute path, or nothing",
        examples=["/run/syncd/syncd.sock"],
    ),
]


InFlight = Annotated[
    int,
    msgspec.Meta(ge=1, le=1000, description="deliveries that are made at the same time, at most"),
]


EventTypes = tuple[
    Literal[
        "changed",
        "vault_config",
        "adopted",
        "rejected",
        "recreated",
        "stale",
        "converged",
        "diverged",
    ],
    ...,
]
"""Short names of the types of events that a consumer gets."""

FormatName = Literal[
    "value", "header", "json", "jaas", "private-key", "certificate", "nats-credentials"
]
"""The formats that `syncd.core.content` knows."""


AidboxAction = Literal["drop_cache", "audit_event", "verify", "recreate_destinations", "rollout"]
"""What a consumer of kind `aidbox` does."""

ObjectName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$(?!\n)",
        description="the name of an object in Kubernetes",
        examples=["aidbox"],
    ),
]


class ScopeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A scope as in the vault config: one resource by type and id, or all resources of a type."""

    resource_type: str
    id: str | None = None


class ExtraFile(msgspec.Struct, frozen=True, kw_only=True):
    """A secret file outside the vault config: a TLS key, credentials of NATS, a licence.

    Attributes:
        path: The file.
        name: Its name in events; the path if not set.
        scope: Who sees it besides those without a scope: consumers and subscribers whose scope
            covers it.
        format: What its content must be; without it, only certificates and keys are judged.
    """

    path: AbsolutePath
    name: str | None = None
    scope: ScopeSettings | tuple[ScopeSettings, ...] | None = None
    format: FormatName | None = None


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """How the mount is watched; a file of `extra` is an entry, or its path alone."""

    roots: tuple[AbsolutePath, ...] = ()
    settle: Duration = Duration(0.05)
    rescan_interval: Duration = Duration(60)
    mode: Literal["auto", "inotify", "poll"] = "auto"
    max_secret_size: Size = Size(1 << 20)
    remount_grace: Duration = Duration(30)
    extra: tuple[ExtraFile | AbsolutePath, ...] = ()


class BasicAuth(msgspec.Struct, frozen=True, kw_only=True):
    """HTTP Basic credentials; the password is read from its file for every request."""

    username: str
    password_file: AbsolutePath


class Webhook(msgspec.Struct, frozen=True, kw_only=True, tag="webhook", tag_field="kind"):
    """A consumer that gets CloudEvents by HTTP POST."""

    name: Name
    url: str
    socket: AbsolutePath | None = None
    signing_key_file: AbsolutePath | None = None
    headers: dict[str, str] = {}
    basic_auth: BasicAuth | None = None
    bearer_token_file: AbsolutePath | None = None
    ca_file: AbsolutePath | None = None
    client_cert: AbsolutePath | None = None
    client_key: AbsolutePath | None = None
    timeout: Duration = Duration(10)
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    max_in_flight: InFlight = 16
    scope: tuple[ScopeSettings, ...] | None = None
    types: EventTypes | None = None


class Recreate(msgspec.Struct, frozen=True, kw_only=True):
    """How destinations of Aidbox are recreated after their secret was rotated."""

    delay: Duration = Duration(60)
    drain_timeout: Duration = Duration(600)
    force: bool = False
    stand_in: bool = True


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """The workload of Kubernetes that runs Aidbox, and what it reads only at its start."""

    kind: Literal["Deployment", "StatefulSet"] = "Deployment"
    name: ObjectName
    namespace: ObjectName | None = None
    secrets: tuple[str, ...] = ()


class Aidbox(msgspec.Struct, frozen=True, kw_only=True, tag="aidbox", tag_field="kind"):
    """A consumer that is Aidbox itself: caches, AuditEvents, adoption, and optional repair."""

    name: Name
    urls: tuple[str, ...]
    resolve: Literal["one", "all"] = "one"
    client_id: str
    client_secret_file: AbsolutePath
    grant_type: Literal["basic", "client_credentials"] = "basic"
    actions: tuple[AidboxAction, ...]
    verify_timeout: Duration = Duration(60)
    recreate: Recreate = Recreate()
    rollout: Rollout | None = None
    audit_url: str | None = None
    audit_bearer_token_file: AbsolutePath | None = None
    audit_basic_auth: BasicAuth | None = None
    audit_group: Name | None = None
    ca_file: AbsolutePath | None = None
    client_cert: AbsolutePath | None = None
    client_key: AbsolutePath | None = None
    timeout: Duration = Duration(10)
    max_in_flight: InFlight = 8
    scope: tuple[ScopeSettings, ...] | None = None
    types: EventTypes | None = None


class NatsServer(msgspec.Struct, frozen=True, kw_only=True):
    """NATS servers and the login to them; all files are read again for each connection."""

    urls: tuple[str, ...]
    user: str | None = None
    password_file: AbsolutePath | None = None
    token_file: AbsolutePath | None = None
    nkey_seed_file: AbsolutePath | None = None
    credentials_file: AbsolutePath | None = None
    ca_file: AbsolutePath | None = None
    client_cert: AbsolutePath | None = None
    client_key: AbsolutePath | None = None
    timeout: Duration = Duration(10)


class Nats(NatsServer, frozen=True, kw_only=True, tag="nats", tag_field="kind"):
    """A consumer that is a stream of NATS JetStream."""

    name: Name
    subject: str = DEFAULT_SUBJECT
    content_mode: ContentMode = "structured"
    state_bucket: BucketName | None = None
    state_heartbeat: Duration = Duration(60)
    max_in_flight: InFlight = 256
    scope: tuple[ScopeSettings, ...] | None = None
    types: EventTypes | None = None


COMMAND_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of commands, in which their names are looked up."""


class Exec(msgspec.Struct, frozen=True, kw_only=True, tag="exec", tag_field="kind"):
    """A consumer that is a command: events on its standard input, its exit code is the answer."""

    name: Name
    command: tuple[str, ...]
    timeout: Duration = Duration(30)
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    max_in_flight: InFlight = 1
    scope: tuple[ScopeSettings, ...] | None = None
    types: EventTypes | None = None


ConsumerSettings: TypeAlias = Webhook | Aidbox | Nats | Exec
"""A consumer of any kind."""


class Subscriber(msgspec.Struct, frozen=True, kw_only=True):
    """A local user who may use the socket, and the secrets that the user may see."""

    name: Name
    uid: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_ID)]
    scope: tuple[ScopeSettings, ...] | None = None


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses of the API: a Unix socket, and TCP for probes and metrics."""

    socket: SocketPath = ""
    socket_mode: FileMode = FileMode(0o660)
    socket_group: str | None = None
    subscribers: tuple[Subscriber, ...] = ()
    listen: str = ""
    allowed_hosts: tuple[HostName, ...] = ()
    metrics_secret_names: bool = False


class CredentialGrant(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that a systemd unit gets as a credential."""

    unit: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[A-Za-z0-9:_.\\@-]+\.[a-z]+$(?!\n)",
            description="the name of a systemd unit with its type, such as .service",
            examples=["my-app.service"],
        ),
    ]
    credential: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[^/:\x00-\x1f\x7f]{1,255}$(?!\n)",
            description="the name of a credential, without / and :, 255 bytes at most",
            examples=["client-secret"],
        ),
    ]
    secret: str


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """The socket for `LoadCredential=`, and the secrets that units get."""

    socket: SocketPath = ""
    grants: tuple[CredentialGrant, ...] = ()


class Provision(msgspec.Struct, frozen=True, kw_only=True):
    """Secrets that syncd fetches: a SecretProviderClass manifest and the target directory."""

    manifest: AbsolutePath
    target: AbsolutePath
    interval: Duration = Duration(120)
    owner: str | None = None
    group: str | None = None
    auth: VaultAuth | AzureAuth | None = None
    vault_url: str | None = None
    ca_file: AbsolutePath | None = None
    api_version: str | None = None
    verify_challenge_resource: bool = True


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """The log: threshold and format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class EventLog(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of the event log, from which subscribers resume."""

    max_events: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    max_age: Duration = Duration(30 * 86400)
    prune_interval: Duration = Duration(60)


class Kubernetes(msgspec.Struct, frozen=True, kw_only=True):
    """The API server, where it is not that of the pod, and the Lease of what one pod does."""

    server: str | None = None
    token_file: AbsolutePath | None = None
    ca_file: AbsolutePath | None = None
    namespace: ObjectName | None = None
    lease: ObjectName = "syncd"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration."""

    vault_config: AbsolutePath
    state_dir: AbsolutePath = "/var/lib/syncd"
    instance: Instance | None = None
    fingerprint_key_file: AbsolutePath | None = None
    watch: Watch = Watch()
    consumers: tuple[ConsumerSettings, ...] = ()
    api: Api = Api()
    credentials: Credentials = Credentials()
    provision: tuple[Provision, ...] = ()
    kubernetes: Kubernetes = Kubernetes()
    event_log: EventLog = EventLog()
    log: Log = Log()


class RelaySource(NatsServer, frozen=True, kw_only=True):
    """The stream and the events in it that a relay receives."""

    subject: str
    stream: str | None = None
    durable: DurableName | None = None
    max_secrets: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    state_bucket: BucketName | None = None
    converge_within: Duration = Duration(600)


class RelaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of `syncd relay`."""

    relay: RelaySource
    state_dir: AbsolutePath = "/var/lib/syncd-relay"
    instance: Instance | None = None
    consumers: tuple[ConsumerSettings, ...] = ()
    api: Api = Api()
    event_log: EventLog = EventLog()
    log: Log = Log()


def credential_files(
    settings: Settings | RelaySettings | ConsumerSettings,
) -> list[tuple[str, str]]:
    """The files whose content syncd uses itself, each with the key path that names it."""
    return list(_credential_files(settings, ()))


def _credential_files(tree: object, at: Path) -> Iterator[tuple[str, str]]:
    if isinstance(tree, msgspec.Struct):
        for key, item in msgspec.structs.asdict(tree).items():
            if isinstance(item, str) and (key.endswith("_file") or key in _CREDENTIALS):
                yield key_path(*at, key), item
            else:
                yield from _credential_files(item, (*at, key))
    elif isinstance(tree, tuple):
        for index, item in enumerate(tree):
            yield from _credential_files(item, (*at, index))


_CREDENTIALS = frozenset(("client_cert", "client_key"))


def grant(
    scope: tuple[ScopeSettings, ...] | None,
    types: EventTypes | None = None,
    *,
    extra: bool = True,
) -> Grant:
    """The grant of a `scope:` list and of `types`; without one of them, everything."""
    return Grant(
        None if scope is None else [Scope(item.resource_type, item.id) for item in scope],
        None if types is None else map(TYPE_NAMES.__getitem__, types),
        extra=extra,
    )


def grant_of(consumer: ConsumerSettings) -> Grant:
    """What a consumer gets.

    Aidbox documents its cache, and a login that proves a new value, for secrets of the vault config
    alone: files outside of it concern only the audit trail.
    """
    extra = not isinstance(consumer, Aidbox) or "audit_event" in consumer.actions
    return grant(consumer.scope, consumer.types, extra=extra)
