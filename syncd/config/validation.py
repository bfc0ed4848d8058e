"""Validation of a configuration whose types are right: values, and what contradicts what.

Each check looks at one section and returns every problem with its key path and remedy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from syncd.config.settings import (
    Aidbox,
    Api,
    Credentials,
    Nats,
    NatsServer,
    RelaySettings,
    RelaySource,
    Settings,
    Subscriber,
    Watch,
    Webhook,
)
from syncd.core.address import parse_host_port
from syncd.core.decode import Path, Problem
from syncd.core.nats_binding import DEFAULT_SUBJECT, filter_problem, subject_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import UnionType


def check_section(section: object, at: Path) -> list[Problem]:
    """The problems of one section; `decode` calls it for each of them.

    Args:
        section: A structure of `syncd.config.settings`.
        at: Its key path.
    """
    return [
        problem
        for types, check in _CHECKS.items()
        if isinstance(section, types)
        for problem in check(section, at)
    ]


def _check_grants(credentials: Credentials, at: Path) -> list[Problem]:
    asked = [(grant.unit, grant.credential) for grant in credentials.grants]
    hint = "give each credential of a unit one secret"
    return [
        Problem((*at, "grants", index, "credential"), f"is granted to {unit} twice", hint)
        for index, (unit, credential) in enumerate(asked)
        if (unit, credential) in asked[:index]
    ]


def _check_consumers(settings: Settings | RelaySettings, _at: Path) -> list[Problem]:
    names = [consumer.name for consumer in settings.consumers]
    hint = "give each consumer its own name"
    problems = [
        Problem(("consumers", index, "name"), "is used twice", hint)
        for index, name in enumerate(names)
        if name in names[:index]
    ]
    if isinstance(settings, RelaySettings):
        hint = "remove verify here; configure it at the syncd that watches the secret's mount"
        problems += [
            Problem(("consumers", index, "actions"), "verify is not possible in a relay", hint)
            for index, consumer in enumerate(settings.consumers)
            if isinstance(consumer, Aidbox) and "verify" in consumer.actions
        ]
    return problems


def _check_watch(watch: Watch, at: Path) -> list[Problem]:
    if watch.rescan_interval > 0:
        return []
    return [Problem((*at, "rescan_interval"), "must be above zero", "write 60s")]


def _check_api(api: Api, at: Path) -> list[Problem]:
    return _check_listen(api.listen, at) + _check_subscribers(api.subscribers, at)


def _check_subscribers(subscribers: tuple[Subscriber, ...], at: Path) -> list[Problem]:
    uids = [subscriber.uid for subscriber in subscribers]
    hint = "give each uid one entry, with all of its scopes"
    return [
        Problem((*at, "subscribers", index, "uid"), "is used twice", hint)
        for index, uid in enumerate(uids)
        if uid in uids[:index]
    ]


def _check_aidbox(aidbox: Aidbox, at: Path) -> list[Problem]:
    problems: list[Problem] = []
    for index, url in enumerate(aidbox.urls):
        problem = check_base_url(url, (*at, "urls", index))
        problems += filter(None, (problem,))
        if url in aidbox.urls[:index]:
            problems.append(Problem((*at, "urls", index), "is written twice", "keep one of them"))
    hints = {
        "urls": "name each replica, such as http://127.0.0.1:8080",
        "actions": "name some of drop_cache, audit_event and verify",
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
    problems += [
        Problem((*at, key), "must be above zero", hint)
        for key, hint in {"timeout": "write 10s", "verify_timeout": "write 60s"}.items()
        if getattr(aidbox, key) <= 0
    ]
    return problems + _check_client_certificate(aidbox, at)


def check_base_url(url: str, at: Path) -> Problem | None:
    """Checks the URL of a server: no credentials, nothing after the path."""
    if not _is_http_url(url):
        return Problem(at, "is not an http or https URL", "write http://host:port")
    parts = urlsplit(url)
    if "@" in parts.netloc:
        return Problem(at, "holds credentials", "use client_id and client_secret_file")
    if parts.query or parts.fragment:
        return Problem(at, "has a query or a fragment", "write http://host:port")
    return None


def _check_client_certificate(section: Webhook | Aidbox, at: Path) -> list[Problem]:
    if bool(section.client_cert) == bool(section.client_key):
        return []
    missing, there = "client_cert", "client_key"
    if section.client_cert:
        missing, there = there, missing
    return [Problem((*at, missing), "is missing", f"add {missing}, or remove {there}")]


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
    problems += _check_client_certificate(webhook, at)
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


def _check_nats(nats: NatsServer, at: Path) -> list[Problem]:
    problems = [
        Problem((*at, "urls", i), *bad)
        for i, url in enumerate(nats.urls)
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
    for one, other in (("user", "password_file"), ("client_cert", "client_key")):
        if bool(getattr(nats, one)) != bool(getattr(nats, other)):
            missing, there = (other, one) if getattr(nats, one) else (one, other)
            hint = f"add {missing}, or remove {there}"
            problems.append(Problem((*at, missing), "is missing", hint))
    if nats.timeout <= 0:
        problems.append(Problem((*at, "timeout"), "must be above zero", "write 10s"))
    bad_subject = None
    if isinstance(nats, Nats):
        bad_subject, example = subject_problem(nats.subject), DEFAULT_SUBJECT
    elif isinstance(nats, RelaySource):
        bad_subject, example = filter_problem(nats.subject), "syncd.>"
    if bad_subject:
        problems.append(Problem((*at, "subject"), bad_subject, f"write one such as {example}"))
    return problems


def _bad_nats_url(text: str) -> tuple[str, str] | None:
    hint = "write nats://host:4222, or tls://host:4222 to insist on TLS"
    try:
        url = urlsplit(text)
        usable = url.scheme in ("nats", "tls") and bool(url.hostname) and url.port != 0
    except ValueError:
        return "is not the URL of a NATS server", hint
    if not usable or not text.isprintable() or " " in text or url.path or url.query or url.fragment:
        return "is not the URL of a NATS server", hint
    if "@" in url.netloc:
        return "holds credentials", "use password_file, token_file or credentials_file"
    return None


def _is_http_url(text: str) -> bool:
    if not text.isprintable() or " " in text:
        return False  # urlsplit silently drops a line break
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


_OWN_HEADERS = frozenset(
    ("authorization", "connection", "content-length", "content-type", "host", "transfer-encoding")
)


def _check_listen(listen: str, at: Path) -> list[Problem]:
    if not listen or parse_host_port(listen):
        return []
    return [Problem((*at, "listen"), "is not host:port", "write one such as 127.0.0.1:9753")]


_CHECKS: Final[Mapping[type | UnionType, Callable[[Any, Path], list[Problem]]]] = {
    Webhook: _check_webhook,
    Aidbox: _check_aidbox,
    NatsServer: _check_nats,
    Watch: _check_watch,
    Api: _check_api,
    Credentials: _check_grants,
    Settings | RelaySettings: _check_consumers,
}
