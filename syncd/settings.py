"""The configuration: what a user may write in `syncd.yaml` and in the environment.

The structures below are the reference (`syncd schema config` prints them as JSON Schema); `load`
reads them from a file, lays the environment over it and reports every problem at once. Secrets
are never configured by value: only paths of the files that hold them are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from syncd.core.decode import Duration, FileMode, Problem, Size, decode
from syncd.core.errors import ConfigurationError
from syncd.core.findings import Finding, Severity
from syncd.core.model import Grant, Scope
from syncd.core.tree import TreeError, parse_yaml
from syncd.providers.auth import AbsolutePath, AzureAuth, VaultAuth

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = "/etc/syncd/syncd.yaml"
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


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
    consumers: tuple[Webhook, ...] = ()
    api: Api = Api()
    provision: tuple[Provision, ...] = ()
    event_log: EventLog = EventLog()
    log: Log = Log()


def grant(scope: tuple[ScopeSettings, ...] | None) -> Grant:
    """What a `scope:` list allows; without one, everything."""
    return Grant(None if scope is None else [Scope(item.resource_type, item.id) for item in scope])


def load(file: str | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the configuration.

    Args:
        file: Path from the command line; else `$SYNCD_CONFIG`, else `/etc/syncd/syncd.yaml` if it
            exists, else the environment alone.
        environ: The environment; it wins over the file where both are set.

    Raises:
        ConfigurationError: Every problem found, with file and key path.
    """
    path = file or environ.get("SYNCD_CONFIG")
    if path is None and os.path.exists(DEFAULT_FILE):
        path = DEFAULT_FILE
    tree, problems = _overlay(_read(path), environ)
    settings, found = decode(tree, Settings)
    problems += found
    source = path or "environment"
    if settings is not None:
        problems += _contradictions(settings)
    if problems or settings is None:
        raise ConfigurationError([_finding(problem, source) for problem in problems])
    return settings


def _read(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            documents = parse_yaml(file.read())
    except OSError as error:
        hint = "give its path by -c or $SYNCD_CONFIG, readable for this user"
        raise ConfigurationError(
            [_problem("config-unreadable", path, f"cannot be read: {error.strerror}", hint)]
        ) from None
    except TreeError as error:
        hint = "mend the YAML there"
        raise ConfigurationError([_problem("config-malformed", path, str(error), hint)]) from None
    if len(documents) > 1:
        hint = "leave one document, without ---"
        raise ConfigurationError(
            [_problem("config-malformed", path, "holds several documents", hint)]
        )
    tree = documents[0] if documents else None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        hint = "start with vault_config: /path"
        raise ConfigurationError([_problem("config-malformed", path, "is not a mapping", hint)])
    return tree


def _problem(code: str, source: str, message: str, hint: str) -> Finding:
    return Finding(code, Severity.ERROR, source, "", message, hint)


def _finding(problem: Problem, source: str) -> Finding:
    where = ""
    for step in problem.path:
        where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else step
    if where.startswith("$"):
        source, where = "environment", where.removeprefix("$")
    return Finding("config-invalid", Severity.ERROR, source, where, problem.message, problem.hint)


_PLAIN_TWINS = {
    "SYNCD_STATE_DIR": ("state_dir",),
    "SYNCD_SOCKET": ("api", "socket"),
    "SYNCD_LISTEN": ("api", "listen"),
    "SYNCD_LOG_LEVEL": ("log", "level"),
    "SYNCD_LOG_FORMAT": ("log", "format"),
}


def _overlay(
    tree: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], list[Problem]]:
    """Lays the environment's twins over the file's tree, leaving malformed sections to `decode`."""
    problems: list[Problem] = []
    vault_config = environ.get("BOX_VAULT_CONFIG") or environ.get("AIDBOX_VAULT_CONFIG")
    if vault_config:
        tree["vault_config"] = vault_config
    for variable, (*sections, key) in _PLAIN_TWINS.items():
        if environ.get(variable):
            _put(tree, sections, key, environ[variable])
    if environ.get("SYNCD_WATCH_ROOTS"):
        _put(tree, ["watch"], "roots", [r for r in environ["SYNCD_WATCH_ROOTS"].split(":") if r])
    url, key_file = environ.get("SYNCD_WEBHOOK_URL"), environ.get("SYNCD_WEBHOOK_SIGNING_KEY_FILE")
    if url:
        webhook = {"name": "webhook", "kind": "webhook", "url": url}
        if key_file:
            webhook["signing_key_file"] = key_file
        others = tree.get("consumers") or []
        if isinstance(others, list):
            kept = [c for c in others if not (isinstance(c, dict) and c.get("name") == "webhook")]
            tree["consumers"] = [*kept, webhook]
    elif key_file:
        hint = "set SYNCD_WEBHOOK_URL too"
        problems.append(Problem(("$SYNCD_WEBHOOK_SIGNING_KEY_FILE",), "signs nothing", hint))
    if "vault_config" not in tree:
        hint = "set vault_config in the file or BOX_VAULT_CONFIG in the environment"
        problems.append(Problem(("vault_config",), "is missing", hint))
        tree["vault_config"] = "/"
    return tree, problems


def _put(tree: dict[str, Any], sections: list[str], key: str, value: object) -> None:
    for section in sections:
        inner = tree.get(section)
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[key] = value


def _contradictions(settings: Settings) -> list[Problem]:
    problems: list[Problem] = []
    seen: set[str] = set()
    for index, consumer in enumerate(settings.consumers):
        at = ("consumers", index)
        if consumer.name in seen:
            problems.append(
                Problem((*at, "name"), "is used twice", "give each consumer its own name")
            )
        seen.add(consumer.name)
        problems += _check_webhook(consumer, at)
    if settings.watch.rescan_interval <= 0:
        problems.append(Problem(("watch", "rescan_interval"), "must be above zero", "write 60s"))
    problems += check_listen(settings.api.listen)
    return problems


def _check_webhook(webhook: Webhook, at: tuple[str | int, ...]) -> list[Problem]:
    problems: list[Problem] = []
    try:
        url = urlsplit(webhook.url)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        problems.append(
            Problem((*at, "url"), "is not an http or https URL", "write http://host:port/path")
        )
    elif url.username is not None or url.password is not None:
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
