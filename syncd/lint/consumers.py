"""What can be known of consumers before anything is delivered to them.

A webhook with a missing key, a host that does not exist or a scope that matches nothing fails at
the first rotation, perhaps a month later. All of it can be seen at once: `syncd check` reports it,
and the daemon at its start.
"""

from __future__ import annotations

import os
import re
import socket
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from syncd.config.settings import Aidbox, Exec, RelaySettings, Webhook
from syncd.core.errors import SyncdError
from syncd.core.findings import finding, key_path
from syncd.lint.cluster import check_cluster
from syncd.lint.commands import check_commands
from syncd.lint.credentials import check_credentials
from syncd.lint.placeholders import check_placeholders
from syncd.lint.scopes import check_scopes
from syncd.net.reasons import CHECK_AIDBOX, CHECK_SERVER, reason_of
from syncd.net.tls import RotatingContext, Trust
from syncd.system.errnos import reason, remedy
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.config.settings import ConsumerSettings, Settings
    from syncd.core.findings import Finding
    from syncd.core.model import Entry

    _Path = tuple[str | int, ...]

_LIMIT: Final = 5.0
"""Seconds that the look-up of a host name may take."""

_CONNECT_LIMIT: Final = 5.0
"""Seconds that a connection may take."""

_NOT_NOW: Final = (socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM)
"""Errors of the resolver's that say nothing about a name (getaddrinfo(3))."""

_OF_CONSUMER: Final = re.compile(r"consumers\[(\d+)\]")


def examine_consumers(
    settings: Settings | RelaySettings, entries: Mapping[str, Entry] | None
) -> dict[str, tuple[str, ...]]:
    """Why consumers cannot work, by name: one line for each reason. Blocks, for a limited time.

    Args:
        settings: The configuration.
        entries: The vault config's entries; None where they are not known.
    """
    found: dict[str, tuple[str, ...]] = {}
    for item in (
        *check_credentials(settings, "", {}),
        *check_addresses(settings, ""),
        *check_commands(settings, ""),
        *check_scopes(settings, entries, ""),
        *check_placeholders(settings, ""),
        *([] if isinstance(settings, RelaySettings) else check_cluster(settings, "", os.environ)),
    ):
        place = _OF_CONSUMER.match(item.where)
        if place is not None:
            name = settings.consumers[int(place[1])].name
            key = item.where[place.end() :].lstrip(".")
            line = f"{key}: {item.message}; {item.hint}"
            found[name] = (*found.get(name, ()), line)
    return found


def check_addresses(settings: Settings | RelaySettings, source: str) -> list[Finding]:
    """Hosts without an address, and sockets that are not there. Blocks, for a limited time."""
    places = [
        ((*at, *where), url, path)
        for index, consumer in enumerate(settings.consumers)
        for at in [("consumers", index)]
        for where, url, path in _addresses(consumer)
    ]
    if isinstance(settings, RelaySettings):
        places += [
            (("relay", "urls", index), url, None) for index, url in enumerate(settings.relay.urls)
        ]
    looked_up = gather({at: partial(_problem, url, path) for at, url, path in places}, _LIMIT)
    problems = ((at, looked_up.get(at, _silent(url, path))) for at, url, path in places)
    return [
        finding("address-unknown", source, key_path(*at), *problem)
        for at, problem in problems
        if problem is not None
    ]


def check_connections(settings: Settings | RelaySettings, source: str) -> list[Finding]:
    """Servers of consumers that cannot be connected to; nothing is sent. Blocks for some seconds.

    TCP, and for `https` the handshake with the consumer's own certificates and CA; a `nats` server
    begins TLS itself, so that it is reached by TCP only.
    """
    calls = {
        key_path("consumers", index, *where): partial(_connect, consumer, url, path)
        for index, consumer in enumerate(settings.consumers)
        for where, url, path in _addresses(consumer)
    }
    ports = {
        key_path("consumers", index, *where)
        for index, consumer in enumerate(settings.consumers)
        if isinstance(consumer, Aidbox)
        for where, _, _ in _addresses(consumer)
    }
    connected = gather(calls, _CONNECT_LIMIT)
    findings = []
    for where in calls:
        problem = connected.get(where, (f"no answer within {_CONNECT_LIMIT:g} s", CHECK_SERVER))
        if problem is not None:
            message, hint = f"cannot connect: {problem[0]}", problem[1] or CHECK_SERVER
            if where in ports and hint == CHECK_SERVER:
                hint = CHECK_AIDBOX
            findings.append(finding("consumer-unreachable", source, where, message, hint))
    return findings


def _connect(
    consumer: ConsumerSettings, url: str, path: str | None
) -> tuple[str, str | None] | None:
    assert not isinstance(consumer, Exec)  # it has no address
    parts = urlsplit(url)
    host = parts.hostname or ""
    default = {"https": 443, "http": 80}.get(parts.scheme, 4222)
    try:
        if path is not None:
            with socket.socket(socket.AF_UNIX) as unix:
                unix.settimeout(_CONNECT_LIMIT)
                unix.connect(path)
            return None
        with socket.create_connection((host, parts.port or default), _CONNECT_LIMIT) as tcp:
            if parts.scheme == "https":
                context = RotatingContext(Trust.of(consumer)).current()
                with context.wrap_socket(tcp, server_hostname=host):
                    pass
    except SyncdError as error:
        return error.problem, error.remedy
    except (OSError, UnicodeError) as error:
        found = reason_of(error, address="the address")
        return found.problem, found.remedy
    return None


def _addresses(consumer: ConsumerSettings) -> Iterator[tuple[_Path, str, str | None]]:
    if isinstance(consumer, Webhook):
        yield ("url" if consumer.socket is None else "socket",), consumer.url, consumer.socket
        return
    if isinstance(consumer, Exec):
        return
    for index, url in enumerate(consumer.urls):
        yield ("urls", index), url, None


def _problem(url: str, path: str | None) -> tuple[str, str] | None:
    if path is not None:
        return _socket_problem(path)
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        # a lack of descriptors is an OSError without the resolver's own number
        is_resolver = isinstance(error, socket.gaierror | UnicodeError)
        if not is_resolver or getattr(error, "errno", None) in _NOT_NOW:
            found = reason_of(error, address="the address")
            return f"{host} cannot be looked up now: {found.problem}", found.remedy
        return f"there is no host {host}", "correct the name, or add it to the DNS"
    return None


def _socket_problem(path: str) -> tuple[str, str] | None:
    hint = "start the receiver, or correct the path"
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no socket {path}", hint
    except OSError as error:
        what_to_do = remedy(error, path=hint, access="let syncd's user enter its directory")
        return f"cannot look for the socket {path}: {reason(error)}", what_to_do
    return None


def _silent(url: str, path: str | None) -> tuple[str, str]:
    """The problem of an address whose look-up has not ended."""
    if path is not None:
        problem = f"cannot look for the socket {path}: its file system does not answer"
        return problem, "check the mount that the socket lies on"
    host = urlsplit(url).hostname
    return f"{host} cannot be looked up now: no answer within {_LIMIT:g} s", "check the resolver"
