"""What `syncd check` finds about who could read along: clear text, open ports, open files.

Loopback is exempt, since nothing of it leaves the machine, and so is a Unix socket. Whether a host
name leads to loopback is judged by its spelling: nothing is resolved. That a vault is reached
without TLS is in `syncd.provision.plan`, where its address is known.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from syncd.config.settings import Aidbox, Exec, RelaySettings, Webhook, credential_files
from syncd.core.address import is_loopback, is_plain_http, parse_host_port
from syncd.core.findings import finding, key_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from syncd.config.settings import ConsumerSettings, NatsServer, Settings
    from syncd.core.findings import Finding

    _Place = tuple[tuple[str | int, ...], str, str]

_PUBLIC: Final = frozenset(("ca_file", "client_cert"))
"""Options whose files hold nothing secret."""

_SECRET_NAME: Final = re.compile(
    r"auth|cookie|credential|key|password|secret|sig(nature)?$|token", re.IGNORECASE
)
"""Names of headers and query parameters that usually hold a credential."""

_USE_HTTPS: Final = "use https, or a server on loopback"


def check_exposure(
    settings: Settings | RelaySettings, source: str, environ: Mapping[str, str]
) -> list[Finding]:
    """The findings about one configuration.

    Args:
        settings: The configuration.
        source: The file that it was read from.
        environ: The environment that it was read from.
    """
    findings = [
        finding(
            "credential-cleartext",
            source,
            key_path("consumers", index, *where),
            f"sends {sent} over the network unencrypted",
            hint,
        )
        for index, consumer in enumerate(settings.consumers)
        for where, sent, hint in _clear_text(consumer)
    ]
    if isinstance(settings, RelaySettings):
        findings += [
            finding(
                "credential-cleartext",
                source,
                key_path("relay", *where),
                f"sends {sent} over the network unencrypted",
                hint,
            )
            for where, sent, hint in _nats(settings.relay)
        ]
    return [*findings, *_listener(settings, source, environ), *_files(settings, source)]


def _clear_text(consumer: ConsumerSettings) -> Iterator[_Place]:
    if isinstance(consumer, Exec):
        return iter(())
    if isinstance(consumer, Webhook):
        return _webhook(consumer)
    return _aidbox(consumer) if isinstance(consumer, Aidbox) else _nats(consumer)


def _webhook(webhook: Webhook) -> Iterator[_Place]:
    sent = _sent_by(webhook)
    if sent and webhook.socket is None and is_plain_http(webhook.url):
        yield ("url",), " and ".join(sent), _USE_HTTPS


def _aidbox(aidbox: Aidbox) -> Iterator[_Place]:
    sent = "the Client's secret"
    if "verify" in aidbox.actions:
        sent += " and new values of secrets (verify)"
    for index, url in enumerate(aidbox.urls):
        if is_plain_http(url):
            yield ("urls", index), sent, _USE_HTTPS
    has_credentials = aidbox.audit_bearer_token_file or aidbox.audit_basic_auth
    if has_credentials and aidbox.audit_url is not None and is_plain_http(aidbox.audit_url):
        yield ("audit_url",), "the credentials of audit_url", _USE_HTTPS


def _nats(nats: NatsServer) -> Iterator[_Place]:
    logins = (nats.user, nats.token_file, nats.nkey_seed_file, nats.credentials_file)
    insists = nats.ca_file or nats.client_cert or any(url.startswith("tls:") for url in nats.urls)
    if insists or not any(logins):
        return
    for index, url in enumerate(nats.urls):
        if not is_loopback(urlsplit(url).hostname or ""):
            yield ("urls", index), "the login", "write tls:// instead of nats://"


def _sent_by(webhook: Webhook) -> list[str]:
    """The credentials in a webhook's requests."""
    headers = [name for name in webhook.headers if _SECRET_NAME.search(name)]
    query = [name for name, _ in parse_qsl(urlsplit(webhook.url).query)]
    return [
        *(["the password of basic_auth"] if webhook.basic_auth else []),
        *(["the token of bearer_token_file"] if webhook.bearer_token_file else []),
        *(f"the header {name}" for name in headers),
        *(f"the parameter {name}" for name in query if _SECRET_NAME.search(name)),
    ]


def _listener(
    settings: Settings | RelaySettings, source: str, environ: Mapping[str, str]
) -> Iterator[Finding]:
    """An open port, except in a pod: there the kubelet probes it from outside."""
    address = parse_host_port(settings.api.listen)
    if address is None or is_loopback(address[0]) or "KUBERNETES_SERVICE_HOST" in environ:
        return
    by_variable = bool(environ.get("SYNCD_LISTEN"))
    yield finding(
        "listen-exposed",
        "environment" if by_variable else source,
        "SYNCD_LISTEN" if by_variable else "api.listen",
        f"{settings.api.listen} is not loopback, and probes and metrics have no authentication",
        "listen on 127.0.0.1, or let a firewall admit only the hosts that need them",
    )


def _files(settings: Settings | RelaySettings, source: str) -> Iterator[Finding]:
    for where, path in _secret_files(settings):
        problem = _open_to_others(path)
        if problem is not None:
            message = f"{path} {problem}"
            hint = "remove the permission with chmod o-rwx, and replace the credential"
            yield finding("credential-exposed", source, where, message, hint)


def _secret_files(settings: Settings | RelaySettings) -> Iterable[tuple[str, str]]:
    for where, path in credential_files(settings):
        if where.rpartition(".")[2] not in _PUBLIC:
            yield where, path
    yield "state_dir", f"{settings.state_dir}/fingerprint.key"


def _open_to_others(path: str) -> str | None:
    """What every user of the machine can do with a file, as the end of a sentence, or None.

    A file of a CSI mount or a service account counts as private: the mount decides who gets there.
    """
    try:
        if os.readlink(path).startswith("..data/"):
            return None
    except OSError:
        pass  # not a link, or not there
    real = os.path.realpath(path)
    try:
        mode = os.stat(real).st_mode
        directory = os.path.dirname(real)
        while os.stat(directory).st_mode & stat.S_IXOTH:
            if directory == "/":
                break
            directory = os.path.dirname(directory)
        else:
            return None
    except OSError:
        return None
    if mode & stat.S_IWOTH:
        return "can be changed by every user of this machine"
    return "is readable for every user of this machine" if mode & stat.S_IROTH else None
