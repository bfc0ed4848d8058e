"""The configuration: what a user may write in `syncd.yaml` and in the environment.

The structures below are the reference (`syncd schema config` prints them as JSON Schema), and
`contradictions` is what they cannot say; `syncd.configuration` reads them. Secrets are never
configured by value: only paths of the files that hold them are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from syncd.core.decode import Duration, FileMode, Path, Problem, Size
from syncd.core.findings import key_path
from syncd.core.model import Grant, Scope
from syncd.providers.auth import AbsolutePath, AzureAuth, VaultAuth

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


class ScopeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A scope as the vault config writes it: a resource type, with an id or for all of it."""

    resource_type: str
    id: str | None = None


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """How the mount is watched."""

    roots: tuple[AbsolutePath, ...] = ()
    settle: Duration = Duration(0.05)
    rescan_interval: Duration = Duration(60)
    mode: Literal["auto", "inotify", "poll"] = "auto"
    max_secret_size: Size = Size(1 << 20)
    remount_grace: Duration = Duration(30)


class BasicAuth(msgspec.Struct, frozen=True, kw_only=True):
    """HTTP Basic credentials; the password is read from its file for every request."""

    username: str
    password_file: AbsolutePath


class Webhook(msgspec.Struct, frozen=True, kw_only=True, tag="webhook", tag_field="kind"):
    """A consumer that takes CloudEvents by HTTP POST."""

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
    scope: tuple[ScopeSettings, ...] | None = None


ConsumerSettings: TypeAlias = Webhook
"""A consumer of any kind."""


class Subscriber(msgspec.Struct, frozen=True, kw_only=True):
    """A local user who may use the socket, and what that user may see."""

    name: Name
    uid: Annotated[int, msgspec.Meta(ge=0)]
    scope: tuple[ScopeSettings, ...] | None = None


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """Where others ask: the Unix socket, and probes and metrics over TCP."""

    socket: AbsolutePath | Literal[""] = ""
    socket_mode: FileMode = FileMode(0o660)
    socket_group: str | None = None
    subscribers: tuple[Subscriber, ...] = ()
    listen: str = ""
    metrics_secret_names: bool = False


class CredentialGrant(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that a unit of systemd gets as a credential."""

    unit: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9:_.\\@-]+\.[a-z]+$(?!\n)")]
    credential: Annotated[str, msgspec.Meta(pattern=r"^[^/:\x00-\x1f\x7f]{1,255}$(?!\n)")]
    secret: str


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Where systemd asks for the credentials of its units, and which it gets."""

    socket: AbsolutePath | Literal[""] = ""
    grants: tuple[CredentialGrant, ...] = ()


class Provision(msgspec.Struct, frozen=True, kw_only=True):
    """Secrets that syncd fetches itself: a SecretProviderClass manifest and where to write it."""

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
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class EventLog(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the past the ledger keeps for subscribers to resume from."""

    max_events: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    max_age: Duration = Duration(30 * 86400)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration."""

    vault_config: AbsolutePath
    state_dir: AbsolutePath = "/var/lib/syncd"
    watch: Watch = Watch()
    consumers: tuple[ConsumerSettings, ...] = ()
    api: Api = Api()
    credentials: Credentials = Credentials()
    provision: tuple[Provision, ...] = ()
    event_log: EventLog = EventLog()
    log: Log = Log()


def credential_files(settings: Settings) -> list[tuple[str, str]]:
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


def grant(scope: tuple[ScopeSettings, ...] | None) -> Grant:
    """What a `scope:` list allows; without one, everything."""
    return Grant(None if scope is None else [Scope(item.resource_type, item.id) for item in scope])


def contradictions(section: object, at: Path) -> list[Problem]:
    """What a section that can be read must not say; called by `decode` for each of them."""
    if isinstance(section, Webhook):
        return _check_webhook(section, at)
    if isinstance(section, Watch) and section.rescan_interval <= 0:
        return [Problem((*at, "rescan_interval"), "must be above zero", "write 60s")]
    if isinstance(section, Api):
        return check_listen(section.listen) + _check_subscribers(section.subscribers, at)
    if isinstance(section, Credentials):
        return _check_grants(section.grants, at)
    if isinstance(section, Settings):
        names = [consumer.name for consumer in section.consumers]
        hint = "give each consumer its own name"
        return [
            Problem(("consumers", index, "name"), "is used twice", hint)
            for index, name in enumerate(names)
            if name in names[:index]
        ]
    return []


def _check_subscribers(subscribers: tuple[Subscriber, ...], at: Path) -> list[Problem]:
    uids = [subscriber.uid for subscriber in subscribers]
    hint = "give each uid one entry, with all of its scopes"
    return [
        Problem((*at, "subscribers", index, "uid"), "is used twice", hint)
        for index, uid in enumerate(uids)
        if uid in uids[:index]
    ]


def _check_grants(grants: tuple[CredentialGrant, ...], at: Path) -> list[Problem]:
    asked = [(grant.unit, grant.credential) for grant in grants]
    hint = "give each credential of a unit one secret"
    return [
        Problem((*at, "grants", index, "credential"), f"is granted to {unit} twice", hint)
        for index, (unit, credential) in enumerate(asked)
        if (unit, credential) in asked[:index]
    ]


def _check_webhook(webhook: Webhook, at: Path) -> list[Problem]:
    problems: list[Problem] = []
    if not _is_http_url(webhook.url):
        hint = "write http://host:port/path"
        problems.append(Problem((*at, "url"), "is not an http or https URL", hint))
    elif "@" in urlsplit(webhook.url).netloc:
        hint = "use basic_auth with a password_file"
        problems.append(Problem((*at, "url"), "holds credentials", hint))
    if webhook.basic_auth and webhook.bearer_token_file:
        problems.append(
            Problem((*at, "bearer_token_file"), "contradicts basic_auth", "keep one of them")
        )
    if bool(webhook.client_cert) != bool(webhook.client_key):
        missing = "client_key" if webhook.client_cert else "client_cert"
        problems.append(
            Problem((*at, missing), "is missing", "mTLS needs client_cert and client_key")
        )
    if webhook.timeout <= 0:
        problems.append(Problem((*at, "timeout"), "must be above zero", "write 10s"))
    for name, value in webhook.headers.items():
        if name.lower() in _OWN_HEADERS or name.lower().startswith("webhook-"):
            problems.append(Problem((*at, "headers", name), "is set by syncd itself", "remove it"))
        elif not (
            name.isascii()
            and name.replace("-", "").replace("_", "").isalnum()
            and value.isprintable()
            and value.isascii()
        ):
            problems.append(
                Problem((*at, "headers", name), "is not a valid HTTP header", "use plain ASCII")
            )
    return problems


def _is_http_url(text: str) -> bool:
    if not text.isprintable() or " " in text:
        return False  # urlsplit would drop a line break without a word
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


_OWN_HEADERS = frozenset(
    ("authorization", "connection", "content-length", "content-type", "host", "transfer-encoding")
)


def check_listen(listen: str) -> list[Problem]:
    """Checks `api.listen`, written `host:port`."""
    if not listen:
        return []
    host, _, port = listen.rpartition(":")
    if host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16:
        return []
    return [Problem(("api", "listen"), "is not host:port", "write 127.0.0.1:9753")]
