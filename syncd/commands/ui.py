"""`syncd ui`: serves a page for people on loopback until it is interrupted."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Final

import anyio

from syncd.api.admission import Newest
from syncd.api.report import StatusReport
from syncd.api.server import Server
from syncd.api.subscribers import peer_of
from syncd.commands.client import Client
from syncd.commands.webui.app import Ui
from syncd.commands.webui.guard import Guard
from syncd.core.address import is_loopback, parse_host_port
from syncd.core.errors import SyncdError

if TYPE_CHECKING:
    from collections.abc import Callable

_CONNECTIONS: Final = 32
_GRACE: Final = 0.5
_ANY_PORT: Final = ":0"


def address_of(listen: str) -> tuple[str, int]:
    """Splits `--listen`; port 0 is any free one.

    Raises:
        SyncdError: It is not an address of loopback.
    """
    any_port = listen.endswith(_ANY_PORT)
    found = parse_host_port(f"{listen.removesuffix(_ANY_PORT)}:1" if any_port else listen)
    if found is None or not is_loopback(found[0]):
        raise SyncdError(
            f"cannot listen on {listen}: it is not an address of this machine alone",
            "use 127.0.0.1:0, and ssh -L to reach it from another machine",
        )
    host = found[0] if ":" in found[0] or found[0][0].isdigit() else "127.0.0.1"
    return host, 0 if any_port else found[1]


async def serve(path: str, listen: str, show: Callable[[str], None]) -> None:
    """Serves the page until SIGINT or SIGTERM.

    Args:
        path: The daemon's socket.
        listen: `host:port` on loopback.
        show: Called with the address, which has the one-time token.

    Raises:
        UnreachableError: The daemon cannot be reached.
        DeniedError: It refused.
        SyncdError: The address cannot be listened on.
    """
    host, port = address_of(listen)
    with Client(path) as client:
        client.get("/v1/status", StatusReport)
    guard = Guard()
    ui = Ui(path, guard, may_act=_is_privileged(path))
    server = Server(ui.app(), Newest(_CONNECTIONS))
    with _listener(host, port) as listening:
        await server.start(listening)
        shown = f"[{host}]" if ":" in host else host
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            show(f"http://{shown}:{listening.getsockname()[1]}{guard.path}#{guard.token}")
            async for _ in signals:
                break
        await server.stop(_GRACE)
        await ui.aclose()


def _is_privileged(path: str) -> bool:
    """Whether this is root or the daemon's own user, whom it lets do what changes something."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
            daemon = peer_of(probe)
        except OSError:
            return False
    return os.geteuid() in (0, daemon.uid)


def _listener(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        problem = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise SyncdError(problem, "choose another port by --listen, or 0 for a free one") from None
    return listening
