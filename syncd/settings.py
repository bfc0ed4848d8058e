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

from syncd.core.decode import Duration, FileMode, Path, Problem, Size, decode
from syncd.core.errors import ConfigurationError
from syncd.core.findings import Finding, finding, key_path
from syncd.core.model import Grant, Scope
from syncd.core.tree import TreeError, parse_yaml
from syncd.providers.auth import AbsolutePath, AzureAuth, VaultAuth

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_FILE = "/etc/syncd/syncd.yaml"
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


def load(file: str | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the configuration.

    Args:
        file: Path from the command line; else `$SYNCD_CONFIG`, else `/etc/syncd/syncd.yaml` if it
            exists, else the environment alone.
        environ: The environment; it wins over the file where both are set.

    Raises:
        ConfigurationError: Every problem found, with file and key path.
    """
    settings, findings = examine(file, environ)
    if settings is None or findings:
        raise ConfigurationError(findings)
    return settings


def examine(
    file: str | None, environ: Mapping[str, str] = os.environ
) -> tuple[Settings | None, list[Finding]]:
    """Reads as much of the configuration as can be read, for a linter that goes on after an error.

    Args:
        file: As for `load`.
        environ: As for `load`.

    Returns:
        The configuration, and every problem; with a problem, only the sections `vault_config` and
        `watch`, so far as they can be read; None when not even the vault config is known.
    """
    path = config_file(file, environ)
    try:
        written, findings = _read(path), []
    except ConfigurationError as error:
        written, findings = {}, list(error.findings)
    tree, problems, origins = _overlay(written, environ)
    if findings and "vault_config" not in tree:
        return None, findings
    settings, found = decode(tree, Settings, _contradictions)
    problems += found
    findings += [_finding(problem, path or "environment", origins) for problem in problems]
    return (_salvage(tree) if findings else settings), findings


def config_file(file: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The configuration file in use, or None for the environment alone; arguments as for `load`."""
    path = file or environ.get("SYNCD_CONFIG") or None
    return DEFAULT_FILE if path is None and os.path.exists(DEFAULT_FILE) else path


def _salvage(tree: dict[str, Any]) -> Settings | None:
    vault_config = tree.get("vault_config")
    attempts = [
        decode({"vault_config": vault_config, "watch": tree.get("watch", {})}, Settings)[0],
        decode({"vault_config": vault_config}, Settings)[0],
    ]
    return next(filter(None, attempts), None)


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
    return finding(code, source, "", message, hint)


def _finding(problem: Problem, source: str, origins: Mapping[Path, str]) -> Finding:
    """Names the variable instead of the key where the environment is what must be mended."""
    where, hint = key_path(*problem.path), problem.hint
    if (where, problem.message) == ("vault_config", "is missing"):
        hint = "set vault_config in the file or BOX_VAULT_CONFIG in the environment"
    for length in range(len(problem.path), 0, -1):
        variable = origins.get(problem.path[:length])
        if variable is not None:
            source, where = "environment", variable
            break
    return finding("config-invalid", source, where, problem.message, hint)


_PLAIN_TWINS = {
    "SYNCD_STATE_DIR": ("state_dir",),
    "SYNCD_SOCKET": ("api", "socket"),
    "SYNCD_LISTEN": ("api", "listen"),
    "SYNCD_LOG_LEVEL": ("log", "level"),
    "SYNCD_LOG_FORMAT": ("log", "format"),
}


def _overlay(
    tree: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], list[Problem], dict[Path, str]]:
    """Lays the environment's twins over the file's tree, leaving malformed sections to `decode`.

    Returns:
        The tree, problems of the environment itself, and which variable gave which key.
    """
    problems: list[Problem] = []
    origins: dict[Path, str] = {}
    for variable in ("AIDBOX_VAULT_CONFIG", "BOX_VAULT_CONFIG"):
        if environ.get(variable):
            tree["vault_config"] = environ[variable]
            origins["vault_config",] = variable
    for variable, (*sections, key) in _PLAIN_TWINS.items():
        if environ.get(variable):
            _put(tree, sections, key, environ[variable])
            origins[*sections, key] = variable
    if environ.get("SYNCD_WATCH_ROOTS"):
        _put(tree, ["watch"], "roots", [r for r in environ["SYNCD_WATCH_ROOTS"].split(":") if r])
        origins["watch", "roots"] = "SYNCD_WATCH_ROOTS"
    url, key_file = environ.get("SYNCD_WEBHOOK_URL"), environ.get("SYNCD_WEBHOOK_SIGNING_KEY_FILE")
    if url:
        webhook = {"name": "webhook", "kind": "webhook", "url": url}
        others = tree.get("consumers") or []
        if isinstance(others, list):
            kept = [c for c in others if not (isinstance(c, dict) and c.get("name") == "webhook")]
            tree["consumers"] = [*kept, webhook]
            origins["consumers", len(kept), "url"] = "SYNCD_WEBHOOK_URL"
            if key_file:
                webhook["signing_key_file"] = key_file
                place = "SYNCD_WEBHOOK_SIGNING_KEY_FILE"
                origins["consumers", len(kept), "signing_key_file"] = place
    elif key_file:
        variable = "SYNCD_WEBHOOK_SIGNING_KEY_FILE"
        problems.append(Problem((variable,), "signs nothing", "set SYNCD_WEBHOOK_URL too"))
        origins[variable,] = variable
    return tree, problems, origins


def _put(tree: dict[str, Any], sections: list[str], key: str, value: object) -> None:
    for section in sections:
        inner = tree.get(section)
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[key] = value


def _contradictions(section: object, at: Path) -> list[Problem]:
    """What a section that can be read must not say; called by `decode` for each of them."""
    if isinstance(section, Webhook):
        return _check_webhook(section, at)
    if isinstance(section, Watch) and section.rescan_interval <= 0:
        return [Problem((*at, "rescan_interval"), "must be above zero", "write 60s")]
    if isinstance(section, Api):
        return check_listen(section.listen) + _check_subscribers(section.subscribers, at)
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
