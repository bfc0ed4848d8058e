"""Validation of a configuration whose types are right: values, and what contradicts what.

Each check looks at one section and returns every problem with its key path and remedy.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from syncd.config.extra import extra_file
from syncd.config.settings import (
    Aidbox,
    Api,
    Credentials,
    Exec,
    Kubernetes,
    Nats,
    NatsServer,
    Provision,
    RelaySettings,
    RelaySource,
    Settings,
    Watch,
    Webhook,
)
from syncd.core.address import parse_host_port
from syncd.core.decode import Path, Problem
from syncd.core.findings import key_path
from syncd.core.nats_binding import DEFAULT_SUBJECT, filter_problem, subject_problem
from syncd.core.vault_config import LONGEST_NAME, LONGEST_PATH, is_normalized, text_problem
from syncd.system.accounts import account_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import UnionType

T = TypeVar("T")


def check_section(section: object, at: Path) -> list[Problem]:
    """The problems of one section at its key path; `decode` calls it for each section."""
    return [
        problem
        for types, check in _CHECKS.items()
        if isinstance(section, types)
        for problem in check(section, at)
    ]


def _check_grants(credentials: Credentials, at: Path) -> list[Problem]:
    grants = credentials.grants
    hint = "give each credential of a unit one secret"
    return [
        Problem((*at, "grants", index, "credential"), f"is granted to {unit} twice", hint)
        for index, (unit, _) in _repeated([(grant.unit, grant.credential) for grant in grants])
    ]


def _check_consumers(settings: Settings | RelaySettings, _at: Path) -> list[Problem]:
    hint = "give each consumer its own name"
    problems = [
        Problem(("consumers", index, "name"), "is used twice", hint)
        for index, _ in _repeated([consumer.name for consumer in settings.consumers])
    ]
    problems += [
        Problem(("consumers", index, "types"), "is empty", "name at least one type, or remove it")
        for index, consumer in enumerate(settings.consumers)
        if consumer.types == ()
    ]
    if isinstance(settings, RelaySettings):
        problems += [
            Problem(
                ("consumers", index, "actions"),
                f"{action} is not possible in a relay",
                f"remove {action} here; configure it at the syncd that watches the secret's mount",
            )
            for index, consumer in enumerate(settings.consumers)
            if isinstance(consumer, Aidbox)
            for action in consumer.actions
            if action in _OF_MOUNT
        ]
        hint = "remove it here; a relay reads relay.state_bucket"
        problems += [
            Problem(("consumers", index, "state_bucket"), "is not possible in a relay", hint)
            for index, consumer in enumerate(settings.consumers)
            if isinstance(consumer, Nats) and consumer.state_bucket is not None
        ]
    return problems


def _check_values(settings: Settings, _at: Path) -> list[Problem]:
    """Values leave only from directories that the operator named, not from derived ones.

    Derived roots come from the vault config, so that its writer could name any file that syncd may
    read.
    """
    verifying = (
        key_path("consumers", index, "actions")
        for index, consumer in enumerate(settings.consumers)
        if isinstance(consumer, Aidbox) and "verify" in consumer.actions
    )
    senders = [*(["credentials.grants"] if settings.credentials.grants else []), *verifying]
    if settings.watch.roots or not senders:
        return []
    message = f"is required, because {' and '.join(senders)} let values of secrets out"
    hint = "name the directories that hold the secrets, such as [/run/vault-secrets]"
    return [Problem(("watch", "roots"), message, hint)]


def _check_watch(watch: Watch, at: Path) -> list[Problem]:
    return _check_positive(watch, at, rescan_interval="60s") + _check_extra(watch, at)


def _check_extra(watch: Watch, at: Path) -> list[Problem]:
    files = [extra_file(item) for item in watch.extra]
    # where an entry is a path alone, the path is at fault
    keys = [() if isinstance(item, str) else ("path",) for item in watch.extra]
    at = (*at, "extra")
    hint = "write the absolute path of the file, without ., .., // and a / at the end"
    problems = [
        Problem((*at, index, *keys[index]), problem or "is not normalized", hint)
        for index, file in enumerate(files)
        if (problem := text_problem(file.path, LONGEST_PATH)) or not is_normalized(file.path)
    ]
    problems += [
        Problem((*at, index, *keys[index]), "is written twice", "keep one of them")
        for index, _ in _repeated([file.path for file in files])
    ]
    hint = "use visible characters"
    problems += [
        Problem((*at, index, "name"), problem, hint)
        for index, file in enumerate(files)
        if file.name is not None and (problem := text_problem(file.name, LONGEST_NAME))
    ]
    hint = "give each file its own name"
    names = _repeated([file.name or file.path for file in files])
    return problems + [
        Problem((*at, index, "name"), "is used twice", hint)
        for index, _ in names
        if files[index].name is not None
    ]


def _check_api(api: Api, at: Path) -> list[Problem]:
    problems = []
    if api.listen and parse_host_port(api.listen) is None:
        hint = "write an address and a port alone, such as 127.0.0.1:9753"
        problems.append(Problem((*at, "listen"), "is not host:port", hint))
    hint = "give each uid one entry, with all of its scopes"
    problems += [
        Problem((*at, "subscribers", index, "uid"), "is used twice", hint)
        for index, _ in _repeated([subscriber.uid for subscriber in api.subscribers])
    ]
    return problems + _check_accounts(api, at, socket_group="group")


def _check_provision(entry: Provision, at: Path) -> list[Problem]:
    return _check_accounts(entry, at, owner="user", group="group")


def _check_accounts(section: object, at: Path, **kinds: str) -> list[Problem]:
    return [
        Problem((*at, key), problem, f"write the name or number of a {kind}")
        for key, kind in kinds.items()
        if (account := getattr(section, key)) is not None and (problem := account_problem(account))
    ]


def _check_aidbox(aidbox: Aidbox, at: Path) -> list[Problem]:
    problems = [
        problem
        for index, url in enumerate(aidbox.urls)
        if (problem := check_base_url(url, (*at, "urls", index)))
    ]
    problems += [
        Problem((*at, "urls", index), "is written twice", "keep one of them")
        for index, _ in _repeated(aidbox.urls)
    ]
    hints = {
        "urls": "name each replica, such as http://127.0.0.1:8080 (the port is BOX_WEB_PORT)",
        "actions": "name at least one, such as drop_cache, audit_event or verify",
    }
    problems += [
        Problem((*at, key), "is empty", hint)
        for key, hint in hints.items()
        if not getattr(aidbox, key)
    ]
    if not aidbox.client_id or ":" in aidbox.client_id or not aidbox.client_id.isprintable():
        problems.append(
            Problem((*at, "client_id"), "is not the id of a Client", "write the id alone")
        )
    problems += _check_audit(aidbox, at) + _check_rollout(aidbox, at)
    problems += _check_positive(aidbox.recreate, (*at, "recreate"), drain_timeout="10m")
    problems += _check_positive(aidbox, at, timeout="10s", verify_timeout="60s")
    return problems + _check_pair(aidbox, at, "client_cert", "client_key")


def _check_rollout(aidbox: Aidbox, at: Path) -> list[Problem]:
    if ("rollout" in aidbox.actions) == (aidbox.rollout is not None):
        return []
    if aidbox.rollout is None:
        hint = "name the workload, such as {kind: Deployment, name: aidbox}"
        return [Problem((*at, "rollout"), "is missing, and actions has rollout", hint)]
    hint = "add rollout to actions, or remove it here"
    return [Problem((*at, "rollout"), "is not used by any of actions", hint)]


def _check_shared_versions(settings: Settings, _at: Path) -> list[Problem]:
    """Installations that write what they know of a version must all write the same."""
    if settings.fingerprint_key_file is not None:
        return []
    hint = "let all installations share a fingerprint_key_file, or remove secrets"
    return [
        Problem(
            ("consumers", index, "rollout", "secrets"),
            "needs fingerprint_key_file: without it each installation has versions of its own, and "
            "each would begin a rollout",
            hint,
        )
        for index, consumer in enumerate(settings.consumers)
        if isinstance(consumer, Aidbox)
        and consumer.rollout is not None
        and consumer.rollout.secrets
    ]


def _check_kubernetes(kubernetes: Kubernetes, at: Path) -> list[Problem]:
    if kubernetes.server is None:
        return []
    problem = check_base_url(kubernetes.server, (*at, "server"), "token_file")
    return [] if problem is None else [problem]


def _check_audit(aidbox: Aidbox, at: Path) -> list[Problem]:
    credentials = "audit_bearer_token_file or audit_basic_auth"
    if aidbox.audit_url is None:
        hint = "set audit_url, or remove it"
        return [
            Problem((*at, key), "is set without audit_url", hint)
            for key in ("audit_bearer_token_file", "audit_basic_auth")
            if getattr(aidbox, key) is not None
        ]
    problems = []
    if (problem := check_base_url(aidbox.audit_url, (*at, "audit_url"), credentials)) is not None:
        problems.append(problem)
    if "audit_event" not in aidbox.actions:
        hint = "add audit_event to actions, or remove audit_url"
        problems.append(Problem((*at, "audit_url"), "is not used by any of actions", hint))
    if aidbox.audit_bearer_token_file is not None and aidbox.audit_basic_auth is not None:
        hint = "keep one of them"
        problems.append(
            Problem((*at, "audit_basic_auth"), "contradicts audit_bearer_token_file", hint)
        )
    return problems


def check_base_url(
    url: str, at: Path, credentials: str = "client_id and client_secret_file"
) -> Problem | None:
    """Checks the URL of a server: no credentials, nothing after the path.

    Args:
        url: The URL.
        at: Its key path.
        credentials: Where credentials belong, for the hint.
    """
    parts = _parse_url(url, _HTTP)
    if parts is None:
        return Problem(at, "is not an http or https URL", "write http://host:port")
    if "@" in parts.netloc:
        return Problem(at, "holds credentials", f"use {credentials}")
    if parts.query or parts.fragment:
        return Problem(at, "has a query or a fragment", "write http://host:port")
    return None


def _check_webhook(webhook: Webhook, at: Path) -> list[Problem]:
    problems: list[Problem] = []
    url = _parse_url(webhook.url, _HTTP)
    if url is None:
        hint = "write http://host:port/path"
        problems.append(Problem((*at, "url"), "is not an http or https URL", hint))
    elif "@" in url.netloc:
        hint = "use basic_auth with a password_file"
        problems.append(Problem((*at, "url"), "holds credentials", hint))
    if webhook.basic_auth and webhook.bearer_token_file:
        problems.append(
            Problem((*at, "bearer_token_file"), "contradicts basic_auth", "keep one of them")
        )
    problems += _check_pair(webhook, at, "client_cert", "client_key")
    problems += _check_positive(webhook, at, timeout="10s")
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


def _check_exec(command: Exec, at: Path) -> list[Problem]:
    words, example = command.command, "write the program and its arguments, such as [/usr/bin/true]"
    problems = _check_positive(command, at, timeout="30s")
    if not words or not words[0]:
        problems.append(Problem((*at, "command"), "names no program", example))
    elif "/" in words[0] and not words[0].startswith("/"):
        hint = "write an absolute path, or a name that is looked up in PATH"
        problems.append(Problem((*at, "command", 0), "is a relative path", hint))
    problems += [
        Problem((*at, "command", index), "holds a NUL character", "remove it")
        for index, word in enumerate(words)
        if "\0" in word
    ]
    return problems


def _check_nats(nats: NatsServer, at: Path) -> list[Problem]:
    problems = [
        Problem((*at, "urls", index), *bad)
        for index, url in enumerate(nats.urls)
        if (bad := _bad_nats_url(url))
    ]
    if not nats.urls:
        problems.append(Problem((*at, "urls"), "is empty", "name a server, nats://host:4222"))
    logins = [
        option
        for option in ("user", "token_file", "nkey_seed_file", "credentials_file")
        if getattr(nats, option) is not None
    ]
    if len(logins) > 1:
        problems.append(Problem((*at, logins[1]), f"contradicts {logins[0]}", "keep one of them"))
    problems += _check_pair(nats, at, "user", "password_file")
    problems += _check_pair(nats, at, "client_cert", "client_key")
    problems += _check_positive(nats, at, timeout="10s")
    bad_subject = None
    if isinstance(nats, Nats):
        problems += _check_positive(nats, at, state_heartbeat="60s")
        bad_subject, example = subject_problem(nats.subject), DEFAULT_SUBJECT
    elif isinstance(nats, RelaySource):
        bad_subject, example = filter_problem(nats.subject), "syncd.>"
    if bad_subject:
        problems.append(Problem((*at, "subject"), bad_subject, f"write one such as {example}"))
    return problems


def _bad_nats_url(text: str) -> tuple[str, str] | None:
    url = _parse_url(text, ("nats", "tls"))
    if url is None or url.path or url.query or url.fragment:
        hint = "write nats://host:4222, or tls://host:4222 to insist on TLS"
        return "is not the URL of a NATS server", hint
    if "@" in url.netloc:
        return "holds credentials", "use password_file, token_file or credentials_file"
    return None


def _parse_url(text: str, schemes: Sequence[str]) -> SplitResult | None:
    if not text.isprintable() or " " in text:
        return None  # urlsplit silently drops a line break
    with suppress(ValueError):
        url = urlsplit(text)
        host = url.hostname or ""
        if url.scheme in schemes and url.port != 0 and (":" in host or _HOST.fullmatch(host)):
            return url
    return None


def _repeated(items: Sequence[T]) -> list[tuple[int, T]]:
    """The items that occur before, with their indices."""
    return [(index, item) for index, item in enumerate(items) if item in items[:index]]


def _check_pair(section: object, at: Path, one: str, other: str) -> list[Problem]:
    given = [key for key in (one, other) if getattr(section, key)]
    if len(given) != 1:
        return []
    missing = other if given == [one] else one
    return [Problem((*at, missing), "is missing", f"add {missing}, or remove {given[0]}")]


def _check_positive(section: object, at: Path, **examples: str) -> list[Problem]:
    return [
        Problem((*at, key), "must be above zero", f"write a duration such as {example}")
        for key, example in examples.items()
        if getattr(section, key) <= 0
    ]


_HTTP: Final = ("http", "https")
_OF_MOUNT: Final = ("verify", "recreate_destinations", "rollout")
"""Actions that need the mount, or the changes of one installation."""
_HOST: Final = re.compile(r"[\w.~%-]+")
"""Characters of names; a placeholder such as `${HOST}` would pass as a name of RFC 3986."""
_OWN_HEADERS: Final = frozenset(
    ("authorization", "connection", "content-length", "content-type", "host", "transfer-encoding")
)
_CHECKS: Final[Mapping[type | UnionType, Callable[[Any, Path], list[Problem]]]] = {
    Webhook: _check_webhook,
    Aidbox: _check_aidbox,
    NatsServer: _check_nats,
    Exec: _check_exec,
    Watch: _check_watch,
    Api: _check_api,
    Provision: _check_provision,
    Credentials: _check_grants,
    Settings | RelaySettings: _check_consumers,
    Settings: lambda settings, at: [
        *_check_values(settings, at),
        *_check_shared_versions(settings, at),
    ],
    Kubernetes: _check_kubernetes,
}
