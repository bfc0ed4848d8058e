"""What a service tells systemd (sd_notify(3)), without libsystemd.

Messages go to the datagram socket that `$NOTIFY_SOCKET` names, a path or, with a leading `@`, a
name in the abstract namespace. Telling is best effort, as there: outside of systemd nothing
happens, and a socket that is away or full stops nobody.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Mapping


class Notifier:
    """Tells systemd how the service is doing.

    Args:
        environ: The environment.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""
        self._interval = _watchdog_interval(environ) if address else None
        self._socket = None
        if address.startswith(("@", "/")):
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )

    def ready(self) -> None:
        """Startup, or a reload, is done."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` must follow, whatever comes of it.

        `Type=notify-reload` matches it to its signal by the monotonic clock, in microseconds.
        """
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """The shutdown has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for `systemctl status`; sent when it is another one than before."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    async def keep_watchdog(self) -> None:
        """Pats the watchdog at half of its interval, if there is one, until cancelled.

        Runs in the event loop on purpose: when that hangs, the pats stop.
        """
        while self._interval is not None:
            self._send("WATCHDOG=1")
            await anyio.sleep(self._interval / 2)

    def close(self) -> None:
        """Lets go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Seconds that `$WATCHDOG_USEC` allows, if it is meant for this process (`$WATCHDOG_PID`)."""
    text = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = int(text) if text.isascii() and text.isdigit() else 0
    return microseconds / 1e6 or None
