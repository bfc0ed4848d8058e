"""`syncd check`: what syncd must be able to make when it starts: its state, its sockets, its port.

`syncd run` refuses to start without them, so they are judged here for the user that will run. What
systemd makes for a unit (`StateDirectory=`, `RuntimeDirectory=`) counts as there.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

from syncd.config.settings import Settings
from syncd.core.address import parse_host_port
from syncd.core.findings import finding, key_path
from syncd.ledger.file import is_trusted
from syncd.system.accounts import group_id, user_id
from syncd.system.errnos import reason
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncd.config.settings import RelaySettings
    from syncd.core.findings import Finding
    from syncd.system.units import Unit

_LIMIT: Final = 5.0
"""Seconds to look up a host name and to look at directories."""

_LONGEST_SOCKET: Final = 107
"""Bytes of a Unix socket's path (unix(7))."""

_MADE: Final = {
    "StateDirectory": "/var/lib",
    "RuntimeDirectory": "/run",
    "CacheDirectory": "/var/cache",
    "LogsDirectory": "/var/log",
}
"""What systemd makes, writable for the unit's user, and where (systemd.exec(5))."""


def check_places(
    settings: Settings | RelaySettings, source: str, unit: Unit | None
) -> list[Finding]:
    """The findings about state, sockets, port and accounts. Blocks, for a limited time.

    Args:
        settings: The configuration.
        source: Where it was read.
        unit: The unit that will run it, or None.
    """
    found = gather({"": partial(_all, settings, source, unit)}, _LIMIT)
    if not found:
        message = "its file system, or the server that resolves names, does not answer"
        hint = "check the mounts of state_dir and the sockets, and the resolver"
        return [finding("state-unusable", source, "state_dir", message, hint)]
    return found[""]


def _all(settings: Settings | RelaySettings, source: str, unit: Unit | None) -> list[Finding]:
    return [
        *_state(settings.state_dir, source, unit),
        *_sockets(settings, source, unit),
        *_port(settings.api.listen, source),
        *_accounts(settings, source),
    ]


def _state(path: str, source: str, unit: Unit | None) -> Iterator[Finding]:
    hint = "set state_dir to a directory that syncd's user can write to"
    if os.geteuid() == 0 and unit is None:
        hint += ", or name that user by --as if it is not root"
    if not _is_made(path, unit):
        problem = _read_only(path, unit) or _unwritable(path, deep=True)
        if problem is not None:
            yield finding("state-unusable", source, "state_dir", f"{path} {problem}", hint)


def _sockets(
    settings: Settings | RelaySettings, source: str, unit: Unit | None
) -> Iterator[Finding]:
    sockets = {"api.socket": settings.api.socket}
    if isinstance(settings, Settings):
        sockets["credentials.socket"] = settings.credentials.socket
    for where, path in sockets.items():
        directory = os.path.dirname(path)
        if not path:
            continue
        problem = None
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            problem = f"is longer than {_LONGEST_SOCKET} bytes"
        elif not _is_made(directory, unit):
            problem = _read_only(directory, unit) or _unwritable(directory, deep=False)
        if problem is None and not _is_replaceable(path):
            problem = "is there and not a socket"
        if problem is not None:
            hint = f"set {where} to a path in a directory that syncd's user can write to"
            yield finding("listen-unusable", source, where, f"{path} {problem}", hint)


def _is_replaceable(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return True


def _port(listen: str, source: str) -> Iterator[Finding]:
    """Binds the port for a moment; one that is in use may be the running daemon's."""
    address = parse_host_port(listen)
    if address is None:
        return
    hint = "write an address of this machine, such as 127.0.0.1:9753"
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as attempt:
            attempt.bind(place)
    except (socket.gaierror, UnicodeError):  # the second for a label that is empty or too long
        message = f"{address[0]} is not known: no address for this name"
        yield finding("listen-unusable", source, "api.listen", message, hint)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            if error.errno == errno.EACCES:
                hint = "use a port above 1023, or give the service CAP_NET_BIND_SERVICE"
            message = f"cannot listen on {listen}: {reason(error)}"
            yield finding("listen-unusable", source, "api.listen", message, hint)


def _accounts(settings: Settings | RelaySettings, source: str) -> Iterator[Finding]:
    groups = {"api.socket_group": settings.api.socket_group}
    users: dict[str, str | None] = {}
    if isinstance(settings, Settings):
        for index, entry in enumerate(settings.provision):
            users[key_path("provision", index, "owner")] = entry.owner
            groups[key_path("provision", index, "group")] = entry.group
    for kind, accounts, number_of in (("group", groups, group_id), ("user", users, user_id)):
        for where, name in accounts.items():
            try:
                number = None if name is None else number_of(name)
            except LookupError:
                message, hint = f"there is no {kind} {name}", f"create the {kind}, or name another"
                yield finding("user-unknown", source, where, message, hint)
            else:
                if number is not None and kind == "group" and not _may_give(number):
                    message = f"syncd's user is not a member of {name}, and cannot give files to it"
                    hint = "make the user a member (usermod -aG), or name another group"
                    yield finding("group-foreign", source, where, message, hint)


def _may_give(gid: int) -> bool:
    return os.geteuid() == 0 or gid in (os.getegid(), *os.getgroups()) or _has_chown()


def _has_chown() -> bool:
    with open("/proc/thread-self/status") as file:
        effective = next((line for line in file if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(effective.split()[1], 16) & 1)


def _is_made(path: str, unit: Unit | None) -> bool:
    """Whether systemd makes a directory, or one above it, for the unit."""
    return unit is not None and any(
        f"{path}/".startswith(f"{base}/{name.partition(':')[0]}/")
        for key, base in _MADE.items()
        for name in unit.words(key)
    )


def _read_only(path: str, unit: Unit | None) -> str | None:
    if unit is None or unit.last("ProtectSystem") != "strict":
        return None
    writable = [word.lstrip("-+") for word in unit.words("ReadWritePaths")]
    if any(f"{path}/".startswith(f"{known.rstrip('/')}/") for known in (*writable, "/tmp")):  # noqa: S108 - of the unit
        return None
    return f"is read-only for {unit.name} (ProtectSystem=strict without ReadWritePaths=)"


def _unwritable(path: str, *, deep: bool) -> str | None:
    """Why a directory cannot be made and written to, as the end of a sentence, or None.

    Args:
        path: The directory.
        deep: Whether its parents are made, too; else only itself.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _unmakable(path, deep=deep)
    except OSError as error:
        return f"cannot be looked at: {reason(error)}"
    if not stat.S_ISDIR(status.st_mode):
        return "is not a directory"
    if deep and not is_trusted(status):
        return f"belongs to uid {status.st_uid}, who could replace its files"
    return None if os.access(path, os.W_OK | os.X_OK) else "is not writable for syncd's user"


def _unmakable(path: str, *, deep: bool) -> str | None:
    parent = os.path.dirname(path)
    if not deep and not os.path.isdir(parent):
        return f"is missing, and so is {parent}"
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        return f"is missing, and {parent} is not a directory"
    return None if os.access(parent, os.W_OK | os.X_OK) else f"cannot be made in {parent}"
