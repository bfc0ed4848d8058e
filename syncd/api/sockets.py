"""The sockets that the API listens on: inherited from systemd, or opened here.

A Unix socket is never more accessible than configured: the mode that `fchmod` sets on a socket
before `bind` bounds the mode of the file that `bind` makes (unix(7), net/unix/af_unix.c
`unix_bind_bsd`). The file of a process that has ended is replaced; connecting to it shows whether
the process still runs.

All of this blocks: call it in a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from syncd.core.address import parse_host_port
from syncd.core.errors import ConfigurationError, ListenError
from syncd.core.findings import finding
from syncd.system import errnos
from syncd.system.accounts import group_id

if TYPE_CHECKING:
    from collections.abc import MutableMapping

FIRST_INHERITED: Final = 3
"""The first descriptor that systemd passes (`SD_LISTEN_FDS_START`, sd_listen_fds(3))."""

BACKLOG: Final = 2048
"""Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`."""

_NAMES: Final = {
    "api": "api",
    "credentials": "credentials",
    **dict.fromkeys(("listen", "metrics", "probes"), "probes"),
}
_UNRESOLVED: Final = (
    socket.EAI_AGAIN,
    socket.EAI_FAIL,
    socket.EAI_MEMORY,
    socket.EAI_SYSTEM,
)
"""Errors of getaddrinfo(3) that do not say that a host has no address."""

_ACTIVATION: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket.

    Attributes:
        socket: Bound and listening.
        address: The address for log lines.
        path: The socket's file, removed at the end; None for a socket that systemd owns.
        inode: Device and inode of that file: a file that replaced it is not removed.
    """

    socket: socket.socket
    address: str
    path: str | None = None
    inode: tuple[int, int] | None = None

    def close(self) -> None:
        """Stops listening, and removes the file unless it was replaced."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                found = os.lstat(self.path)
                if (found.st_dev, found.st_ino) == self.inode:
                    os.unlink(self.path)
        self.socket.close()


@dataclass(frozen=True, slots=True)
class Inherited:
    """The sockets that systemd passed: at most one for each purpose."""

    api: Listener | None = None
    probes: Listener | None = None
    credentials: Listener | None = None
    ignored: tuple[str, ...] = ()


def inherit(environ: MutableMapping[str, str]) -> Inherited:
    """Takes the sockets of a socket-activated service (sd_listen_fds(3)).

    A Unix socket is the API's and a TCP socket the probes', unless `FileDescriptorName=` is
    `api`, `probes` or `credentials`. The variables are removed: child processes do not inherit the
    sockets.
    """
    pid, count, names = (environ.pop(name, "") for name in _ACTIVATION)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return Inherited()
    taken: dict[str, Listener] = {}
    ignored = []
    labels = names.split(":")
    for index in range(int(count)):
        label = labels[index] if index < len(labels) else ""
        listener = _adopt(FIRST_INHERITED + index)
        if listener is None:
            ignored.append(label or f"fd {FIRST_INHERITED + index}")
            continue
        unix = listener.socket.family == socket.AF_UNIX
        purpose = _NAMES.get(label, "api" if unix else "probes")
        # only a Unix socket has peer credentials, which identify the caller
        if purpose not in taken and (unix or purpose == "probes"):
            taken[purpose] = listener
        else:
            listener.close()
            ignored.append(label or listener.address)
    return Inherited(**taken, ignored=tuple(ignored))


def _adopt(descriptor: int) -> Listener | None:
    try:
        os.set_inheritable(descriptor, False)
        found = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        listening = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        known = found.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        if found.type == socket.SOCK_STREAM and listening and known:
            found.setblocking(False)
            return Listener(found, f"{_shown(found)} (from systemd)")
    except OSError:
        pass
    found.close()
    return None


def _shown(found: socket.socket) -> str:
    name = found.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    return repr(name) if isinstance(name, bytes) else str(name)


def make_unix(path: str, mode: int, group: str | None, key: str = "api.socket") -> Listener:
    """Opens a listening Unix socket, and creates its directory if only that one is missing.

    Args:
        path: The socket's file.
        mode: Permission bits of the file; connecting takes write permission (unix(7)).
        group: Owner group by name or number, or None for the process's own.
        key: The configuration key of the path, for messages.

    Raises:
        ConfigurationError: The group does not exist, or this process is not a member of it.
        ListenError: The path cannot be used, or another process listens there.
    """
    _make_room(path, key)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise _refusal(path, error, key) from None
    try:
        os.fchmod(listener.fileno(), 0o600)
        try:
            listener.bind(path)
        except OSError as error:
            raise _refusal(path, error, key) from None
        found = os.lstat(path)
        made = Listener(listener, path, path, (found.st_dev, found.st_ino))
    except BaseException:
        listener.close()
        raise
    try:
        set_access(made, mode, group)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def set_access(listener: Listener, mode: int, group: str | None) -> None:
    """Sets who may connect to a Unix socket; does nothing to one that systemd made.

    Raises:
        ConfigurationError: The group does not exist, or this process is not a member of it.
        ListenError: The mode cannot be set.
    """
    path = listener.path
    if path is None:
        return
    if group is not None:
        try:
            os.chown(path, -1, group_id(group))
        except LookupError:
            hint = "create the group, or name another one"
            raise _misconfigured("socket_group", f"there is no group {group}", hint) from None
        except OSError as error:
            if error.errno == errno.EPERM:
                hint = "make syncd's user a member of the group"
                problem = f"{group} cannot own the socket"
            elif error.errno == errno.EINVAL:
                hint = "use a group that it maps"
                problem = f"the user namespace of syncd does not map {group}"
            else:
                raise _refusal(path, error) from None
            raise _misconfigured("socket_group", problem, hint) from None
    try:
        os.chmod(path, mode)
    except OSError as error:
        raise _refusal(path, error) from None


def _make_room(path: str, key: str) -> None:
    """Creates the directory, and removes the socket of a process that has ended."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o755)
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refusal(path, error, key) from None
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(
            f"cannot listen on {path}: a file that is not a socket is there",
            f"remove the file or change {key}",
        )
    if _answers(path, key):
        raise ListenError(
            f"cannot listen on {path}: another process listens there",
            f"stop the process or change {key}",
        )
    try:
        os.unlink(path)
    except OSError as error:
        raise _refusal(path, error, key) from None


def _answers(path: str, key: str) -> bool:
    """Whether a process listens: only ECONNREFUSED, or no file at all, means that none does.

    Raises:
        ListenError: It cannot be found out.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)  # with a full backlog, connecting would block
            caller.connect(path)
    except OSError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
            return False
        if error.errno not in (errno.EAGAIN, errno.EINPROGRESS, errno.EPROTOTYPE):
            raise _refusal(path, error, key) from None
    return True


def make_tcp(listen: str) -> Listener:
    """Opens a listening TCP socket.

    Args:
        listen: `host:port`, an IPv6 address in brackets.

    Raises:
        ConfigurationError: The host has no address.
        ListenError: The address cannot be listened on.
    """
    parsed = parse_host_port(listen)
    assert parsed is not None  # the configuration was validated
    host, port = parsed
    try:
        flags = socket.AI_PASSIVE
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        if isinstance(error, socket.gaierror) and error.errno in _UNRESOLVED:
            problem = f"cannot listen on {listen}: the resolver does not answer ({error.strerror})"
            raise ListenError(problem, "write an IP address in api.listen") from None
        hint = "write an address of this machine, such as 127.0.0.1:9753"
        raise _misconfigured("listen", f"{host} has no address", hint) from None
    family, _, _, _, address = found[0]
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _not_listening(listen, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _not_listening(listen, error) from None
    return Listener(listener, _shown(listener))


def _not_listening(listen: str, error: OSError) -> ListenError:
    remedies = {
        errno.EADDRINUSE: "free the address or change api.listen",
        errno.EADDRNOTAVAIL: "write an address of this machine in api.listen",
        errno.EAFNOSUPPORT: "write an address of a family that this machine has in api.listen",
    }
    access = "use a port above 1023 in api.listen"
    remedy = remedies.get(error.errno or 0) or errnos.remedy(
        error, path="change api.listen", access=access, otherwise="change api.listen"
    )
    return ListenError(f"cannot listen on {listen}: {errnos.reason(error)}", remedy)


def _refusal(path: str, error: OSError, key: str = "api.socket") -> ListenError:
    correction = f"set {key} to a path of at most 107 bytes in a writable directory"
    # "AF_UNIX path too long" comes without an errno
    reason = error.strerror or "the path is too long"
    remedy = errnos.remedy(error, path=correction, access=correction, otherwise=correction)
    return ListenError(f"cannot listen on {path}: {reason}", remedy)


def _misconfigured(key: str, message: str, hint: str) -> ConfigurationError:
    where = f"api.{key}"
    return ConfigurationError([finding("config-invalid", "configuration", where, message, hint)])
