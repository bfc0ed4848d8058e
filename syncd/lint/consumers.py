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

from syncd.config.settings import RelaySettings, Webhook
from syncd.core.findings import finding, key_path
from syncd.lint.credentials import check_credentials
from syncd.lint.placeholders import check_placeholders
from syncd.lint.scopes import check_scopes
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.config.settings import ConsumerSettings, Settings
    from syncd.core.findings import Finding
    from syncd.core.model import Entry

    _Path = tuple[str | int, ...]

_LIMIT: Final = 5.0
"""Seconds that the look-up of a host name may take."""

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
        *check_scopes(settings, entries, ""),
        *check_placeholders(settings, ""),
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
    return [
        finding("address-unknown", source, key_path(*at), *problem)
        for at, problem in looked_up.items()
        if problem is not None
    ]


def _addresses(consumer: ConsumerSettings) -> Iterator[tuple[_Path, str, str | None]]:
    if isinstance(consumer, Webhook):
        yield ("url" if consumer.socket is None else "socket",), consumer.url, consumer.socket
        return
    for index, url in enumerate(consumer.urls):
        yield ("urls", index), url, None


def _problem(url: str, path: str | None) -> tuple[str, str] | None:
    if path is not None:
        hint = "start the receiver, or correct the path"
        return None if os.path.exists(path) else (f"there is no socket {path}", hint)
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            return f"{host} cannot be looked up now", "check the resolver, and try again"
        return f"there is no host {host}", "correct the name, or add it to the DNS"
    return None
